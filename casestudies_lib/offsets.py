"""Character offsets of tokens: where each token stands in its text, and what two tokenizations of one text share."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64


class OffsetsError(ValueError):
    """Offsets do not describe tokens that cover a text in order; the message says which token, and what to do."""


@dataclass(frozen=True, eq=False)
class Tokens:
    """The tokens that speak of characters, in order, each with its half-open character range; together they cover all.

    Two neighbours overlap only where they share one character: byte-level tokenizers split é or an emoji over several
    tokens, which all carry the range of the whole character. No token opens or closes inside such a character.

    Attributes:
        starts, ends: character range of each token; white space that a tokenizer trimmed is back in its range.
        positions: the index of each token in the reader's list, which also holds the special tokens.
        listed: the length of the reader's list.
    """

    starts: Int64[np.ndarray, "tokens"]
    ends: Int64[np.ndarray, "tokens"]
    positions: Int64[np.ndarray, "tokens"]
    listed: int

    @property
    def characters(self) -> int:
        """Return how many characters the tokens cover."""
        return int(self.ends[-1]) if self.ends.size else 0

    @property
    def specials(self) -> int:
        """Return how many tokens of the reader's list speak of no characters."""
        return self.listed - self.positions.size

    @cached_property
    def opens(self) -> Bool[np.ndarray, "tokens"]:
        """Return whether each token starts between two characters that nothing before it has touched."""
        return np.concatenate([[True], self.starts[1:] == self.ends[:-1]])[: self.starts.size]

    @cached_property
    def closes(self) -> Bool[np.ndarray, "tokens"]:
        """Return whether each token ends a character for good: after it, the model has read whole characters."""
        return np.append(self.opens[1:], True)[: self.starts.size]

    @cached_property
    def read(self) -> Int64[np.ndarray, "listed"]:
        """Return how many characters have been touched after each token of the reader's list; a special adds none."""
        touched = np.zeros(self.listed, dtype=np.int64)
        touched[self.positions] = self.ends
        return np.maximum.accumulate(touched)


def checked(offsets: Any, characters: int | None = None, name: str = "offsets", text: str | None = None) -> Tokens:
    """Return the tokens behind character offsets, or say why these cannot be the offsets of one text's tokens.

    Special tokens and padding have empty ranges, such as (0, 0): they are left out and counted. With `text`, white
    space between ranges belongs to the token after it, at the end to the last token; an empty range behind such white
    space is the token that a tokenizer trimmed to nothing, and gets it back.

    Args:
        offsets: one (start, end) a token, half-open, in characters (not bytes): an array of shape [tokens, 2] or a list
            of pairs, such as `Encoding.offsets` of Hugging Face's tokenizers.
        characters: how long the text is; None takes the last end.
        name: what messages call the offsets.
        text: the text itself; needed where a tokenizer trims white space.

    Returns:
        The tokens that speak of characters; none of them if all are special, of a text that is unknown or white space.

    Raises:
        OffsetsError: not whole numbers of shape [tokens, 2], none at all, negative, ending before they start, running
            backwards, overlapping by more than a character, with a gap, or not covering the text from start to end.
    """
    pairs = _pairs(offsets, name)
    characters = _length(characters, text, name)
    positions = np.flatnonzero(_speaks(pairs, text))
    starts, ends = pairs[positions, 0], pairs[positions, 1]
    if not positions.size:
        _check_only_specials(len(pairs), characters, text, name)
        return Tokens(starts, ends, positions, len(pairs))
    _check_overlaps(starts, ends, positions, name)
    _check_edges(pairs, positions, characters, text, name)
    if text is not None:
        starts, ends = _filled(pairs, positions, text, name)
    return Tokens(starts, ends, positions, len(pairs))


