"""The probe fires where positions of equal index speak of different characters, and is silent where they do not."""

import copy
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from casestudies_lib.offsets import checked, shared_ends
from casestudies_lib.probes import ProbeInputError, alignment

SEEDS = range(10)
SPOKEN = "the quick brown fox jumps over lazy dogs naïve café Löwe größer 日本語 日曜 🙂🙂 élan and then sleeps"
WORDS = SPOKEN.split()
FOX = "The quick brown fox"
COARSE = [(0, 3), (3, 9), (9, 15), (15, 19)]
FINE = [(0, 3), (3, 6), (6, 9), (9, 15), (15, 17), (17, 19)]


def byte_level(vocabulary):
    """Return a byte-level BPE whose vocabulary starts with the 256 bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([SPOKEN] * 3, trainer)
    return tokenizer


@pytest.fixture(scope="module")
def tokenizers():
    return byte_level(300), byte_level(340)


def text_of(seed, words=30):
    return " ".join(np.random.default_rng(seed).choice(WORDS, words))


def worst(result):
    return [(finding.severity, finding.where) for finding in result.findings]


def cut_bytes(widths, cuts):
    """Return offsets as a byte-level tokenizer gives them, and how many bytes have been read after each token."""
    owner = [character for character, width in enumerate(widths) for _ in range(width)]
    edges = [0, *sorted(cut for cut in cuts if cut < len(owner)), len(owner)]
    return [(owner[low], owner[high - 1] + 1) for low, high in pairwise(edges)], edges[1:]


# The fault and its healthy twin.


@pytest.mark.parametrize("seed", SEEDS)
def test_two_real_tokenizers_paired_by_index_are_a_fault(tokenizers, seed):
    text = text_of(seed)
    first, second = (tokenizer.encode(text) for tokenizer in tokenizers)
    result = alignment(first.offsets, second.offsets, text)
    assert result.ok is False
    assert result.findings[0].severity == "fault"
    # A byte-level token is written with one letter a byte.
    read, other = (np.cumsum([len(token) for token in encoding.tokens]).tolist() for encoding in (first, second))
    whole = {len(text[:count].encode()) for count in range(1, len(text) + 1)}
    same = [mine in whole and mine == theirs for mine, theirs in zip(read, other)]
    assert result.measures["positions_same_by_index"] == sum(same)
    assert result.measures["positions_same_by_offsets"] == len({*read} & {*other} & whole)
    assert result.measures["first_position_apart"] <= same.index(False) + 4
    assert result.measures["positions_same_by_offsets"] > 4 * sum(same)


@pytest.mark.parametrize("seed", SEEDS)
def test_one_tokenizer_on_both_sides_is_silent(tokenizers, seed):
    text = text_of(seed)
    for tokenizer in tokenizers:
        offsets = tokenizer.encode(text).offsets
        result = alignment(offsets, list(offsets), text)
        assert result.ok is True
        result.raise_if_found(unknown="raise")
        assert {bar.value for bar in result.bars} == {100.0}
        assert result.measures["positions_same_by_index"] == result.measures["positions_same_by_offsets"]


@pytest.mark.parametrize("seed", SEEDS)
def test_where_no_token_shares_a_character_not_even_a_note_is_left(seed):
    edges = sorted({0, 200, *np.random.default_rng(seed).choice(200, 60).tolist()})
    offsets = list(pairwise(edges))
    result = alignment(offsets, offsets)
    assert result.findings == ()


def test_equal_lengths_prove_nothing():
    result = alignment([(0, 2), (2, 5), (5, 6)], [(0, 2), (2, 4), (4, 6)])
    assert result.ok is False
    assert (result.measures["positions_same_by_index"], result.measures["positions"]) == (2, 3)
    assert result.measures["characters_left_out"] == 0


def test_the_pairs_of_shared_ends_pass_the_probe(tokenizers):
    # Cut where both tokenizers cut, the same positions speak of the same characters.
    text = text_of(3)
    sides = [checked(tokenizer.encode(text).offsets) for tokenizer in tokenizers]
    cured = []
    for side, indices in zip(sides, shared_ends(*sides)):
        ends = [int(side.ends[index]) for index in indices]
        cured.append(list(zip([0, *ends], ends)))
    assert alignment(*cured, text).ok is True


# The numbers.


def test_the_fox_by_hand():
    result = alignment(COARSE, FINE, FOX)
    assert result.measures == {
        "texts": 1,
        "texts_apart": 1,
        "positions": 4,
        "positions_same_by_index": 1,
        "positions_apart": 3,
        "positions_same_by_offsets": 4,
        "positions_of_identical_tokens": 1,
        "positions_inside_characters": 0,
        "first_text_apart": 0,
        "first_position_apart": 1,
        "first_character_apart": 6,
        "largest_drift": 6,
        "drift_at_end": 4,
        "characters": 19,
        "characters_left_out": 4,
        "tokens_first": 4,
        "tokens_second": 6,
        "specials_first": 0,
        "specials_second": 0,
    }
    assert [(bar.value, bar.faulty) for bar in result.bars] == [(25.0, True), (100.0, False)]
    assert "1 of 4 positions (25 %)" in result.headline
    fault, left_out = result.findings
    assert fault.where == "position 1, character 6, and later"
    assert "' quick' (characters 3 to 9, after 'The') faces ' qu' (characters 3 to 6, after 'The')" in fault.measured
    assert "drift 6 characters apart, 4 at the end" in fault.measured
    assert (left_out.severity, "4 of 19 characters (21.1 %)" in left_out.measured) == ("warning", True)


def test_the_sides_may_change_places():
    there, back = alignment(COARSE, FINE).measures, alignment(FINE, COARSE).measures
    swapped = {"tokens_first": there["tokens_second"], "tokens_second": there["tokens_first"]}
    assert back == {**there, **swapped}


def by_hand(first, read, second, other, whole):
    """Count positions one by one; a special token has read nothing more than the token before it."""
    counts = dict.fromkeys(("positions", "same", "inside", "identical"), 0)
    drifts = []

    def touched(offsets, at):
        return max(end for _, end in offsets[: at + 1])

    def inner(offsets, at):
        # Which token of which character-sharing run: tokens between two places where whole characters were read.
        low = max([0, *(end for end in whole_read(offsets) if end <= at)])
        high = min(end for end in whole_read(offsets) if end > at)
        return at - sum(o == (0, 0) for o in offsets[low:at]) - low, sum(o != (0, 0) for o in offsets[at + 1 : high])

    def whole_read(offsets):
        reads = read if offsets is first else other
        return [at + 1 for at in range(len(offsets)) if offsets[at] != (0, 0) and reads[at] in whole]

    for at in range(min(len(first), len(second))):
        specials = [offsets[at] == (0, 0) for offsets in (first, second)]
        drifts.append(abs(touched(first, at) - touched(second, at)))
        if all(specials):
            continue
        ends_whole = [read[at] in whole, other[at] in whole]
        alike = not any(specials) and not any(ends_whole) and first[at] == second[at]
        if alike and inner(first, at) == inner(second, at):
            counts["inside"] += 1
            continue
        counts["positions"] += 1
        counts["identical"] += not any(specials) and first[at] == second[at]
        counts["same"] += not any(specials) and all(ends_whole) and read[at] == other[at]
    return counts, drifts


def dressed(offsets, read, places):
    """Return both lists with special tokens in them, which read no byte."""
    offsets, read = list(offsets), list(read)
    for place in sorted(places, reverse=True):
        place = min(place, len(offsets))
        offsets.insert(place, (0, 0))
        read.insert(place, read[place - 1] if place else 0)
    return offsets, read


CUTS = st.sets(st.integers(1, 30))
SPECIALS = st.lists(st.integers(0, 10), max_size=3)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=8), CUTS, CUTS, SPECIALS, SPECIALS)
def test_the_counts_are_those_of_a_slow_count_by_bytes(widths, cuts, other_cuts, specials, other_specials):
    first, read = dressed(*cut_bytes(widths, cuts), specials)
    second, other = dressed(*cut_bytes(widths, other_cuts), other_specials)
    whole = {sum(widths[: count + 1]) for count in range(len(widths))}
    counts, drifts = by_hand(first, read, second, other, whole)
    result = alignment(first, second)
    measures = result.measures
    assert measures["positions"] == counts["positions"]
    assert measures["positions_same_by_index"] == counts["same"]
    assert measures["positions_inside_characters"] == counts["inside"]
    assert measures["positions_of_identical_tokens"] == counts["identical"]
    assert (measures["largest_drift"], measures["drift_at_end"]) == (max(drifts), drifts[-1])
    # The shorter side has tokens enough for every pair that offsets would make.
    assert measures["positions_same_by_index"] <= measures["positions_same_by_offsets"] <= measures["positions"]
    apart = counts["positions"] - counts["same"]
    assert result.ok is (False if apart else True if counts["positions"] > 1 else None)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=8), CUTS, CUTS)
def test_what_the_probe_calls_same_has_read_the_same_bytes(widths, cuts, other_cuts):
    (first, read), (second, other) = cut_bytes(widths, cuts), cut_bytes(widths, other_cuts)
    result = alignment(first, second)
    if result.ok is True and not result.measures["positions_inside_characters"]:
        shorter = min(len(first), len(second))
        assert read[:shorter] == other[:shorter]


# Special tokens, split characters, and what cannot be told.


def test_one_special_token_on_one_side_shifts_everything_even_with_one_tokenizer():
    result = alignment([(0, 0), *COARSE], COARSE, FOX)
    assert result.ok is False
    assert (result.measures["positions_same_by_index"], result.measures["positions_same_by_offsets"]) == (0, 4)
    assert ("warning", "special tokens at the start") in worst(result)
    assert "a special token faces 'The'" in result.findings[0].measured


def test_special_tokens_on_both_sides_are_left_out():
    result = alignment([(0, 0), *COARSE, (0, 0)], [(0, 0), *COARSE, (0, 0)], FOX)
    assert result.ok is True
    assert result.findings == ()
    assert (result.measures["positions"], result.measures["specials_first"]) == (4, 2)


def test_a_special_token_at_the_end_of_one_side_does_no_harm():
    assert alignment([*COARSE, (0, 0)], COARSE, FOX).findings == ()


def test_a_split_character_is_a_note_and_its_inside_is_not_judged():
    offsets = [(0, 1), (1, 2), (1, 2), (2, 4)]
    result = alignment(offsets, offsets, "aéng")
    assert result.ok is True
    assert worst(result) == [("note", "characters that several tokens share")]
    assert "1 tokens of the first list and 1 of the second" in result.findings[0].measured
    assert (result.measures["positions"], result.measures["positions_inside_characters"]) == (3, 1)


def test_a_character_split_on_one_side_only_is_apart():
    result = alignment([(0, 1), (0, 1), (1, 2)], [(0, 1), (1, 2)])
    assert result.ok is False
    assert (result.measures["positions"], result.measures["positions_apart"]) == (2, 2)
    # Three tokens against two of one character are not the same split.
    thirds = alignment([(0, 1)] * 3 + [(1, 2)], [(0, 1)] * 2 + [(1, 2)])
    assert thirds.measures["positions_inside_characters"] == 0
    assert thirds.ok is False


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        # The second of three tokens of a character faces the first of two.
        ([(0, 1), (1, 2), (1, 2), (1, 2)], [(0, 1), (0, 1), (1, 2), (1, 2)], 1),
        # One of the two has a whole character in front of the split one.
        ([(0, 1), (1, 3), (2, 3)], [(0, 2), (2, 3), (2, 3)], 1),
        # Both end in the middle of one character, which takes one more token here and two there.
        ([(0, 2), (1, 2)], [(0, 2), (1, 2), (1, 2)], 0),
    ],
)
def test_different_splits_of_one_character_are_apart(first, second, same):
    for measures in (alignment(first, second).measures, alignment(second, first).measures):
        assert measures["positions"] == min(len(first), len(second))
        assert (measures["positions_same_by_index"], measures["positions_inside_characters"]) == (same, 0)


@pytest.mark.parametrize(
    ("offsets", "text", "told"),
    [([(0, 0)] * 3, None, 0), ([(0, 4)], "word", 1), ([(0, 1)] * 4, "🙂", 1), ([(0, 0), (2, 2)], "  ", 1)],
)
def test_too_little_to_judge_is_neither_good_nor_bad(offsets, text, told):
    result = alignment(offsets, offsets, text)
    assert result.ok is None
    assert f"offsets can judge {told} position(s)" in result.reason
    assert result.measures["positions"] == told
    assert len(result.bars) == (2 if told else 0)
    assert result.plot() is not None


def test_a_single_position_that_is_apart_is_a_fault_all_the_same():
    assert alignment([(0, 4)], [(0, 2), (2, 4)]).ok is False


def test_white_space_that_one_tokenizer_trims_is_no_difference():
    trimmed = [(0, 3), (4, 9), (10, 15), (16, 19)]
    assert alignment(trimmed, COARSE, FOX).ok is True
    with pytest.raises(ProbeInputError, match=r"token 1 of first_offsets is \(4, 9\).*pass text"):
        alignment(trimmed, COARSE)


# Batches.


def test_a_batch_has_a_row_for_each_text_and_totals_over_all():
    result = alignment([COARSE, COARSE, FINE], [COARSE, FINE, COARSE], [FOX] * 3)
    table = result.table()
    assert result.ok is False
    assert table["same characters by index, %"].tolist() == [100.0, 25.0, 25.0]
    assert table["same characters by offsets, %"].tolist() == [100.0, 100.0, 100.0]
    assert table["first position apart"].tolist()[1:] == [1, 1]
    assert table["text"].tolist()[0] == f"0: {FOX!r}"
    measures = result.measures
    assert (measures["texts"], measures["texts_apart"], measures["first_text_apart"]) == (3, 2, 1)
    assert (measures["positions"], measures["positions_same_by_index"], measures["characters"]) == (12, 6, 57)
    assert (measures["characters_left_out"], measures["drift_at_end"], measures["largest_drift"]) == (8, 4, 6)
    assert (measures["tokens_first"], measures["tokens_second"]) == (14, 14)
    assert result.findings[0].where.startswith("text 1, position 1, character 6")
    assert "2 of 3 texts" in result.findings[0].measured


@given(st.lists(st.tuples(CUTS, CUTS), min_size=1, max_size=4))
def test_a_batch_counts_what_its_texts_count_alone(cuts):
    widths = [1, 2, 1, 4, 1, 3]
    first = [cut_bytes(widths, mine)[0] for mine, _ in cuts]
    second = [cut_bytes(widths, other)[0] for _, other in cuts]
    alone = [alignment(*pair).measures for pair in zip(first, second)]
    together = alignment(first, second).measures
    for name in ("positions", "positions_same_by_index", "positions_apart", "positions_same_by_offsets", "characters"):
        assert together[name] == sum(measures[name] for measures in alone)
    assert together["largest_drift"] == max(measures["largest_drift"] for measures in alone)


def test_a_batch_of_one_text_is_still_a_batch():
    result = alignment([COARSE], [COARSE])
    assert result.columns[0] == "text"
    assert result.rows[0][0] == "0"


def test_one_text_is_told_by_region():
    edges = list(range(0, 101, 2))
    first, second = list(pairwise(edges)), [*pairwise(edges[:41]), *pairwise(range(80, 101))]
    result = alignment(first, second)
    table = result.table()
    assert table["positions"].tolist() == [f"{low} to {low + 4}" for low in range(0, 50, 5)]
    assert table["same characters by index, %"].tolist() == [100.0] * 8 + [0.0] * 2
    assert table["largest drift, characters"].tolist() == [0] * 8 + [5, 10]
    assert table["characters read, second"].tolist()[-1] == 90


# Objects of other people's making.


def rows_of(kind):
    return lambda pairs: [kind(pair) for pair in pairs]


@pytest.mark.parametrize("make", [np.array, torch.tensor, tuple, *map(rows_of, (list, np.array, torch.tensor))])
def test_arrays_tensors_and_lists_give_one_answer(make):
    assert alignment(make(COARSE), make(FINE), FOX).measures == alignment(COARSE, FINE, FOX).measures
    batched = alignment([make(COARSE)], [make(FINE)], [FOX])
    assert batched.measures == alignment(COARSE, FINE, FOX).measures


def test_a_padded_tensor_batch_as_a_collator_makes_it():
    rows = [[(0, 0), (0, 2), (2, 5)], [(0, 0), (0, 1), (0, 0)]]
    result = alignment(torch.tensor(rows), np.array(rows))
    assert result.ok is True
    assert (result.measures["texts"], result.measures["positions"], result.measures["specials_first"]) == (2, 3, 3)


def test_a_batch_of_a_real_tokenizer(tokenizers):
    texts = [text_of(seed) for seed in SEEDS]
    first, second = ([e.offsets for e in tokenizer.encode_batch(texts)] for tokenizer in tokenizers)
    assert alignment(first, first, texts).ok is True
    assert alignment(first, second, texts).measures["texts_apart"] == 10


@pytest.mark.parametrize("make", [list, np.array])
def test_what_is_given_is_left_as_it_is(make):
    first, second, text = make([(0, 3), (4, 9), (10, 15), (16, 19)]), make(FINE), FOX + "  "
    kept = copy.deepcopy((first, second))
    alignment(first, second, text)
    for before, after in zip(kept, (first, second)):
        assert type(before) is type(after)
        assert np.array_equal(before, after)


# Bad input.


@pytest.mark.parametrize(
    ("first", "second", "text", "message"),
    [
        (COARSE, [*FINE, (19, 27)], None, "first_offsets covers 19 characters with 4 of 4 tokens, .* 27 .* 7 of 7"),
        ([(0, 0)], COARSE, None, "first_offsets covers 0 characters with 0 of 1 tokens, second_offsets 19"),
        (COARSE, FINE[:-1], FOX, r"token 4 of second_offsets is \(15, 17\)|character 17 \('o'\)"),
        (COARSE, FINE, FOX[:-1], r"token 3 of first_offsets is \(15, 19\), beyond the text of 18 characters"),
        (COARSE, [(0, 9), (3, 19)], None, r"token 1 of second_offsets is \(3, 19\), .*\(0, 9\): it overlaps it by 6"),
        (COARSE, FINE, "", "text of first_offsets has 0 characters; give a text that is not empty"),
        (COARSE, FINE, [FOX], "text is a list, while the offsets are those of one text"),
        (COARSE, FINE, b"fox", "text is a bytes, while"),
        ([COARSE], [FINE], FOX, "text is a str, while the offsets are those of 1 texts"),
        ([COARSE], [FINE], [FOX] * 2, "first_offsets holds 1 texts, second_offsets 1, text 2"),
        ([COARSE] * 3, [FINE] * 2, None, "first_offsets holds 3 texts, second_offsets 2; give the same texts"),
        ([COARSE], [FINE], [3], r"text of first_offsets\[0\] is a int; give a str"),
        ([COARSE, COARSE], [FINE, FINE[:-1]], None, r"first_offsets\[1\] covers 19 .* second_offsets\[1\] 17 char"),
        ([COARSE], FINE, None, "first_offsets holds a list for each text, second_offsets one text's pairs"),
        (COARSE, [FINE], None, "second_offsets holds a list for each text, first_offsets one text's pairs"),
        ([], FINE, None, "first_offsets is empty"),
        ([COARSE, []], [FINE, FINE], None, r"first_offsets\[1\] is empty"),
        (None, FINE, None, "first_offsets is None; give a list"),
        (COARSE, iter(FINE), None, "second_offsets is a list_iterator; give a list"),
        ("offsets", FINE, None, "first_offsets is a str; give a list"),
        ({0: (0, 3)}, FINE, None, "first_offsets is a dict; give a list"),
        ([3, 6, 9], FINE, None, r"first_offsets is a list of shape \[3\]"),
        ([(0.0, 19.0)], COARSE, None, "first_offsets holds values of type float64"),
        (torch.zeros(2, 3, 4, 2), FINE, None, r"first_offsets is a Tensor of shape \[2, 3, 4, 2\]"),
    ],
)
def test_bad_input_is_refused_with_its_name(first, second, text, message):
    with pytest.raises(ProbeInputError, match=message):
        alignment(first, second, text)


# Forms of the answer.


def test_the_chart_marks_what_is_wrong_only():
    assert [bar.get_hatch() for bar in alignment(COARSE, FINE).plot().patches] == ["///", None]
    assert [bar.get_hatch() for bar in alignment(COARSE, COARSE).plot().patches] == [None, None]


def test_long_tokens_are_shortened_and_unknown_texts_are_not_invented():
    text = "x" * 60
    found = alignment([(0, 60)], [(0, 30), (30, 60)], text).findings[0].measured
    assert f"'{'x' * 19}…' (characters 0 to 60)" in found
    assert "'" not in alignment([(0, 60)], [(0, 30), (30, 60)]).findings[0].measured
