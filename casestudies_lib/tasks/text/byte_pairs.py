"""Byte-level tokenizers trained on a text, and texts as rows of token ids to train on.

Offsets count characters, half open. Where a character's bytes lie in several tokens, each of them spans the character.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

BYTES = 256  # every text can be encoded only where each byte has a token


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
