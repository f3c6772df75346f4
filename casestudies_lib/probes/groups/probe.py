"""Are errors clustered by a group, such as the deal, the patient or the file a row came from?"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from casestudies_lib.probes.result import Bar, Finding, ProbeInputError, ProbeResult
from casestudies_lib.stats import CONFIDENCE, grouped_correlations

CHAPTER = "value_head_spillover"
COLUMNS = (
    "group", "rows", "mean squared error", "share of squared error", "r", "commonest target",
    "share of rows with it", "mean squared error without it",
)  # fmt: skip
FEWEST_GROUPS = 5
SPIKE = 0.1  # a single target value that this share of a group's rows has in common
NOT_DEFINED = "not defined"  # a word, because pandas turns None among numbers into NaN
WIDE = 0.1  # width of an interval of r that leaves the number unknown


@dataclass(frozen=True)
class Group:
    """One group's errors, and what they are without its commonest target value."""

    name: Any
    rows: int
    squared: float
    correlation: float | None
    spike: float
    spike_share: float
    squared_without: float | None

    @property
    def total(self) -> float:
        """Return the group's sum of squared errors."""
        return self.rows * self.squared


def grouped_errors(
    predicted: Sequence[float],
    target: Sequence[float],
    groups: Sequence[Any],
    *,
    times_median: float = 5.0,
    resamples: int = 1000,
    seed: int = 0,
) -> ProbeResult:
    """Tell whether a few groups hold the error, how sure r is when groups are resampled, and whose labels look wrong.

    Rows of one group share what made them, so they are not independent: a number of rows says little, the number of
    groups counts. A group's labels look inconsistent if it errs far more than the others, and no more than they do once
    the rows that share its commonest target value are left out: labels that were never written, for instance.

    It looks at predictions, not at the model; a group that a model cannot learn and a group with wrong labels differ
    only by such a common value. To tell for certain, look at the labels themselves.

    Args:
        predicted: the model's answers, one number a row.
        target: the labels, one number a row.
        groups: the group of each row, anything that can be compared.
        times_median: a group errs far more if its mean squared error is at least this many times the median group's.
        resamples: how often groups (and, for comparison, rows) are drawn anew.
        seed: seeds these draws.

    Returns:
        A result whose `ok` is False if such groups hold half of the squared error, a group's labels look inconsistent,
        or r is not known to a tenth; None with fewer than five groups and nothing found. `measures` holds r, both
        intervals, and the shares. In the table, "not defined" stands where a group has no r (its targets or
        predictions are all equal) or no row without its commonest target.

    Raises:
        ProbeInputError: names what came: lengths differ, values not finite, constant targets or predictions, fewer
            than two groups, or a group with one member.

    Source: the chapter value_head_spillover; resampling by group: Efron and Tibshirani, 1993, chapter 8.
    """
    x, y, names, place = _checked(predicted, target, groups)
    _check_numbers(times_median, resamples)
    r = _correlation(x, y)
    if r is None:
        raise ProbeInputError(
            f"r is not defined: the squares of targets from {y.min():.3g} to {y.max():.3g} and predictions from "
            f"{x.min():.3g} to {x.max():.3g} exceed what a number holds; scale both"
        )
    found = [_group(name, x[place == number], y[place == number]) for number, name in enumerate(names)]
    limit = times_median * max(float(np.median([group.squared for group in found])), np.finfo(float).tiny)
    outlying = [group for group in found if group.squared >= limit]
    generator = np.random.default_rng(seed)
    by_group = _interval(grouped_correlations(x, y, place, resamples, generator))
    by_row = _interval(grouped_correlations(x, y, _blocks(len(x), generator), resamples, generator))
    return _result(found, outlying, limit, r, by_group, by_row)


def _checked(predicted, target, groups) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    x, y = _numbers("predicted", predicted), _numbers("target", target)
    labels = np.asarray(groups)
    if not x.shape == y.shape == labels.shape:
        raise ProbeInputError(
            f"predicted, target and groups have shapes {x.shape}, {y.shape} and {labels.shape}; give one of each a row"
        )
    for name, values in (("predicted", x), ("target", y)):
        if not values.size or values.min() == values.max():
            raise ProbeInputError(f"{name} holds no two different values, so r is not defined; give rows that vary")
    names, place, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    if len(names) < 2:
        raise ProbeInputError(f"all rows belong to group {names[0]!s}; errors can cluster only in two groups or more")
    if (sizes == 1).any():
        lonely = names[sizes == 1]
        which = f"{lonely.size} groups have one member each (the first is {lonely[0]!s})"
        raise ProbeInputError(
            f"{which if lonely.size > 1 else f'group {lonely[0]!s} has one member'}; a group's errors need two or "
            "more: merge small groups or leave them out"
        )
    return x, y, names, place


def _numbers(name: str, values: Any) -> np.ndarray:
    values = values.detach().cpu().numpy() if hasattr(values, "detach") else values
    try:
        array = np.asarray(values, dtype=float)
    except (TypeError, ValueError) as error:
        raise ProbeInputError(f"{name} is not a sequence of numbers ({error})") from error
    if array.ndim != 1:
        raise ProbeInputError(f"{name} has shape {array.shape}; give one number a row, such as q[legal]")
    if not np.isfinite(array).all():
        raise ProbeInputError(f"{name} holds {array[~np.isfinite(array)][0]}; leave such rows out, or find their cause")
    return array


