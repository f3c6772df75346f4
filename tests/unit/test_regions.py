"""A region of numbers, as a rule states it, against brute-force sampling and hand numbers."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casestudies_lib.claims import region

NUMBERS = st.integers(-40, 40).map(lambda count: count / 4)
WORDINGS = ("<= {0}", "< {0}", ">= {0}", "> {0}", "== {0}", "{0} to {1}", "outside {0} to {1}")


def is_in(wording, low, high, number):
    """Say what the seven wordings mean, in plain comparisons."""
    return {
        "<= {0}": number <= low,
        "< {0}": number < low,
        ">= {0}": number >= low,
        "> {0}": number > low,
        "== {0}": number == low,
        "{0} to {1}": low <= number <= high,
        "outside {0} to {1}": number < low or number > high,
    }[wording]


@given(st.sampled_from(WORDINGS), NUMBERS, NUMBERS, NUMBERS, NUMBERS)
def test_a_region_holds_an_interval_when_every_sampled_number_of_it_is_in(wording, first, second, third, fourth):
    low, high = sorted((first, second + 0.125 * (first == second)))
    start, end = sorted((third, fourth))
    # Ends are quarters and samples are eighths, so a sample lies between any two different ends.
    sampled = [start + step / 8 for step in range(round((end - start) * 8) + 1)]
    inside = [is_in(wording, low, high, number) for number in sampled]
    found = region(wording.format(low, high))
    assert found.holds(start, end) == all(inside)
    assert found.meets(start, end) == any(inside)


@pytest.mark.parametrize(
    ("text", "low", "high", "factor"),
    [
        ("<= 0.01", 0.002, 0.005, 2),  # 0.01 / 0.005
        (">= 0.1", 0.4, 0.5, 4),  # 0.4 / 0.1
        ("0.5 to 2", 0.75, 1, 1.5),  # 0.75 / 0.5 is nearer than 2 / 1
        ("0.5 to 2", 1, 1.6, 1.25),  # 2 / 1.6 is nearer than 1 / 0.5
        ("outside 0.5 to 2", 5, 6, 2.5),
        ("outside 0.5 to 2", 0.05, 0.1, 5),
        ("<= -2", -8, -6, 3),  # -6 lies three times as far out as -2
        (">= -2", -0.5, 1, 4),
        ("<= 0.01", -1, -0.5, math.inf),  # across zero: cleared by any factor
        ("> 0", 1e-9, 1, math.inf),  # zero as an end has no factor
        ("== 3", 3, 3, math.inf),  # one number has no room to clear
        ("<= 0.01", 0.005, 0.02, 0),  # not inside
    ],
)
def test_the_margin_is_the_factor_by_which_the_nearest_end_is_cleared(text, low, high, factor):
    assert region(text).margin(low, high) == pytest.approx(factor)


@given(st.floats(0.01, 100), st.floats(1.01, 1000))
def test_a_number_scaled_away_from_the_end_has_that_margin(end, factor):
    assert region(f">= {end!r}").margin(end * factor, math.inf) == pytest.approx(factor)
    assert region(f"<= {end!r}").margin(0, end / factor) == pytest.approx(factor)


@pytest.mark.parametrize("text", ["<=1e-6", " <= 1E-6 ", "<=  .000001", "<= +0.000001"])
def test_spelling_of_a_number_does_not_matter(text):
    assert region(text).parts == ((-math.inf, 1e-6, True),)


@pytest.mark.parametrize(
    "text", ["", "0.01", "=< 1", "about 2", "<= x", "<= nan", "<= inf", "<= 1 or >= 3", "1 to", "1-2", "!= 1", "1, 2"]
)
def test_anything_else_is_refused_with_the_forms_that_are_allowed(text):
    with pytest.raises(ValueError, match=r"is not one of '<= X', .*'outside A to B'"):
        region(text)


@pytest.mark.parametrize("text", ["2 to 1", "1 to 1", "outside 3 to -3"])
def test_an_empty_range_is_refused(text):
    with pytest.raises(ValueError, match=r"is empty: .* is not below"):
        region(text)


@pytest.mark.parametrize("text", ["<= 1e999", "-1e999 to 1", "outside 0 to 1e400"])
def test_a_number_too_large_for_a_float_is_refused(text):
    with pytest.raises(ValueError, match="too large for a float"):
        region(text)
