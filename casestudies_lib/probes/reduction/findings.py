"""What `reduction_scaling` says about what it saw."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from casestudies_lib.probes.reduction.trials import MEAN, SUM, MaskTrial, Scaling, Slope
from casestudies_lib.probes.result import SEVERITIES, Finding

CHAPTER = "distillation_loss"
# One per cent of the positions is said to hold most of the squared gradient above this share, and from so many
# positions on: of fewer, one per cent is less than one.
MOST, FEWEST = 0.5, 100
LEAST_LEAK = 1e-4


@dataclass(frozen=True)
class Overview:
    """One look at the loss as the reader computes it.

    Attributes:
        value: the loss in the reader's precision.
        precise: the same in float64, where the first is not finite; else None.
        dtype: the reader's precision.
        positions: positions with a gradient other than zero, in the part that was looked at.
        top: how many positions are one per cent of them, rounded up.
        top_share: the share of the squared gradient that lies in the largest of them.
        ignores_target: whether neither loss nor gradient changed with the target.
        broken: elements of the gradient that are not finite, although the loss is.
    """

    value: float
    precise: float | None
    dtype: torch.dtype
    positions: int
    top: int
    top_share: float
    ignores_target: bool
    broken: int


def findings(
    scalings: Sequence[Scaling],
    expected: Mapping[str, str | None],
    overview: Overview,
    trial: MaskTrial | None,
) -> tuple[Finding, ...]:
    """Return all findings, the worst first."""
    mean_of_first = scalings[0].kind == MEAN
    found = [
        _axis_finding(each, expected[each.axis], mean_of_first) for each in scalings if unmet(each, expected[each.axis])
    ]
    found += _overflow(overview) + _broken_gradient(overview) + _ignored_target(overview) + _few_positions(overview)
    found += [] if trial is None or not trial.tried else _mask_findings(trial, overview.dtype)
    return tuple(sorted(found, key=lambda finding: -SEVERITIES.index(finding.severity)))


def unmet(scaling: Scaling, wanted: str | None) -> bool:
    """Return whether an axis was measured and is not what the reader expects."""
    return wanted is not None and scaling.kind is not None and scaling.kind != wanted


def with_error(slope: Slope | None) -> str:
    """Return a slope and its standard error as text."""
    return "unknown" if slope is None else f"{slope.slope:.2f} ± {slope.error:.2f}"


def _axis_finding(scaling: Scaling, wanted: str, mean_of_first: bool) -> Finding:
    axis = scaling.axis
    growth = scaling.value.slope if scaling.value is not None else scaling.element.slope + 1
    direction = "grows" if growth > 0 else "falls" if growth < 0 else "stays the same"
    if scaling.kind == SUM:
        meaning = (
            f"The loss is summed over {axis}: twice the {axis}, twice the loss, so that its weight against other "
            "terms, and its gradient on shared weights, change from batch to batch."
        )
        change = f"Divide by the number of slots of {axis}, of the real ones where there is padding."
        if mean_of_first:
            meaning += " F.kl_div's 'batchmean' does this: it divides by the first axis only."
            change += " For 'batchmean', flatten prediction and target to [positions, classes]."
    elif scaling.kind == MEAN:
        meaning = f"The loss is averaged over {axis}, so that each slot's gradient shrinks as {axis} grows."
        change = f"Sum over {axis}, or expect 'mean'."
    else:
        meaning = (
            f"The loss is neither a mean nor a sum over {axis}: it changes with its size in another way, as a norm, a "
            "fixed power of the size or a comparison between slots does."
        )
        change = f"Divide by the number of slots of {axis}; if it is meant so, leave {axis} out of expected."
    measured = (
        f"Loss {direction} with {axis}, slope {with_error(scaling.value)} (mean 0, sum "
        f"1); gradient per element, slope {with_error(scaling.element)} (mean −1, sum 0). Expected: {wanted}."
    )
    grows = wanted == MEAN and scaling.kind == SUM
    return Finding("fault" if grows else "warning", axis, measured, meaning, change, CHAPTER)


def _overflow(overview: Overview) -> list[Finding]:
    if overview.precise is None:
        return []
    kind = str(overview.dtype).removeprefix("torch.")
    finding = Finding(
        severity="fault",
        where=kind,
        measured=f"The loss is {overview.value} in {kind} and {overview.precise:.4g} in float64.",
        meaning="A sum, or a square, exceeds the largest number of this precision, although a mean may not.",
        what_to_do="Compute the loss in float32 (prediction.float()), and average before you multiply.",
        chapter=CHAPTER,
    )
    return [finding]


def _broken_gradient(overview: Overview) -> list[Finding]:
    finding = Finding(
        severity="fault",
        where="gradient",
        measured=f"{overview.broken} elements of the gradient are nan or infinite, although the loss is finite.",
        meaning="One step with this gradient destroys the weights. A root or a norm has an infinite gradient at 0, and "
        "0 * inf is nan, so that a mask does not help.",
        what_to_do="Add a small number under the root, or select positions before the operation, not after it.",
        chapter=CHAPTER,
    )
    return [finding] if overview.broken else []


def _ignored_target(overview: Overview) -> list[Finding]:
    finding = Finding(
        severity="warning",
        where="target",
        measured="Other targets change neither the loss nor its gradient.",
        meaning="The loss ignores its target: it trains, but towards nothing that the data says.",
        what_to_do="Use the second argument; if it is a penalty on the prediction alone, nothing.",
        chapter=CHAPTER,
    )
    return [finding] if overview.ignores_target else []


def _few_positions(overview: Overview) -> list[Finding]:
    if overview.top_share < MOST or overview.positions < FEWEST:
        return []
    few = f"{overview.top} position{'s' * (overview.top > 1)} of {overview.positions}"
    finding = Finding(
        severity="note",
        where="data",
        measured=f"{few} hold {100 * overview.top_share:.3g} % of the squared gradient.",
        meaning="A handful of positions is most of the loss, as massive activations on first tokens are. Where the "
        "loss weighs all positions alike, that is the data, and no other reduction cures it.",
        what_to_do="Look at these positions; mask them, normalise the features (layer norm), or use a robust loss.",
        chapter=CHAPTER,
    )
    return [finding]


def _mask_findings(trial: MaskTrial, dtype: torch.dtype) -> list[Finding]:
    least = max(LEAST_LEAK, 16 * torch.finfo(dtype).eps)
    if not trial.largest <= least:
        return [
            Finding(
                severity="fault",
                where="masked positions",
                measured=f"Other predictions there change the loss by {trial.loss_change:.2g} of itself and the "
                f"gradient elsewhere by {trial.real_change:.2g}; their own gradient is {trial.masked_gradient:.2g} of "
                "the largest.",
                meaning="Masked positions take part in the loss: the model also learns to answer padding.",
                what_to_do="Multiply by the mask, or select with it, before you reduce; or set ignore_index.",
                chapter=CHAPTER,
            )
        ]
    if math.isclose(trial.padding_ratio, 1, rel_tol=least):
        return []
    return [
        Finding(
            severity="fault",
            where="padding",
            measured=f"Twice the slots, the new ones masked: the loss becomes {trial.padding_ratio:.3g} of itself.",
            meaning="The mean runs over all slots, not over the real ones: a sentence counts less the more padding its "
            "batch has.",
            what_to_do="Divide by mask.sum(), not by the number of slots.",
            chapter=CHAPTER,
        )
    ]
