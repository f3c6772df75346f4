"""English text to learn from, byte-level tokenizers trained on it, and two tokenizers' views of one text side by side.

Offsets count characters, half open. Where a character's bytes lie in several tokens, each of them spans the character.
"""

import hashlib
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int, Int64
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from casestudies_lib import paths
from casestudies_lib.offsets import Spans, Tokens, checked, pairs_by_index, shared_starts, spans

HARBOUR_SHA256 = "0f5c641f2bf9d45bb11dd8029d9917256432795c28423a77dfcfa12882679bf3"  # of data/text/harbour.txt
SENTENCES_SHA256 = "7032e24d6a513d854a9f13983eb7fe73e889a531e8bd2e9c31e53c34225360c5"  # of data/text/sentences.txt
DIALOGUES_SHA256 = "7271b48ee79c5d70512f9d47ca95e6f635b881b263eac668d192e8230cc746be"  # of data/text/dialogues.txt
PROBE_QUESTION = "How are mountains made?"  # asked after training; it is among the dialogues
BYTES = 256  # every text can be encoded only where each byte has a token
PARAGRAPH_END = "\n\n"
Pairs = tuple[Int64[np.ndarray, " pairs"], Int64[np.ndarray, " pairs"]]  # indices into first and second


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


def harbour() -> Corpus:
    """Return the book's own corpus, short descriptions of a harbour town; its digest is that of the file.

    Raises:
        CorpusError: the file is missing, or its digest is not the committed one.
    """
    content = _committed("harbour.txt", HARBOUR_SHA256)
    return Corpus("harbour", _paragraphs(content), HARBOUR_SHA256, "written for this book, data/text/harbour.txt")


def sentences() -> Corpus:
    """Return plain statements about the world, one a paragraph: what a small model reads before it is asked anything.

    Raises:
        CorpusError: the file is missing, or its digest is not the committed one.
    """
    content = _committed("sentences.txt", SENTENCES_SHA256)
    lines = tuple(content.splitlines())
    return Corpus("sentences", lines, SENTENCES_SHA256, "written for this book, data/text/sentences.txt")


def dialogues() -> Corpus:
    """Return questions with their answers, `User: … Assistant: …`, one pair a paragraph.

    Raises:
        CorpusError: the file is missing, or its digest is not the committed one.
    """
    content = _committed("dialogues.txt", DIALOGUES_SHA256)
    lines = tuple(content.splitlines())
    return Corpus("dialogues", lines, DIALOGUES_SHA256, "written for this book, data/text/dialogues.txt")


def question_and_answer(dialogue: str) -> tuple[str, str]:
    """Return a dialogue cut behind `Assistant:`, so that a model can be asked the first part and judged by the second.

    Raises:
        ValueError: the line is not `User: … Assistant: …`.
    """
    question, found, answer = dialogue.partition(" Assistant: ")
    if not question.startswith("User: ") or not found or not answer:
        raise ValueError(f"{dialogue[:60]!r} is no dialogue; 'User: … Assistant: …' is needed")
    return question + found.rstrip(), answer


def _committed(name: str, digest: str) -> str:
    path = paths.root() / "data" / "text" / name
    if not path.is_file():
        raise CorpusError(f"{path}: no such file; it is part of the repository, so restore it from there")
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != digest:
        raise CorpusError(
            f"{path}: sha256 is {found}, expected is {digest}; the text was edited, or its line ends were converted at "
            "checkout; restore the file from the repository"
        )
    return content.decode()


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
    return Corpus("python_topics", _paragraphs(text), digest, f"pydoc_data.topics of Python {version}")


def _paragraphs(text: str) -> tuple[str, ...]:
    """Return the pieces between blank lines; indentation stays, because it carries meaning in code."""
    return tuple(piece.strip("\n") for piece in text.split(PARAGRAPH_END) if piece.strip())


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


def train_tokenizer(paragraphs: Sequence[str], vocab: int) -> Tokenizer:
    """Return a byte-level BPE tokenizer of exactly `vocab` tokens: the 256 bytes and the most frequent merges.

    The same paragraphs give the same tokenizer. A smaller vocabulary from the same paragraphs is a prefix of a larger
    one: its ids mean the same bytes in both. There are no special tokens, and decoding gives every text back.

    Raises:
        ValueError: no text, a vocabulary that leaves no room for a merge, or more tokens than the text has merges for.

    Source: Sennrich, Haddow and Birch, "Neural Machine Translation of Rare Words with Subword Units", ACL 2016; on
        bytes: Radford et al., "Language Models are Unsupervised Multitask Learners", 2019.
    """
    if vocab <= BYTES:
        raise ValueError(f"vocab={vocab}; at least {BYTES + 1} are needed, one token a byte and one merge")
    if not any(paragraphs):
        raise ValueError(f"{len(paragraphs)} paragraphs hold no text; a tokenizer needs some to learn merges from")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = byte_level
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocab, initial_alphabet=byte_level.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(paragraphs, trainer)
    if (most := tokenizer.get_vocab_size()) < vocab:
        raise ValueError(f"vocab={vocab}; this text has merges for {most} tokens at most; ask for fewer or add text")
    return tokenizer


@dataclass(frozen=True)
class Encoded:
    """A text's token ids, the characters [start, end) that each token spans, and the text itself."""

    ids: Int[Tensor, " tokens"]
    offsets: Int[np.ndarray, "tokens 2"]
    text: str