def shared_ends(first: Any, second: Any) -> tuple[Int64[np.ndarray, "pairs"], Int64[np.ndarray, "pairs"]]:
    """Return the pairs of tokens that end at the same character: after them, both models have read the same.

    These are the positions whose logits may be compared as they are: logits[i] against logits[j]. The last pair
    predicts what follows the whole text; a loss over known next tokens leaves it out.

    Args:
        first, second: `Tokens`, or offsets that `checked` takes without a text.

    Returns:
        Indices in the first reader's list and in the second's, ascending.

    Raises:
        OffsetsError: the two do not cover the same number of characters, or `checked` refuses one.
    """
    first = first if isinstance(first, Tokens) else checked(first, name="first")
    second = second if isinstance(second, Tokens) else checked(second, name="second")
    if first.characters != second.characters:
        raise OffsetsError(
            f"first covers {first.characters} characters with {first.positions.size} tokens, second "
            f"{second.characters} with {second.positions.size}; give two tokenizations of the same text, both in full"
        )
    closing = [np.flatnonzero(side.closes) for side in (first, second)]
    _, in_first, in_second = np.intersect1d(
        first.ends[closing[0]], second.ends[closing[1]], assume_unique=True, return_indices=True
    )
    return first.positions[closing[0][in_first]], second.positions[closing[1][in_second]]


def _pairs(offsets: Any, name: str) -> Int64[np.ndarray, "listed 2"]:
    """Return the offsets as an array of whole numbers, each pair in itself sound."""
    advice = "give one (start, end) of whole numbers a token, such as Encoding.offsets"
    try:
        pairs = np.asarray(offsets)
    except (ValueError, TypeError, RuntimeError) as error:
        raise OffsetsError(f"{name} is a {type(offsets).__name__} that makes no array ({error}); {advice}") from error
    if pairs.ndim and not len(pairs):
        raise OffsetsError(f"{name} is empty; {advice}, of a text that is not empty")
    if pairs.ndim != 2 or pairs.shape[1] != 2:
        raise OffsetsError(f"{name} is a {type(offsets).__name__} of shape {list(pairs.shape)}; {advice}: [tokens, 2]")
    if pairs.dtype.kind not in "iu":
        raise OffsetsError(f"{name} holds values of type {pairs.dtype}; {advice}")
    pairs = pairs.astype(np.int64, copy=False)
    if (index := _first(pairs.min(axis=1) < 0)) is not None:
        raise OffsetsError(f"{_token(pairs, index, name)} is negative; {advice}, counted from the text's start")
    if (index := _first(pairs[:, 1] < pairs[:, 0])) is not None:
        raise OffsetsError(f"{_token(pairs, index, name)} ends before it starts; {advice}, not (start, length)")
    return pairs


def _length(characters: int | None, text: str | None, name: str) -> int | None:
    """Return how many characters there are to cover; None if nobody says."""
    if text is not None and not isinstance(text, str):
        raise OffsetsError(f"the text of {name} is a {type(text).__name__}; give a str")
    length = characters if text is None else len(text)
    if characters is not None and characters != length:
        raise OffsetsError(f"{name} should cover {characters} characters, but the text has {length}; give one of them")
    if length is not None and length < 1:
        raise OffsetsError(f"the text of {name} has {length} characters; give a text that is not empty")
    return length


def _speaks(pairs: Int64[np.ndarray, "listed 2"], text: str | None) -> Bool[np.ndarray, "listed"]:
    """Return which tokens speak of characters; with a text also those trimmed to nothing behind white space."""
    speaks = pairs[:, 1] > pairs[:, 0]
    if text is None:
        return speaks
    before = np.concatenate([[0], np.maximum.accumulate(pairs[:-1, 1])])
    return speaks | (pairs[:, 0] > before)


def _check_only_specials(listed: int, characters: int | None, text: str | None, name: str) -> None:
    if characters is not None and not (text or "").isspace():
        raise OffsetsError(
            f"all {listed} tokens of {name} have empty ranges, but the text has {characters} characters; "
            "give the offsets of this text, tokenised in full"
        )


