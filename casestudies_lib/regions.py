"""Regions of numbers as rules write them: `<= 0.01`, `== 0`, `0.8 to 1.25`, `outside 0.5 to 2`."""

import math
import re
from dataclasses import dataclass

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?"
_COMPARISON = re.compile(rf"(<=|>=|==|<|>)\s*({_NUMBER})", re.IGNORECASE)
_RANGE = re.compile(rf"(outside\s+)?({_NUMBER})\s+to\s+({_NUMBER})", re.IGNORECASE)


@dataclass(frozen=True)
class Region:
    """A set of numbers as a union of intervals `(low, high, ends_included)`, with the text it was read from."""

    text: str
    parts: tuple[tuple[float, float, bool], ...]

    def holds(self, low: float, high: float) -> bool:
        """Return whether the whole interval from low to high lies in one part of the region."""
        return any(
            (a < low or (closed and a == low)) and (high < b or (closed and b == high)) for a, b, closed in self.parts
        )

    def meets(self, low: float, high: float) -> bool:
        """Return whether any number from low to high lies in the region."""
        return any(
            (high > a or (closed and high == a)) and (low < b or (closed and low == b)) for a, b, closed in self.parts
        )


def region(text: str) -> Region:
    """Read a region such as `<= 0.01`, `== 0`, `0.8 to 1.25` or `outside 0.5 to 2`.

    Raises:
        ValueError: the text is none of these, a number is too large for a float, or a range is empty.
    """
    stripped = text.strip()
    if any(math.isinf(float(number)) for number in re.findall(_NUMBER, stripped, re.IGNORECASE)):
        raise ValueError(f"region {text!r} holds a number too large for a float; every verdict would be the same")
    if match := _COMPARISON.fullmatch(stripped):
        sign, number = match[1], float(match[2])
        closed = "=" in sign
        low = -math.inf if sign[0] == "<" else number
        high = math.inf if sign[0] == ">" else number
        return Region(stripped, ((low, high, closed),))
    if match := _RANGE.fullmatch(stripped):
        low, high = float(match[2]), float(match[3])
        if low >= high:
            raise ValueError(f"region {text!r} is empty: {low} is not below {high}")
        parts = ((-math.inf, low, False), (high, math.inf, False)) if match[1] else ((low, high, True),)
        return Region(stripped, parts)
    raise ValueError(f"region {text!r} is not one of '<= X', '< X', '>= X', '> X', '== X', 'A to B', 'outside A to B'")


def typeset(text: str) -> str:
    """Return a rule, or what follows from one, with `≥` and `≤` for people; files and records keep `>=` and `<=`."""
    return text.replace(">=", "≥").replace("<=", "≤")
