"""Offsets against a character-by-character reading, against bytes, and against real tokenizers."""

import unicodedata
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from casestudies_lib.offsets import OffsetsError, Tokens, checked, shared_ends

SENTENCES = [
    "Der Löwe schläft – naïve café, größer als Öl.",
    "The quick brown fox jumps over the lazy dog.",
    "日本語 日曜 日本 🙂🙂🚀 élan élan é.",
]
TEXT = "  The naïve Löwe\n\n jumps  日本語🚀🙂, élan? Öl.\t "


def sides(offsets, text=None):
    tokens = checked(offsets, text=text)
    return list(zip(tokens.starts.tolist(), tokens.ends.tolist()))


def listed(pair):
    return [indices.tolist() for indices in pair]


# Slow oracles.


def borders(offsets):
    """Return the places between characters that no token spans."""
    end = max(stop for _, stop in offsets)
    return {place for place in range(end + 1) if not any(start < place < stop for start, stop in offsets)}


def cut_bytes(widths, cuts):
    """Return offsets as a byte-level tokenizer gives them: every token carries the characters that its bytes touch."""
    owner = [character for character, width in enumerate(widths) for _ in range(width)]
    edges = [0, *sorted(cut for cut in cuts if cut < len(owner)), len(owner)]
    return [(owner[low], owner[high - 1] + 1) for low, high in pairwise(edges)], edges[1:]


CUTS = st.sets(st.integers(1, 40))
WIDTHS = st.lists(st.integers(1, 4), min_size=1, max_size=12)


def with_specials(offsets, places):
    offsets = list(offsets)
    for place in sorted(places, reverse=True):
        offsets.insert(min(place, len(offsets)), (0, 0))
    return offsets


SPECIALS = st.lists(st.integers(0, 15), max_size=4)


# What two tokenizations share.


def test_the_fox_is_read_to_three_common_places():
    first, second = [(0, 3), (3, 9), (9, 15)], [(0, 3), (3, 6), (6, 9), (9, 12), (12, 15)]
    assert listed(shared_ends(first, second)) == [[0, 1, 2], [0, 2, 4]]
    # Tokens that cross share no end.
    assert listed(shared_ends([(0, 2), (2, 5), (5, 6)], [(0, 3), (3, 5), (5, 6)])) == [[1, 2], [1, 2]]


@given(WIDTHS, CUTS, CUTS)
def test_after_tokens_with_a_shared_end_the_same_bytes_have_been_read(widths, cuts, other_cuts):
    (first, read), (second, other_read) = cut_bytes(widths, cuts), cut_bytes(widths, other_cuts)
    whole = {sum(widths[: count + 1]) for count in range(len(widths))}
    expected = [(read.index(end), other_read.index(end)) for end in sorted({*read} & {*other_read} & whole)]
    assert list(zip(*listed(shared_ends(first, second)))) == expected


@given(WIDTHS, CUTS, SPECIALS)
def test_what_is_open_closed_and_read_is_that_of_a_loop(widths, cuts, specials):
    offsets = with_specials(cut_bytes(widths, cuts)[0], specials)
    tokens = checked(offsets)
    kept = [index for index, (start, end) in enumerate(offsets) if end > start]
    between = borders(offsets)
    starts, ends = [offsets[index][0] for index in kept], [offsets[index][1] for index in kept]
    # The first of all tokens that start there, the last of all that end there.
    assert tokens.opens.tolist() == [s in between and s not in starts[:at] for at, s in enumerate(starts)]
    assert tokens.closes.tolist() == [e in between and e not in ends[at + 1 :] for at, e in enumerate(ends)]
    assert tokens.read.tolist() == [max(end for _, end in offsets[: at + 1]) for at in range(len(offsets))]
    assert tokens.positions.tolist() == kept
    assert (tokens.listed, tokens.specials, tokens.characters) == (len(offsets), len(offsets) - len(kept), len(widths))


def test_specials_keep_the_indices_of_the_readers_list():
    plain, dressed = [(0, 2), (2, 5)], [(0, 0), (0, 2), (0, 0), (2, 3), (3, 5), (0, 0)]
    assert listed(shared_ends(plain, dressed)) == [[0, 1], [1, 4]]
    assert checked(dressed).specials == 3


def test_only_specials_are_no_tokens():
    nothing = checked([(0, 0), (0, 0)])
    assert (nothing.listed, nothing.specials, nothing.characters) == (2, 2, 0)
    assert nothing.opens.size == nothing.closes.size == shared_ends(nothing, nothing)[0].size == 0
    assert checked([(0, 0), (2, 2)], text="\n\n").specials == 1


def test_tokens_of_different_length_are_refused():
    with pytest.raises(OffsetsError, match="first covers 4 characters with 1 tokens, second 5 with 2; give two token"):
        shared_ends([(0, 4)], [(0, 0), (0, 4), (4, 5)])


