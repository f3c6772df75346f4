"""Put a gate to other values, and train it, on copies of a model; read loss, gradient, output and movement there."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from casestudies_lib.probes.copies import (
    Precision,
    double_by_default,
    double_twin_of,
    in_double,
    reseed_all,
    twin_of,
    twin_optimiser,
)
from casestudies_lib.probes.guard import random_left_as_found
from casestudies_lib.probes.inputs import Loss, checked_loss
from casestudies_lib.probes.passes import first_tensor, graph, values_of
from casestudies_lib.probes.result import ProbeInputError

SIGMOID, TANH = "sigmoid", "tanh"
_STEEPEST = {SIGMOID: 0.25, TANH: 1.0}
_NODES = {"SigmoidBackward0": SIGMOID, "TanhBackward0": TANH}
# Through these a gate reaches its squashing function unscaled; of a product only the added bias does.
_PLAIN_PATH = (
    *("AddBackward", "AddmmBackward", "SubBackward", "ViewBackward", "UnsafeViewBackward", "ReshapeAliasBackward"),
    *("ExpandBackward", "UnsqueezeBackward", "SqueezeBackward", "TransposeBackward", "PermuteBackward", "TBackward"),
    *("SelectBackward", "IndexBackward", "SliceBackward", "CloneBackward", "ToCopyBackward", "UnbindBackward"),
)

# Without an optimiser of the reader's, this one tells whether a silent gate wakes up.
STAND_IN_RATE = 1e-4
# Of a loss's random numbers: one draw of dropout can make a healthy gate look as if decay alone moved it.
DRAWS = 8


@dataclass(frozen=True)
class Squash:
    """What became of a gate in its sigmoid or tanh, for each of its entries, on this batch.

    Attributes:
        kind: sigmoid or tanh.
        opening: mean of what comes out.
        slope: mean slope relative to the steepest, 1 at the middle of the curve and 0 at its ends.
    """

    kind: str
    opening: tuple[float, ...]
    slope: tuple[float, ...]


@dataclass(frozen=True)
class Evaluation:
    """One pass: the loss, each gate's gradient (flat; None if the gate is out of the graph), outputs by submodule."""

    loss: float
    gradients: dict[str, Tensor | None]
    outputs: dict[str, Tensor]
    squashes: dict[str, Squash] = field(default_factory=dict)

    def gradient(self, name: str, index: int) -> float | None:
        """Return one entry's gradient."""
        gradient = self.gradients[name]
        return None if gradient is None else gradient[index].item()


class Bench:
    """Copies of one model with one batch; made by `bench_of`."""

    def __init__(self, module: nn.Module, loss: Loss, batch: Any, names: list[str], watched: list[str]):
        """Keep what to run, and the submodules whose outputs are kept."""
        self._module, self._loss, self._batch = module, loss, batch
        self._names, self._watched = names, watched
        self.precision = torch.float64

    def base(self) -> Evaluation:
        """Return the pass with every gate as it is, and how its squashing function stands.

        Raises:
            ProbeInputError: the loss is not one finite number, or does not depend on the module that it is given.
        """
        with self._copy() as module, Precision() as precision:
            value, outputs = self._forward(module)
            found = Evaluation(value.item(), self._gradients(module, value), outputs, self._squashes(module, value))
        self.precision = precision.lowest
        return found

    def at(self, name: str, index: int, value: float) -> Evaluation | None:
        """Return the pass with one entry of one gate at another value; None where the model does not run there."""
        try:
            with self._copy() as module:
                with torch.no_grad():
                    module.get_parameter(name).view(-1)[index] = value
                loss, outputs = self._forward(module)
                return Evaluation(loss.item(), self._gradients(module, loss, name), outputs)
        except Exception:
            # A gate far from its value can leave the domain of the reader's own code.
            return None

    @contextmanager
    def _copy(self) -> Iterator[nn.Module]:
        with random_left_as_found(), ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            if next(self._module.parameters()).dtype == torch.float64:
                stack.enter_context(double_by_default())
            yield twin_of(self._module)

    def _forward(self, module: nn.Module) -> tuple[Tensor, dict[str, Tensor]]:
        kept: dict[str, list[Tensor]] = {path: [] for path in self._watched}
        for path, outputs in kept.items():
            module.get_submodule(path).register_forward_hook(_keeper(outputs))
        value = checked_loss(self._loss(module, self._batch))
        return value, {path: torch.cat(outputs) for path, outputs in kept.items() if outputs}

    def _gradients(self, module: nn.Module, value: Tensor, only: str | None = None) -> dict[str, Tensor | None]:
        parameters = {name: module.get_parameter(name) for name in self._names if only in (None, name)}
        others = [] if only else [parameter for parameter in module.parameters() if parameter.requires_grad]
        wanted = [*parameters.values(), *others]
        found = torch.autograd.grad(value, wanted, allow_unused=True, retain_graph=True)
        if others and all(gradient is None for gradient in found):
            raise ProbeInputError(
                "loss depends on no parameter of the module that it is given; let it use its first argument, of which "
                "this probe passes copies, and not a model from outside"
            )
        return {
            name: None if gradient is None else values_of(gradient.detach()).flatten()
            for name, gradient in zip(parameters, found)
        }

    def _squashes(self, module: nn.Module, value: Tensor) -> dict[str, Squash]:
        users: dict[Any, list[tuple[Any, int]]] = {}
        for node in graph(value):
            for place, (source, _) in enumerate(node.next_functions):
                users.setdefault(source, []).append((node, place))
        leaves = {id(node.variable): node for node in users if hasattr(node, "variable")}
        found = {}
        for name in self._names:
            parameter = module.get_parameter(name)
            nodes = _squashing_nodes(leaves.get(id(parameter)), users)
            if nodes:
                found[name] = _squash(nodes, parameter.numel())
        return found


