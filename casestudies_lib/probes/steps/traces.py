"""What `stepping` notes before, during and after a loop: states, learning rates, gradients, movement."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from casestudies_lib.probes.result import ProbeInputError

Averaged = nn.Module | Mapping[str, Tensor]

CANARIES = 4


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


@dataclass
class Rate:
    """The learning rates of one parameter group that were in force: lowest, highest and last; None before the first."""

    lowest: float | None = None
    highest: float | None = None
    last: float | None = None

    def note(self, rate: float) -> None:
        """Take one more rate into account."""
        self.lowest = rate if self.lowest is None else min(self.lowest, rate)
        self.highest = rate if self.highest is None else max(self.highest, rate)
        self.last = rate


def note_rates(rates: list[Rate], optimiser: Optimizer, *, wait: bool) -> None:
    """Note every group's learning rate; one that an accelerator holds only if we may wait for it."""
    rates += [Rate() for _ in optimiser.param_groups[len(rates) :]]
    for rate, group in zip(rates, optimiser.param_groups):
        value = group.get("lr")
        if value is not None and (wait or not isinstance(value, Tensor) or value.device.type == "cpu"):
            rate.note(float(value))


@dataclass(frozen=True)
class Gradients:
    """All gradients at one moment.

    Attributes:
        existing: how many tensors have one.
        largest: the largest absolute value; inf if one is not finite, 0 if none exists.
    """

    batch: int
    existing: int
    largest: float


@torch.no_grad()
def read_gradients(parameters: Mapping[str, Tensor], batch: int) -> Gradients:
    """Return what there is of gradients now."""
    found = [parameter.grad for parameter in parameters.values() if parameter.grad is not None]
    dense = [gradient.coalesce().values() if gradient.is_sparse else gradient for gradient in found]
    sizes = [torch.linalg.vector_norm(values, math.inf).to("cpu", torch.float64) for values in dense if values.numel()]
    largest = torch.stack(sizes).max().item() if sizes else 0.0
    return Gradients(batch, len(found), largest if math.isfinite(largest) else math.inf)


class Canary:
    """Watches one small parameter's gradient: how many backward passes fell on top of it since it was last cleared.

    A hook sees the gradient that is about to be added; what `.grad` holds at that moment was not cleared. The counts
    stay on the parameter's device, so that no accelerator has to be waited for.
    """

    def __init__(self, parameter: Tensor):
        """Count from nothing."""
        self.parameter, self.passes = parameter, 0
        self.pile = self.longest = self.broken = torch.zeros((), dtype=torch.int64, device=parameter.device)
        self.one = torch.ones_like(self.pile)

    @torch.no_grad()
    def hear(self, gradient: Tensor) -> None:
        """Take one backward pass into account."""
        self.passes += 1
        old, new = (_values(tensor) for tensor in (self.parameter.grad, gradient))
        self.pile = self.one if old is None else self.pile * (old != 0).any() + 1
        self.longest = torch.maximum(self.longest, self.pile)
        self.broken = self.broken + ~torch.isfinite(new).all()


def canaries(parameters: Mapping[str, Tensor], optimiser: Optimizer) -> list[Canary]:
    """Return watchers of the smallest parameters that the optimiser holds, whose gradients it should clear."""
    held = {id(p) for group in optimiser.param_groups for p in group["params"]}
    small = sorted((p for p in parameters.values() if id(p) in held), key=lambda p: p.numel())
    return [Canary(parameter) for parameter in small[:CANARIES]]


def listen(canary: Canary) -> Callable[[], None]:
    """Hook a canary to its parameter and return what takes the hook away without a trace."""
    parameter, before = canary.parameter, canary.parameter._backward_hooks
    handle = parameter.register_hook(canary.hear)

    def leave() -> None:
        handle.remove()
        if before is None and not parameter._backward_hooks:
            parameter._backward_hooks = None

    return leave


class Stir:
    """Tells between which samples any parameter changed."""

    def __init__(self, parameters: Mapping[str, Tensor]):
        """Take the first sample, at batch 0."""
        self.parameters, self.last = parameters, fingerprint(parameters)
        self.samples: list[tuple[int, bool]] = []

    @torch.no_grad()
    def sample(self, batch: int) -> None:
        """Compare with the sample before."""
        current = fingerprint(self.parameters)
        self.samples.append((batch, current != self.last))
        self.last = current

    def still_since(self) -> int | None:
        """Return the batch since which nothing stirs, if that spans two samples and a quarter of the batches."""
        if not any(moved for _, moved in self.samples):
            return None
        since = max(batch for batch, moved in self.samples if moved)
        quiet = [batch for batch, _ in self.samples if batch > since]
        return since if len(quiet) >= 2 and 4 * (quiet[-1] - since) >= quiet[-1] else None


def _values(gradient: Any) -> Tensor | None:
    if gradient is None:
        return None
    return gradient.detach()._values() if gradient.is_sparse else gradient.detach()