def test_what_comes_in_is_left_alone():
    pairs = np.array([(0, 0), (0, 2), (3, 4)])
    tokens = checked(pairs, text="ab c ")
    assert sides(pairs.tolist(), "ab c ") == sides(pairs, "ab c ") == [(0, 2), (2, 5)]
    tokens.starts[:] = tokens.ends[:] = -7
    assert pairs.tolist() == [[0, 0], [0, 2], [3, 4]]


# White space that was trimmed.


def trimmed(text, offsets):
    """Return offsets without the white space at either edge; what is white throughout stands empty at its end."""
    found = []
    for start, end in offsets:
        while start < end and text[start].isspace():
            start += 1
        while start < end and text[end - 1].isspace():
            end -= 1
        found.append((start, end))
    return found


@given(st.text("ab é\n", min_size=1, max_size=14), CUTS)
def test_trimmed_white_space_goes_to_the_token_after_it(text, cuts):
    edges = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    offsets = trimmed(text, list(pairwise(edges)))
    expected, read = [], 0
    for index, (start, end) in enumerate(offsets):
        if end > read:
            expected.append([index, min(start, read), end])
            read = end
    if expected:
        expected[-1][2] = len(text)
    tokens = checked(offsets, text=text)
    assert [list(row) for row in zip(tokens.positions, tokens.starts, tokens.ends)] == expected


def test_a_word_that_lost_its_space_gets_it_back_where_the_space_was_its_own():
    assert sides([(0, 3), (4, 7), (7, 7)], "the fox ") == [(0, 3), (3, 8)]
    assert sides([(1, 4), (4, 5)], " the.") == [(0, 4), (4, 5)]
    # A token that was white throughout stands behind its white space.
    assert sides([(0, 1), (3, 3), (4, 5)], "a   b") == [(0, 1), (1, 3), (3, 5)]
    assert checked([(0, 1), (3, 3), (4, 5)], text="a   b").positions.tolist() == [0, 1, 2]


def test_white_space_is_more_than_the_blank():
    text = "a\u3000\u00a0\tb"
    assert sides([(0, 1), (4, 5)], text) == [(0, 1), (1, 5)]
    # A lone surrogate is a character as good as any.
    assert sides([(0, 1), (2, 3)], "\ud800 b") == [(0, 1), (1, 3)]


# Refusals.

BAD = [
    ([], {}, "offsets is empty"),
    (None, {}, r"offsets is a NoneType of shape \[\]"),
    ([(0, 1, 2)], {}, r"offsets is a list of shape \[1, 3\].*\[tokens, 2\]"),
    ([(0, 1), (1,)], {}, "offsets is a list that makes no array"),
    ([(0.0, 1.0)], {}, "values of type float64"),
    ([(0, 2**70)], {}, "values of type object"),
    ([(0, 2), (2, 1)], {}, r"token 1 of offsets is \(2, 1\) ends before it starts"),
    ([(0, 2), (-1, 3)], {}, r"token 1 of offsets is \(-1, 3\) is negative"),
    ([(0, 0), (1, 2)], {}, r"token 1 of offsets is \(1, 2\), and no token covers what stands before.*pass text"),
    ([(0, 0), (0, 2), (0, 0), (3, 4)], {}, r"token 3 .*\(3, 4\), and token 1 .*\(0, 2\): .* 2 to 3; pass text"),
    ([(0, 2), (0, 0)], {"characters": 4}, r"token 0 .*\(0, 2\), the last one, but the text has 4 characters"),
    ([(0, 2), (2, 6)], {"characters": 4}, r"token 1 .*\(2, 6\), beyond the text of 4 characters"),
    ([(0, 2)], {"text": "abcd", "characters": 5}, "should cover 5 characters, but the text has 4"),
    ([(0, 2)], {"text": ""}, "has 0 characters; give a text that is not empty"),
    ([(0, 2)], {"text": b"ab"}, "the text of offsets is a bytes; give a str"),
    ([(0, 0)] * 3, {"characters": 2}, "all 3 tokens of offsets have empty ranges, but the text has 2 characters"),
    ([(2, 4), (0, 0), (0, 2)], {}, r"token 2 .*\(0, 2\), and token 0 .*\(2, 4\): it overlaps it by 4 "),
    ([(0, 4), (2, 6)], {}, r"token 1 .*\(2, 6\), and token 0 .*\(0, 4\): .*; give each token once"),
    ([(0, 4), (1, 2), (2, 6)], {}, r"token 1 .*\(1, 2\), and token 0 .*\(0, 4\): it overlaps it by 3 "),
    ([(0, 1), (3, 4)], {"text": "a xb"}, r"covers character 2 \('x'\), in the gap from 1 to 3.*\(0, 1\).*\(3, 4\)"),
    ([(1, 2)], {"text": "xb"}, r"character 0 \('x'\), in the gap from 0 to 1.*: token 0 of offsets is \(1, 2\);"),
    ([(0, 1), (1, 2)], {"text": "ab cd"}, r"character 3 \('c'\), in the gap from 2 to 5.*: token 1 .*\(1, 2\);"),
    ([(0, 1), (2, 3), (4, 5)], {"text": "a b,c"}, r"character 3 \(','\), in the gap from 3 to 4.*\(2, 3\) and token 2"),
]


