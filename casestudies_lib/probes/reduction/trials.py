"""How a loss and its gradient grow with the size of one axis, and whether masked positions take part."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from casestudies_lib.probes.reduction.batch import CLASS_AXES, Answer, Batch, Caller, block, place_of, random_anchor
from casestudies_lib.probes.result import ProbeInputError

MEAN, SUM, NEITHER = "mean", "sum", "neither"
REPEATS = (1, 2, 4)
LEAST_BASE = 8
DRAWS = 3
TRIES = 24
LARGEST_BASE = 256
# Values in the largest piece that the loss sees, unless its classes alone are more.
VALUES = 2**17
# A slope that is known no better than this cannot tell a mean (0) from a sum (1) with confidence.
NOISY = 0.1

SLOTS = 16


class Slope(NamedTuple):
    """A slope on doubly logarithmic axes, with its standard error."""

    slope: float
    error: float


@dataclass(frozen=True)
class Scaling:
    """How the loss scales with one axis; a slope is None where `reason` (for both) or a zero kept it from being known.

    Attributes:
        axis: the reader's name of the axis.
        size: slots of the axis in the reader's prediction.
        value: slope of log |loss|.
        element: slope of the logarithm of the root-mean-square gradient element.
        kind: `mean`, `sum`, `neither`, or None if that cannot be told.
        reason: why not.
    """

    axis: str
    size: int
    value: Slope | None
    element: Slope | None
    kind: str | None
    reason: str

    @property
    def norm(self) -> Slope | None:
        """Return the slope of the logarithm of the gradient's norm, over n elements √n times their root mean square."""
        return None if self.element is None else Slope(self.element.slope + 0.5, self.element.error)


def scaling(ask: Caller, batch: Batch, axis: str, tolerance: float, generator: torch.Generator) -> Scaling:
    """Measure how the loss scales with one axis.

    A block of the reader's values is repeated 1, 2 and 4 times along the axis, three blocks one after the other.
    Repeating, rather than taking longer and longer slices, because repeated data has the same mean at every size: a
    trend along the axis, or one huge value, changes no slope, so that a mean has slope 0 and a sum has slope 1 exactly,
    whatever the data, with ragged masks too. A slice of half the axis would show the data's slope along with the
    loss's. The price: a maximum looks like a mean, for repeating changes no maximum; and a loss that compares slots
    with each other (a contrastive one) meets duplicates.
    """
    size = batch.sizes[axis]
    if axis not in batch.axes[1] and not batch.target.is_floating_point() and batch.target.dtype != torch.bool:
        reason = f"the target holds class indices, not a value for each of the {size} slots of {axis}"
        return Scaling(axis, size, None, None, None, reason)
    reason = ""
    for base in _bases(batch, axis):
        try:
            curves = _curves(ask, batch, axis, base, generator)
        except ProbeInputError as error:
            # Perhaps a table in the loss is as long as the reader's axis: then only smaller sizes fit.
            reason = f"the loss takes no other size of {axis}: {error}"
            continue
        return _judged(axis, size, curves, tolerance)
    return Scaling(axis, size, None, None, None, reason)


def fitted(sizes: Sequence[float], curves: Sequence[Sequence[float]]) -> Slope:
    """Return the common least-squares slope of log |value| against log size, each curve with its own intercept.

    The standard error comes from the residuals: curves that bend, or differ, have a large one.

    Raises:
        ValueError: fewer than two different sizes, no curve, or a value that is zero or not finite.

    Source: ordinary least squares with fixed effects, for instance Wooldridge, Introductory Econometrics, chapter 14.
    """
    if len(set(sizes)) < 2 or not curves or not all(_positive(curve) for curve in curves):
        raise ValueError(f"a slope needs two sizes and values other than 0; got sizes {sizes} and values {curves}")
    across = _centred([math.log(size) for size in sizes])
    up = [_centred([math.log(abs(value)) for value in curve]) for curve in curves]
    spread = len(curves) * sum(x * x for x in across)
    slope = sum(x * y for curve in up for x, y in zip(across, curve)) / spread
    rest = sum((y - slope * x) ** 2 for curve in up for x, y in zip(across, curve))
    freedom = len(curves) * (len(sizes) - 1) - 1
    # Rounding noise would be read as digits; and there is no slope of -0.
    return Slope(round(slope, 9) + 0.0, round(math.sqrt(rest / freedom / spread), 9) if freedom else 0.0)


