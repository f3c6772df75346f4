"""What one loss sends to a router, its experts and its gates, and what moves when copies train for a few steps."""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from casestudies_lib.probes.guard import left_as_found, random_left_as_found
from casestudies_lib.probes.inputs import Loss, checked_loss, kind_of
from casestudies_lib.probes.names import UnknownName, matching
from casestudies_lib.probes.passes import below_rounding, values_of
from casestudies_lib.probes.result import ProbeInputError

ROUTER_NAMES = ("router", "gate", "gating", "switch")
ROUTER_CLASSES = ("router", "gating")


@dataclass(frozen=True)
class Parts:
    """What was named: routers, experts and gates (with the axis of their slots), by the module's own names."""

    routers: Mapping[str, nn.Module]
    experts: Mapping[str, nn.Module]
    gates: Mapping[str, tuple[nn.Module, int]]

    @property
    def observed(self) -> dict[str, tuple[nn.Module, int]]:
        """Return every submodule whose output is a statistic: the gates, and the routers along their last axis."""
        return {**{name: (part, -1) for name, part in self.routers.items()}, **self.gates}


@dataclass
class Reached:
    """What one loss sends back, as norms; None where there is no path.

    Attributes:
        parameters: by parameter.
        slots: by gate, one number a slot, over all other axes; None where the output can carry no gradient.
        means: by router and gate, the mean output a slot.
        used: by gate, the share of outputs that are not zero, one a slot.
        ran: the experts of which any part ran.
    """

    parameters: dict[str, float | None] = field(default_factory=dict)
    slots: dict[str, list[float] | None] = field(default_factory=dict)
    means: dict[str, list[float]] = field(default_factory=dict)
    used: dict[str, list[float]] = field(default_factory=dict)
    ran: set[str] = field(default_factory=set)


def parts_of(module: nn.Module, routers: object, experts: object, gates: object) -> Parts:
    """Return the submodules that the patterns name.

    Raises:
        ProbeInputError: a pattern matches nothing (with near names); nothing is named and nothing looks like a router.
    """
    if gates is not None and not isinstance(gates, Mapping):
        raise ProbeInputError(f"gates is {kind_of(gates)}; give a mapping of names to axes, such as {{'*.gate': -1}}")
    named = _matched(module, "routers", routers)
    if routers is None and experts is None and not gates:
        named = _guessed(module)
    axes = {}
    for pattern, axis in (gates or {}).items():
        if isinstance(axis, bool) or not isinstance(axis, int):
            raise ProbeInputError(
                f"gates[{pattern!r}] is {axis!r}; give the axis that counts heads or experts, such as -1"
            )
        axes |= {name: (part, axis) for name, part in _matched(module, "gates", pattern).items()}
    return Parts(named, _matched(module, "experts", experts), axes)


def reached(module: nn.Module, loss: Loss, batch: Any, parts: Parts, *, auxiliary: bool = False) -> Reached:
    """Return what a loss sends back in one pass, with everything left as it was found.

    Raises:
        ProbeInputError: the loss is not one finite number with a graph; an auxiliary one may lack the graph.
    """
    parameters = {name: value for name, value in module.named_parameters() if value.requires_grad and value.numel()}
    with left_as_found(module), torch.inference_mode(False), torch.enable_grad():
        with watched(parts.observed, feelers=True) as outputs, _noted(parts.experts) as ran:
            value = loss(module, batch)
        if auxiliary and (isinstance(value, int | float) or (isinstance(value, Tensor) and not value.requires_grad)):
            # A loss that is only printed.
            return Reached(dict.fromkeys(parameters))
        value = checked_loss(value)
        feelers = [(name, feeler) for name, kept in outputs.items() for _, feeler in kept if feeler is not None]
        wanted = [*parameters.values(), *(feeler for _, feeler in feelers)]
        found = torch.autograd.grad(value, wanted, allow_unused=True)
        answer = Reached(
            _norms(parameters, found),
            means={name: _means(name, kept, parts) for name, kept in outputs.items() if kept},
            ran=ran,
        )
        felt = [(name, feeler, grad) for (name, feeler), grad in zip(feelers, found[len(parameters) :])]
        for name, (_, axis) in parts.gates.items():
            pairs = [(feeler, grad) for owner, feeler, grad in felt if owner == name]
            answer.slots[name] = _slots(pairs, axis) if pairs else None
            answer.used[name] = _used(outputs[name], axis)
    return answer


