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


def test_a_cap_of_one_s_own_is_used():
    assert capped_perplexity(7.0, cap=5.0) == math.exp(5)
    assert capped_perplexity(700.0, cap=math.inf) == math.exp(700)


def test_a_loss_that_is_not_a_number_has_no_perplexity():
    with pytest.raises(ValueError, match="loss is nan; find its cause before a perplexity is printed"):
        capped_perplexity(math.nan)


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


def test_overlap_reads_five_classes_unless_told_otherwise():
    student, teacher = normal(2, 30, 9).unbind()
    assert top_overlap(student, teacher).item() == top_overlap(student, teacher, 5).item()
    assert top_overlap(student, student).item() == 1


@pytest.mark.parametrize("top_k", [-1, 0, 5])
def test_an_overlap_of_more_classes_than_there_are_is_refused(top_k):
    with pytest.raises(ValueError, match=f"top_k is {top_k}; choose 1 to 4, the number of classes"):
        top_overlap(normal(3, 4), normal(3, 4), top_k)


# What both measures refuse


MEASURES = pytest.mark.parametrize("measure", [divergence, top_overlap])


@MEASURES
def test_two_sequences_of_different_shape_are_refused(measure, shapes_unchecked):
    message = rf"^{measure.__name__}: shapes \(1, 7\) and \(3, 7\) differ; align both sequences first"
    with pytest.raises(ValueError, match=message):
        measure(normal(1, 7), normal(3, 7))


@MEASURES
def test_no_shared_position_is_refused(measure):
    message = rf"^{measure.__name__}: shapes are \(0, 7\); the two sequences share no position"
    with pytest.raises(ValueError, match=message):
        measure(normal(0, 7), normal(0, 7))


