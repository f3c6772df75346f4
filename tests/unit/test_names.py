"""Names and patterns choose what they say, in the known order, and a miss names what is near."""

import pytest

from casestudies_lib.probes.names import UnknownName, matching

KNOWN = ["blocks.0.alpha", "blocks.0.mlp.weight", "blocks.1.alpha", "blocks.1.mlp.weight", "head.bias"]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("head.bias", ["head.bias"]),
        (["head.bias", "blocks.0.alpha"], ["blocks.0.alpha", "head.bias"]),
        ("*.alpha", ["blocks.0.alpha", "blocks.1.alpha"]),
        (["blocks.?.alpha", "blocks.0.alpha"], ["blocks.0.alpha", "blocks.1.alpha"]),
    ],
)
def test_names_and_patterns_choose_in_the_known_order_and_once(wanted, found):
    assert matching(wanted, KNOWN) == found


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("blocks.0.alhpa", "no gate is called 'blocks.0.alhpa'; near it: blocks.0.alpha, "),
        ("alpha", "near it: blocks.0.alpha, blocks.1.alpha"),
        (["head.bias", "*.alpah"], r"called '\*\.alpah'; near it: blocks.0.alpha, blocks.1.alpha"),
        ("Blocks.0.alpha", "near it: blocks.0.alpha"),
        ("zzz", "there are: blocks.0.alpha, "),
        ([], "no gate name was given"),
        ([3], "3 is no gate name; give text such as 'blocks.0.alpha'"),
    ],
)
def test_a_miss_is_refused_and_names_what_is_near(wanted, message):
    with pytest.raises(UnknownName, match=message):
        matching(wanted, KNOWN, "gate")
