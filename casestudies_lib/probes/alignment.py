"""Do the positions that two tokenizations pair by index speak of the same characters?"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64

from casestudies_lib.offsets import OffsetsError, Tokens, checked, shared_ends
from casestudies_lib.probes.inputs import kind_of
from casestudies_lib.probes.result import Bar, Finding, ProbeInputError, ProbeResult, percent, shown

CHAPTER = "distillation_loss"
REGIONS = 10
TEXT_COLUMNS = (
    "text",
    "characters",
    "tokens, first",
    "tokens, second",
    "positions compared",
    "same characters by index, %",
    "same characters by offsets, %",
    "first position apart",
    "largest drift, characters",
    "left out at the end, characters",
)
REGION_COLUMNS = (
    "positions",
    "positions compared",
    "same characters by index, %",
    "characters read, first",
    "characters read, second",
    "largest drift, characters",
)


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


def alignment(first_offsets: Any, second_offsets: Any, text: str | Sequence[str] | None = None) -> ProbeResult:
    """Tell whether positions of equal index in two tokenizations of one text speak of the same characters.

    Whoever scores logits of one model against another's, position by position, needs this. Position i of both sides is
    sound only if both have read the same characters by then, that is, if token i ends at the same character in both.
    Lists of different length are cut to the shorter one first, as the incident's fix did; equal lengths prove nothing.

    Special tokens and padding have empty ranges. A position with one on both sides is left out; one that faces a token
    counts as apart. Where both sides split a character into tokens alike, as byte-level tokenizers do, offsets cannot
    tell what was read inside it: such positions are left out too. Leave padding away if your loss masks it.

    Nothing that you give is changed.

    Args:
        first_offsets: for each token its (start, end) in characters, such as `Encoding.offsets` of Hugging Face's
            tokenizers; or a list of such lists, one a text.
        second_offsets: the same texts by the other tokenizer.
        text: the text, or the list of them; needed if a tokenizer trims white space, and gives findings excerpts.

    Returns:
        A result whose `ok` is True if all compared positions speak of the same characters, False if one does not, None
        if there are fewer than two to compare. `measures` holds the totals: numbers of positions, tokens, characters.

    Raises:
        ProbeInputError: names the argument, what came and what to give.

    Source: the chapter distillation_loss.
    """
    batch = _is_batch(first_offsets, "first_offsets")
    if batch != _is_batch(second_offsets, "second_offsets"):
        one, many = ("second", "first") if batch else ("first", "second")
        raise ProbeInputError(f"{many}_offsets holds a list for each text, {one}_offsets one text's pairs; give alike")
    if batch:
        _check_texts(len(first_offsets), len(second_offsets), text)
        texts = [None] * len(first_offsets) if text is None else text
        each = range(len(texts))
        pairings = [_pairing(first_offsets[at], second_offsets[at], texts[at], f"[{at}]") for at in each]
    elif text is None or isinstance(text, str):
        pairings = [_pairing(first_offsets, second_offsets, text, "")]
    else:
        raise ProbeInputError(f"text is {kind_of(text)}, while the offsets are those of one text; give it as one str")
    return _result(pairings, batch)


def _is_batch(offsets: Any, name: str) -> bool:
    """Return whether there is a list of pairs for each text, rather than one list of pairs."""
    if not hasattr(offsets, "__len__") or not hasattr(offsets, "__getitem__") or isinstance(offsets, str | dict):
        raise ProbeInputError(f"{name} is {kind_of(offsets)}; give a list of (start, end), such as Encoding.offsets")
    if not len(offsets):
        raise ProbeInputError(f"{name} is empty; give one (start, end) a token, of a text that is not empty")
    if hasattr(offsets, "ndim"):
        return offsets.ndim == 3
    first = offsets[0]
    return hasattr(first, "__len__") and (not len(first) or np.ndim(first[0]) > 0)


def _check_texts(first: int, second: int, text: object) -> None:
    if isinstance(text, str) or not (text is None or isinstance(text, Sequence)):
        raise ProbeInputError(f"text is {kind_of(text)}, while the offsets are those of {first} texts; give a list")
    if first != second or (text is not None and len(text) != first):
        given = "" if text is None else f", text {len(text)}"
        raise ProbeInputError(
            f"first_offsets holds {first} texts, second_offsets {second}{given}; give the same texts in the same order"
        )


def _pairing(first: Any, second: Any, text: str | None, which: str) -> Pairing:
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


def _result(pairings: list[Pairing], batch: bool) -> ProbeResult:
    measures = _measures(pairings)
    told = measures["positions"]
    ok = False if measures["positions_apart"] else True if told >= 2 else None
    reason = (
        f"offsets can judge {told} position(s), and it takes two: special tokens on both sides and positions inside a "
        "character do not count; give a longer text"
    )
    return ProbeResult(
        probe="alignment",
        ok=ok,
        headline=_headline(measures),
        findings=tuple(_findings(pairings, measures)),
        columns=TEXT_COLUMNS if batch else REGION_COLUMNS,
        rows=_text_rows(pairings) if batch else _region_rows(pairings[0]),
        bars=_bars(measures),
        bar_unit="share of the compared positions that speak of the same characters, %",
        measures=measures,
        reason=reason if ok is None else "",
    )


def _measures(pairings: list[Pairing]) -> dict[str, int | None]:
    apart = [(number, pairing) for number, pairing in enumerate(pairings) if pairing.apart.size]
    where, worst = (apart[0][0], apart[0][1]) if apart else (None, None)
    at = int(worst.apart[0]) if worst else None
    return {
        "texts": len(pairings),
        "texts_apart": len(apart),
        "positions": sum(int(pairing.told.sum()) for pairing in pairings),
        "positions_same_by_index": sum(int((pairing.told & pairing.same).sum()) for pairing in pairings),
        "positions_apart": sum(pairing.apart.size for pairing in pairings),
        "positions_same_by_offsets": sum(pairing.aligned for pairing in pairings),
        "positions_of_identical_tokens": sum(pairing.identical for pairing in pairings),
        "positions_inside_characters": sum(pairing.inside for pairing in pairings),
        "first_text_apart": where,
        "first_position_apart": at,
        "first_character_apart": int(worst.reads[:, at].min()) if worst else None,
        "largest_drift": max(int(pairing.drift.max()) for pairing in pairings),
        "drift_at_end": max(int(pairing.drift[-1]) for pairing in pairings),
        "characters": sum(pairing.first.characters for pairing in pairings),
        "characters_left_out": sum(pairing.left_out for pairing in pairings),
        "tokens_first": sum(pairing.first.positions.size for pairing in pairings),
        "tokens_second": sum(pairing.second.positions.size for pairing in pairings),
        "specials_first": sum(pairing.first.specials for pairing in pairings),
        "specials_second": sum(pairing.second.specials for pairing in pairings),
    }


def _headline(measures: dict[str, int | None]) -> str:
    told, same = measures["positions"], measures["positions_same_by_index"]
    if not told:
        return "There is no position that offsets could judge."
    if not measures["positions_apart"]:
        return f"All {shown(told)} compared positions speak of the same characters."
    return (
        f"Paired by index, {shown(same)} of {shown(told)} positions ({percent(same, told)}) speak of the same "
        f"characters; by offsets, {shown(measures['positions_same_by_offsets'])} pairs do."
    )


def _findings(pairings: list[Pairing], measures: dict[str, int | None]) -> list[Finding]:
    """Return all findings, the worst first."""
    found = [_fault(pairings, measures)] if measures["positions_apart"] else []
    if left_out := measures["characters_left_out"]:
        found.append(_left_out(left_out, measures))
    if shifted := [pairing for pairing in pairings if _leading(pairing.first) != _leading(pairing.second)]:
        found.append(_specials(shifted))
    if any(not side.opens.all() for pairing in pairings for side in (pairing.first, pairing.second)):
        found.append(_shared_characters(pairings, measures))
    return found


def _fault(pairings: list[Pairing], measures: dict[str, int | None]) -> Finding:
    pairing = pairings[measures["first_text_apart"]]
    at = measures["first_position_apart"]
    told, apart = measures["positions"], measures["positions_apart"]
    sides = [_token(side, at, pairing.text) for side in (pairing.first, pairing.second)]
    many = len(pairings) > 1
    where = f"position {at}, character {measures['first_character_apart']}, and later"
    texts = f"; {measures['texts_apart']} of {measures['texts']} texts" if many else ""
    return Finding(
        severity="fault",
        where=f"text {measures['first_text_apart']}, {where}" if many else where,
        measured=f"{shown(apart)} of {shown(told)} compared positions ({percent(apart, told)}{texts}) speak of "
        f"different characters; at the first of them, {sides[0]} faces {sides[1]}. The two sides drift "
        f"{shown(measures['largest_drift'])} characters apart, {shown(measures['drift_at_end'])} at the end.",
        meaning="There, each model is scored against the other's prediction for another place in the text: a loss "
        "teaches, and a metric counts, a difference that even a perfect student would show.",
        what_to_do="Compare logits[i] with logits[j] only for the pairs of casestudies_lib.offsets.shared_ends: "
        f"{shown(measures['positions_same_by_offsets'])} pairs here. Or give both models one tokenizer. (The two "
        "vocabularies need a mapping of their own.)",
        chapter=CHAPTER,
    )


def _token(side: Tokens, at: int, text: str | None) -> str:
    """Return what stands at a position of the reader's list, in words."""
    index = int(np.searchsorted(side.positions, at))
    if index == side.positions.size or side.positions[index] != at:
        return "a special token"
    start, end = int(side.starts[index]), int(side.ends[index])
    where = f"characters {start} to {end}"
    if text is None:
        return where
    piece = text[start:end] if end - start <= 20 else f"{text[start : start + 19]}…"
    before = text[max(start - 12, 0) : start]
    return f"{piece!r} ({where}, after {before!r})" if before else f"{piece!r} ({where})"


