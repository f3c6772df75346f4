"""The eight loss terms against slow loops and hand numbers: reductions, gradients, remedies and the curriculum."""

import math

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from casestudies_lib.models.distillation.losses import (
    TERMS,
    attention_loss,
    contrastive_loss,
    curriculum,
    kd_loss,
    layerwise_loss,
    lm_loss,
    masked_square,
    mean_over_real,
    mean_square,
    normalised_square,
    raw_terms,
    robust_error,
    routing_attention_alignment_loss,
    routing_feature_loss,
    routing_load_balance_loss,
    same_shape,
    sum_over_count,
    temperature_at,
    weighted,
)
from casestudies_lib.models.distillation.model import Distiller, LanguageModel, Reading, Routed, Sizes

LAYER_ERRORS = [mean_square, sum_over_count, normalised_square, masked_square, robust_error]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def pair(*shape, seed=0):
    return normal(2, *shape, seed=seed).unbind()


def tensor(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def every(batch=2, tokens=5):
    return torch.ones(batch, tokens, dtype=torch.bool)


def ragged():
    """A batch of three texts of 5, 3 and 1 tokens."""
    return torch.arange(5) < torch.tensor([[5], [3], [1]])


def softmax(numbers):
    powers = [math.exp(number - max(numbers)) for number in numbers]
    return [power / sum(powers) for power in powers]


def divergence(expected, found):
    return sum(p * math.log(p / q) for p, q in zip(expected, found))


def slope(loss, tensors, axis):
    """Return the exponent with which a loss grows when its tensors are repeated along an axis."""
    twice = [values.repeat_interleave(2, dim=axis) for values in tensors]
    return math.log2(loss(*twice).item() / loss(*tensors).item())


def routed(projected=None, mix=None, weights=None, attended=None, compressed=None):
    blank = torch.zeros(1, 1, 1)
    given_parts = (projected, mix, weights, attended, compressed)
    return Routed(*(blank if part is None else part for part in given_parts))


# KD


def kd_by_hand(student, teacher, real, temperature, top_k):
    """KL(teacher ‖ student) over the first k classes of either, token by token."""
    losses = []
    for row, tokens in enumerate(real.tolist()):
        for token in (place for place, counts in enumerate(tokens) if counts):
            first, second = (logits[row, token].tolist() for logits in (teacher, student))
            kept = [
                place
                for logits in (first, second)
                for place in sorted(range(len(logits)), key=logits.__getitem__)[-top_k:]
            ]
            expected, found = (softmax([logits[place] / temperature for place in kept]) for logits in (first, second))
            losses.append(divergence(expected, found))
    return temperature**2 * sum(losses) / len(losses)


@pytest.mark.parametrize("temperature", [0.5, 2.0, 3.0])
@pytest.mark.parametrize("top_k", [1, 3, 7])
def test_kd_is_a_mean_over_real_tokens_of_a_sum_over_kept_classes(temperature, top_k):
    student, teacher = pair(3, 5, 7)
    fast = kd_loss(student, teacher, ragged(), temperature, top_k)
    assert fast.item() == pytest.approx(kd_by_hand(student, teacher, ragged(), temperature, top_k), rel=1e-9)


def test_kd_of_two_classes_by_hand():
    student, teacher = tensor([[0, 0]]), tensor([[math.log(3), 0]])
    by_hand = 3 / 4 * math.log(3 / 2) + 1 / 4 * math.log(1 / 2)
    assert kd_loss(student, teacher, every(1, 1), 1.0, 2).item() == pytest.approx(by_hand)
    root = math.sqrt(3)  # at temperature 2 the teacher says root 3 to 1
    warm = root / (1 + root) * math.log(2 * root / (1 + root)) + 1 / (1 + root) * math.log(2 / (1 + root))
    assert kd_loss(student, teacher, every(1, 1), 2.0, 2).item() == pytest.approx(4 * warm)


def test_kd_sees_nothing_beyond_the_kept_classes():
    student, teacher = tensor([[9, 0, 0]]), tensor([[1, 0.5, 0]])
    assert kd_loss(student, teacher, every(1, 1), 1.0, 1).item() == 0  # both name class 0, and that is all it reads
    assert kd_loss(student, teacher, every(1, 1), 1.0, 3).item() > 0.5


def test_kd_counts_a_class_twice_that_both_keep():
    student, teacher = tensor([[3, 2, 0, 0]]), tensor([[3, 0, 2, 0]])  # kept: 0 and 2, then 0 and 1
    expected, found = softmax([3, 2, 3, 0]), softmax([3, 0, 3, 2])
    assert kd_loss(student, teacher, every(1, 1), 1.0, 2).item() == pytest.approx(divergence(expected, found))


@pytest.mark.parametrize("axis", [0, 1])
def test_kd_has_slope_zero_in_batch_and_length(axis):
    student, teacher = pair(3, 5, 7)
    real = ragged()[..., None].double()

    def loss(own, other, counts):
        return kd_loss(own, other, counts[..., 0] > 0, 2.0, 3)

    assert slope(loss, (student, teacher, real), axis) == pytest.approx(0, abs=1e-9)


def test_kd_has_slope_zero_in_classes_that_neither_keeps():
    student, teacher = pair(2, 5, 7)
    more = torch.full((2, 5, 50), -9.0, dtype=torch.float64)
    wide = kd_loss(torch.cat([student, more], -1), torch.cat([teacher, more], -1), every(), 2.0, 3)
    assert wide.item() == pytest.approx(kd_loss(student, teacher, every(), 2.0, 3).item())


# Router terms


def test_routing_feature_is_a_mean_over_batch_length_and_width():
    projected, mix = pair(2, 3, 4)
    by_hand = sum((a - b) ** 2 for a, b in zip(projected.flatten().tolist(), mix.flatten().tolist())) / 24

    def loss(own, other):
        return routing_feature_loss(routed(projected=own, mix=other))

    assert loss(projected, mix).item() == pytest.approx(by_hand)
    assert [slope(loss, (projected, mix), axis) for axis in range(3)] == pytest.approx([0, 0, 0], abs=1e-9)


def test_routing_attention_alignment_is_a_mean_over_batch_length_and_width():
    attended, compressed = pair(2, 3, 4)
    by_hand = sum((a - b) ** 2 for a, b in zip(attended.flatten().tolist(), compressed.flatten().tolist())) / 24

    def loss(own, other):
        return routing_attention_alignment_loss(routed(attended=own, compressed=other))

    assert loss(attended, compressed).item() == pytest.approx(by_hand)
    assert [slope(loss, (attended, compressed), axis) for axis in range(3)] == pytest.approx([0, 0, 0], abs=1e-9)


def test_load_balance_is_a_mean_over_experts_of_their_mean_weight_by_hand():
    weights = tensor([[1, 0], [1, 0]], [[1, 0], [0, 1]])  # means .75 and .25, a quarter from even use
    assert routing_load_balance_loss(weights).item() == pytest.approx(0.01 * 0.25**2)
    even = tensor([[1, 0], [0, 1]])
    assert routing_load_balance_loss(even).item() == 0  # even over tokens is enough


def test_load_balance_has_slope_zero_in_batch_and_length_and_minus_two_in_experts():
    weights = normal(2, 3, 4).softmax(-1)

    def loss(each):
        return routing_load_balance_loss(each / each.sum(-1, keepdim=True))

    assert [slope(loss, (weights,), axis) for axis in range(3)] == pytest.approx([0, 0, -2], abs=1e-9)


# Attention


def maps(*shape, seed=0):
    return [values.softmax(-1) for values in pair(*shape, seed=seed)]


def test_attention_is_a_sum_over_heads_and_keys_and_a_mean_over_batch_and_queries():
    student, teacher = maps(2, 3, 4, 4)
    total = 0.0
    for text in range(2):
        for head in range(3):
            for query in range(4):
                expected, found = (softmax((each[text, head, query] / 4).tolist()) for each in (teacher, student))
                total += divergence(expected, found)
    assert attention_loss(student, teacher).item() == pytest.approx(16 * total / (2 * 4), rel=1e-9)


def test_attention_has_slope_zero_in_batch_and_length_and_one_in_heads():
    student, teacher = maps(2, 3, 4, 4)

    def longer(own, other):
        return attention_loss(own.repeat_interleave(2, -2), other.repeat_interleave(2, -2))

    assert slope(attention_loss, (student, teacher), 0) == pytest.approx(0, abs=1e-9)
    assert slope(attention_loss, (student, teacher), 1) == pytest.approx(1, abs=1e-9)
    # Both axes at once, so that the map stays square.
    twice = longer(*(values.repeat_interleave(2, -1) for values in (student, teacher)))
    assert twice.item() == pytest.approx(attention_loss(student, teacher).item())


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_attention_is_softened_once_more_by_hand(temperature):
    student, teacher = torch.tensor([[[[0.5, 0.5], [0.5, 0.5]]]]), torch.tensor([[[[1.0, 0.0], [0.5, 0.5]]]])
    power = math.exp(1 / temperature)  # a map of 1 and 0 is read as logits
    share = power / (1 + power)
    by_hand = temperature**2 * (share * math.log(2 * share) + (1 - share) * math.log(2 * (1 - share))) / 2
    assert attention_loss(student, teacher, temperature).item() == pytest.approx(by_hand, rel=1e-5)


# Layer errors and remedies


@given(
    batch=st.integers(1, 4),
    tokens=st.integers(1, 9),
    dim=st.integers(1, 9),
    size=st.sampled_from([1.0, 1e-4, 1e4]),
    seed=st.integers(0, 99),
)
def test_sum_over_count_is_mean_square_in_value_and_gradient(batch, tokens, dim, size, seed):
    student, teacher = (size * values for values in pair(batch, tokens, dim, seed=seed))
    results = []
    for error in (mean_square, sum_over_count):
        own = student.clone().requires_grad_()
        value = error(own, teacher)
        value.backward()
        results.append((value.item(), own.grad))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-12)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-12, atol=0)
    count = batch * tokens * dim
    by_hand = sum((a - b) ** 2 for a, b in zip(student.flatten().tolist(), teacher.flatten().tolist())) / count
    assert results[0][0] == pytest.approx(by_hand, rel=1e-9)
    torch.testing.assert_close(results[0][1], 2 * (student - teacher) / count, rtol=1e-9, atol=0)