@pytest.mark.parametrize(("offsets", "more", "message"), BAD)
def test_offsets_of_no_text_are_refused_by_token(offsets, more, message):
    with pytest.raises(OffsetsError, match=message):
        checked(offsets, **more)


def test_messages_call_the_offsets_by_their_name():
    with pytest.raises(OffsetsError, match="token 0 of student is"):
        checked([(1, 2)], name="student")
    with pytest.raises(OffsetsError, match="token 0 of second is"):
        shared_ends([(0, 2)], [(1, 2)])


def test_tokens_that_are_checked_are_taken_as_they_are():
    trimmed_tokens = checked([(0, 1), (2, 3)], text="a b")
    assert isinstance(trimmed_tokens, Tokens)
    assert listed(shared_ends(trimmed_tokens, [(0, 3)])) == [[1], [0]]


# Real tokenizers.


def byte_level(vocabulary, trim=False, normalizer=None):
    """Return a byte-level BPE, trained on the sentences; its vocabulary starts with the 256 bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim)
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(SENTENCES * 3, trainer)
    return tokenizer


def bytes_read(encoding):
    # A byte-level token is written with one letter a byte.
    return np.cumsum([len(token) for token in encoding.tokens]).tolist()


@pytest.mark.parametrize("text", [*SENTENCES, TEXT])
def test_shared_ends_of_real_tokenizers_are_where_the_same_bytes_have_been_read(text):
    first, second = byte_level(262).encode(text), byte_level(330).encode(text)
    assert len(first) > len(second)
    whole = {len(text[:count].encode()) for count in range(1, len(text) + 1)}
    read, other = bytes_read(first), bytes_read(second)
    expected = [(read.index(end), other.index(end)) for end in sorted({*read} & {*other} & whole)]
    assert list(zip(*listed(shared_ends(first.offsets, second.offsets)))) == expected


def test_a_real_token_may_end_inside_a_character_that_it_shares_with_the_next():
    # Some tokens hold whole characters and the first byte of one more.
    found = [byte_level(size).encode(SENTENCES[2]).offsets for size in range(257, 300, 3)]
    partly = [(a, b) for offsets in found for a, b in pairwise(offsets) if b[0] < a[1] and a != b]
    assert partly
    assert all(after[0] == before[1] - 1 for before, after in partly)
    assert all(checked(offsets).characters == len(SENTENCES[2]) for offsets in found)


@pytest.mark.parametrize("vocabulary", [257, 280, 330])
def test_a_trimming_tokenizer_is_read_with_its_text_and_refused_without(vocabulary):
    trims, keeps = byte_level(vocabulary, trim=True).encode(TEXT), byte_level(vocabulary).encode(TEXT)
    assert trims.tokens == keeps.tokens
    with pytest.raises(OffsetsError, match="pass text"):
        checked(trims.offsets)
    read, plain = checked(trims.offsets, text=TEXT), checked(keeps.offsets)
    assert read.characters == len(TEXT)
    # Where one white token starts the text, or a token is white at its end only, trimming hides whose it was.
    own = dict(zip(plain.positions.tolist(), zip(plain.starts.tolist(), plain.ends.tolist())))
    found = dict(zip(read.positions.tolist(), zip(read.starts.tolist(), read.ends.tolist())))
    moved = [sorted(pair) for at in found for pair in zip(found[at], own[at]) if len(set(pair)) == 2]
    assert len(moved) <= 4
    assert all(TEXT[low:high].isspace() for low, high in moved)


def test_a_tokenizer_that_composes_characters_is_refused_until_the_text_is_composed():
    tokenizer, text = byte_level(257, normalizer=normalizers.NFC()), unicodedata.normalize("NFD", "Löwe, ñ")
    with pytest.raises(OffsetsError, match=r"character 2 \('\u0308'\), in the gap from 2 to 3.* in the form NFC"):
        checked(tokenizer.encode(text).offsets, text=text)
    composed = unicodedata.normalize("NFC", text)
    assert checked(tokenizer.encode(composed).offsets, text=composed).characters == len(composed)


def test_special_tokens_and_padding_of_a_real_tokenizer_are_counted():
    tokenizer = byte_level(330)
    tokenizer.add_special_tokens(["[A]", "[Z]"])
    first, last = (tokenizer.token_to_id(name) for name in ("[A]", "[Z]"))
    tokenizer.post_processor = processors.TemplateProcessing(
        "[A] $A [Z]", special_tokens=[("[A]", first), ("[Z]", last)]
    )
    bare = len(tokenizer.encode(TEXT, add_special_tokens=False))
    tokenizer.enable_padding(length=bare + 7)
    tokens = checked(tokenizer.encode(TEXT).offsets, text=TEXT)
    assert (tokens.specials, tokens.positions.tolist()) == (7, list(range(1, bare + 1)))