def bench_of(
    module: nn.Module, loss: Loss, batch: Any, names: list[str], watched: list[str]
) -> tuple[Bench, Evaluation]:
    """Return a bench in double precision if the model runs there, else in its own, and the pass as things are.

    Raises:
        ProbeInputError: the loss is not one finite number on the module that it is given, or no copy can be made.
        Exception: whatever the reader's own code raises on a plain copy.
    """
    try:
        bench = Bench(_with_gradients(double_twin_of(module), names), loss, in_double(batch), names, watched)
        return bench, bench.base()
    except Exception:
        # Code may insist on its own precision; then it is judged there.
        pass
    try:
        twin = twin_of(module)
    except Exception as error:
        raise ProbeInputError(
            f"module {type(module).__name__} cannot be copied ({type(error).__name__}: {error}); this probe sets gates "
            "on copies. Take out of the module what copy.deepcopy refuses"
        ) from error
    bench = Bench(_with_gradients(twin, names), loss, batch, names, watched)
    return bench, bench.base()


def root_mean_square(values: Tensor) -> float:
    """Return the root mean square of all elements; NaN and infinity pass through."""
    return math.sqrt(values.double().square().mean().item()) if values.numel() else 0.0


def _with_gradients(module: nn.Module, names: list[str]) -> nn.Module:
    for name in names:
        module.get_parameter(name).requires_grad_()
    return module


def _keeper(outputs: list[Tensor]) -> Any:
    def keep(_part: nn.Module, _into: Any, out: Any) -> None:
        tensor = first_tensor(out)
        if tensor is not None:
            outputs.append(tensor.detach().flatten().clone())

    return keep


def _squashing_nodes(leaf: Any, users: Mapping[Any, list[tuple[Any, int]]]) -> list[Any]:
    """Return the sigmoids and tanhs that a leaf reaches by nothing but sums and changes of shape."""
    found, waiting, known = [], [leaf], set()
    while waiting:
        for node, place in users.get(waiting.pop(), []):
            name = node.name()
            if node in known:
                continue
            known.add(node)
            if name in _NODES:
                found.append(node)
            elif name.rstrip("0123456789") in _PLAIN_PATH and (name[:5] != "Addmm" or place == 0):
                waiting.append(node)
    return found


def _squash(nodes: list[Any], entries: int) -> Squash:
    kind = _NODES[nodes[0].name()]
    results = [_by_entry(node._saved_result.detach(), entries) for node in nodes if _NODES[node.name()] == kind]
    result = torch.cat(results, dim=0)
    slope = result * (1 - result) if kind == SIGMOID else 1 - result.square()
    slope = slope / _STEEPEST[kind]
    return Squash(kind, tuple(result.mean(0).tolist()), tuple(slope.mean(0).tolist()))


def _by_entry(result: Tensor, entries: int) -> Tensor:
    """Return what came out with one column an entry: along the last axis of that length, else the same for all."""
    axes = [axis for axis in range(result.dim()) if result.shape[axis] == entries]
    if entries > 1 and axes:
        return result.movedim(axes[-1], -1).reshape(-1, entries)
    return result.reshape(-1, 1).expand(-1, entries)


@dataclass(frozen=True)
class Path:
    """Where one gate goes in some steps.

    Attributes:
        end: its values after the last step, flat.
        pulled: for each entry, whether it had a gradient other than zero in any step.
    """

    end: Tensor
    pulled: Tensor