def _left_out(left_out: int, measures: dict[str, int | None]) -> Finding:
    whole = measures["characters"]
    return Finding(
        severity="warning",
        where="the end of the longer list",
        measured=f"Cutting to the shorter list leaves out {shown(left_out)} of {shown(whole)} characters "
        f"({percent(left_out, whole)}).",
        meaning="One model's predictions there are neither trained nor scored, and always at the end of a text.",
        what_to_do="Pair by offsets, which reaches the end; raise an error where lengths differ.",
        chapter=CHAPTER,
    )


def _leading(side: Tokens) -> int:
    """Return how many special tokens stand before the first token that speaks of characters."""
    return int(side.positions[0]) if side.positions.size else side.listed


def _specials(shifted: list[Pairing]) -> Finding:
    first, second = _leading(shifted[0].first), _leading(shifted[0].second)
    return Finding(
        severity="warning",
        where="special tokens at the start",
        measured=f"The first list starts with {first}, the second with {second}"
        f"{f', and {len(shifted) - 1} more texts alike' if shifted[1:] else ''}.",
        meaning="A special token on one side alone shifts all that follows by a position, with one tokenizer too.",
        what_to_do="Give both sides the same special tokens, or none; leave padding away.",
        chapter=CHAPTER,
    )


def _shared_characters(pairings: list[Pairing], measures: dict[str, int | None]) -> Finding:
    first = sum(int((~pairing.first.closes).sum()) for pairing in pairings)
    second = sum(int((~pairing.second.closes).sum()) for pairing in pairings)
    return Finding(
        severity="note",
        where="characters that several tokens share",
        measured=f"{shown(first)} tokens of the first list and {shown(second)} of the second end inside a character; "
        f"{shown(measures['positions_inside_characters'])} positions that look alike were left out.",
        meaning="Byte-level tokenizers split a character such as é or an emoji; offsets cannot tell which of its bytes "
        "a token holds.",
        what_to_do="Nothing: compare after the character's last token.",
        chapter=CHAPTER,
    )