def test_in_half_precision_the_sum_overflows_where_the_mean_is_finite():
    student, teacher = torch.full((2, 64, 64), 10.0, dtype=torch.float16), torch.zeros(2, 64, 64, dtype=torch.float16)
    assert mean_square(student, teacher).item() == 100
    assert sum_over_count(student, teacher).item() == math.inf  # 8192 · 100 is beyond 65 504


@pytest.mark.parametrize("error", LAYER_ERRORS)
@pytest.mark.parametrize("axis", [0, 1])
def test_every_layer_error_is_a_mean_with_slope_zero_in_batch_and_length(error, axis):
    assert slope(error, pair(2, 5, 6), axis) == pytest.approx(0, abs=1e-9)


def test_normalised_square_compares_directions_by_hand():
    student = tensor([[1, 3]])
    assert normalised_square(student, tensor([[10, 30]])).item() == pytest.approx(0, abs=1e-9)
    assert normalised_square(student, tensor([[30, 10]])).item() == pytest.approx(4, abs=1e-3)  # −1, 1 against 1, −1


def test_normalised_square_does_not_grow_with_the_teacher():
    student, teacher = pair(2, 5, 6)
    base = normalised_square(student, teacher).item()
    assert normalised_square(student, 1e4 * teacher + 7).item() == pytest.approx(base, rel=1e-3)


