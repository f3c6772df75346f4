"""Words as tokens: a vocabulary read off the texts, and texts as padded rows of ids."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Int
from torch import Tensor

PAD, START, END = "<pad>", "<s>", "</s>"
_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class Vocabulary:
    """All words of the texts in order of first use, after the three special ones."""

    words: tuple[str, ...]

    @cached_property
    def ids(self) -> dict[str, int]:
        """Return each word's id."""
        return {word: place for place, word in enumerate(self.words)}

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without special ones.

        Raises:
            ValueError: a word that the vocabulary lacks.
        """
        found = split_words(text)
        if missing := [word for word in found if word not in self.ids]:
            raise ValueError(f"{missing[0]!r} is not among the {len(self.words)} words of this vocabulary")
        return [self.ids[word] for word in found]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the words side by side, special ones included: what the model said, nothing tidied."""
        return " ".join(self.words[place] for place in ids)


def split_words(text: str) -> list[str]:
    """Return words and punctuation marks, in order."""
    return _WORD.findall(text)


def vocabulary(texts: Sequence[str]) -> Vocabulary:
    """Return the words of the texts.

    Raises:
        ValueError: no words at all.
    """
    found = dict.fromkeys(word for text in texts for word in split_words(text))
    if not found:
        raise ValueError(f"{len(texts)} texts hold no word; give at least one")
    return Vocabulary((PAD, START, END, *found))


def rows(words: Vocabulary, texts: Sequence[str]) -> tuple[Int[Tensor, "texts longest"], Bool[Tensor, "texts longest"]]:
    """Return each text between start and end, filled up with padding, and a mask that is True where ids are real.

    Raises:
        ValueError: no texts, or a word that the vocabulary lacks.
    """
    if not texts:
        raise ValueError("there are no texts; at least one is needed")
    start, end = words.ids[START], words.ids[END]
    encoded = [[start, *words.encode(text), end] for text in texts]
    lengths = torch.tensor([len(row) for row in encoded])
    real = torch.arange(int(lengths.max())) < lengths[:, None]
    ids = torch.full(real.shape, words.ids[PAD])
    ids[real] = torch.tensor([place for row in encoded for place in row])
    return ids, real