def _check_numbers(times_median: object, resamples: object) -> None:
    if isinstance(times_median, bool) or not isinstance(times_median, int | float) or not 1 < times_median < math.inf:
        raise ProbeInputError(f"times_median is {times_median!r}; give a number above 1, such as 5.0")
    if isinstance(resamples, bool) or not isinstance(resamples, int) or resamples < 100:
        raise ProbeInputError(f"resamples is {resamples!r}; give a whole number, 100 or more")


def _group(name: Any, x: np.ndarray, y: np.ndarray) -> Group:
    errors = (x - y) ** 2
    values, counts = np.unique(y, return_counts=True)
    spike = values[counts.argmax()]
    others = y != spike
    varies = x.min() < x.max() and y.min() < y.max()
    return Group(
        name=name.item() if hasattr(name, "item") else name,
        rows=len(y),
        squared=float(errors.mean()),
        correlation=_correlation(x, y) if varies else None,
        spike=float(spike),
        spike_share=float(counts.max() / len(y)),
        squared_without=float(errors[others].mean()) if others.any() else None,
    )


def _correlation(x: np.ndarray, y: np.ndarray) -> float | None:
    """Return r, or None where the squares of so small or large numbers leave it without a value."""
    with np.errstate(all="ignore"):
        r = float(np.corrcoef(x, y)[0, 1])
    return r if math.isfinite(r) else None


def _blocks(rows: int, generator: np.random.Generator) -> np.ndarray:
    """Return groups made by chance, at most 500: what resampling by rows would say, at a bounded price."""
    return generator.permutation(rows) % min(rows, 500)


def _interval(draws: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(draws, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _inconsistent(group: Group, limit: float) -> bool:
    return group.spike_share >= SPIKE and (group.squared_without is None or group.squared_without < limit)


def _result(found: list[Group], outlying: list[Group], limit: float, r: float, by_group, by_row) -> ProbeResult:
    total = sum(group.total for group in found)
    share = sum(group.total for group in outlying) / total if total else 0.0
    suspects = [group for group in outlying if _inconsistent(group, limit)]
    findings = [_labels_finding(group) for group in suspects]
    findings += [_cluster_finding(outlying, share, len(found))] if share >= 0.5 else []
    wide, usual = by_group[1] - by_group[0], by_row[1] - by_row[0]
    findings += [_interval_finding(by_group, by_row, len(found))] if wide >= max(WIDE, 2 * usual) else []
    few = len(found) < FEWEST_GROUPS and not findings
    worst = sorted(found, key=lambda group: -group.total)
    return ProbeResult(
        probe="grouped_errors",
        ok=None if few else not findings,
        headline=f"r = {r:.3f}; 95 % interval by group {_shown(by_group)}, by row {_shown(by_row)}; "
        f"{len(outlying)} of {len(found)} groups err far more than the others, with {100 * share:.0f} % of the error.",
        findings=tuple(findings),
        columns=COLUMNS,
        rows=tuple(_row(group, total) for group in worst),
        bars=tuple(Bar(f"group {g.name}", 100 * g.total / total if total else 0.0, g in outlying) for g in worst[:12]),
        bar_unit="share of all squared error, %",
        measures={
            "r": r,
            "interval_by_group": list(by_group),
            "interval_by_row": list(by_row),
            "groups": len(found),
            "outlying_groups": [group.name for group in outlying],
            "share_of_squared_error": share,
            "inconsistent_groups": [group.name for group in suspects],
        },
        reason=f"{len(found)} groups are too few to tell; give {FEWEST_GROUPS} or more" if few else "",
    )


def _shown(interval: tuple[float, float]) -> str:
    return f"[{interval[0]:.3f}, {interval[1]:.3f}]"


def _row(group: Group, total: float) -> tuple:
    share = group.total / total if total else 0.0
    r, without = (NOT_DEFINED if value is None else value for value in (group.correlation, group.squared_without))
    return (group.name, group.rows, group.squared, share, r, group.spike, group.spike_share, without)


def _labels_finding(group: Group) -> Finding:
    without = "no other row is left" if group.squared_without is None else f"{group.squared_without:.3g} without them"
    return Finding(
        severity="fault",
        where=f"group {group.name}",
        measured=f"{100 * group.spike_share:.0f} % of its targets are {group.spike:.3g}; mean squared error "
        f"{group.squared:.3g} with these rows, {without}.",
        meaning="One value in many labels carries this group's error: a default rather than a measurement, it seems.",
        what_to_do="Compare these labels with their source, and the code that wrote them; then measure again.",
        chapter=CHAPTER,
    )


def _cluster_finding(outlying: list[Group], share: float, groups: int) -> Finding:
    return Finding(
        severity="fault",
        where=f"groups {', '.join(str(group.name) for group in outlying[:5])}{' …' if len(outlying) > 5 else ''}",
        measured=f"{len(outlying)} of {groups} groups hold {100 * share:.0f} % of the squared error.",
        meaning="The error belongs to these groups, not to the model at large.",
        what_to_do="Look into these groups before you change the model; report errors by group.",
        chapter=CHAPTER,
    )


def _interval_finding(by_group: tuple[float, float], by_row: tuple[float, float], groups: int) -> Finding:
    return Finding(
        severity="warning",
        where="r over all rows",
        measured=f"95 % interval [{by_group[0]:.2f}, {by_group[1]:.2f}] when {groups} groups are resampled, "
        f"[{by_row[0]:.2f}, {by_row[1]:.2f}] when rows are.",
        meaning="Rows of a group err together, so this r is known far less well than its number of rows suggests.",
        what_to_do="Evaluate on more groups rather than on more rows; shuffle before you take the first N rows.",
        chapter=CHAPTER,
    )