@dataclass(frozen=True)
class Motion:
    """What some steps do to the gates; `unknown` says why where that could not be tried.

    Attributes:
        steps: how many were taken.
        decayed: each gate's path under the optimiser as it is.
        free: the same with weight decay off for the gates alone; None where the optimiser has no setting of that name.
        stand_in: whether the optimiser is not the reader's, so that only `pulled` means anything.
        draws: where the loss draws random numbers (dropout), the motion under each of several draws; then `decayed`
            and `free` hold their means.
    """

    steps: int
    decayed: dict[str, Path]
    free: dict[str, Path] | None
    stand_in: bool
    unknown: str = ""
    draws: tuple["Motion", ...] = ()


def motion_of(
    module: nn.Module, loss: Loss, batches: Sequence[Any], optimiser: Optimizer | None, names: list[str], steps: int
) -> Motion:
    """Return where the gates go in some steps over these batches, taken in turn; the module and optimiser are read."""
    has_decay = optimiser is not None and any("weight_decay" in group for group in optimiser.param_groups)

    def once(seed: int | None = None) -> Motion:
        decayed = _path(module, loss, batches, optimiser, names, steps, seed, decay=True)
        free = _path(module, loss, batches, optimiser, names, steps, seed, decay=False) if has_decay else None
        return Motion(steps, decayed, free, optimiser is None)

    try:
        if optimiser is not None and _draws_random_numbers(module, loss, batches[0]):
            return mean_motion([once(seed) for seed in range(1, DRAWS + 1)])
        return once()
    except Exception as error:
        # An optimiser of the reader's own may want a closure, and a loss may break after a step.
        kind = "the stand-in Adam" if optimiser is None else f"a copy of {type(optimiser).__name__}"
        return Motion(steps, {}, None, optimiser is None, f"{kind} could not step ({type(error).__name__}: {error})")


def mean_motion(draws: Sequence[Motion]) -> Motion:
    """Return the mean of several motions; a gate is pulled where any of them pulls it."""
    decayed = _mean_paths([draw.decayed for draw in draws])
    free = None if draws[0].free is None else _mean_paths([draw.free for draw in draws])
    return Motion(draws[0].steps, decayed, free, draws[0].stand_in, draws=tuple(draws))


def _mean_paths(each: Sequence[dict[str, Path]]) -> dict[str, Path]:
    return {
        name: Path(
            torch.stack([paths[name].end for paths in each]).mean(0),
            torch.stack([paths[name].pulled for paths in each]).any(0),
        )
        for name in each[0]
    }


def _draws_random_numbers(module: nn.Module, loss: Loss, batch: Any) -> bool:
    values = set()
    for seed in (1, 2):
        with random_left_as_found(), torch.inference_mode(False):
            twin = twin_of(module)
            reseed_all(twin, seed)
            values.add(checked_loss(loss(twin, batch)).item())
    return len(values) > 1


def _path(
    module: nn.Module,
    loss: Loss,
    batches: Sequence[Any],
    optimiser: Optimizer | None,
    names: list[str],
    steps: int,
    seed: int | None,
    decay: bool,
) -> dict[str, Path]:
    with random_left_as_found(), torch.inference_mode(False), torch.enable_grad():
        twin = twin_of(module)
        if seed is not None:
            reseed_all(twin, seed)
        twin.zero_grad(set_to_none=True)
        gates = {name: twin.get_parameter(name) for name in names}
        stepper = _stepper(module, twin, optimiser, gates, decay)
        pulled = {name: torch.zeros(gate.numel(), dtype=torch.bool) for name, gate in gates.items()}
        for step in range(steps):
            checked_loss(loss(twin, batches[step % len(batches)])).backward()
            for name, gate in gates.items():
                if gate.grad is not None:
                    pulled[name] |= (gate.grad != 0).flatten().cpu()
            stepper.step()
            twin.zero_grad(set_to_none=True)
        return {name: Path(gate.detach().double().cpu().flatten(), pulled[name]) for name, gate in gates.items()}


def _stepper(
    module: nn.Module, twin: nn.Module, optimiser: Optimizer | None, gates: dict[str, nn.Parameter], decay: bool
) -> Optimizer:
    if optimiser is None:
        return torch.optim.Adam([p for p in twin.parameters() if p.requires_grad], lr=STAND_IN_RATE)
    copied = twin_optimiser(optimiser, dict(zip(module.parameters(), twin.parameters())))
    if not decay:
        _without_decay(copied, list(gates.values()))
    return copied


def _without_decay(optimiser: Optimizer, gates: list[Tensor]) -> None:
    """Move the gates into groups of their own, like those that they stood in, but without weight decay."""
    chosen = {id(gate) for gate in gates}
    split = []
    for group in optimiser.param_groups:
        own = [parameter for parameter in group["params"] if id(parameter) in chosen]
        if own and "weight_decay" in group:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in chosen]
            split.append({**group, "params": own, "weight_decay": 0.0})
    optimiser.param_groups = [group for group in optimiser.param_groups if group["params"]] + split