def judged(value: Slope | None, element: Slope | None, tolerance: float) -> str:
    """Return what kind of reduction two slopes speak for; they must agree, for the gradient is what trains."""
    signs = [] if value is None else [value.slope]
    # Divided by n, each of n elements has a gradient of 1/n; summed, its own. One added makes both scales alike.
    signs += [] if element is None else [element.slope + 1]
    for kind, wanted in ((MEAN, 0), (SUM, 1)):
        if all(abs(sign - wanted) <= tolerance for sign in signs):
            return kind
    return NEITHER


def _bases(batch: Batch, axis: str) -> list[int]:
    """Return the block sizes to try: first 8 or more, then one whose repetition fits into the axis."""
    sizes = batch.sizes
    size = sizes.pop(axis)
    rest = math.prod(other if name in CLASS_AXES else min(other, 2) for name, other in sizes.items())
    within = max(min(size // REPEATS[-1], LARGEST_BASE, VALUES // REPEATS[-1] // rest), 1)
    least = min(size, LEAST_BASE)
    return list(dict.fromkeys([max(within, least), within]))


def _curves(ask: Caller, batch: Batch, axis: str, base: int, generator: torch.Generator) -> list[list[Answer]]:
    """Return the answers at every size for some blocks on which the loss is finite, as far as tries allow."""
    found = []
    for _ in range(TRIES):
        piece = block(batch, {axis: base}, random_anchor(batch, generator), VALUES // REPEATS[-1])
        first = ask(piece)
        if not math.isfinite(first.value) or not (first.value or first.norm):
            continue
        slots = torch.arange(base)
        found.append([first, *(ask(piece.picked(axis, slots.repeat(times))) for times in REPEATS[1:])])
        if len(found) == DRAWS:
            break
    return found


def _judged(axis: str, size: int, curves: list[list[Answer]], tolerance: float) -> Scaling:
    if not curves:
        reason = f"the loss is zero or not finite on every block of {axis}; give predictions that are wrong somewhere"
        return Scaling(axis, size, None, None, None, reason)
    values = [[answer.value for answer in curve] for curve in curves]
    elements = [[answer.norm / math.sqrt(answer.gradient.numel()) for answer in curve] for curve in curves]
    value, element = (_slope_or_none(each) for each in (values, elements))
    if value is None and element is None:
        reason = f"loss and gradient are zero, change sign or are not finite at some size of {axis}; give other data"
        return Scaling(axis, size, None, None, None, reason)
    noise = max(slope.error for slope in (value, element) if slope is not None)
    if noise > NOISY:
        reason = f"the slope along {axis} is known only to ±{noise:.2g}; the loss is no power of its size"
        return Scaling(axis, size, value, element, None, reason)
    return Scaling(axis, size, value, element, judged(value, element, tolerance), "")


def _slope_or_none(curves: list[list[float]]) -> Slope | None:
    usable = [curve for curve in curves if _positive(curve) and min(curve) * max(curve) > 0]
    return fitted(REPEATS, usable) if usable else None


def _positive(curve: Sequence[float]) -> bool:
    return all(math.isfinite(value) and value for value in curve)


def _centred(values: list[float]) -> list[float]:
    middle = sum(values) / len(values)
    return [value - middle for value in values]


@dataclass(frozen=True)
class MaskTrial:
    """What other predictions at masked positions, and more of such positions, do to a loss.

    Attributes:
        tried: False if that could not be tried; then `reason` says why and the numbers are zero.
        loss_change: relative change of the loss when the predictions at masked positions change.
        real_change: relative change of the gradient at real positions, at the same time.
        masked_gradient: largest gradient element at masked positions, as a share of the largest of all.
        padding_ratio: loss with twice the slots, the new ones masked, divided by the loss before.
    """

    tried: bool
    loss_change: float = 0.0
    real_change: float = 0.0
    masked_gradient: float = 0.0
    padding_ratio: float = 1.0
    reason: str = ""

    @property
    def largest(self) -> float:
        """Return the largest of the three signs that masked positions take part."""
        return max(self.loss_change, self.real_change, self.masked_gradient)


def mask_trial(ask: Caller, batch: Batch) -> MaskTrial:
    """Try the loss on one row that has real and masked positions, both in a batch of two copies of the row."""
    piece, axis = _edge(batch, ask.takes_mask)
    if axis is None:
        return MaskTrial(False, reason="the mask is True everywhere; give a batch with padding")
    try:
        return _tried(ask, piece, axis)
    except ProbeInputError as error:
        return MaskTrial(False, reason=f"the loss could not be tried with other masked positions: {error}")


def _tried(ask: Caller, piece: Batch, axis: str) -> MaskTrial:
    real = spread(piece.mask, piece).expand_as(piece.prediction)
    before, after = ask(piece), ask(_disturbed(piece, real))
    padded = ask(piece.picked(axis, _with_more_padding(piece, axis)), gradient=False)
    numbers = (before.value, before.norm, after.value, after.norm, padded.value)
    if not all(map(math.isfinite, numbers)) or not before.value or not before.norm:
        reason = f"loss or gradient is zero or not finite on a row with padding: {before.value:.3g}, {before.norm:.3g}"
        return MaskTrial(False, reason=reason)
    largest = before.gradient.abs().max()
    change = torch.where(real, after.gradient - before.gradient, 0.0)
    return MaskTrial(
        tried=True,
        loss_change=abs(after.value - before.value) / abs(before.value),
        real_change=(change.abs().max() / largest).item(),
        masked_gradient=(torch.where(real, 0.0, before.gradient).abs().max() / largest).item(),
        padding_ratio=padded.value / before.value,
    )


def _edge(batch: Batch, takes_mask: bool) -> tuple[Batch, str | None]:
    """Return one row around an edge between real and masked positions, and the axis along which the edge lies."""
    if takes_mask and bool(batch.mask.all()):
        batch = _half_masked(batch)
    varying = [axis for number, axis in enumerate(batch.axes[2]) if _edges(batch.mask, number).any()]
    if not varying:
        return batch, None
    axis, others = varying[-1], varying[:-1]
    number = batch.axes[2].index(axis)
    found = torch.zeros_like(batch.mask)
    found.narrow(number, 0, found.shape[number] - 1).copy_(_edges(batch.mask, number))
    place = place_of(int(found.flatten().int().argmax()), batch)
    row = batch.cut(place, dict.fromkeys(others, 1))
    anchor = {**dict.fromkeys(batch.sizes, 0), **place, **dict.fromkeys(others, 0)}
    piece = block(row, {axis: min(row.sizes[axis], SLOTS)}, anchor, VALUES)
    # Twice the row, for losses that squeeze a batch of one away.
    twice = torch.zeros(2, dtype=torch.long)
    return reduce(lambda each, other: each.picked(other, twice), others, piece), axis


def _edges(mask: Tensor, number: int) -> Tensor:
    last = mask.shape[number] - 1
    return mask.narrow(number, 1, last) != mask.narrow(number, 0, last)


def _half_masked(batch: Batch) -> Batch:
    """Return the batch with a mask of the probe's own, where the reader's masks nothing."""
    mask = batch.mask.clone()
    dimension = max(range(mask.ndim), key=lambda number: (mask.shape[number] > 1, number))
    size = mask.shape[dimension]
    mask.narrow(dimension, (size + 1) // 2, size // 2).fill_(False)
    return replace(batch, tensors=(*batch.tensors[:2], mask))


def _disturbed(piece: Batch, real: Tensor) -> Batch:
    """Return the piece with other predictions at masked positions.

    They are halves of values from elsewhere, which stay probabilities, or log-probabilities, if they were.
    """
    prediction = piece.prediction
    other = 0.5 * prediction.flatten().flip(0).reshape(prediction.shape)
    changed = torch.where(real, prediction, other)
    if torch.equal(changed, prediction):
        changed = torch.where(real, prediction, prediction + 0.5)
    return replace(piece, tensors=(changed, *piece.tensors[1:]))


def _with_more_padding(piece: Batch, axis: str) -> Tensor:
    """Return the slots of the axis followed by as many copies of a masked one."""
    mask = piece.mask.movedim(piece.axes[2].index(axis), 0)
    mask = mask.reshape(len(mask), -1)[:, 0]
    masked = int((~mask).nonzero()[0, 0])
    return torch.cat([torch.arange(mask.numel()), torch.full((mask.numel(),), masked)])


def spread(mask: Tensor, batch: Batch) -> Tensor:
    """Return the mask with an axis of size 1 for each axis that only the prediction has, in the prediction's order."""
    order = sorted(range(mask.ndim), key=lambda number: batch.axes[0].index(batch.axes[2][number]))
    shape = [size if axis in batch.axes[2] else 1 for axis, size in batch.sizes.items()]
    return mask.permute(order).reshape(shape)
