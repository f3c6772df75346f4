"""The answer of `alignment`: findings, a headline, tables by text and by region, a chart."""

from itertools import pairwise
from typing import Any

import numpy as np

from casestudies_lib.offsets import Tokens
from casestudies_lib.probes.result import Bar, Finding, ProbeResult, percent, shown
from casestudies_lib.probes.tokenisers.pairings import Pairing

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


def conclusion(pairings: list[Pairing], batch: bool) -> ProbeResult:
    """Return the answer about all texts; `batch` says that the reader gave several."""
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