@MEASURES
@pytest.mark.parametrize("side", ["student", "teacher"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_no_distribution_are_refused_with_their_side(measure, side, value):
    logits = {"student": normal(3, 7), "teacher": normal(3, 7, seed=1)}
    logits[side][1, 4] = value
    with pytest.raises(ValueError, match=rf"^{measure.__name__}: {side}: logits of 1 of 3 tokens are no distribution"):
        measure(**logits)


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


def test_next_bytes_need_one_first_byte_a_class(shapes_unchecked):
    with pytest.raises(ValueError, match="7 classes and 6 first bytes; give those of this vocabulary"):
        next_byte(normal(3, 7), torch.zeros(6, dtype=torch.int64))


def test_next_bytes_of_logits_that_are_no_distribution_are_refused():
    logits = normal(3, 2)
    logits[1:] = -math.inf
    with pytest.raises(ValueError, match="next_byte: logits of 2 of 3 tokens are no distribution"):
        next_byte(logits, torch.tensor([1, 2]))


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


@given(two_tokenizations())
def test_a_perfect_student_has_the_teacher_s_next_byte_wherever_both_have_read_the_same(drawn):
    text, (teacher_ids, teacher_strings), (student_ids, student_strings), seed = drawn
    logits = 2 * normal(len(teacher_ids), len(teacher_strings), seed=seed)
    ends = []
    for ids, strings in ((student_ids, student_strings), (teacher_ids, teacher_strings)):
        ends.append([sum(len(strings[token]) for token in ids[: place + 1]) for place in range(len(ids))])
    shared = [(ends[0].index(end), ends[1].index(end)) for end in ends[0] if end in ends[1]]
    assert shared[-1] == (len(student_ids) - 1, len(teacher_ids) - 1)  # both end with the text
    own, other = (list(side) for side in zip(*shared))
    first = [torch.tensor([string[0] for string in strings]) for strings in (student_strings, teacher_strings)]
    for floor, most in ((FLOOR, 1e-9), (1e-4, -math.log(1 - 1e-4) + 1e-12)):
        answers = perfect_student(logits, teacher_ids, student_ids, teacher_strings, student_strings, floor)
        distance = divergence(next_byte(answers[own], first[0]), next_byte(logits[other], first[1]))
        assert -1e-12 <= distance.item() <= most
    assert len(text) == ends[0][-1]


def test_with_the_teacher_s_own_tokens_the_perfect_student_is_the_teacher():
    strings = [b"a", b"ab", b"b", b"\xc3", b"\xc3\xa9"]
    ids, logits = torch.tensor([1, 0, 4, 2, 2]), normal(5, 5)
    answers = perfect_student(logits, ids, ids, strings, strings, FLOOR)
    torch.testing.assert_close(answers.softmax(-1), logits.softmax(-1))
    assert divergence(answers, logits).item() == pytest.approx(0, abs=1e-9)
    assert top_overlap(answers, logits, 3).item() == 1


def test_the_floor_is_shared_by_all_classes_by_hand():
    strings, ids = [b"a", b"b"], torch.tensor([0])
    answers = perfect_student(logarithms([3 / 4, 1 / 4]), ids, ids, strings, strings, 0.2)
    assert answers.exp().tolist() == [pytest.approx([0.8 * 3 / 4 + 0.1, 0.8 * 1 / 4 + 0.1])]


def test_the_usual_floor_is_one_in_ten_thousand_and_every_answer_sums_to_one():
    strings, ids = [b"a", b"b", b"c", b"d"], torch.tensor([0, 3])
    answers = perfect_student(logarithms([1, 0, 0, 0], [1 / 4] * 4), ids, ids, strings, strings)
    assert answers[0].exp().tolist() == pytest.approx([1 - 0.75e-4, 0.25e-4, 0.25e-4, 0.25e-4])
    torch.testing.assert_close(answers.exp().sum(-1), torch.ones(2, dtype=torch.float64))


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


def test_inside_a_teacher_s_token_only_guesses_that_agree_with_the_bytes_read_are_left():
    after_a = {b"bc": 0.3 / 0.4, b"b": 0.1 / 0.4}  # abc has bc left, abd has bd, and a itself is over
    assert said([4, 0, 5])[1].tolist() == pytest.approx([after_a.get(string, 0) for string in STUDENT], abs=1e-9)
    after_ab = {b"c": 0.3 / 0.4, b"d": 0.1 / 0.4}
    assert said([4, 6, 2])[1].tolist() == pytest.approx([after_ab.get(string, 0) for string in STUDENT], abs=1e-9)


def test_before_the_teacher_s_first_token_ends_every_class_is_equally_likely():
    answers = perfect_student(normal(1, 4), torch.tensor([1]), torch.tensor([0, 1, 2]), TEACHER, STUDENT, FLOOR)
    for place in (0, 1):
        assert answers[place].exp().tolist() == pytest.approx([1 / 7] * 7)
    assert answers[2].exp().tolist() != pytest.approx([1 / 7] * 7, abs=1e-3)


def test_a_character_split_over_tokens_is_continued_by_its_own_bytes():
    teacher, student = [b"x", "é".encode(), "è".encode(), "ü".encode()], [b"x", b"\xc3", b"\xa9", b"\xa8", b"\xbc"]
    logits = logarithms([0.1, 0.2, 0.3, 0.4], [0.25] * 4)
    answers = perfect_student(logits, torch.tensor([0, 1]), torch.tensor([0, 1, 2]), teacher, student, FLOOR).exp()
    assert answers[0].tolist() == pytest.approx([0.1, 0.9, 0, 0, 0], abs=1e-9)
    assert answers[1].tolist() == pytest.approx([0, 0, 0.2 / 0.9, 0.3 / 0.9, 0.4 / 0.9], abs=1e-9)


def test_a_student_whose_tokens_are_longer_than_the_teacher_s_skips_what_it_never_says():
    teacher_ids, student_ids = torch.tensor([3, 0, 0]), torch.tensor([1, 0])
    student = [b"a", b"xa", b"x", b"b"]
    logits = logarithms([0.97, 0.01, 0.01, 0.01], [0.1, 0.2, 0.3, 0.4], [0.25] * 4)
    answers = perfect_student(logits, teacher_ids, student_ids, TEACHER, student, FLOOR).exp()
    assert answers[0].tolist() == pytest.approx([0.6, 0, 0.4, 0], abs=1e-9)  # from after xa, not after x


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


def test_two_tokenizations_of_different_texts_are_refused():
    message = "the two tokenizations spell different bytes; encode one text by both tokenizers"
    for wrong in ([4, 0, 1], [4, 0, 1, 3], [4, 0], [4, 0, 5, 0]):
        with pytest.raises(ValueError, match=message):
            said(wrong)
    composed, decomposed = ["é".encode()], [b"e", "\u0301".encode()]
    with pytest.raises(ValueError, match=message):
        perfect_student(normal(1, 1), torch.tensor([0]), torch.tensor([0, 1]), composed, decomposed)


def test_a_student_without_a_byte_that_it_must_say_is_refused_with_that_byte():
    with pytest.raises(
        ValueError, match=r"no token of the student begins b'd'; its vocabulary needs every single byte"
    ):
        said([4, 5, 2], student=[b"a", b"b", b"c", b"bc", b"x", b"ab"])


@pytest.mark.parametrize("rows", [1, 3])
def test_teacher_logits_that_are_not_one_row_a_token_are_refused(rows, shapes_unchecked):
    with pytest.raises(ValueError, match=rf"teacher_logits are \({rows}, 4\); its ids and strings need \(2, 4\)"):
        perfect_student(normal(rows, 4), torch.tensor([3, 1]), torch.tensor([4, 0, 5]), TEACHER, STUDENT)


@pytest.mark.parametrize("classes", [3, 5])
def test_teacher_logits_of_another_vocabulary_are_refused(classes):
    with pytest.raises(ValueError, match=rf"teacher_logits are \(2, {classes}\); its ids and strings need \(2, 4\)"):
        perfect_student(normal(2, classes), torch.tensor([3, 1]), torch.tensor([4, 0, 5]), TEACHER, STUDENT)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_teacher_that_is_no_distribution_is_refused(value):
    with pytest.raises(ValueError, match="perfect_student: teacher: logits of 1 of 2 tokens are no distribution"):
        said([4, 0, 5], guess=[0.1, value, 0.1, 0.1])


@pytest.mark.parametrize("floor", [-0.1, 0.0, 1.0, math.nan])
def test_a_floor_that_is_no_share_is_refused(floor):
    with pytest.raises(ValueError, match=f"floor is {floor}; it must be above 0 and below 1"):
        perfect_student(normal(1, 1), torch.tensor([0]), torch.tensor([0]), [b"a"], [b"a"], floor)
