"""Text in paragraphs: a file of the repository, checked against its digest, or Python's help topics."""

import hashlib
import platform
from dataclasses import dataclass
from typing import NamedTuple

import torch

from casestudies_lib import paths

PARAGRAPH_END = "\n\n"


class CorpusError(ValueError):
    """A corpus is missing or not the one that was committed; the message says what came and what to do."""


@dataclass(frozen=True)
class Corpus:
    """Text in paragraphs, in reading order, with the digest of the text they were cut from."""

    name: str
    paragraphs: tuple[str, ...]
    sha256: str
    source: str


class Parts(NamedTuple):
    """Paragraphs to learn from and to be judged on; no paragraph is in both."""

    train: tuple[str, ...]
    held_out: tuple[str, ...]


def committed(file: str, sha256: str, paragraph_end: str = PARAGRAPH_END) -> Corpus:
    """Return a text of this repository, such as `data/text/harbour.txt`, named after its file.

    Raises:
        CorpusError: the file is missing, or its digest is not the one given.
    """
    path = paths.data_file(file)
    if not path.is_file():
        raise CorpusError(f"{path}: no such file; it is part of the repository, so restore it from there")
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise CorpusError(
            f"{path}: sha256 is {found}, expected is {sha256}; the text was edited, or its line ends were converted at "
            "checkout; restore the file from the repository"
        )
    return Corpus(path.stem, _paragraphs(content.decode(), paragraph_end), sha256, f"written for this book, {file}")


def python_topics() -> Corpus:
    """Return the help topics that come with Python, in the order of their names; the digest is that of the joined text.

    The text differs between Python versions, so numbers measured on it belong to the version that `source` names.

    Raises:
        CorpusError: this Python comes without its help topics.

    Source: pydoc_data.topics of the running Python's standard library.
    """
    version = platform.python_version()
    try:
        from pydoc_data.topics import topics  # some distributions strip it, so only who asks for it needs it
    except ImportError as error:
        raise CorpusError(f"Python {version} has no pydoc_data.topics; install it whole, or use harbour()") from error
    text = PARAGRAPH_END.join(topics[name] for name in sorted(topics))
    digest = hashlib.sha256(text.encode()).hexdigest()
    return Corpus("python_topics", _paragraphs(text, PARAGRAPH_END), digest, f"pydoc_data.topics of Python {version}")


def _paragraphs(text: str, end: str) -> tuple[str, ...]:
    """Return the pieces between ends of paragraphs; indentation stays, because it carries meaning in code."""
    return tuple(piece.strip("\n") for piece in text.split(end) if piece.strip())


def split(corpus: Corpus, seed: int, held_out: float) -> Parts:
    """Draw a share of the paragraphs to hold out; both parts stay in reading order.

    A paragraph that the corpus holds several times, as Python's topics do, counts once, or it could be on both sides.
    The share is rounded to whole paragraphs, with at least one on each side.

    Raises:
        ValueError: a share outside 0 to 1, or fewer than two different paragraphs.
    """
    distinct = list(dict.fromkeys(corpus.paragraphs))
    if not 0 < held_out < 1:
        raise ValueError(f"held_out={held_out}; a share above 0 and below 1 is needed")
    if len(distinct) < 2:
        raise ValueError(f"{corpus.name}: {len(distinct)} different paragraphs cannot be split; at least 2 are needed")
    count = min(max(round(held_out * len(distinct)), 1), len(distinct) - 1)
    order = torch.randperm(len(distinct), generator=torch.Generator().manual_seed(seed)).tolist()
    return Parts(*(tuple(distinct[place] for place in sorted(side)) for side in (order[count:], order[:count])))
