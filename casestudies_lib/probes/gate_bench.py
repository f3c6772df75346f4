"""Put a gate to other values on copies of a reader's model, and read loss, gradient, output and saturation there."""

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from casestudies_lib.probes.guard import random_left_as_found
from casestudies_lib.probes.inputs import Loss, checked_loss
from casestudies_lib.probes.result import ProbeInputError
from casestudies_lib.probes.signals import first_tensor
from casestudies_lib.probes.twins import Precision, double_by_default, double_twin_of, in_double, twin_of
from casestudies_lib.probes.work import graph, values_of

SIGMOID, TANH = "sigmoid", "tanh"
_STEEPEST = {SIGMOID: 0.25, TANH: 1.0}
_NODES = {"SigmoidBackward0": SIGMOID, "TanhBackward0": TANH}
# Through these a gate reaches its squashing function unscaled; of a product only the added bias does.
_PLAIN_PATH = (
    *("AddBackward", "AddmmBackward", "SubBackward", "ViewBackward", "UnsafeViewBackward", "ReshapeAliasBackward"),
    *("ExpandBackward", "UnsqueezeBackward", "SqueezeBackward", "TransposeBackward", "PermuteBackward", "TBackward"),
    *("SelectBackward", "IndexBackward", "SliceBackward", "CloneBackward", "ToCopyBackward", "UnbindBackward"),
)


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
