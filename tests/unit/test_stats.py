"""Intervals, AUC and bootstrap against printed tables, double loops, simulation and analytic errors."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from casestudies_lib.stats import (
    area_under_curve,
    bootstrap_groups,
    correlation,
    grouped_correlations,
    mean_interval,
    paired_differences,
)

# Two-sided 95 % and 90 % points of Student's t by degrees of freedom, from a printed table.
T_95 = {1: 12.706, 2: 4.303, 4: 2.776, 9: 2.262, 30: 2.042}
T_90 = {1: 6.314, 2: 2.920, 4: 2.132, 9: 1.833, 30: 1.697}
SMALL = st.integers(-20, 20).map(lambda count: count / 4)


def by_hand(values, factor):
    """Return mean ± factor · standard error in textbook steps."""
    n, mean = len(values), sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / (n - 1)
    half = factor * math.sqrt(variance / n)
    return mean, mean - half, mean + half


@pytest.mark.parametrize("freedom", T_95)
def test_the_interval_is_the_tabulated_one(freedom):
    values = [(index * 7919 % 101) / 10 for index in range(freedom + 1)]
    # The table has three decimals and the standard error here is below 4, so limits agree to .002.
    assert mean_interval(values) == pytest.approx(by_hand(values, T_95[freedom]), abs=0.002)
    assert mean_interval(values, 0.90) == pytest.approx(by_hand(values, T_90[freedom]), abs=0.002)


def test_one_and_three_give_two_and_twelve_point_seven():
    # Standard error 1, one degree of freedom: the half-width is the tabulated point itself.
    assert mean_interval([1, 3]) == pytest.approx((2, 2 - 12.706, 2 + 12.706), rel=1e-4)


def test_nineteen_of_twenty_intervals_cover_the_mean():
    generator, trials = np.random.default_rng(0), 2000
    covered = 0
    for _ in range(trials):
        _, low, high = mean_interval(generator.normal(5, 3, size=6))
        covered += low <= 5 <= high
    # Four binomial standard errors; the normal point 1.96 instead of t would cover 0.893.
    assert covered / trials == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / trials))


@given(st.floats(-1e300, 1e300), st.integers(2, 30))
def test_equal_values_give_exactly_that_value_and_no_width(value, count):
    assert mean_interval([value] * count) == (value, value, value)


def test_paired_differences_are_taken_seed_by_seed():
    assert paired_differences([5, 7, 9], [1, 2, 10]).tolist() == [4, 5, -1]


def auc_by_pairs(scores, labels):
    """Return the share of (1, 0) pairs in which the 1 scores higher, a tie counting half, pair by pair."""
    won, pairs = 0.0, 0
    for high, first in zip(scores, labels):
        for low, second in zip(scores, labels):
            if first == 1 and second == 0:
                pairs += 1
                won += 1.0 if high > low else 0.5 if high == low else 0.0
    return won / pairs


ROWS = st.lists(st.tuples(SMALL, st.integers(0, 1)), min_size=2, max_size=25).filter(
    lambda rows: len({label for _, label in rows}) == 2
)


@given(ROWS)
def test_auc_is_the_double_loop_over_pairs(rows):
    scores, labels = zip(*rows)
    assert area_under_curve(scores, labels) == pytest.approx(auc_by_pairs(scores, labels), abs=1e-12)


@pytest.mark.parametrize(
    ("scores", "labels", "area"),
    [
        ([1, 2, 3, 4], [0, 0, 1, 1], 1),
        ([4, 3, 2, 1], [0, 0, 1, 1], 0),
        ([5, 5, 5], [0, 1, 1], 0.5),
        ([1, 2, 2, 3], [0, 1, 0, 1], 0.875),  # 3 wins and a tie of 4 pairs
        ([1, 3, 2], [False, True, True], 1),
    ],
)
def test_auc_by_hand(scores, labels, area):
    assert area_under_curve(scores, labels) == area


def test_the_bootstrap_draws_whole_groups_and_as_many_as_there_are():
    groups = np.array([7, 3, 7, 9, 3, 7, 5])
    members = {group: sorted(np.flatnonzero(groups == group)) for group in set(groups.tolist())}
    seen = []

    def check(rows):
        drawn = groups[rows]
        times = {group: np.count_nonzero(drawn == group) / len(own) for group, own in members.items()}
        assert sum(times.values()) == len(members)
        for group, own in members.items():
            expected = sorted(own * round(times[group]))
            assert sorted(rows[drawn == group]) == expected
        seen.append(tuple(times.values()))
        return 0.0

    assert bootstrap_groups(groups, check, 50, np.random.default_rng(0)).shape == (50,)
    assert len(set(seen)) > 10  # the draws differ
    assert any(0 in times and max(times) > 1 for times in seen)  # with replacement


def test_the_bootstrap_spread_is_the_standard_error_of_a_mean_of_groups():
    generator = np.random.default_rng(2)
    level = generator.normal(size=80)
    groups = np.repeat(np.arange(80), 10)
    values = level[groups] + 0.1 * generator.normal(size=800)
    draws = bootstrap_groups(groups, lambda rows: values[rows].mean(), 2000, np.random.default_rng(3))
    means = values.reshape(80, 10).mean(axis=1)
    # Equal groups: the mean of rows is the mean of group means, whose error is sd / sqrt(groups).
    expected = means.std() / math.sqrt(80)
    assert draws.std() == pytest.approx(expected, rel=0.06)
    assert draws.mean() == pytest.approx(values.mean(), abs=4 * expected / math.sqrt(2000))
    # Rows drawn one by one would claim an error about three times too small.
    assert values.std() / math.sqrt(800) < expected / 2.5


def test_the_order_of_rows_and_the_names_of_groups_do_not_matter():
    values = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    groups, order = np.array([0, 0, 1, 2, 2]), np.array([4, 2, 0, 3, 1])

    def spread(names, numbers):
        return bootstrap_groups(names, lambda rows: numbers[rows].sum(), 20, np.random.default_rng(4))

    assert spread(groups, values).tolist() == spread(groups[order], values[order]).tolist()
    assert spread(groups, values).tolist() == spread(groups * 10 - 7, values).tolist()


def test_correlation_is_the_one_that_scipy_gives():
    first, second = np.random.default_rng(0).normal(size=(2, 50))
    assert correlation(first, second) == pytest.approx(scipy.stats.pearsonr(first, second)[0])


def test_correlations_of_resampled_groups_are_those_of_the_resampled_rows():
    draw = np.random.default_rng(1)
    groups = np.repeat(np.arange(6), 30)
    first = draw.normal(size=6)[groups] + draw.normal(size=180) + 1e3
    second = first + draw.normal(size=180)
    fast = grouped_correlations(first, second, groups, 50, np.random.default_rng(2))
    slow = bootstrap_groups(
        groups, lambda rows: np.corrcoef(first[rows], second[rows])[0, 1], 50, np.random.default_rng(2)
    )
    assert fast == pytest.approx(slow)


def test_draws_in_which_nothing_varies_are_left_out():
    draws = grouped_correlations([1, 1, 2, 3], [1, 1, 2, 4], [0, 0, 1, 1], 200, np.random.default_rng(0))
    assert np.isfinite(draws).all()
    assert len(draws) < 200