def encode(tokenizer: Tokenizer, text: str, name: str) -> Encoded:
    """Return the tokens of a text that errors call `name`, without special ones.

    Raises:
        ValueError: the text is empty, or the tokens do not hold all of it.
    """
    if not text:
        raise ValueError(f"{name}: the text is empty; at least one character is needed")
    encoding = tokenizer.encode(text, add_special_tokens=False)
    decoded = tokenizer.decode(encoding.ids, skip_special_tokens=False)
    # A BPE drops what it has no token for without a word, and its offsets close the gap; only decoding shows the place.
    lost = [place for place in range(len(text)) if text[place] != decoded[place : place + 1]]
    if decoded != text:
        what = f"lose or change {text[lost[0]]!r} at character {lost[0]} of {len(text)}" if lost else "add to the end"
        raise ValueError(
            f"{name}: the tokens {what}, decoding gives {decoded[:60]!r}; use a tokenizer that has all {BYTES} bytes "
            "and a decoder, and neither normalises, truncates nor pads"
        )
    return Encoded(torch.tensor(encoding.ids), np.array(encoding.offsets), text)


def aligned(first: Encoded, second: Encoded) -> tuple[Spans, Pairs]:
    """Return what two tokenizations of one text share by characters: the finest pieces, and tokens that start together.

    Before each pair of tokens that start together both have read the same text.

    Raises:
        ValueError: the two do not encode the same text.
    """
    both = _of_one_text(first, second)
    return spans(*both), shared_starts(*both)


def truncated(first: Encoded, second: Encoded) -> Pairs:
    """Return what is compared when both are cut to the shorter length: token i with token i, wherever they stand.

    Raises:
        ValueError: the two do not encode the same text.
    """
    return pairs_by_index(*_of_one_text(first, second))


def _of_one_text(first: Encoded, second: Encoded) -> list[Tokens]:
    if first.text != second.text:
        texts = " and ".join(f"{side.text[:40]!r} of {len(side.text)} characters" for side in (first, second))
        raise ValueError(f"{texts} are two texts; encode one text by both tokenizers")
    return [checked(side.offsets, text=side.text, name=name) for side, name in ((first, "first"), (second, "second"))]


def token_strings(tokenizer: Tokenizer) -> list[bytes]:
    """Return the bytes that each token id stands for, so that two vocabularies can be compared.

    Raises:
        ValueError: a token is special or not written in the byte-level alphabet.

    Source: `bytes_to_unicode` of GPT-2's encoder (openai/gpt-2, src/encoder.py): printable bytes stand for themselves,
        the other 68 are written as the characters from 256 on, in order.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, BYTES)]
    others = [byte for byte in range(BYTES) if byte not in printable]
    values = {chr(byte): byte for byte in printable} | {chr(BYTES + place): byte for place, byte in enumerate(others)}
    special = tokenizer.get_added_tokens_decoder()
    strings = []
    for token in range(tokenizer.get_vocab_size()):
        written = tokenizer.id_to_token(token)
        if token in special or not written or not values.keys() >= set(written):
            raise ValueError(f"token {token} is {written!r}; a byte-level tokenizer without special tokens is needed")
        strings.append(bytes(values[character] for character in written))
    return strings


def first_byte(tokenizer: Tokenizer) -> Int[Tensor, " vocab"]:
    """Return the first byte, 0 to 255, of each token id: what any two byte-level vocabularies can be summed to.

    Raises:
        ValueError: as `token_strings`.
    """
    return torch.tensor([string[0] for string in token_strings(tokenizer)])


def token_stream(tokenizer: Tokenizer, paragraphs: Sequence[str], separator: str) -> Int[Tensor, " tokens"]:
    """Return all paragraphs in one row of token ids, the separator's ids after each.

    Each paragraph is encoded alone, so that its ids are those it has in evaluation. An empty separator adds nothing.

    Raises:
        ValueError: no paragraphs, an empty one, or one that the tokenizer cannot encode.
    """
    if not paragraphs:
        raise ValueError("there are no paragraphs; a stream needs at least one")
    end = encode(tokenizer, separator, "separator").ids if separator else torch.zeros(0, dtype=torch.int64)
    pieces = [encode(tokenizer, text, f"paragraph {place}").ids for place, text in enumerate(paragraphs)]
    return torch.cat([part for piece in pieces for part in (piece, end)])


def windows(
    stream: Int[Tensor, " stream"], tokens: int, batch: int, generator: torch.Generator
) -> Int[Tensor, "batch window"]:
    """Draw windows of `tokens` + 1 ids, so that each holds `tokens` inputs and their next tokens; any may overlap.

    Raises:
        ValueError: a count below one, or a stream shorter than a window.
    """
    if tokens < 1 or batch < 1:
        raise ValueError(f"tokens={tokens}, batch={batch}; at least 1 of each is needed")
    if len(stream) <= tokens:
        raise ValueError(f"the stream has {len(stream)} tokens; windows of {tokens} and a next one need {tokens + 1}")
    starts = torch.randint(len(stream) - tokens, (batch, 1), generator=generator)
    return stream[starts + torch.arange(tokens + 1)]


def padded(encodings: Sequence[Encoded], pad: int) -> tuple[Int[Tensor, "batch tokens"], Bool[Tensor, "batch tokens"]]:
    """Return the ids of several texts, filled up at the end with `pad`, and a mask that is True where ids are real.

    Raises:
        ValueError: there is nothing to pad.
    """
    if not encodings:
        raise ValueError("there are no encodings; at least one is needed to fill a batch")
    lengths = torch.tensor([len(encoding.ids) for encoding in encodings])
    real = torch.arange(int(lengths.max())) < lengths[:, None]
    ids = torch.full(real.shape, pad)
    ids[real] = torch.cat([encoding.ids for encoding in encodings])
    return ids, real
