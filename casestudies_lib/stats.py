"""Intervals: what a handful of paired seeds, or one test set, can and cannot tell."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


class Interval(NamedTuple):
    """A mean with the two-sided confidence limits around it, in the unit of the values."""

    mean: float
    low: float
    high: float


def mean_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Return the mean of independent values with its Student-t interval.

    Args:
        values: one number per independent unit (a seed, a paired difference); at least two.
        confidence: coverage of the interval, strictly between 0 and 1.

    Returns:
        The mean and its limits, in the unit of `values`. Values that are all equal give an interval of width zero.

    Raises:
        ValueError: fewer than two values, a value or a limit that is not finite, or an impossible confidence.

    Source: Student, "The probable error of a mean", Biometrika 6, 1908.
    """
    sample = _finite(values)
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; it must lie strictly between 0 and 1")
    if sample.min() == sample.max():  # the rounded mean of equal values can miss them, and a region's edge, by one bit
        return Interval(*[float(sample[0])] * 3)
    with np.errstate(over="ignore", invalid="ignore"):
        mean = float(sample.mean())
        half = float(stats.t.ppf((1 + confidence) / 2, sample.size - 1) * stats.sem(sample))
    if not np.isfinite([mean, mean - half, mean + half]).all():
        raise ValueError(f"interval {mean} ± {half} is not finite; values of {sample.min():.3g} to {sample.max():.3g}")
    return Interval(mean, mean - half, mean + half)


def paired_differences(treated: Sequence[float], control: Sequence[float]) -> np.ndarray:
    """Return treated minus control, seed by seed; pairing removes what both arms of a seed share.

    Raises:
        ValueError: the two arms differ in length, or hold values that are not finite.
    """
    first, second = _finite(treated), _finite(control)
    if first.shape != second.shape:
        raise ValueError(f"paired arms differ: {first.size} against {second.size} values; give one pair a seed")
    return first - second


def area_under_curve(scores: Sequence[float], labels: Sequence[float]) -> float:
    """Return the area under the ROC curve: how often a random 1 outranks a random 0, ties counting half.

    Raises:
        ValueError: shapes differ, a score is not finite, a label is neither 0 nor 1, or one of the classes is missing.

    Source: Mann and Whitney, Annals of Mathematical Statistics 18, 1947 (U divided by the number of pairs).
    """
    scores, labels = _finite(scores), np.asarray(labels, dtype=float).ravel()
    if strange := labels[(labels != 0) & (labels != 1)].tolist():
        raise ValueError(f"label {strange[0]}; AUC takes 0 and 1 only")
    positive = labels == 1
    if scores.shape != positive.shape:
        raise ValueError(f"{scores.size} scores for {positive.size} labels; give one score a label")
    ones, zeros = int(positive.sum()), int((~positive).sum())
    if not ones or not zeros:
        raise ValueError(f"AUC needs both classes; these labels hold {ones} ones and {zeros} zeros")
    rank_sum = stats.rankdata(scores)[positive].sum()
    return float((rank_sum - ones * (ones + 1) / 2) / (ones * zeros))


def bootstrap_groups(
    groups: Sequence[int], statistic: Callable[[np.ndarray], float], resamples: int, generator: np.random.Generator
) -> np.ndarray:
    """Return a statistic recomputed on resampled groups, because the rows of one group are not independent.

    Args:
        groups: the group (a student, a deal) of each row.
        statistic: receives row numbers, repeated as drawn, and returns one number.
        resamples: how many draws of as many groups as there are, with replacement.
        generator: the source of the draws.

    Raises:
        ValueError: fewer than two groups.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 8 (units of resampling).
    """
    groups = np.asarray(groups)
    order = np.argsort(groups, kind="stable")
    _, starts = np.unique(groups[order], return_index=True)
    if starts.size < 2:
        raise ValueError(f"bootstrap over groups needs two groups or more; these rows hold {starts.size}")
    rows = np.split(order, starts[1:])
    draws = generator.integers(len(rows), size=(resamples, len(rows)))
    return np.array([statistic(np.concatenate([rows[group] for group in draw])) for draw in draws])


def correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Return Pearson's r.

    Raises:
        ValueError: shapes differ, values are not finite, or a variable is constant.

    Source: Pearson, Proceedings of the Royal Society 58, 1895.
    """
    x, y = _finite(first), _finite(second)
    if x.shape != y.shape:
        raise ValueError(f"{x.size} against {y.size} values; give pairs")
    if x.min() == x.max() or y.min() == y.max():
        raise ValueError("a constant variable has no correlation; give values that vary")
    return float(np.corrcoef(x, y)[0, 1])


def grouped_correlations(
    first: Sequence[float],
    second: Sequence[float],
    groups: Sequence[int],
    resamples: int,
    generator: np.random.Generator,
) -> np.ndarray:
    """Return Pearson's r recomputed on resampled groups, from each group's sums: fast also for millions of rows.

    Args:
        first, second: the two variables, one number a row.
        groups: the group (a student, a deal) of each row. A group may have one member; where all do, this resamples
            rows, which says too little about rows that are not independent.
        resamples: how many draws of as many groups as there are, with replacement.
        generator: the source of the draws.

    Returns:
        One r a draw; draws in which a variable is constant have none and are left out.

    Raises:
        ValueError: shapes differ, values are not finite, fewer than two groups, or a variable is constant throughout.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 8 (units of resampling).
    """
    x, y = _finite(first), _finite(second)
    names, place = np.unique(np.asarray(groups), return_inverse=True)
    if not x.shape == y.shape == place.shape:
        raise ValueError(f"{x.size} and {y.size} values in {place.size} rows of groups; give one of each a row")
    if names.size < 2:
        raise ValueError(f"bootstrap over groups needs two groups or more; these rows hold {names.size}")
    if x.min() == x.max() or y.min() == y.max():
        raise ValueError("a constant variable has no correlation; give values that vary")
    x, y = x - x.mean(), y - y.mean()
    columns = (np.ones_like(x), x, y, x * x, y * y, x * y)
    sums = np.stack([np.bincount(place, column, names.size) for column in columns], axis=1)
    n, a, b, aa, bb, ab = sums[generator.integers(names.size, size=(resamples, names.size))].sum(axis=1).T
    spread = (aa - a * a / n) * (bb - b * b / n)
    varies = spread > 1e-12 * aa * bb
    return (ab - a * b / n)[varies] / np.sqrt(spread[varies])


def _finite(values: Sequence[float]) -> np.ndarray:
    sample = np.asarray(values, dtype=float).ravel()
    if sample.size < 2:
        raise ValueError(f"got {sample.size} value(s); an interval or comparison needs at least two")
    if not np.isfinite(sample).all():
        raise ValueError(f"values are not finite: {sample[~np.isfinite(sample)][:5].tolist()}; find their cause first")
    return sample