@contextmanager
def watched(
    observed: Mapping[str, tuple[nn.Module, int]], *, feelers: bool = False
) -> Iterator[dict[str, list[tuple[Tensor, Tensor | None]]]]:
    """Keep the first tensor of every output of these submodules while the block runs.

    With `feelers` a tensor of zeros is added to each output; its gradient is that of the output, whether or not
    anything before the output asks for one.

    Raises:
        ProbeInputError: a submodule did not run, or has no such axis.
    """
    kept: dict[str, list[tuple[Tensor, Tensor | None]]] = {name: [] for name in observed}
    with ExitStack() as hooks:
        for name, (part, axis) in observed.items():
            hooks.callback(part.register_forward_hook(_keeper(kept[name], name, axis, feelers)).remove)
        yield kept


@contextmanager
def _noted(experts: Mapping[str, nn.Module]) -> Iterator[set[str]]:
    """Note which experts run, in whole or in part, while the block does."""
    ran: set[str] = set()
    with ExitStack() as hooks:
        for name, expert in experts.items():
            for part in expert.modules():
                hooks.callback(part.register_forward_hook(lambda *_, name=name: ran.add(name)).remove)
        yield ran


def check_ran(parts: Parts, seen: Reached) -> None:
    """Refuse gates that the loss does not run.

    Raises:
        ProbeInputError: names the first.
    """
    for name in parts.gates:
        if name not in seen.means:
            raise ProbeInputError(
                f"gates: {name!r} gave no tensor while the loss ran, so that nothing can be read off it; name a "
                "submodule that is called and returns a tensor"
            )


def slot_means(outputs: Sequence[Tensor], axis: int) -> Tensor:
    """Return the mean over everything but the slots, all outputs of one submodule together."""
    slots = outputs[0].shape[axis]
    alike = [output.detach().double() for output in outputs if output.shape[axis] == slots]
    return torch.cat([output.movedim(axis, 0).reshape(slots, -1) for output in alike], dim=1).mean(1)


def _matched(module: nn.Module, argument: str, patterns: object) -> dict[str, nn.Module]:
    if patterns is None:
        return {}
    listed = [patterns] if isinstance(patterns, str) else patterns
    if not isinstance(listed, list | tuple | set) or not all(isinstance(pattern, str) for pattern in listed):
        raise ProbeInputError(
            f"{argument} is {kind_of(patterns)}; give a name, a pattern such as '*.router', or several"
        )
    named = {name: part for name, part in module.named_modules() if name}
    try:
        return {name: named[name] for name in matching(listed, list(named), "submodule")}
    except UnknownName as error:
        raise ProbeInputError(f"{argument}: {error}") from None


def _guessed(module: nn.Module) -> dict[str, nn.Module]:
    named = {name: part for name, part in module.named_modules() if name}
    found = {name: part for name, part in named.items() if _like_a_router(name, part)}
    if not found:
        raise ProbeInputError(
            f"no submodule of {type(module).__name__} looks like a router (named {', '.join(ROUTER_NAMES)}); name it, "
            f"such as routers='*.router', or gates or experts; some submodules: {', '.join(list(named)[:8]) or 'none'}"
        )
    return found


def _like_a_router(name: str, part: nn.Module) -> bool:
    own = name.split(".")[-1].lower()
    return own in ROUTER_NAMES or any(word in type(part).__name__.lower() for word in ROUTER_CLASSES)


def _keeper(kept: list[tuple[Tensor, Tensor | None]], name: str, axis: int, feelers: bool) -> Callable[..., Any]:
    def keep(_part: nn.Module, _into: Any, out: Any) -> Any:
        first = next((leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor) and leaf.dim()), None)
        if first is None:
            return None
        if not -first.dim() <= axis < first.dim():
            raise ProbeInputError(f"gates: {name!r} returns shape {tuple(first.shape)}, which has no axis {axis}")
        feeler = None
        # Only a plain tensor can be replaced without taking a container of the reader's apart.
        if feelers and first is out and first.is_floating_point():
            feeler = torch.zeros_like(first).requires_grad_()
        kept.append((first, feeler))
        return None if feeler is None else first + feeler

    return keep


def _means(name: str, kept: Sequence[tuple[Tensor, Tensor | None]], parts: Parts) -> list[float]:
    return slot_means([output for output, _ in kept], parts.observed[name][1]).tolist()


def _slots(pairs: Sequence[tuple[Tensor, Tensor | None]], axis: int) -> list[float]:
    slots = pairs[0][0].shape[axis]
    squares = torch.zeros(slots, dtype=torch.float64)
    for feeler, grad in pairs:
        if grad is not None and feeler.shape[axis] == slots:
            squares += grad.double().movedim(axis, 0).reshape(slots, -1).square().sum(1).cpu()
    return squares.sqrt().tolist()


