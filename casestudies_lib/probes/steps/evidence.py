"""Everything that `stepping` saw, and the numbers that follow from it."""

import math
from dataclasses import dataclass
from functools import cached_property

from casestudies_lib.probes.steps.traces import Average, Gradients, Move, Rate


@dataclass(frozen=True)
class Evidence:
    """What was seen from the start of the watch until now.

    Attributes:
        lengths: finished batches of each epoch.
        unfinished: batches that a loop had in hand when it broke.
        calls: calls of the optimiser's step that the hook saw; None where none was in place.
        counted: advance of the optimiser's own step counters; None if it keeps none.
        step_rate: the highest learning rate at any step that the hook saw.
        passes: backward passes through the parameter that was watched for piling gradients, 0 if none was seen.
        pile: most backward passes that fell on each other without the gradient being cleared.
        broken: backward passes with nan or infinity.
        still_since: the batch since which nothing stirs.
    """

    optimiser: str
    accumulation: int
    lengths: tuple[int, ...]
    unfinished: int
    calls: int | None
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
    still_since: int | None

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
        """Return the fewest and the most steps that are right: an epoch's rest may be dropped, kept or stepped on."""
        low = sum(length // self.accumulation for length in self.lengths)
        most = sum(math.ceil(length / self.accumulation) for length in self.lengths)
        return low, most + self.unfinished

    @property
    def steps(self) -> int | None:
        """Return how often the optimiser stepped: calls where the hook saw any, else its own counter."""
        return self.calls or (self.calls if self.counted is None else self.counted)

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
        return self.passes > 0 or bool(self.counted) or any(look.existing for look in self.looks)

    @property
    def piles(self) -> bool:
        """Return whether gradients pile up: over more than two accumulations on end, nothing cleared them."""
        once = self.accumulation * math.ceil(self.passes / max(self.batches, 1))
        return self.batches > 0 and self.pile > 2 * once

    @property
    def stalled(self) -> bool:
        """Return whether parameters moved and then stopped, for two steps' worth of batches or more."""
        return self.still_since is not None and (self.finished - self.still_since) // self.accumulation >= 2


def relative(moves: list[Move]) -> float | None:
    """Return the norm of the change by the norm of the start, over all these tensors; None if that is no number."""
    change, start = (math.hypot(*(getattr(move, name) for move in moves)) for name in ("change", "start"))
    return change / start if start and math.isfinite(change / start) else None
