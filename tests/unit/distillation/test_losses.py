"""The eight loss terms against slow loops and hand numbers: reductions, gradients, remedies and the curriculum."""

import math

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
    sum_over_count,
    temperature_at,
    weighted,
)
from casestudies_lib.models.distillation.model import Distiller, LanguageModel, Routed, Sizes

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


# Router terms


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


@pytest.mark.parametrize("hidden_value", [math.inf, math.nan])
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


@pytest.mark.parametrize("term", TERMS)
def test_a_term_s_gradient_is_its_slope_along_a_direction_and_the_teacher_has_none(term):
    system = System()
    own, others = list(system.distiller.parameters()), list(system.teacher.parameters())
    value = system.terms()[term]
    gradients = torch.autograd.grad(value, own + others, allow_unused=True)
    assert all(gradient is None for gradient in gradients[len(own) :])
    directions = [normal(*parameter.shape, seed=place) for place, parameter in enumerate(own)]
    expected = sum((g * d).sum().item() for g, d in zip(gradients, directions) if g is not None)
    ends = []
    for step in (1e-6, -2e-6):  # forth, and back to the other side
        with torch.no_grad():
            for parameter, direction in zip(own, directions):
                parameter += step * direction
            system.read_student = system.distiller.student(IDS)
            ends.append(system.terms()[term].item())
    assert expected == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-5, abs=1e-9)


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
    mixed_layers = bridge.router(student.hidden[-1], teacher.experts)
    terms = system.terms()
    assert tuple(terms) == TERMS
    for name, first, second in (
        ("routing_feature", mixed_layers.projected, mixed_layers.routed),
        ("routing_attention_alignment", mixed_layers.attended, mixed_layers.compressed),
    ):
        differences = (first - second).flatten().tolist()
        by_hand = sum(each**2 for each in differences) / len(differences)
        assert terms[name].item() == pytest.approx(by_hand, rel=1e-9)
    assert terms["kd"].item() == pytest.approx(kd_by_hand(student.logits, target, REAL, 2.0, 3), rel=1e-9)
    assert terms["attention"].item() == pytest.approx(sum(mixed) / 2, rel=1e-9)
    assert terms["layerwise"].item() == pytest.approx(sum(layers) / 3, rel=1e-6)  # equal weights at the start
    assert terms["contrastive"].item() == pytest.approx(contrastive_loss(student.hidden[-1].mean(1), pooled).item())
    assert terms["lm"].item() == pytest.approx(lm_by_hand(student.logits, IDS, REAL, 0.1), rel=1e-9)


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


@pytest.mark.parametrize(("progress", "expected"), [(0, 3.0), (0.25, 2.75), (1, 2.0)])
def test_the_temperature_falls_from_three_to_two(progress, expected):
    assert temperature_at(progress) == expected


def test_weighted_terms_sum_to_the_total_that_a_log_calls_raw():
    raw = {term: torch.tensor(float(2**place)) for place, term in enumerate(TERMS)}
    products = weighted(raw, curriculum(1.0))
    by_hand = [0.7 * 1, 0.1 * 2, 0.1 * 4, 0.1 * 8, 0.1 * 16, 0.05 * 32, 0.05 * 64, 0.3 * 128]
    assert [products[term].item() for term in TERMS] == pytest.approx(by_hand)


# What is refused