def _used(kept: Sequence[tuple[Tensor, Tensor | None]], axis: int) -> list[float]:
    return slot_means([output != 0 for output, _ in kept], axis).tolist() if kept else []


def _norms(parameters: Mapping[str, Tensor], gradients: Sequence[Tensor | None]) -> dict[str, float | None]:
    """Return the gradients' norms by parameter; one that is rounding next to the largest counts as zero."""
    norms = {name: None if grad is None else _norm(grad) for name, grad in zip(parameters, gradients)}
    sizes = {name: (norm or 0.0) / math.sqrt(parameters[name].numel()) for name, norm in norms.items()}
    largest = max((size for size in sizes.values() if math.isfinite(size)), default=0.0)
    return {name: 0.0 if norm and below_rounding(sizes[name], largest) else norm for name, norm in norms.items()}


def _norm(gradient: Tensor) -> float:
    values = values_of(gradient.detach())
    norm = float(torch.linalg.vector_norm(values, dtype=torch.float64))
    # The square of a tiny number vanishes; a gradient that is there must not read as zero.
    return norm if norm or not bool(values.any()) else math.ulp(0.0)


Factory = Callable[[list[nn.Parameter]], Optimizer]


@dataclass(frozen=True)
class Move:
    """How far one statistic of a router moves in a trial.

    Attributes:
        whole: change over the size before, everything training (the change itself where the size is 0).
        held: the same with the router's own parameters held still: what the drift of its input does.
        task: the same on the task loss alone; None without an auxiliary loss.
    """

    whole: float
    held: float
    task: float | None


def trial(
    module: nn.Module,
    loss: Loss,
    auxiliary: Loss | None,
    batch: Any,
    names: Mapping[str, Any],
    factory: Factory,
    steps: int,
) -> dict[str, Move]:
    """Return how far the routers' outputs, parameters and buffers move in copies that train.

    Raises:
        ProbeInputError: the factory returns no optimiser.
        Exception: whatever copying the module or training the copy raises.
    """

    def both(twin: nn.Module, given: Any) -> Tensor:
        extra = auxiliary(twin, given)
        # A loss that is only printed has no graph, and adds nothing to the gradient.
        return loss(twin, given) + extra

    objective = loss if auxiliary is None else both
    before, whole = _trained(module, objective, batch, names, factory, steps, hold=False)
    _, held = _trained(module, objective, batch, names, factory, steps, hold=True)
    task = None if auxiliary is None else _trained(module, loss, batch, names, factory, steps, hold=False)[1]
    return {
        name: Move(
            _change(start, whole[name]),
            _change(start, held[name]),
            None if task is None else _change(start, task[name]),
        )
        for name, start in before.items()
    }


def _trained(
    module: nn.Module,
    objective: Loss,
    batch: Any,
    names: Mapping[str, Any],
    factory: Factory,
    steps: int,
    hold: bool,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the statistics before and after some steps of a copy."""
    twin = copy.deepcopy(module)
    parts = parts_of(twin, **names)
    own = {id(parameter) for part in parts.routers.values() for parameter in part.parameters()}
    with random_left_as_found(), torch.inference_mode(False), torch.enable_grad():
        before = _statistics(twin, objective, batch, parts)
        trained = [p for p in twin.parameters() if p.requires_grad and not (hold and id(p) in own)]
        optimiser = _optimiser(factory, trained) if trained else None
        for _ in range(steps if optimiser else 0):
            optimiser.zero_grad()
            objective(twin, batch).backward()
            optimiser.step()
        return before, _statistics(twin, objective, batch, parts)


def _optimiser(factory: Factory, trained: Iterable[nn.Parameter]) -> Optimizer:
    optimiser = factory(list(trained))
    if not isinstance(optimiser, Optimizer):
        raise ProbeInputError(
            f"optimiser returned {kind_of(optimiser)}; give a function of parameters that returns an Optimizer"
        )
    return optimiser


def _statistics(module: nn.Module, objective: Loss, batch: Any, parts: Parts) -> dict[str, Tensor]:
    with torch.no_grad(), random_left_as_found(), watched(parts.observed) as outputs:
        objective(module, batch)
    found = {
        f"{name}, mean output": slot_means([out for out, _ in kept], parts.observed[name][1])
        for name, kept in outputs.items()
        if kept
    }
    for name, part in parts.routers.items():
        for kind, tensors in (("parameter", part.named_parameters()), ("buffer", part.named_buffers())):
            found |= {f"{name}.{own}, {kind}": tensor.detach().double().clone() for own, tensor in tensors}
    return found


def _change(start: Tensor, end: Tensor) -> float:
    size = float(torch.linalg.vector_norm(start))
    return float(torch.linalg.vector_norm(end - start)) / (size or 1.0)