def test_masked_square_leaves_out_a_massive_token_by_hand():
    teacher = tensor([[3, 4], [0, 5], [-5, 0], [300, 400]])  # norms 5, 5, 5 and 500
    student = (teacher + tensor([[1, 0], [2, 0], [0, 3], [9, 9]])).requires_grad_()
    error = masked_square(student, teacher)
    assert error.item() == pytest.approx((1 + 4 + 9) / 6)
    error.backward()
    assert student.grad[0].tolist() == [pytest.approx(row) for row in ([2 / 6, 0], [4 / 6, 0], [0, 6 / 6], [0, 0])]


def test_masked_square_keeps_a_token_of_exactly_ten_median_norms():
    teacher, student = tensor([[1, 0], [0, 1], [10, 0]]), tensor([[1, 0], [0, 1], [10, 6]])
    assert masked_square(student, teacher).item() == pytest.approx(36 / 6)
    teacher[0, 2, 0] = 10.001
    assert masked_square(student, teacher).item() == 0


def test_masked_square_takes_its_median_over_the_whole_batch():
    small, large = torch.ones(3, 4, dtype=torch.float64), torch.full((2, 4), 1000.0, dtype=torch.float64)
    teacher = torch.stack([small, torch.cat([small[:1], large])])  # four small tokens, two massive ones in one text
    assert masked_square(teacher + torch.where(teacher > 1, 5.0, 1.0), teacher).item() == pytest.approx(1)


@pytest.mark.parametrize("level", [0.0, 1.0, 3000.0])
def test_masked_square_is_mean_square_when_all_tokens_are_equally_large(level):
    student, teacher = normal(2, 5, 6), torch.full((2, 5, 6), level, dtype=torch.float64)
    assert masked_square(student, teacher).item() == pytest.approx(mean_square(student, teacher).item())


