"""Where parameters, optimiser, scheduler and averaged weights stand, and how far they have come since."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from casestudies_lib.probes.result import ProbeInputError

Averaged = nn.Module | Mapping[str, Tensor]


@dataclass(frozen=True)
class Counters:
    """What counts by itself: steps by parameter, advances of the scheduler, updates of the average (None: unknown)."""

    steps: dict[str, float] | None
    schedule: int | None
    averaged: int | None


@dataclass(frozen=True)
class Start:
    """The trainable parameters as they were: the objects, and one copy of their values.

    Attributes:
        averaged: copies of the averaged weights where they differ from the live ones, else no second copy.
        together: the averaged weights started where the live ones did.
    """

    objects: dict[str, Tensor]
    values: dict[str, Tensor]
    averaged: dict[str, Tensor]
    together: bool
    counters: Counters


@dataclass(frozen=True)
class Move:
    """How far one parameter came; `moved` is None if another tensor has taken its place.

    Attributes:
        part: the top-level module it belongs to.
        group: its parameter group in the optimiser; None if the optimiser does not hold it.
        start: Euclidean norm before.
        change: Euclidean norm of the difference.
        finite: its values are finite now.
    """

    name: str
    part: str
    group: int | None
    values: int
    moved: bool | None
    start: float
    change: float
    finite: bool


@dataclass(frozen=True)
class Average:
    """How far the averaged weights came.

    Attributes:
        moved: any of them differs from its start.
        share: the way they made along the live weights' displacement, 1 for all of it; None if the two did not start
            together or the live ones stand still.
        updates: how often they were updated; None if nothing counts that.
        start_weight: the weight that the start still has in the average; None if decay or updates are unknown.
    """

    moved: bool
    share: float | None
    updates: int | None
    start_weight: float | None


@torch.no_grad()
def read_start(module: nn.Module, optimiser: Optimizer, scheduler: Any, average: Averaged | None) -> Start:
    """Return where everything stands; copies the trainable parameters once."""
    objects = {name: p for name, p in module.named_parameters() if p.requires_grad and p.numel()}
    values = {name: p.detach().clone() for name, p in objects.items()}
    live = averaged_tensors(average, objects) if objects else {}
    own = {name: tensor.detach().clone() for name, tensor in live.items() if _apart(tensor, objects.get(name))}
    counters = read_counters(objects, optimiser, scheduler, average)
    return Start(objects, values, own, not own, counters)


def read_counters(
    objects: Mapping[str, Tensor], optimiser: Optimizer, scheduler: Any, average: Averaged | None
) -> Counters:
    """Return every counter as it stands."""
    states = {name: optimiser.state[p] for name, p in objects.items() if p in optimiser.state}
    steps = {name: float(state["step"]) for name, state in states.items() if "step" in state}
    known = bool(steps) or not states
    schedule, updates = getattr(scheduler, "last_epoch", None), getattr(average, "n_averaged", None)
    return Counters(steps if known else None, _whole(schedule), _whole(updates))


def steps_between(before: Counters, after: Counters) -> int | None:
    """Return by how much the optimiser's own step counters advanced at most; None if it keeps none.

    An optimiser without any state may be fresh or stateless: then nothing is known either.
    """
    if before.steps is None or not after.steps:
        return None
    gained = max(count - before.steps.get(name, 0.0) for name, count in after.steps.items())
    # A counter that runs backwards was loaded from somewhere, and says nothing.
    return int(gained) if gained >= 0 else None


@torch.no_grad()
def moves(module: nn.Module, optimiser: Optimizer, start: Start) -> list[Move]:
    """Return how far each trainable parameter came, compared value by value with its copy."""
    now = dict(module.named_parameters())
    group_of = {id(p): number for number, group in enumerate(optimiser.param_groups) for p in group["params"]}
    return [_move(name, value, now.get(name), start.objects[name], group_of) for name, value in start.values.items()]


@torch.no_grad()
def average_move(start: Start, average: Averaged, decay: float | None, after: Counters, steps: int | None) -> Average:
    """Return how far the averaged weights came along the way of the live ones.

    Source: an exponential average of decay d after n updates is d**n times its start plus the rest.
    """
    now = averaged_tensors(average, start.objects)
    moved = any(_apart(tensor, start.averaged.get(name, start.values.get(name))) for name, tensor in now.items())
    along = size = 0.0
    for name in now.keys() & start.values.keys():
        begin, live, averaged = (
            _wide(tensor.to(now[name].device)) for tensor in (start.values[name], start.objects[name], now[name])
        )
        size += (live - begin).square().sum().item()
        along += ((live - begin) * (averaged - begin)).sum().item()
    known = start.together and 0 < size < float("inf") and abs(along) < float("inf")
    updates = _updates(start.counters.averaged, after.averaged)
    count = steps if updates is None else updates
    weight = None if decay is None or count is None or not start.together else decay**count
    return Average(moved, along / size if known else None, updates, weight)


def averaged_tensors(average: Averaged | None, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the averaged weights by the live parameters' names.

    Raises:
        ProbeInputError: not a module or mapping of tensors, no common name, or another shape.
    """
    if average is None:
        return {}
    if not isinstance(average, nn.Module | Mapping):
        raise ProbeInputError(
            f"ema is a {type(average).__name__}; give an AveragedModel, a module with the same parameter names, or a "
            "mapping from names to tensors (often ema.shadow)"
        )
    found = dict(average.named_parameters() if isinstance(average, nn.Module) else average)
    inner = getattr(average, "module", None)
    if not found.keys() & parameters.keys() and isinstance(inner, nn.Module):
        found = dict(inner.named_parameters())
    common = {name: found[name] for name in parameters if name in found}
    if not common:
        raise ProbeInputError(
            f"ema has none of the module's parameter names (the module's first: {', '.join(list(parameters)[:2])}; "
            f"ema's first: {', '.join(map(str, list(found)[:2])) or 'none'}); give the weights under the same names"
        )
    for name, tensor in common.items():
        if not isinstance(tensor, Tensor) or tensor.shape != parameters[name].shape:
            came = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
            raise ProbeInputError(f"ema[{name!r}] is {came}; give a tensor of shape {tuple(parameters[name].shape)}")
    return common


