"""Everything that `stepping` saw, and the numbers that follow from it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor
from torch.optim import Optimizer

from casestudies_lib.probes.steps.traces import Average, Gradients, Move


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


def note_rates(rates: list[Rate], optimisers: Sequence[Optimizer], *, wait: bool) -> None:
    """Note every group's learning rate; one that an accelerator holds only if we may wait for it."""
    groups = [group for optimiser in optimisers for group in optimiser.param_groups]
    rates += [Rate() for _ in groups[len(rates) :]]
    for rate, group in zip(rates, groups):
        value = group.get("lr")
        if value is not None and (wait or not isinstance(value, Tensor) or value.device.type == "cpu"):
            rate.note(float(value))


@dataclass(frozen=True)
class Evidence:
    """What was seen from the start of the watch until now.

    Attributes:
        lengths: finished batches of each epoch.
        unfinished: batches that a loop had in hand when it broke.
        calls: calls of each optimiser's step that the hook saw; None where none was in place.
        owners: for each parameter group the number of its optimiser.
        counted: advance of the optimiser's own step counters; None if it keeps none.
        step_rate: the highest learning rate at any step that the hook saw.
        passes: backward passes through the parameter that was watched for piling gradients, 0 if none was seen.
        pile: most backward passes that fell on each other without the gradient being cleared.
        broken: backward passes with nan or infinity.
        stopped: the tensors that moved and then stopped, with the last batch at which they moved.
        frozen: the tensors that lost their requires_grad and stand still since, with the batch at which that was seen.
        thawed: the tensors that had requires_grad False at the start and have it now; True if an optimiser holds it.
    """

    optimiser: str
    accumulation: int
    lengths: tuple[int, ...]
    unfinished: int
    calls: tuple[int, ...] | None
    owners: tuple[int, ...]
    counted: int | None
    moves: tuple[Move, ...]
    rates: tuple[Rate, ...]
    step_rate: float | None
    scheduled: bool
    schedule: int | None
    average: Average | None
    decay: float | None
    looks: tuple[Gradients, ...]
    passes: int
    pile: int
    broken: int
    stopped: dict[str, int]
    frozen: dict[str, int]
    thawed: dict[str, bool]

    @cached_property
    def finished(self) -> int:
        """Return the batches that are surely done."""
        return sum(self.lengths)

    @cached_property
    def batches(self) -> int:
        """Return the batches handed out."""
        return self.finished + self.unfinished

    @property
    def expected(self) -> int:
        """Return the whole accumulations in the finished batches."""
        return self.finished // self.accumulation

    @property
    def bounds(self) -> tuple[int, int]:
        """Return the fewest and the most steps that are right: an epoch's rest may be dropped, kept or stepped on.

        Where no epoch holds a whole accumulation, stepping on each rest is not right: no step has its batches.
        """
        low = sum(length // self.accumulation for length in self.lengths)
        most = sum(math.ceil(length / self.accumulation) for length in self.lengths)
        return low, (math.ceil(self.finished / self.accumulation) if self.short_epochs else most) + self.unfinished

    @property
    def short_epochs(self) -> bool:
        """Return whether no epoch holds a whole accumulation."""
        return max(self.lengths, default=0) < self.accumulation

    @property
    def steps(self) -> int | None:
        """Return how often the busiest optimiser stepped: calls where the hook saw any, else its own counter."""
        calls = None if self.calls is None else max(self.calls)
        return calls or (calls if self.counted is None else self.counted)

    def never_steps(self, group: int | None) -> bool:
        """Return whether the optimiser of a parameter group is known never to have stepped."""
        return group is not None and self.calls is not None and self.calls[self.owners[group]] == 0

    @property
    def compared(self) -> list[Move]:
        """Return the tensors that are still the same objects."""
        return [move for move in self.moves if move.moved is not None]

    @property
    def moved(self) -> list[Move]:
        """Return the tensors that moved."""
        return [move for move in self.moves if move.moved]

    @property
    def change(self) -> float | None:
        """Return the norm of the whole displacement by the norm of the start; None if that is no number."""
        return relative(self.compared)

    @property
    def rate_zero(self) -> bool:
        """Return whether every learning rate seen was 0."""
        return bool(self.rates) and all(rate.highest == 0 and rate.lowest == 0 for rate in self.rates)

    @property
    def warms_up(self) -> bool:
        """Return whether every step was at learning rate 0, as far as is known, and the rate has risen since."""
        rises = any(rate.lowest == 0 and (rate.last or 0) > 0 for rate in self.rates)
        return bool(self.steps) and rises and not self.step_rate

    @property
    def has_gradients(self) -> bool:
        """Return whether any gradient was ever seen."""
        return self.passes > 0 or bool(self.counted) or any(look.sizes for look in self.looks)

    @property
    def piles(self) -> bool:
        """Return whether gradients pile up: over more than two accumulations on end, nothing cleared them."""
        once = self.accumulation * math.ceil(self.passes / max(self.batches, 1))
        return self.batches > 0 and self.pile > 2 * once

    @property
    def stalled(self) -> dict[str, int]:
        """Return what moved and then stopped, for eight steps' worth of batches or more, with its last batch."""
        return {
            name: since
            for name, since in self.stopped.items()
            if name not in self.frozen and (self.finished - since) // self.accumulation >= 8
        }


def relative(moves: list[Move]) -> float | None:
    """Return the norm of the change by the norm of the start, over all these tensors; None if that is no number."""
    change, start = (math.hypot(*(getattr(move, name) for move in moves)) for name in ("change", "start"))
    return change / start if start and math.isfinite(change / start) else None