@given(levels=st.lists(st.sampled_from([0.0, 1e-6, 1.0, 5.0, 11.0, 1e3, 1e8]), min_size=1, max_size=12))
def test_masked_square_always_keeps_at_least_half_of_the_tokens_and_is_their_mean(levels):
    teacher = torch.tensor(levels, dtype=torch.float64).reshape(1, -1, 1).expand(-1, -1, 4)
    student = (teacher + 1).requires_grad_()
    masked_square(student, teacher).backward()
    kept = int((student.grad[0].abs().sum(-1) > 0).sum())
    middle = sorted(levels)[(len(levels) - 1) // 2]
    assert kept == sum(level <= 10 * middle for level in levels) >= len(levels) / 2


def test_robust_error_is_square_near_and_linear_far_by_hand():
    student = tensor([[0.5, 3.0, -3.0, 0.0]]).requires_grad_()
    error = robust_error(student, torch.zeros_like(student))
    assert error.item() == pytest.approx((0.125 + 2.5 + 2.5 + 0) / 4)
    error.backward()
    assert student.grad.flatten().tolist() == pytest.approx([0.125, 0.25, -0.25, 0])


def test_a_massive_teacher_token_rules_the_mean_and_none_of_the_remedies():
    student, teacher = pair(2, 8, 6)
    massive = teacher.clone()
    massive[:, 0, :2] += 3000
    growth = {error: error(student, massive).item() / error(student, teacher).item() for error in LAYER_ERRORS}
    assert growth[mean_square] == pytest.approx(growth[sum_over_count])
    assert growth[mean_square] > 1e4
    assert growth[robust_error] < growth[mean_square] / 100
    assert growth[normalised_square] == pytest.approx(1, abs=0.3)
    assert growth[masked_square] == pytest.approx(1, abs=0.3)


# Layerwise


def test_layerwise_weighs_its_pairs_by_a_softmax_by_hand():
    student = [torch.ones(2, 3, 4, dtype=torch.float64), torch.full((2, 3, 4), 2.0, dtype=torch.float64)]
    teacher = [torch.zeros(2, 3, 4, dtype=torch.float64)] * 2
    weights = torch.tensor([0.0, math.log(3)], dtype=torch.float64, requires_grad=True)
    loss = layerwise_loss(student, teacher, weights)  # 1/4 of 1 and 3/4 of 4
    assert loss.item() == pytest.approx(3.25)
    loss.backward()
    assert weights.grad.tolist() == pytest.approx([0.25 * (1 - 3.25), 0.75 * (4 - 3.25)])


@pytest.mark.parametrize("axis", [0, 1])
def test_layerwise_is_a_mean_with_slope_zero_in_batch_and_length(axis):
    def loss(first, second, third, fourth):
        return layerwise_loss([first, second], [third, fourth], torch.tensor([0.3, -0.2], dtype=torch.float64))

    assert slope(loss, normal(4, 2, 5, 6).unbind(), axis) == pytest.approx(0, abs=1e-9)


def test_layerwise_uses_the_error_that_it_is_given():
    student, teacher = pair(2, 5, 6)
    for error in LAYER_ERRORS:
        loss = layerwise_loss([student], [teacher], torch.zeros(1, dtype=torch.float64), error)
        assert loss.item() == error(student, teacher).item()


# Contrastive


def test_contrastive_is_a_mean_over_texts_of_a_sum_over_rivals():
    student, teacher = (values.tolist() for values in pair(4, 3))
    losses = []
    for own, row in enumerate(student):
        cosines = [
            sum(a * b for a, b in zip(row, other)) / (math.hypot(*row) * math.hypot(*other)) for other in teacher
        ]
        losses.append(-math.log(softmax([cosine / 0.07 for cosine in cosines])[own]))
    assert contrastive_loss(*pair(4, 3)).item() == pytest.approx(sum(losses) / 4, rel=1e-9)


def test_contrastive_of_two_texts_by_hand():
    student = torch.eye(2, dtype=torch.float64)
    assert contrastive_loss(student, 5 * student).item() == pytest.approx(math.log1p(math.exp(-1 / 0.07)))
    assert contrastive_loss(student, student.flip(0)).item() == pytest.approx(math.log1p(math.exp(1 / 0.07)))
    assert contrastive_loss(student, student.flip(0), 0.5).item() == pytest.approx(math.log1p(math.exp(2)))


@pytest.mark.parametrize("batch", [1, 2, 16])
def test_contrastive_grows_with_the_logarithm_of_the_batch_where_all_texts_are_alike(batch):
    student = torch.ones(batch, 3, dtype=torch.float64)
    assert contrastive_loss(student, student).item() == pytest.approx(math.log(batch), abs=1e-12)


# LM


def lm_by_hand(logits, ids, real, smoothing):
    losses = []
    for row in range(len(ids)):
        for token in range(ids.shape[1] - 1):
            if real[row, token] and real[row, token + 1]:
                chances = softmax(logits[row, token].tolist())
                hit = -math.log(chances[ids[row, token + 1]])
                losses.append((1 - smoothing) * hit - smoothing * sum(map(math.log, chances)) / len(chances))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_lm_is_a_mean_over_real_next_tokens(smoothing):
    logits, ids = normal(3, 5, 7), torch.randint(7, (3, 5), generator=generator(1))
    fast = lm_loss(logits, ids, ragged(), smoothing)
    assert fast.item() == pytest.approx(lm_by_hand(logits, ids, ragged(), smoothing), rel=1e-9)


def test_lm_smooths_by_a_tenth_unless_told_otherwise():
    logits, ids = normal(3, 5, 7), torch.randint(7, (3, 5), generator=generator(1))
    assert lm_loss(logits, ids, ragged()).item() == pytest.approx(lm_by_hand(logits, ids, ragged(), 0.1), rel=1e-9)


@pytest.mark.parametrize("classes", [2, 7, 50])
@pytest.mark.parametrize("tokens", [2, 9])
def test_lm_of_an_undecided_student_is_the_logarithm_of_the_classes_at_any_length(classes, tokens):
    ids = torch.randint(classes, (2, tokens), generator=generator(1))
    loss = lm_loss(torch.zeros(2, tokens, classes), ids, every(2, tokens))
    assert loss.item() == pytest.approx(math.log(classes), rel=1e-5)


def test_lm_has_slope_zero_in_batch():
    logits, ids = normal(3, 5, 7), torch.randint(7, (3, 5), generator=generator(1))
    once = lm_loss(logits, ids, ragged()).item()
    assert lm_loss(logits.repeat(2, 1, 1), ids.repeat(2, 1), ragged().repeat(2, 1)).item() == pytest.approx(once)


def test_lm_asks_nothing_of_padding_even_where_it_comes_first():
    logits, ids = normal(1, 4, 7), torch.tensor([[0, 0, 3, 5]])
    left = torch.tensor([[False, False, True, True]])
    assert lm_loss(logits, ids, left).item() == pytest.approx(lm_by_hand(logits, ids, left, 0.1))
    assert lm_loss(logits, ids, left).item() == pytest.approx(lm_loss(logits[:, 2:], ids[:, 2:], every(1, 2)).item())


# Masks


@pytest.mark.parametrize("hidden_value", [1e6, math.inf, math.nan])
def test_a_mean_over_real_tokens_knows_nothing_of_the_others(hidden_value):
    values = torch.tensor([[1.0, 2.0], [6.0, hidden_value]], requires_grad=True)
    mean = mean_over_real(values, torch.tensor([[True, True], [True, False]]))
    mean.backward()
    assert mean.item() == 3
    torch.testing.assert_close(values.grad, torch.tensor([[1 / 3, 1 / 3], [1 / 3, 0]]))


@pytest.mark.parametrize("term", ["kd", "lm"])
def test_masked_tokens_have_neither_value_nor_gradient(term):
    real, ids = ragged(), torch.randint(7, (3, 5), generator=generator(1))

    def loss(own, other, read):
        return kd_loss(own, other, real, 2.0, 3) if term == "kd" else lm_loss(own, read, real)

    student, teacher = (values.requires_grad_() for values in (normal(3, 5, 7), normal(3, 5, 7, seed=1)))
    base = loss(student, teacher, ids)
    base.backward()
    others = [torch.where(real[..., None], values, 50 * values.flip(-1)).detach() for values in (student, teacher)]
    assert loss(*others, torch.where(real, ids, (ids + 1) % 7)).item() == base.item()
    # The last real token's own logits speak of padding, so the LM term has no use for them either.
    used = real if term == "kd" else real & torch.cat([real[:, 1:], torch.zeros(3, 1, dtype=torch.bool)], 1)
    assert torch.equal(student.grad.abs().sum(-1) > 0, used)
    assert term == "lm" or torch.equal(teacher.grad.abs().sum(-1) > 0, used)


@pytest.mark.parametrize("loss", ["kd_loss", "lm_loss", "loss"])
def test_a_mask_that_masks_everything_is_refused_by_its_loss_s_name(loss):
    nothing, logits = torch.zeros(2, 5, dtype=torch.bool), normal(2, 5, 7)
    calls = {
        "kd_loss": lambda: kd_loss(logits, logits, nothing, 2.0, 3),
        "lm_loss": lambda: lm_loss(logits, torch.zeros(2, 5, dtype=torch.int64), nothing),
        "loss": lambda: mean_over_real(logits[..., 0], nothing),
    }
    with pytest.raises(
        ValueError, match=rf"^{loss}: the padding mask \(2, [45]\) masks every token; give a batch with"
    ):
        calls[loss]()


def test_texts_of_one_token_each_leave_the_lm_term_nothing():
    lonely = torch.arange(5) < torch.ones(3, 1)
    with pytest.raises(ValueError, match=r"lm_loss: the padding mask .* masks every token"):
        lm_loss(normal(3, 5, 7), torch.zeros(3, 5, dtype=torch.int64), lonely)


# Gradients


def leaf(*shape, seed):
    return normal(*shape, seed=seed).requires_grad_()


@pytest.mark.parametrize(
    ("loss", "shapes"),
    [
        (lambda own, other: kd_loss(own, other, ragged()[:, :4], 2.0, 3), [(3, 4, 6)] * 2),
        (lambda own, other: routing_feature_loss(routed(projected=own, mix=other)), [(2, 3, 4)] * 2),
        (lambda own, other: routing_attention_alignment_loss(routed(attended=own, compressed=other)), [(2, 3, 4)] * 2),
        (routing_load_balance_loss, [(2, 3, 4)]),
        (attention_loss, [(2, 2, 3, 3)] * 2),
        (contrastive_loss, [(3, 4)] * 2),
        (lambda own, other, weights: layerwise_loss([own, other], [other, own], weights), [(2, 3, 4)] * 2 + [(2,)]),
        (lambda logits: lm_loss(logits, torch.tensor([[1, 0, 5], [3, 3, 2]]), every(2, 3)), [(2, 3, 6)]),
        *[(error, [(2, 3, 4)] * 2) for error in LAYER_ERRORS],
    ],
)
def test_gradients_are_finite_differences_on_both_sides(loss, shapes):
    assert torch.autograd.gradcheck(loss, tuple(leaf(*shape, seed=place) for place, shape in enumerate(shapes)))


# All terms together

STUDENT = Sizes(vocab=11, tokens=6, dim=8, heads=2, blocks=2)
TEACHER = Sizes(vocab=13, tokens=9, dim=12, heads=3, blocks=4)
IDS = torch.tensor([[1, 4, 2, 9, 0], [3, 3, 8, 10, 5]])
REAL = torch.tensor([[True] * 5, [True] * 4 + [False]])


class System:
    """A distiller and a teacher of other depth, width and heads, with what each read of one batch."""

    def __init__(self, student=STUDENT, teacher=TEACHER):
        self.distiller = Distiller(student, teacher, generator(1)).double()
        self.teacher = LanguageModel(teacher, generator(2)).double()
        self.read_teacher = self.teacher(torch.randint(teacher.vocab, (2, 7), generator=generator(3)))
        self.read_student = self.distiller.student(IDS)

    def terms(self, teacher=None, student=None, ids=IDS, real=REAL, temperature=2.0, top_k=3, error=mean_square):
        readings = teacher or self.read_teacher, student or self.read_student
        return raw_terms(self.distiller, *readings, ids, real, temperature, top_k, error)


def reached(term, system):
    """Return the names of the parameters that a term sends a gradient to, the teacher's included."""
    named = dict(system.distiller.named_parameters()) | {
        f"teacher.{name}": parameter for name, parameter in system.teacher.named_parameters()
    }
    gradients = torch.autograd.grad(system.terms()[term], list(named.values()), retain_graph=True, allow_unused=True)
    # Exact arithmetic gives a key's bias no gradient; floating point gives it the last bit of others.
    return {name for name, each in zip(named, gradients) if each is not None and each.abs().max() > 1e-14}


def parts(system, *prefixes):
    names = [name for name, _ in system.distiller.named_parameters()]
    assert all(any(name.startswith(prefix) for name in names) for prefix in prefixes)
    return {name for name in names if name.startswith(prefixes)}


INSIDE = ("student.embedding", "student.positions", "student.blocks")  # all but the norm before the logits
GATE = "bridge.router.gate"
REACH = {
    "kd": ("student", "bridge.logit_projector"),
    "routing_feature": (*INSIDE, GATE, "bridge.router.projector"),
    "routing_load_balance": (*INSIDE, GATE),
    "routing_attention_alignment": (
        *(*INSIDE, GATE, "bridge.router.compressor", "bridge.router.query"),
        *("bridge.router.key.weight", "bridge.router.value"),
    ),
    "attention": (
        *("student.embedding", "student.positions", "student.blocks.0", "bridge.head_projector"),
        *("student.blocks.1.norm", "student.blocks.1.query_key_value"),
    ),
    "layerwise": (*INSIDE, "bridge.layer_projectors", "bridge.layer_weights"),
    "contrastive": (*INSIDE, "bridge.pool_projector"),
    "lm": ("student",),
}


@pytest.mark.parametrize("term", TERMS)
def test_a_term_reaches_exactly_its_parts_and_never_the_teacher(term):
    system = System()
    assert reached(term, system) == parts(system, *REACH[term])


def test_kd_pulls_its_target_too_through_the_projector_and_the_student_s_embedding():
    system = System()
    student = system.read_student._replace(logits=system.read_student.logits.detach())
    named = dict(system.distiller.named_parameters())
    gradients = torch.autograd.grad(system.terms(student=student)["kd"], list(named.values()), allow_unused=True)
    moved = {name for name, each in zip(named, gradients) if each is not None and each.abs().max() > 1e-14}
    assert moved == parts(system, "student.embedding", "bridge.logit_projector")


def test_together_the_terms_reach_every_trainable_parameter_but_the_key_s_bias():
    system = System()
    everything = set().union(*(reached(term, system) for term in TERMS))
    assert parts(system, "student", "bridge") - everything == {"bridge.router.key.bias"}


def changed(reading, part, place=None):
    """Return the reading with one part, or one entry of a tuple, drawn anew."""
    values = getattr(reading, part)
    if place is None:
        return reading._replace(**{part: values + normal(*values.shape, seed=7)})
    moved = list(values)
    moved[place] = moved[place] + normal(*moved[place].shape, seed=7)
    return reading._replace(**{part: tuple(moved)})


ROUTING = {"routing_feature", "routing_load_balance", "routing_attention_alignment"}


@pytest.mark.parametrize(
    ("side", "part", "place", "expected"),
    [
        ("teacher", "logits", None, set()),  # never used, as published
        ("teacher", "hidden", 0, {"layerwise"}),
        ("teacher", "hidden", 1, {"layerwise"}),
        ("teacher", "hidden", 2, set()),  # five states for three pairs: 0, 1 and 3
        ("teacher", "hidden", 3, {"layerwise"}),
        ("teacher", "hidden", 4, {"kd", "contrastive"}),
        ("teacher", "attention", 0, set()),  # the student has two blocks, compared with the teacher's last two
        ("teacher", "attention", 1, set()),
        ("teacher", "attention", 2, {"attention"}),
        ("teacher", "attention", 3, {"attention"}),
        ("teacher", "experts", 0, {"routing_feature", "routing_attention_alignment"}),
        ("teacher", "experts", 3, {"routing_feature", "routing_attention_alignment"}),
        ("student", "logits", None, {"kd", "lm"}),
        ("student", "hidden", 0, {"layerwise"}),
        ("student", "hidden", 1, {"layerwise"}),
        ("student", "hidden", 2, {"layerwise", "contrastive", *ROUTING}),
        ("student", "attention", 0, {"attention"}),
        ("student", "attention", 1, {"attention"}),
        ("student", "experts", 0, set()),
        ("student", "experts", 1, set()),
    ],
)
def test_each_part_of_a_reading_moves_exactly_the_terms_that_use_it(side, part, place, expected):
    system = System()
    system.distiller.bridge.router.kept = TEACHER.blocks  # so that a change in any expert shows
    base = system.terms()
    reading = changed(system.read_teacher if side == "teacher" else system.read_student, part, place)
    moved = system.terms(**{side: reading})
    assert {term for term in TERMS if abs(moved[term] - base[term]).item() > 1e-9} == expected


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"ids": (IDS + 1) % 11}, {"lm"}),
        ({"real": torch.ones_like(REAL)}, {"kd", "lm"}),  # no other term knows padding, as published
        ({"temperature": 3.0}, {"kd"}),
        ({"top_k": 9}, {"kd"}),
        ({"error": robust_error}, {"layerwise"}),
    ],
)
def test_each_setting_moves_exactly_the_terms_that_it_is_for(arguments, expected):
    base, moved = System().terms(), System().terms(**arguments)
    assert {term for term in TERMS if moved[term].item() != base[term].item()} == expected


