"""A region of numbers, as a rule states it, against brute-force sampling and hand numbers."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casestudies_lib.regions import region

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
