"""Pair the positions of two tokenizations of one text, and compare what each side has read by then."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64

from casestudies_lib.offsets import OffsetsError, Tokens, checked, shared_ends
from casestudies_lib.probes.result import ProbeInputError


@dataclass(frozen=True, eq=False)
class Pairing:
    """One text whose positions are paired by index, up to the shorter list.

    Attributes:
        first, second: the two tokenizations.
        text: the text, if it is known.
        told: whether offsets can judge the pair: not two specials, not alike inside one character.
        same: whether both sides have read the same characters, and nothing of the next one.
        inside: pairs inside a character that both sides split alike, as far as offsets show.
        identical: pairs with one and the same character range.
        reads: characters read up to each position, first and second.
        aligned: pairs that offsets would compare: tokens that end at the same character.
    """

    first: Tokens
    second: Tokens
    text: str | None
    told: Bool[np.ndarray, "positions"]
    same: Bool[np.ndarray, "positions"]
    inside: int
    identical: int
    reads: Int64[np.ndarray, "sides positions"]
    aligned: int

    @cached_property
    def apart(self) -> Int64[np.ndarray, "apart"]:
        """Return the positions that speak of different characters."""
        return np.flatnonzero(self.told & ~self.same)

    @cached_property
    def drift(self) -> Int64[np.ndarray, "positions"]:
        """Return how many characters one side of each position has read more than the other."""
        return np.abs(self.reads[0] - self.reads[1])

    @property
    def left_out(self) -> int:
        """Return how many characters at the end of the longer list no position reads."""
        return self.first.characters - int(self.reads[:, -1].min())


def pairing(first: Any, second: Any, text: str | None, which: str) -> Pairing:
    """Return how the positions of one text's two tokenizations pair up."""
    sides = []
    for offsets, name in ((first, "first_offsets"), (second, "second_offsets")):
        try:
            sides.append(checked(offsets, name=name + which, text=text))
        except OffsetsError as error:
            raise ProbeInputError(str(error)) from error
    first, second = sides
    if first.characters != second.characters:
        covers = [f"{side.characters} characters with {side.positions.size} of {side.listed} tokens" for side in sides]
        raise ProbeInputError(
            f"first_offsets{which} covers {covers[0]}, second_offsets{which} {covers[1]}; give the same text to both "
            "tokenizers, without a maximal length"
        )
    return _compared(first, second, text)


def _compared(first: Tokens, second: Tokens, text: str | None) -> Pairing:
    length = min(first.listed, second.listed)
    mine, other = _described(first, length), _described(second, length)
    alike = mine == other
    real, closed = (mine[1] >= 0) & (other[1] >= 0), (mine[3] == 0) & (other[3] == 0)
    inside = real & ~closed & alike.all(axis=0)
    return Pairing(
        first=first,
        second=second,
        text=text,
        told=((mine[1] >= 0) | (other[1] >= 0)) & ~inside,
        same=closed & alike[1],
        inside=int(inside.sum()),
        identical=int((real & alike[0] & alike[1] & ~inside).sum()),
        reads=np.stack([first.read[:length], second.read[:length]]),
        aligned=shared_ends(first, second)[0].size,
    )


def _described(side: Tokens, length: int) -> Int64[np.ndarray, "4 positions"]:
    """Return start, end, and the numbers of tokens before and after within the same character; -1 for specials."""
    index = np.arange(side.positions.size)
    opening, closing = np.flatnonzero(side.opens), np.flatnonzero(side.closes)
    group = np.cumsum(side.opens) - 1
    described = np.full((4, side.listed), -1)
    described[:, side.positions] = side.starts, side.ends, index - opening[group], closing[group] - index
    return described[:, :length]
