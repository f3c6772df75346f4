"""Corpora, tokenizers trained on them, and the two tokenizations of one text that a distillation has to compare."""

import hashlib
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from casestudies_lib import paths
from casestudies_lib.tasks.text.byte_pairs import (
    Encoded,
    encode,
    first_byte,
    padded,
    token_stream,
    token_strings,
    train_tokenizer,
    windows,
)
from casestudies_lib.tasks.text.corpora import Corpus, python_topics, split
from casestudies_lib.tasks.text.harbour import harbour
from casestudies_lib.tasks.text.questions import dialogues, sentences

TEXT = st.text(min_size=1, max_size=60) | st.text("aé–°“ \n\t'😀the", min_size=1, max_size=40)
TOKENIZER = {vocab: train_tokenizer(harbour().paragraphs, vocab) for vocab in (257, 600, 1500)}


def corpus(*paragraphs):
    return Corpus("small", paragraphs, "", "")


def covered(encoded):
    return {place for start, end in encoded.offsets.tolist() for place in range(start, end)}


# Corpora


@pytest.mark.parametrize("corpus", [harbour, sentences, dialogues])
def test_a_corpus_is_the_file_that_the_data_page_describes(corpus):
    found, page = corpus(), (paths.root() / "data" / "README.md").read_text()
    content = (paths.root() / "data" / "text" / f"{corpus.__name__}.txt").read_bytes()
    assert found.sha256 == hashlib.sha256(content).hexdigest() in page
    assert f"{len(found.paragraphs)} " in page
    assert (found.name, found.source) == (corpus.__name__, f"written for this book, data/text/{corpus.__name__}.txt")


def test_the_topics_keep_every_line_of_python_s_help_in_order_with_its_indentation():
    from pydoc_data.topics import topics

    lines = [line for name in sorted(topics) for line in topics[name].split("\n") if line.strip()]
    found = python_topics()
    kept = [line for paragraph in found.paragraphs for line in paragraph.split("\n") if line.strip()]
    assert kept == lines
    assert not any("\n\n" in paragraph for paragraph in found.paragraphs)


# Splits


@given(st.lists(st.sampled_from("abcdefghijklm"), min_size=2), st.integers(0, 9), st.floats(0.01, 0.99))
def test_a_split_puts_every_different_paragraph_on_exactly_one_side_in_reading_order(paragraphs, seed, held_out):
    distinct = list(dict.fromkeys(paragraphs))
    if len(distinct) < 2:
        return
    parts = split(corpus(*paragraphs), seed, held_out)
    assert set(parts.train).isdisjoint(parts.held_out)
    assert sorted(parts.train + parts.held_out) == sorted(distinct)
    assert all(sorted(side, key=distinct.index) == list(side) for side in parts)
    assert min(map(len, parts)) >= 1
    assert abs(len(parts.held_out) - held_out * len(distinct)) <= 1


def test_a_split_is_drawn_by_its_seed_alone():
    letters = corpus(*"abcdefghijklmnopqrst")
    state = torch.random.get_rng_state()
    draws = [split(letters, seed, 0.25) for seed in range(10)]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert draws == [split(letters, seed, 0.25) for seed in range(10)]
    assert len(set(draws)) == 10
    assert {len(draw.held_out) for draw in draws} == {5}
    held_out = set().union(*(split(letters, seed, 0.25).held_out for seed in range(50)))
    assert held_out == set(letters.paragraphs)  # no place is safe from the draw


# Tokenizers


@pytest.mark.parametrize("parallel", ["true", "false"])
def test_the_same_paragraphs_give_the_same_tokenizer_with_and_without_threads(parallel, monkeypatch):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", parallel)
    assert train_tokenizer(harbour().paragraphs, 1500).to_str() == TOKENIZER[1500].to_str()