def stretched_by_hand(values, size):
    """Interpolate the rows of a matrix between token centres."""
    centres = (np.arange(size) + 0.5) * len(values) / size - 0.5
    return np.stack([np.interp(centres, np.arange(len(values)), column) for column in values.T], axis=1)


def by_linear(linear, rows):
    return rows @ linear.weight.detach().numpy().T + (0 if linear.bias is None else linear.bias.detach().numpy())


@torch.no_grad()
def test_all_terms_are_assembled_from_the_two_readings_as_published():
    system = System()
    bridge, teacher, student = system.distiller.bridge, system.read_teacher, system.read_student
    last = [stretched_by_hand(state.numpy(), 5) for state in teacher.hidden[-1].detach()]
    target = torch.tensor(
        np.stack([by_linear(bridge.logit_projector, state) for state in last])
        @ system.distiller.student.embedding.weight.numpy().T
    )
    pooled = torch.tensor(
        np.stack([by_linear(bridge.pool_projector, state.numpy().mean(0)) for state in teacher.hidden[-1]])
    )
    mixed = []
    for own, other in zip((0, 1), (2, 3)):
        heads = np.stack(
            [
                [stretched_by_hand(stretched_by_hand(each.numpy(), 5).T, 5).T for each in text]
                for text in teacher.attention[other]
            ]
        )
        told = torch.tensor(np.einsum("bhqk,sh->bsqk", heads, bridge.head_projector.weight.numpy()))
        mixed.append(attention_loss(student.attention[own], told).item())
    layers = [
        np.mean(
            [
                (project(student.hidden[own])[text].numpy() - stretched_by_hand(teacher.hidden[other][text].numpy(), 5))
                ** 2
                for text in range(2)
            ]
        )
        for project, own, other in zip(bridge.layer_projectors, (0, 1, 2), (0, 1, 3))
    ]
    terms = system.terms()
    assert tuple(terms) == TERMS
    assert terms["kd"].item() == pytest.approx(kd_by_hand(student.logits, target, REAL, 2.0, 3), rel=1e-9)
    assert terms["attention"].item() == pytest.approx(sum(mixed) / 2, rel=1e-9)
    assert terms["layerwise"].item() == pytest.approx(sum(layers) / 3, rel=1e-6)  # equal weights at the start
    assert terms["contrastive"].item() == pytest.approx(contrastive_loss(student.hidden[-1].mean(1), pooled).item())
    assert terms["lm"].item() == pytest.approx(lm_by_hand(student.logits, IDS, REAL, 0.1), rel=1e-9)