def fingerprint(parameters: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Return one whole number a tensor that changes whenever one of its values does: the sum of all bit patterns."""
    sums = [_bits(parameter).sum(dtype=torch.int64).to("cpu") for parameter in parameters.values()]
    return tuple(torch.stack(sums).tolist()) if sums else ()


def _bits(parameter: Tensor) -> Tensor:
    real = _real(parameter.detach())
    return real.view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[real.element_size()])


def _move(name: str, value: Tensor, now: Tensor | None, old: Tensor, group_of: Mapping[int, int]) -> Move:
    part, group = name.split(".")[0], group_of.get(id(now))
    if now is not old:
        return Move(name, part, group, value.numel(), None, 0.0, 0.0, True)
    moved = _apart(now, value)
    begin, end = _wide(value.to(now.device)), _wide(now)
    finite = bool(torch.isfinite(end).all())
    start = torch.linalg.vector_norm(begin).item()
    change = torch.linalg.vector_norm(end - begin).item() if moved else 0.0
    return Move(name, part, group, value.numel(), moved, start, change, finite)


def _apart(one: Tensor, other: Tensor | None) -> bool:
    """Return whether any value differs, in the first tensor's precision; nan equals nan."""
    if other is None:
        return True
    one, other = one.detach(), other.detach().to(one)
    if torch.equal(one, other):
        return False
    return bool(((one != other) & ~((one != one) & (other != other))).any())


def _wide(tensor: Tensor) -> Tensor:
    real = _real(tensor.detach())
    # Some accelerators have no double precision.
    return real.to(torch.float32 if real.device.type == "mps" else torch.float64)


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _whole(value: Any) -> int | None:
    return None if value is None else int(value)


def _updates(before: int | None, after: int | None) -> int | None:
    """Return the updates that averaged; the first one of an AveragedModel only copies."""
    return None if before is None or after is None else max(after - max(before, 1), 0)