def test_a_smaller_vocabulary_of_the_same_corpus_is_a_prefix_of_the_larger_one():
    # So ids of such a pair agree in meaning, which makes it a control for pairs whose ids do not.
    strings = {vocab: token_strings(tokenizer) for vocab, tokenizer in TOKENIZER.items()}
    assert strings[257] == strings[1500][:257]
    assert strings[600] == strings[1500][:600]
    other = token_strings(train_tokenizer(python_topics().paragraphs[:300], 600))
    assert other[:256] == strings[600][:256]
    assert other[256:] != strings[600][256:]


# Encoding


@given(TEXT, st.sampled_from(sorted(TOKENIZER)))
def test_every_text_comes_back_and_its_offsets_cover_it(text, vocab):
    encoded = encode(TOKENIZER[vocab], text, "drawn")
    assert TOKENIZER[vocab].decode(encoded.ids.tolist()) == text == encoded.text
    assert covered(encoded) == set(range(len(text)))
    assert (encoded.ids.dtype, encoded.offsets.dtype) == (torch.int64, np.int64)


@given(TEXT, st.sampled_from(sorted(TOKENIZER)))
def test_offsets_are_the_characters_whose_bytes_a_token_holds(text, vocab):
    encoded = encode(TOKENIZER[vocab], text, "drawn")
    strings = token_strings(TOKENIZER[vocab])
    owner = [place for place, character in enumerate(text) for _ in character.encode()]  # of each byte
    expected, byte = [], 0
    for token in encoded.ids.tolist():
        expected.append([owner[byte], owner[byte + len(strings[token]) - 1] + 1])
        byte += len(strings[token])
    assert encoded.offsets.tolist() == expected


def without_the_byte_alphabet():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False)
    tokenizer.decoder = TOKENIZER[600].decoder
    tokenizer.train_from_iterator(["plain words, à la carte"], trainers.BpeTrainer(vocab_size=40, show_progress=False))
    return tokenizer


@pytest.mark.parametrize(
    ("text", "lost", "place"),
    [
        ("wordy", "y", 4),  # the last character of all
        ("Yes", "Y", 0),  # the library's offsets close the gap and lack the last character instead
        ("ppp😀p😀", "😀", 3),  # not one of its bytes is known
        ("plain\nwords", "\n", 5),  # white space is lost as well
        ("car é", "é", 4),  # its first byte is known from à, so that only decoding shows the loss
    ],
)
def test_a_bpe_without_the_byte_alphabet_is_refused_with_the_first_character_it_loses(text, lost, place):
    tokenizer = without_the_byte_alphabet()
    assert encode(tokenizer, "plain words à", "fine").text == "plain words à"
    with pytest.raises(
        ValueError, match=re.escape(f"sample: the tokens lose or change {lost!r} at character {place} of")
    ) as error:
        encode(tokenizer, text, "sample")
    assert "use a tokenizer that has all 256 bytes" in str(error.value)


def test_a_byte_that_goes_missing_within_a_covered_character_is_found_by_decoding():
    vocab = {"Ã": 0, "a": 1}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = TOKENIZER[600].pre_tokenizer, TOKENIZER[600].decoder
    assert tokenizer.encode("aé").offsets == [(0, 1), (1, 2)]  # covers the text, yet half of é is gone
    with pytest.raises(ValueError, match="lose or change 'é' at character 1 of 2"):
        encode(tokenizer, "aé", "sample")


def changed(**settings):
    tokenizer = Tokenizer.from_str(TOKENIZER[257].to_str())
    for name, value in settings.items():
        setattr(tokenizer, name, value)
    return tokenizer


def test_a_tokenizer_that_normalises_truncates_or_pads_is_refused():
    with pytest.raises(ValueError, match="lose or change 'Q' at character 4 of 8"):
        encode(changed(normalizer=normalizers.Lowercase()), "the Quay", "sample")
    cut, padding = changed(), changed()
    cut.enable_truncation(3)
    with pytest.raises(ValueError, match=r"lose or change ' ' at character 3 of 8"):
        encode(cut, "the quay", "sample")
    padding.enable_padding(length=30, pad_id=0)
    with pytest.raises(ValueError, match=r"the tokens add to the end, decoding gives 'the quay!+'"):
        encode(padding, "the quay", "sample")


