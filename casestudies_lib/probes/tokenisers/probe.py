"""Do the positions that two tokenizations pair by index speak of the same characters?"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from casestudies_lib.probes.inputs import kind_of
from casestudies_lib.probes.result import ProbeInputError, ProbeResult
from casestudies_lib.probes.tokenisers.findings import conclusion
from casestudies_lib.probes.tokenisers.pairings import pairing


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
        pairings = [pairing(first_offsets[at], second_offsets[at], texts[at], f"[{at}]") for at in each]
    elif text is None or isinstance(text, str):
        pairings = [pairing(first_offsets, second_offsets, text, "")]
    else:
        raise ProbeInputError(f"text is {kind_of(text)}, while the offsets are those of one text; give it as one str")
    return conclusion(pairings, batch)


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