def test_the_terms_change_nothing_that_they_are_given():
    system = System()
    before = [part.clone() for part in _tensors(system.read_teacher) + _tensors(system.read_student)]
    system.terms()
    after = _tensors(system.read_teacher) + _tensors(system.read_student)
    assert all(torch.equal(was, now) for was, now in zip(before, after, strict=True))
    assert system.read_teacher.hidden[-1].requires_grad  # cut off from the terms, not from its owner


def _tensors(reading):
    assert isinstance(reading, Reading)
    return [reading.logits, *reading.hidden, *reading.attention, *reading.experts]


# The curriculum

FEATURE = ("routing_feature", "routing_load_balance", "routing_attention_alignment", "attention")


@pytest.mark.parametrize(
    ("progress", "feature", "layerwise", "contrastive"),
    [
        (0, 0, 0, 0),
        (0.1, 0, 0, 0),
        (0.25, 0.05, 0, 0),
        (0.4, 0.1, 0, 0),
        (0.55, 0.1, 0.025, 0),
        (0.7, 0.1, 0.05, 0),
        (0.85, 0.1, 0.05, 0.025),
        (1, 0.1, 0.05, 0.05),
    ],
)
def test_the_curriculum_by_hand(progress, feature, layerwise, contrastive):
    expected = {"kd": 0.7, "lm": 0.3, "layerwise": layerwise, "contrastive": contrastive}
    expected |= dict.fromkeys(FEATURE, feature)
    weights = curriculum(progress)
    assert tuple(weights) == TERMS
    assert weights == pytest.approx(expected, abs=1e-12)