def _text_rows(pairings: list[Pairing]) -> tuple[tuple[Any, ...], ...]:
    """Return one row a text, in the reader's order."""
    return tuple(
        (
            _label(number, pairing.text),
            pairing.first.characters,
            pairing.first.positions.size,
            pairing.second.positions.size,
            told := int(pairing.told.sum()),
            _share(int((pairing.told & pairing.same).sum()), told),
            _share(pairing.aligned, told),
            int(pairing.apart[0]) if pairing.apart.size else None,
            int(pairing.drift.max()),
            pairing.left_out,
        )
        for number, pairing in enumerate(pairings)
    )


def _label(number: int, text: str | None) -> str:
    if text is None:
        return str(number)
    return f"{number}: {text[:20]!r}{'…' if len(text) > 20 else ''}"


def _region_rows(pairing: Pairing) -> tuple[tuple[Any, ...], ...]:
    """Return one row for each stretch of positions, from the text's start to where truncation ends."""
    length = pairing.told.size
    edges = np.linspace(0, length, min(REGIONS, length) + 1).astype(int).tolist()
    return tuple(
        (
            f"{low} to {high - 1}",
            told := int(pairing.told[low:high].sum()),
            _share(int((pairing.told & pairing.same)[low:high].sum()), told),
            int(pairing.reads[0, high - 1]),
            int(pairing.reads[1, high - 1]),
            int(pairing.drift[low:high].max()),
        )
        for low, high in pairwise(edges)
    )


def _share(part: int, whole: int) -> float | None:
    return 100 * part / whole if whole else None


def _bars(measures: dict[str, int | None]) -> tuple[Bar, ...]:
    told = measures["positions"]
    if not told:
        return ()
    by_index, by_offsets = measures["positions_same_by_index"], measures["positions_same_by_offsets"]
    return (
        Bar("paired by index", 100 * by_index / told, bool(measures["positions_apart"])),
        Bar("paired by offsets", 100 * by_offsets / told, False),
    )