def test_special_tokens_are_not_added_and_not_lost_where_the_text_writes_them():
    tokenizer = changed()
    tokenizer.add_special_tokens(["<end>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="$A <end>", special_tokens=[("<end>", 257)])
    assert 257 not in encode(tokenizer, "sea", "sample").ids
    assert encode(tokenizer, "sea<end>", "sample").ids[-1] == 257


# Two tokenizations of one text


# Bytes


def test_token_strings_are_the_bytes_that_decoding_gives():
    strings = token_strings(TOKENIZER[1500])
    assert len(strings) == 1500
    assert sorted(strings[:256]) == [bytes([byte]) for byte in range(256)]
    assert [string.decode(errors="replace") for string in strings] == [TOKENIZER[1500].decode([i]) for i in range(1500)]


def test_first_bytes_are_the_first_of_each_string_and_sum_two_vocabularies_to_one_axis():
    first = {vocab: first_byte(TOKENIZER[vocab]) for vocab in (600, 1500)}
    assert first[600].tolist() == [string[0] for string in token_strings(TOKENIZER[600])]
    for vocab, bytes_of in first.items():
        summed = torch.zeros(256, dtype=torch.float64).index_add(0, bytes_of, torch.full((vocab,), 1 / vocab).double())
        assert summed.sum().item() == pytest.approx(1)
        assert (summed > 0).all()


# Streams, windows and batches


def test_a_stream_is_the_paragraphs_encoded_alone_each_followed_by_the_separator():
    tokenizer, paragraphs = TOKENIZER[600], harbour().paragraphs[:3]
    stream = token_stream(tokenizer, paragraphs, "\n\n").tolist()
    alone = [tokenizer.encode(paragraph).ids for paragraph in paragraphs]
    end = tokenizer.encode("\n\n").ids
    assert stream == alone[0] + end + alone[1] + end + alone[2] + end
    assert tokenizer.decode(stream) == "".join(paragraph + "\n\n" for paragraph in paragraphs)
    assert token_stream(tokenizer, paragraphs, "").tolist() == alone[0] + alone[1] + alone[2]


def test_windows_are_pieces_of_the_stream_from_every_place_that_has_a_whole_one():
    drawn = windows(torch.arange(100, 120), tokens=4, batch=500, generator=torch.Generator().manual_seed(0))
    assert drawn.shape == (500, 5)
    assert torch.equal(drawn, drawn[:, :1] + torch.arange(5))
    counts = torch.bincount(drawn[:, 0] - 100, minlength=16)
    assert len(counts) == 16
    assert counts.min() > 10  # 31 on average; a place left out would have none


def test_windows_are_drawn_by_their_generator_alone():
    stream, state = torch.arange(1000), torch.random.get_rng_state()
    first, again, other = (windows(stream, 8, 4, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_stream_of_just_one_window_gives_it_and_a_shorter_one_is_refused():
    assert windows(torch.arange(5), 4, 2, torch.Generator()).tolist() == [[0, 1, 2, 3, 4]] * 2
    with pytest.raises(ValueError, match="the stream has 4 tokens; windows of 4 and a next one need 5"):
        windows(torch.arange(4), 4, 2, torch.Generator())


def encoded(*ids):
    return Encoded(torch.tensor(ids), np.array([[place, place + 1] for place in range(len(ids))]), "x" * len(ids))


def test_padding_fills_up_at_the_end_and_the_mask_says_where():
    ids, real = padded([encoded(5), encoded(7, 8, 9), encoded(0, 4)], pad=4)
    assert ids.tolist() == [[5, 4, 4], [7, 8, 9], [0, 4, 4]]
    assert real.tolist() == [[True, False, False], [True, True, True], [True, True, False]]
