"""Do masked positions take part in a loss, and does padding thin it?"""

import math
from dataclasses import dataclass, replace
from functools import reduce

import torch
from torch import Tensor

from casestudies_lib.probes.loss_slices import Batch, Caller, block, place_of
from casestudies_lib.probes.result import ProbeInputError

SLOTS = 16
VALUES = 2**17


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