def _check_overlaps(
    starts: Int64[np.ndarray, "tokens"],
    ends: Int64[np.ndarray, "tokens"],
    positions: Int64[np.ndarray, "tokens"],
    name: str,
) -> None:
    """Refuse tokens that run backwards, or overlap by more than the one character that they may share."""
    if (at := _first(starts[1:] < ends[:-1] - 1)) is None:
        return
    raise OffsetsError(
        f"token {positions[at + 1]} of {name} is ({starts[at + 1]}, {ends[at + 1]}), and token {positions[at]} before "
        f"it is ({starts[at]}, {ends[at]}): it overlaps it by {ends[at] - starts[at + 1]} characters, while two "
        "neighbours may share one at most; give each token once, in the text's order, without a stride or a second text"
    )


def _check_edges(
    pairs: Int64[np.ndarray, "listed 2"],
    positions: Int64[np.ndarray, "tokens"],
    characters: int | None,
    text: str | None,
    name: str,
) -> None:
    """Refuse tokens beyond the text, and gaps if there is no text that could show them to be white space."""
    index = positions[-1]
    last = int(pairs[index, 1])
    if characters is not None and last > characters:
        raise OffsetsError(
            f"{_token(pairs, index, name)}, beyond the text of {characters} characters; give offsets in characters, "
            "not bytes, and the very text that was tokenised"
        )
    if text is not None:
        return
    advice = "pass text if white space was trimmed there; else give all tokens of the whole text"
    starts, ends = pairs[positions, 0], pairs[positions, 1]
    if starts[0]:
        raise OffsetsError(f"{_token(pairs, positions[0], name)}, and no token covers what stands before; {advice}")
    if (gap := _first(starts[1:] > ends[:-1])) is not None:
        raise OffsetsError(
            f"{_token(pairs, positions[gap + 1], name)}, and token {positions[gap]} before it is "
            f"({starts[gap]}, {ends[gap]}): no token covers characters {ends[gap]} to {starts[gap + 1]}; {advice}"
        )
    if characters is not None and last < characters:
        raise OffsetsError(
            f"{_token(pairs, index, name)}, the last one, but the text has {characters} characters; tokenise it "
            f"without a maximal length, or {advice}"
        )


def _filled(
    pairs: Int64[np.ndarray, "listed 2"], positions: Int64[np.ndarray, "tokens"], text: str, name: str
) -> tuple[Int64[np.ndarray, "tokens"], Int64[np.ndarray, "tokens"]]:
    """Return starts and ends with every gap given to the token after it, the last to the last token."""
    starts, ends = pairs[positions, 0], pairs[positions, 1]
    borders = np.concatenate([[0], ends]), np.concatenate([starts, [len(text)]])
    gaps = np.flatnonzero(borders[1] > borders[0])
    _check_white(text, borders[0][gaps], borders[1][gaps], positions, pairs, name)
    starts = np.minimum(starts, borders[0][:-1])
    ends[-1] = len(text)
    return starts, ends


def _check_white(
    text: str,
    starts: Int64[np.ndarray, "gaps"],
    ends: Int64[np.ndarray, "gaps"],
    positions: Int64[np.ndarray, "tokens"],
    pairs: Int64[np.ndarray, "listed 2"],
    name: str,
) -> None:
    """Refuse gaps that hold anything but white space."""
    for start, end in zip(starts.tolist(), ends.tolist()):
        if (gap := text[start:end]).isspace():
            continue
        place = start + next(at for at, character in enumerate(gap) if not character.isspace())
        after = np.searchsorted(pairs[positions, 0], place, side="right")
        neighbours = " and ".join(
            _token(pairs, positions[at], name) for at in (after - 1, after) if 0 <= at < positions.size
        )
        raise OffsetsError(
            f"no token of {name} covers character {place} ({text[place]!r}), in the gap from {start} to {end}, and "
            f"only white space may be left out: {neighbours}; tokenise the very text that you pass, in full, as the "
            "tokenizer normalises it (where it composes characters, in the form NFC)"
        )


def _first(wrong: Bool[np.ndarray, "tokens"]) -> int | None:
    return int(wrong.argmax()) if wrong.any() else None


def _token(pairs: Int64[np.ndarray, "listed 2"], index: int, name: str) -> str:
    start, end = pairs[index].tolist()
    return f"token {index} of {name} is ({start}, {end})"
