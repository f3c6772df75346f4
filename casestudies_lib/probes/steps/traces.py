"""What `stepping` notes before, during and after a loop: states, learning rates, gradients, movement."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from casestudies_lib.probes.passes import below_rounding, values_of
from casestudies_lib.probes.result import ProbeInputError
from casestudies_lib.probes.unlisted import unlisted_parameters

Averaged = nn.Module | Mapping[str, Tensor]

PILE_COUNTERS = 4


@dataclass(frozen=True)
class Counters:
    """What counts by itself: steps by parameter, advances of the scheduler, updates of the average (None: unknown)."""

    steps: dict[str, float] | None
    schedule: int | None
    averaged: int | None


@dataclass(frozen=True)
class Start:
    """The trainable parameters as they were, listed by the module or not: the objects, and one copy of their values.

    Attributes:
        frozen: the names of the parameters that had requires_grad False.
        buffers: copies of the live module's floating-point buffers, where there is an average.
        averaged: copies of the averaged weights where they differ from the live ones, else no second copy.
        together: the averaged weights started where the live ones did.
    """

    objects: dict[str, Tensor]
    values: dict[str, Tensor]
    frozen: frozenset[str]
    buffers: dict[str, Tensor]
    averaged: dict[str, Tensor]
    together: bool
    counters: Counters


@dataclass(frozen=True)
class Move:
    """How far one parameter came; `moved` is None if another tensor has taken its place.

    Attributes:
        part: the top-level module it belongs to.
        group: its parameter group, counted over all optimisers; None if none holds it.
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
        stale: the buffers that never moved, where those of the live module did.
        share: the way they made along the live weights' displacement, 1 for all of it; None if the two did not start
            together or the live ones stand still.
        updates: how often they were updated; None if nothing counts that.
        start_weight: the weight that the start still has in the average; None if decay or updates are unknown.
    """

    moved: bool
    stale: tuple[str, ...]
    share: float | None
    updates: int | None
    start_weight: float | None


def trainable(module: nn.Module) -> dict[str, Tensor]:
    """Return the parameters with requires_grad, also those in lists or closures that the module does not list."""
    hidden = {name: tensor for name, tensor in unlisted_parameters(module).items() if isinstance(tensor, nn.Parameter)}
    return {name: p for name, p in [*module.named_parameters(), *hidden.items()] if p.requires_grad and p.numel()}


@torch.no_grad()
def read_start(module: nn.Module, optimisers: Sequence[Optimizer], scheduler: Any, average: Averaged | None) -> Start:
    """Return where everything stands; copies the trainable parameters once."""
    objects = trainable(module)
    values = {name: p.detach().clone() for name, p in objects.items()}
    live = averaged_tensors(average, objects) if objects else {}
    own = {name: tensor.detach().clone() for name, tensor in live.items() if _apart(tensor, objects.get(name))}
    buffers = {} if average is None else {name: b.clone() for name, b in float_buffers(module).items()}
    frozen = frozenset(name for name, p in module.named_parameters() if not p.requires_grad)
    counters = read_counters(objects, optimisers, scheduler, average)
    return Start(objects, values, frozen, buffers, own, not own, counters)


def float_buffers(value: Any) -> dict[str, Tensor]:
    """Return the floating-point buffers of a module by name, without a wrapper's prefix."""
    found = value.named_buffers() if isinstance(value, nn.Module) else ()
    return {plain(name): buffer for name, buffer in found if buffer.is_floating_point()}


def plain(name: str) -> str:
    """Return a parameter's name without the prefixes that compiled, parallel and averaged models put before it."""
    pieces = [piece for piece in name.split(".") if piece != "_orig_mod"]
    while len(pieces) > 1 and pieces[0] == "module":
        pieces = pieces[1:]
    return ".".join(pieces)


def read_counters(
    objects: Mapping[str, Tensor], optimisers: Sequence[Optimizer], scheduler: Any, average: Averaged | None
) -> Counters:
    """Return every counter as it stands."""
    states = {name: one.state[p] for one in optimisers for name, p in objects.items() if p in one.state}
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
def moves(module: nn.Module, optimisers: Sequence[Optimizer], start: Start) -> list[Move]:
    """Return how far each trainable parameter came, compared value by value with its copy."""
    now = {**unlisted_parameters(module), **dict(module.named_parameters())}
    groups = [group["params"] for optimiser in optimisers for group in optimiser.param_groups]
    group_of = {id(p): number for number, group in enumerate(groups) for p in group}
    return [_move(name, value, now.get(name), start.objects[name], group_of) for name, value in start.values.items()]


@torch.no_grad()
def average_move(
    module: nn.Module, start: Start, average: Averaged, decay: float | None, after: Counters, steps: int | None
) -> Average:
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
    return Average(moved, _stale(module, start, average), along / size if known else None, updates, weight)


