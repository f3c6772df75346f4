"""What `causality` says about what it saw: leaks from the future, from earlier batches, from other rows."""

from dataclasses import dataclass

from casestudies_lib.probes.causal.passes import Difference
from casestudies_lib.probes.result import SEVERITIES, Finding, shown

CHAPTER = "mixing_gates"
FUTURE, DOCUMENTS = "future tokens", "other documents"
EARLIER, ROWS = "the batch before", "other rows of the batch"
GIVEN, JITTERED = "as given", "jittered"

_MEANING = {
    FUTURE: "Part of the answer is in view when it is scored: the loss is too good, and generation, which has no "
    "future to look at, will not reach it.",
    DOCUMENTS: "Documents that only share a row read each other: training sees contexts that no use will have, and the "
    "same text scores differently beside another.",
    EARLIER: "State is carried from call to call, so the same text scores differently after another batch: results "
    "depend on order and batch size, and evaluation sees remains of training.",
    ROWS: "One sequence's output depends on its neighbours in the batch, so it changes with batch size and order, and "
    "neighbours that continue one text pass its future on.",
}
_WHAT_TO_DO = {
    FUTURE: "Look for a missing or misplaced mask (a term added or transposed after masking), a mean or a "
    "normalisation over positions, a convolution padded on both sides, a top-k over tokens.",
    DOCUMENTS: "Look for a mask that is causal alone, lengths or positions that one path ignores (that of a fused "
    "kernel), or a recurrent state that is not reset where a document begins.",
    EARLIER: "Look for attributes or buffers that forward() writes and reads; compute them from this batch, or "
    "reset them. A memory that is meant to last must be reset where texts change.",
    ROWS: "Look for batch statistics (BatchNorm in training mode), a mean over the batch, or a swapped batch axis.",
}


@dataclass(frozen=True)
class Look:
    """One comparison: with which weights, what was changed, and how far outputs moved that should not have.

    Attributes:
        weights: as given, or jittered.
        question: future tokens, other documents, the batch before, or other rows.
        changed: what was replaced, in words.
        cut: the first replaced position; None if none was.
        difference: of outputs that the change should not reach.
    """

    weights: str
    question: str
    changed: str
    cut: int | None
    difference: Difference


def findings(looks: list[Look], rounding: float, exact: bool) -> list[Finding]:
    """Return all findings, the worst first; `exact` says whether all was computed in double precision."""
    found = []
    for question in (FUTURE, DOCUMENTS, EARLIER, ROWS):
        asked = [look for look in looks if look.question == question]
        given = [look for look in asked if look.weights == GIVEN and look.difference.largest > rounding]
        hidden = [look for look in asked if look.weights == JITTERED and look.difference.largest > rounding]
        if given:
            found.append(_leak(question, given, silent=False))
        elif hidden:
            found.append(_leak(question, hidden, silent=True))
    small = [look for look in looks if 0 < look.difference.largest <= rounding]
    found += [_rounding_note(small, exact)] if small else []
    return sorted(found, key=lambda finding: -SEVERITIES.index(finding.severity))


def _leak(question: str, looks: list[Look], silent: bool) -> Finding:
    worst = max(looks, key=lambda look: look.difference.largest)
    gap = worst.difference
    what = "rows" if question == ROWS else "outputs"
    measured = (
        f"Changing {worst.changed} moves {len(gap.places)} of {gap.compared} {what} that it should not reach, by up to "
        f"{shown(gap.largest)} of the outputs' root mean square{_reach(looks)}."
    )
    hidden = "Only with noise on the weights: something, such as a gate at zero, hides it today. Once that moves: "
    return Finding(
        severity="warning" if silent or question == ROWS else "fault",
        where=question,
        measured=measured,
        meaning=(hidden if silent else "") + _MEANING[question],
        what_to_do=_WHAT_TO_DO[question],
        chapter=CHAPTER,
    )


def _reach(looks: list[Look]) -> str:
    ahead = [look.cut - look.difference.places[0] for look in looks if look.cut is not None]
    if not ahead:
        return ""
    if max(ahead) > 0:
        return f"; an output sees at least {max(ahead)} positions ahead"
    place = f"{-max(ahead)} positions before it" if max(ahead) else "of its own position"
    return f"; an output sees the input {place}"


def _rounding_note(looks: list[Look], exact: bool) -> Finding:
    largest = max(look.difference.largest for look in looks)
    more = "Far below" if exact else "Not above"
    return Finding(
        severity="note",
        where=", ".join(dict.fromkeys(look.question for look in looks)),
        measured=f"Past outputs move by up to {shown(largest)} of their root mean square.",
        meaning=f"{more} what rounding explains: transforms over all positions, such as an FFT, spread their rounding.",
        what_to_do="Nothing, unless the model has no such operation.",
        chapter=CHAPTER,
    )
