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


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=12), st.floats(0.01, 0.99))
def test_an_interval_is_centred_and_grows_with_confidence(values, confidence):
    mean, low, high = mean_interval(values, confidence)
    wider = mean_interval(values, (1 + confidence) / 2)
    assert wider.low <= low <= mean <= high <= wider.high
    assert mean - low == pytest.approx(high - mean, rel=1e-6, abs=1e-9)


@given(st.floats(-1e300, 1e300), st.integers(2, 30))
def test_equal_values_give_exactly_that_value_and_no_width(value, count):
    assert mean_interval([value] * count) == (value, value, value)


def test_values_one_bit_apart_give_an_interval_without_a_warning():
    mean, low, high = mean_interval([0.1, np.nextafter(0.1, 1), 0.1])
    assert low <= mean <= high
    assert high - low < 1e-15


@pytest.mark.parametrize("values", [[], [1.0]])
def test_an_interval_needs_two_values(values):
    with pytest.raises(ValueError, match=rf"got {len(values)} value\(s\); .* at least two"):
        mean_interval(values)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_an_interval_needs_finite_values(bad):
    with pytest.raises(ValueError, match="values are not finite"):
        mean_interval([1.0, bad, 2.0])


def test_an_interval_beyond_all_floats_is_refused():
    with pytest.raises(ValueError, match="is not finite"):
        mean_interval([1e308, -1e308, 1.5e308])


@pytest.mark.parametrize("confidence", [0, 1, -0.5, 95, math.nan])
def test_an_impossible_confidence_is_refused(confidence):
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        mean_interval([1, 2], confidence)


def test_paired_differences_are_taken_seed_by_seed():
    assert paired_differences([5, 7, 9], [1, 2, 10]).tolist() == [4, 5, -1]


def test_pairing_removes_what_both_arms_share():
    shared, effects = np.random.default_rng(1).normal(0, 100, size=8), [2, 2.1, 1.9, 2, 2, 2.1, 1.9, 2]
    interval = mean_interval(paired_differences(shared + np.array(effects), shared))
    assert interval == pytest.approx(by_hand(effects, 2.365), rel=1e-3)


def test_arms_that_do_not_pair_up_are_refused():
    with pytest.raises(ValueError, match="3 against 2 values; give one pair a seed"):
        paired_differences([1, 2, 3], [1, 2])
    with pytest.raises(ValueError, match="not finite"):
        paired_differences([1, 2, 3], [1, math.nan, 2])


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


@given(ROWS)
def test_auc_mirrors_with_the_sign_and_ignores_any_rising_scale(rows):
    scores, labels = np.array(rows).T
    area = area_under_curve(scores, labels)
    assert area_under_curve(-scores, labels) == pytest.approx(1 - area)
    assert area_under_curve(np.exp(scores), labels) == pytest.approx(area)


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


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([1, 2, 3], [1, 0], "3 scores for 2 labels"),
        ([1, 2, 3], [1, 1, 1], "3 ones and 0 zeros"),
        ([1, 2, 3], [0, 0, 0], "0 ones and 3 zeros"),
        ([1, math.nan, 3], [0, 1, 0], "not finite"),
        ([1], [1], "at least two"),
        ([1, 2, 3], [0, 1, 2], "label 2.0; AUC takes 0 and 1 only"),
        ([1, 2, 3], [0, 1, -1], "label -1.0"),
        ([1, 2, 3], [0, 1, 0.5], "label 0.5"),
        ([1, 2, 3], [0, 1, math.nan], "label nan"),
    ],
)
def test_auc_refuses(scores, labels, message):
    with pytest.raises(ValueError, match=message):
        area_under_curve(scores, labels)


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


def test_the_bootstrap_is_reproduced_by_its_generator_alone():
    def draw(seed):
        return bootstrap_groups([1, 2, 3, 4], lambda rows: rows.sum(), 30, np.random.default_rng(seed)).tolist()

    before = np.random.get_state()[1].tolist()
    assert draw(0) == draw(0) != draw(1)
    assert np.random.get_state()[1].tolist() == before


@pytest.mark.parametrize("groups", [[], [4], [4, 4, 4]])
def test_the_bootstrap_needs_two_groups(groups):
    with pytest.raises(ValueError, match=r"needs two groups or more; these rows hold [01]"):
        bootstrap_groups(groups, len, 10, np.random.default_rng(0))


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


@pytest.mark.parametrize(
    ("first", "second", "groups", "complaint"),
    [
        ([1, 2, 3], [1, 2], [0, 1, 1], "give one of each a row"),
        ([1, 2, 3], [1, 2, 3], [0, 0, 0], "two groups or more"),
        ([1, 1, 1], [1, 2, 3], [0, 1, 1], "constant"),
        ([1, 2, np.nan], [1, 2, 3], [0, 1, 1], "not finite"),
    ],
)
def test_groups_that_have_no_correlation_are_refused(first, second, groups, complaint):
    with pytest.raises(ValueError, match=complaint):
        grouped_correlations(first, second, groups, 10, np.random.default_rng(0))
    if groups != [0, 0, 0]:
        with pytest.raises(ValueError, match=r"constant|pairs|not finite"):
            correlation(first, second)
