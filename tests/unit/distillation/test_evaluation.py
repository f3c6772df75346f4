"""Divergence, overlap, perplexity and the perfect student, against scipy, slow loops and hand numbers."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import rel_entr
from scipy.special import softmax as scipy_softmax

from casestudies_lib.models.distillation.evaluation import (
    PERPLEXITY_CAP,
    capped_perplexity,
    divergence,
    next_byte,
    perfect_student,
    top_overlap,
)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def logarithms(*rows):
    """Logits of these probabilities."""
    return torch.tensor(rows, dtype=torch.float64).log()


# Perplexity


@pytest.mark.parametrize("loss", [20.0, 20.0001, 51.7094, 101.3997, 160.5575, 3211.0, math.inf])
def test_every_loss_from_the_cap_on_prints_the_report_s_perplexity(loss):
    assert capped_perplexity(loss) == pytest.approx(485165195.4097903, rel=1e-15)


def test_losses_below_the_cap_print_different_perplexities():
    assert [capped_perplexity(loss) for loss in (0.0, 1.0, math.log(50257))] == pytest.approx([1, math.e, 50257])
    assert capped_perplexity(19.999) < capped_perplexity(19.9999) < math.exp(PERPLEXITY_CAP)


# Divergence


@given(
    tokens=st.integers(1, 5), classes=st.integers(1, 6), size=st.sampled_from([0.01, 1, 30]), seed=st.integers(0, 99)
)
def test_divergence_is_scipy_s_relative_entropy_and_a_mean_over_tokens(tokens, classes, size, seed):
    student, teacher = (size * normal(2, tokens, classes, seed=seed)).unbind()
    expected, found = (scipy_softmax(logits.numpy(), axis=-1) for logits in (teacher, student))
    result = divergence(student, teacher).item()
    assert result == pytest.approx(rel_entr(expected, found).sum() / tokens, rel=1e-6, abs=1e-12)
    assert result >= -1e-12
    assert divergence(student, student + 5).item() == pytest.approx(0, abs=1e-12)  # a constant moves no probability


def test_divergence_runs_from_the_teacher_to_the_student_by_hand():
    even, uneven = logarithms([1 / 2, 1 / 2]), logarithms([3 / 4, 1 / 4])
    assert divergence(uneven, even).item() == pytest.approx(math.log(4 / 3) / 2)
    assert divergence(even, uneven).item() == pytest.approx(3 / 4 * math.log(3 / 2) + 1 / 4 * math.log(1 / 2))


def test_divergence_counts_nothing_for_a_class_that_the_teacher_excludes():
    both = divergence(logarithms([1 / 2, 1 / 4, 1 / 4]), logarithms([1 / 2, 1 / 2, 0]))
    assert both.item() == pytest.approx(math.log(2) / 2)
    assert divergence(logarithms([1 / 2, 1 / 2, 0]), logarithms([1 / 2, 1 / 2, 0])).item() == pytest.approx(0)
    assert divergence(logarithms([1, 0]), logarithms([1 / 2, 1 / 2])).item() == math.inf


# Overlap


@pytest.mark.parametrize(("top_k", "expected"), [(1, 1 / 2), (2, 1 / 2), (3, 2 / 3), (4, 1)])
def test_overlap_by_hand(top_k, expected):
    student = torch.tensor([[9.0, 1, 5, 3], [9.0, 1, 5, 3]])  # order 0 2 3 1 twice
    teacher = torch.tensor([[9.0, 5, 1, 3], [3.0, 9, 5, 1]])  # orders 0 1 3 2 and 1 2 0 3
    assert top_overlap(student, teacher, top_k).item() == pytest.approx(expected)


@given(tokens=st.integers(1, 5), top_k=st.integers(1, 9), seed=st.integers(0, 99))
def test_overlap_is_its_slow_loop_and_a_mean_over_tokens(tokens, top_k, seed):
    student, teacher = normal(2, tokens, 9, seed=seed).unbind()
    shared = 0
    for pair in zip(student.tolist(), teacher.tolist()):
        first, second = (set(sorted(range(9), key=row.__getitem__)[-top_k:]) for row in pair)
        shared += len(first & second)
    assert top_overlap(student, teacher, top_k).item() == pytest.approx(shared / (tokens * top_k))
    assert top_overlap(teacher, student, top_k).item() == top_overlap(student, teacher, top_k).item()


# What both measures refuse


MEASURES = pytest.mark.parametrize("measure", [divergence, top_overlap])


# Next bytes


def next_byte_by_hand(logits, first_bytes):
    rows = []
    for row in logits.tolist():
        chances, sums = scipy_softmax(row), [0.0] * 256
        for token, byte in enumerate(first_bytes):
            sums[byte] += chances[token]
        rows.append(sums)
    return torch.tensor(rows, dtype=torch.float64)


@given(first_bytes=st.lists(st.sampled_from([0, 1, 97, 195, 255]), min_size=1, max_size=9), seed=st.integers(0, 99))
def test_next_bytes_are_their_slow_loop_and_sum_to_one(first_bytes, seed):
    logits = 3 * normal(4, len(first_bytes), seed=seed)
    chances = next_byte(logits, torch.tensor(first_bytes)).exp()
    torch.testing.assert_close(chances, next_byte_by_hand(logits, first_bytes))
    torch.testing.assert_close(chances.sum(-1), torch.ones(4, dtype=torch.float64))


def test_a_byte_that_begins_no_token_has_a_finite_logarithm():
    for kind in (torch.float32, torch.float64):
        logits = next_byte(torch.zeros(1, 2, dtype=kind), torch.tensor([97, 98]))
        assert logits.isfinite().all()
        assert logits[0, 97].exp().item() == pytest.approx(0.5)
        assert logits[0, 99].item() < -80


# The perfect student

FLOOR = 1e-12  # so small that it hides nothing


def tokenized(text, cuts):
    """Cut bytes at these places; an empty piece is none."""
    places = [0, *sorted(cuts), len(text)]
    return [text[start:end] for start, end in itertools.pairwise(places) if start < end]


@st.composite
def two_tokenizations(draw):
    """Draw a text, two vocabularies that spell it, its two tokenizations, and a seed; characters may be split."""
    text = draw(st.text(alphabet="abé€", min_size=1, max_size=8)).encode()
    single = sorted({bytes([byte]) for byte in "abé€".encode()})
    sides = []
    for _ in range(2):
        pieces = tokenized(text, draw(st.sets(st.integers(1, max(1, len(text) - 1)))))
        more = draw(st.lists(st.text(alphabet="abé", min_size=1, max_size=2), max_size=4))
        strings = draw(st.permutations(sorted({*single, *pieces, *(each.encode() for each in more)})))
        sides.append((torch.tensor([strings.index(piece) for piece in pieces]), strings))
    return text, *sides, draw(st.integers(0, 999))


def perfect_by_hand(teacher_logits, teacher_ids, student_ids, teacher_strings, student_strings, floor):
    """Say the teacher's guesses in the student's tokens, one place, one guess and one candidate at a time."""
    rows = []
    for place in range(len(student_ids)):
        read = b"".join(student_strings[token] for token in student_ids[: place + 1])
        ended, behind = b"", -1
        for token in teacher_ids.tolist():
            if len(ended) + len(teacher_strings[token]) > len(read):
                break
            ended, behind = ended + teacher_strings[token], behind + 1
        row = [1 / len(student_strings)] * len(student_strings)
        if behind >= 0:
            since, row = read[len(ended) :], [0.0] * len(student_strings)
            chances = scipy_softmax(teacher_logits[behind].numpy())
            left = {
                string[len(since) :]: chance
                for string, chance in zip(teacher_strings, chances)
                if string.startswith(since) and len(string) > len(since)
            }
            for rest, chance in left.items():
                longest = max((string for string in student_strings if rest.startswith(string)), key=len)
                row[student_strings.index(longest)] += chance / sum(left.values())
        rows.append([math.log((1 - floor) * chance + floor / len(row)) for chance in row])
    return torch.tensor(rows, dtype=torch.float64)


@given(two_tokenizations())
def test_a_perfect_student_is_its_slow_loop(drawn):
    _, (teacher_ids, teacher_strings), (student_ids, student_strings), seed = drawn
    logits = 2 * normal(len(teacher_ids), len(teacher_strings), seed=seed)
    arguments = logits, teacher_ids, student_ids, teacher_strings, student_strings, 1e-3
    torch.testing.assert_close(perfect_student(*arguments), perfect_by_hand(*arguments))


def test_the_floor_is_shared_by_all_classes_by_hand():
    strings, ids = [b"a", b"b"], torch.tensor([0])
    answers = perfect_student(logarithms([3 / 4, 1 / 4]), ids, ids, strings, strings, 0.2)
    assert answers.exp().tolist() == [pytest.approx([0.8 * 3 / 4 + 0.1, 0.8 * 1 / 4 + 0.1])]


# After "x" the teacher expects a .4, abc .3, abd .1 and x .2; then it reads "abc" in one token.
TEACHER = [b"a", b"abc", b"abd", b"x"]
GUESS = [0.4, 0.3, 0.1, 0.2]
STUDENT = [b"a", b"b", b"c", b"d", b"x", b"bc", b"ab"]


def said(student_ids, teacher_ids=(3, 1), guess=GUESS, student=STUDENT, kind=torch.float64):
    logits = torch.stack([torch.tensor(guess, dtype=kind).log(), torch.zeros(4, dtype=kind)])
    answers = perfect_student(logits, torch.tensor(teacher_ids), torch.tensor(student_ids), TEACHER, student, FLOOR)
    return answers.exp()


def test_what_the_teacher_expects_is_said_in_the_longest_token_that_begins_it():
    expected = {b"a": 0.4, b"ab": 0.3 + 0.1, b"x": 0.2}
    assert said([4, 0, 5])[0].tolist() == pytest.approx([expected.get(string, 0) for string in STUDENT], abs=1e-9)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
@pytest.mark.parametrize("gap", [50.0, 200.0, 5000.0])
def test_agreeing_guesses_that_a_softmax_rounds_to_zero_keep_their_proportions(kind, gap):
    logits = torch.tensor([[0.0, math.log(3) - gap, -gap, 0.0], [0.0] * 4], dtype=kind)
    answers = perfect_student(logits, torch.tensor([3, 1]), torch.tensor([4, 0, 5]), TEACHER, STUDENT, 1e-9).exp()
    expected = {b"bc": 3 / 4, b"b": 1 / 4}
    assert answers[1].tolist() == pytest.approx([expected.get(string, 0) for string in STUDENT], rel=1e-3, abs=1e-6)


def test_guesses_that_all_disagree_with_the_bytes_read_leave_every_class_equally_likely():
    answers = said([4, 0, 5], guess=[0.5, 0, 0, 0.5])
    assert answers[1].tolist() == pytest.approx([1 / 7] * 7)
    assert answers.isfinite().all()


def test_a_token_without_bytes_is_never_expected_and_its_share_goes_to_the_others():
    strings = [b"", b"a", b"b"]
    ids = torch.tensor([1, 0, 2])
    logits = logarithms([0.5, 0.3, 0.2], [0.8, 0.1, 0.1], [0.2, 0.4, 0.4])
    answers = perfect_student(logits, ids, torch.tensor([1, 2]), strings, strings, FLOOR).exp()
    assert answers[0].tolist() == pytest.approx([0, 0.5, 0.5], abs=1e-9)  # from after the empty token, read as well
    assert answers[1].tolist() == pytest.approx([0, 0.5, 0.5], abs=1e-9)


# What the perfect student refuses