@given(first=st.floats(0, 1), second=st.floats(0, 1))
def test_no_weight_ever_falls_during_a_run(first, second):
    early, late = (curriculum(progress) for progress in sorted((first, second)))
    assert all(early[term] <= late[term] for term in TERMS)


@pytest.mark.parametrize(("progress", "expected"), [(0, 3.0), (0.25, 2.75), (1, 2.0)])
def test_the_temperature_falls_from_three_to_two(progress, expected):
    assert temperature_at(progress) == expected


@pytest.mark.parametrize("schedule", [curriculum, temperature_at])
@pytest.mark.parametrize("progress", [-0.01, 1.01, 40.0, math.nan])
def test_a_progress_that_is_no_share_is_refused(schedule, progress):
    with pytest.raises(ValueError, match=f"progress is {progress}; it runs from 0 to 1"):
        schedule(progress)


def test_weighted_terms_sum_to_the_total_that_a_log_calls_raw():
    raw = {term: torch.tensor(float(2**place)) for place, term in enumerate(TERMS)}
    products = weighted(raw, curriculum(1.0))
    by_hand = [0.7 * 1, 0.1 * 2, 0.1 * 4, 0.1 * 8, 0.1 * 16, 0.05 * 32, 0.05 * 64, 0.3 * 128]
    assert [products[term].item() for term in TERMS] == pytest.approx(by_hand)