def _stale(module: nn.Module, start: Start, average: Averaged) -> tuple[str, ...]:
    """Return the averaged buffers that stand at the start, where the live ones have left it."""
    live, averaged = float_buffers(module), float_buffers(average)
    left = [name for name, buffer in start.buffers.items() if name in live and _apart(live[name], buffer)]
    return tuple(name for name in left if name in averaged and not _apart(averaged[name], start.buffers[name]))


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
    by_plain_name = {plain(str(name)): tensor for name, tensor in found.items()}
    common = {name: by_plain_name[plain(name)] for name in parameters if plain(name) in by_plain_name}
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


def _fingerprint(parameter: Tensor) -> Tensor:
    """Return a whole number that changes whenever one of the values does: the sum of all bit patterns."""
    return _bits(parameter).sum(dtype=torch.int64).to("cpu")


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


@dataclass(frozen=True)
class Gradients:
    """All gradients at one moment: the largest absolute value of every tensor that has one; inf if not finite."""

    batch: int
    sizes: dict[str, float]

    @property
    def largest(self) -> float:
        """Return the largest absolute value of all, 0 if there is no gradient."""
        return max(self.sizes.values(), default=0.0)

    def teaches(self, name: str) -> bool:
        """Return whether a tensor has a gradient above rounding."""
        return not below_rounding(self.sizes.get(name, 0.0), self.largest)


@torch.no_grad()
def read_gradients(parameters: Mapping[str, Tensor], batch: int) -> Gradients:
    """Return what there is of gradients now."""
    found = {name: _values(parameter.grad) for name, parameter in parameters.items()}
    found = {name: values for name, values in found.items() if values is not None and values.numel()}
    tops = [torch.linalg.vector_norm(values, math.inf).to("cpu", torch.float64) for values in found.values()]
    sizes = torch.stack(tops).nan_to_num(math.inf).tolist() if tops else []
    return Gradients(batch, dict(zip(found, sizes)))


class PileCounter:
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


def pile_counters(parameters: Mapping[str, Tensor], optimisers: Sequence[Optimizer]) -> list[PileCounter]:
    """Return watchers of the smallest parameters that are held by an optimiser, which should clear their gradients."""
    held = {id(p) for optimiser in optimisers for group in optimiser.param_groups for p in group["params"]}
    small = sorted((p for p in parameters.values() if id(p) in held), key=lambda p: p.numel())
    return [PileCounter(parameter) for parameter in small[:PILE_COUNTERS]]


def listen(counter: PileCounter) -> Callable[[], None]:
    """Hook a counter to its parameter and return what takes the hook away without a trace."""
    parameter, before = counter.parameter, counter.parameter._backward_hooks
    handle = parameter.register_hook(counter.hear)

    def leave() -> None:
        handle.remove()
        if before is None and not parameter._backward_hooks:
            parameter._backward_hooks = None

    return leave


class Trail:
    """Notes when each parameter last moved, and since when one is frozen and stands still."""

    def __init__(self, parameters: Mapping[str, Tensor]):
        """Take the first sample, at batch 0."""
        self.parameters = parameters
        self.values = self._fingerprints()
        self.samples: list[int] = []
        self.moved: dict[str, int] = {}
        self.froze: dict[str, tuple[int, int]] = {}

    @torch.no_grad()
    def sample(self, batch: int) -> None:
        """Compare with the sample before."""
        current = self._fingerprints()
        self.moved |= {name: batch for name in current if current[name] != self.values[name]}
        self.values = current
        self.samples.append(batch)

    @torch.no_grad()
    def note_frozen(self, batch: int) -> None:
        """Note which parameters have lost their requires_grad, with their values at that time."""
        for name, parameter in self.parameters.items():
            if parameter.requires_grad:
                self.froze.pop(name, None)
            elif name not in self.froze:
                self.froze[name] = batch, int(_fingerprint(parameter))

    @torch.no_grad()
    def frozen_since(self) -> dict[str, int]:
        """Return the parameters that are frozen and have stood still since, with the batch at which that was seen."""
        still = {name: batch for name, (batch, old) in self.froze.items() if old == _fingerprint(self.parameters[name])}
        return {name: batch for name, batch in still.items() if not self.parameters[name].requires_grad}

    def stopped(self) -> dict[str, int]:
        """Return what moved and then stopped, with its last batch, if that spans two samples and a quarter of all."""
        last = self.samples[-1] if self.samples else 0
        quiet = {name: [batch for batch in self.samples if batch > since] for name, since in self.moved.items()}
        return {
            name: since for name, since in self.moved.items() if len(quiet[name]) > 1 and 4 * (last - since) >= last
        }

    def _fingerprints(self) -> dict[str, int]:
        sums = [_fingerprint(parameter) for parameter in self.parameters.values()]
        return dict(zip(self.parameters, torch.stack(sums).tolist() if sums else []))


def _values(gradient: Any) -> Tensor | None:
    if gradient is None:
        return None
    return values_of(gradient.detach())