def test_a_raw_layerwise_of_3211_is_logged_as_160_at_full_weight():
    assert weighted({"layerwise": torch.tensor(3211.15)}, {"layerwise": curriculum(0.7)["layerwise"]})[
        "layerwise"
    ].item() == pytest.approx(160.5575)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"kd": 0.7}, "^lm: in only one of terms and weights; give each term one weight"),
        ({"kd": 0.7, "lm": 0.3, "layer": 0.1, "extra": 1.0}, "^extra, layer: in only one of"),
    ],
)
def test_a_term_without_a_weight_and_a_weight_without_a_term_are_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        weighted({"kd": torch.tensor(1.0), "lm": torch.tensor(1.0)}, weights)


# What is refused


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("loss", ["kd", "attention", "contrastive"])
def test_a_temperature_that_is_not_positive_is_refused(loss, temperature):
    calls = {
        "kd": lambda: kd_loss(*pair(2, 5, 7), every(), temperature, 3),
        "attention": lambda: attention_loss(*pair(2, 3, 4, 4), temperature),
        "contrastive": lambda: contrastive_loss(*pair(2, 3), temperature),
    }
    with pytest.raises(ValueError, match=f"temperature is {temperature}; it must be above 0 and finite"):
        calls[loss]()


@pytest.mark.parametrize("top_k", [-1, 0, 8])
def test_a_top_k_that_the_classes_do_not_hold_is_refused(top_k):
    with pytest.raises(ValueError, match=f"top_k is {top_k}; choose 1 to 7, the number of classes"):
        kd_loss(*pair(2, 5, 7), every(), 2.0, top_k)


def differ(name, first, second):
    shapes = rf"shapes \({first}\) and \({second}\) differ"
    return rf"^{name}: {shapes}; align both sequences first"


def test_tensors_that_would_broadcast_are_refused_by_name(shapes_unchecked):
    one, many = normal(2, 1, 7), normal(2, 5, 7)
    message = {name: differ(name, "2, 1, 7", "2, 5, 7") for name in ("kd_loss", "layerwise_loss", "any name")}
    with pytest.raises(ValueError, match=message["kd_loss"]):
        kd_loss(one, many, every(), 2.0, 3)
    with pytest.raises(ValueError, match=message["layerwise_loss"]):
        layerwise_loss([many, one], [many, many], torch.zeros(2))
    with pytest.raises(ValueError, match=message["any name"]):
        same_shape("any name", one, many)
    with pytest.raises(ValueError, match=differ("routing_feature_loss", "2, 1, 7", "2, 5, 7")):
        routing_feature_loss(routed(projected=one, mix=many))
    with pytest.raises(ValueError, match=differ("routing_attention_alignment_loss", "2, 1, 7", "2, 5, 7")):
        routing_attention_alignment_loss(routed(attended=one, compressed=many))
    with pytest.raises(ValueError, match=differ("attention_loss", "2, 1, 4, 4", "2, 3, 4, 4")):
        attention_loss(normal(2, 1, 4, 4), normal(2, 3, 4, 4))
    with pytest.raises(ValueError, match=differ("contrastive_loss", "2, 3", "1, 3")):
        contrastive_loss(normal(2, 3), normal(1, 3))


@pytest.mark.parametrize("error", LAYER_ERRORS)
def test_a_layer_error_refuses_what_would_broadcast(error):
    with pytest.raises(ValueError, match=differ(error.__name__, "2, 5, 1", "2, 5, 7")):
        error(normal(2, 5, 1), normal(2, 5, 7))


def test_ids_and_masks_of_another_shape_are_refused(shapes_unchecked):
    logits, ids = normal(2, 5, 7), torch.zeros(2, 5, dtype=torch.int64)
    with pytest.raises(ValueError, match=differ("lm_loss", "2, 5", "2, 4")):
        lm_loss(logits, ids[:, 1:], every())
    with pytest.raises(ValueError, match=differ("lm_loss", "2, 5", "1, 5")):
        lm_loss(logits, ids, every(1))
    with pytest.raises(ValueError, match=differ("kd_loss", "2, 5", "2, 1")):
        kd_loss(logits, logits, every(2, 1), 2.0, 3)
    with pytest.raises(ValueError, match=differ("loss", "2, 5", "5,")):
        mean_over_real(logits[..., 0], every()[0])


def test_where_shapes_are_checked_the_checker_answers_first():
    with pytest.raises(jaxtyping.TypeCheckError, match=r"[Tt]ype-check error"):
        kd_loss(normal(2, 1, 7), normal(2, 5, 7), every(), 2.0, 3)


@pytest.mark.parametrize(("own", "other", "weights"), [(2, 1, 2), (1, 2, 2), (2, 2, 3), (0, 0, 0)])
def test_layers_and_weights_that_do_not_match_or_are_none_are_refused(own, other, weights):
    layer = normal(2, 3, 4)
    message = f"layerwise_loss: {own} student layers, {other} teacher layers, {weights} weights; give the same number"
    with pytest.raises(ValueError, match=message):
        layerwise_loss([layer] * own, [layer] * other, torch.zeros(weights))
