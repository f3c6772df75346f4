"""The two language models, the bridge between them, and the moving average, against slow loops and hand numbers."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from casestudies_lib.models.distillation.model import (
    Bridge,
    Distiller,
    FeatureProjector,
    LanguageModel,
    Router,
    Sizes,
    layer_pairs,
    moving_average,
    stretched,
    with_massive_activations,
)

STUDENT = Sizes(vocab=11, tokens=9, dim=8, heads=2, blocks=3)
TEACHER = Sizes(vocab=13, tokens=12, dim=12, heads=3, blocks=4)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def language_model(sizes=STUDENT, seed=0):
    return LanguageModel(sizes, generator(seed)).double()


def text(sizes=STUDENT, batch=2, tokens=6, seed=0):
    return torch.randint(sizes.vocab, (batch, tokens), generator=generator(seed))


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def softmax(numbers):
    powers = [math.exp(number - max(numbers)) for number in numbers]
    return [power / sum(powers) for power in powers]


# The language model


def layer_norm(row, norm):
    centred = row - row.mean()
    return centred / torch.sqrt((centred**2).mean() + norm.eps) * norm.weight + norm.bias


def gelu(row):
    return torch.stack([value * (1 + torch.erf(value / math.sqrt(2))) / 2 for value in row])


@torch.no_grad()
def block_by_hand(block, hidden):
    """Run one text through a block, token by token and head by head."""
    dim, width = hidden.shape[1], hidden.shape[1] // block.heads
    read = [block.query_key_value.weight @ layer_norm(row, block.norm) + block.query_key_value.bias for row in hidden]
    after, experts, maps = [], [], torch.zeros(block.heads, len(hidden), len(hidden), dtype=hidden.dtype)
    for token, row in enumerate(hidden):
        mixed = []
        for head in range(block.heads):
            query, key, value = (slice(part * dim + head * width, part * dim + (head + 1) * width) for part in range(3))
            scores = [float(read[token][query] @ read[past][key]) / math.sqrt(width) for past in range(token + 1)]
            weights = softmax(scores)
            maps[head, token, : token + 1] = torch.tensor(weights)
            mixed.append(sum(weight * read[past][value] for past, weight in enumerate(weights)))
        row = row + block.out.weight @ torch.cat(mixed) + block.out.bias
        first, _, last = block.feed_forward
        experts.append(last.weight @ gelu(first.weight @ layer_norm(row, block.forward_norm) + first.bias) + last.bias)
        after.append(row + experts[-1])
    return torch.stack(after), maps, torch.stack(experts)


def test_a_language_model_is_its_slow_loop():
    model, ids = language_model(), text(tokens=4)
    for part in model.modules():
        if isinstance(part, nn.LayerNorm):
            nn.init.normal_(part.weight, generator=generator(2))  # so that swapped norms show
    reading = model(ids)
    for row in range(len(ids)):
        hidden = torch.stack(
            [model.embedding.weight[token] + model.positions.weight[i] for i, token in enumerate(ids[row])]
        )
        torch.testing.assert_close(reading.hidden[0][row], hidden)
        for depth, block in enumerate(model.blocks):
            hidden, maps, experts = block_by_hand(block, hidden)
            torch.testing.assert_close(reading.hidden[depth + 1][row], hidden)
            torch.testing.assert_close(reading.attention[depth][row], maps)
            torch.testing.assert_close(reading.experts[depth][row], experts)
        logits = torch.stack([model.embedding.weight @ layer_norm(token, model.norm) for token in hidden])
        torch.testing.assert_close(reading.logits[row], logits)


@pytest.mark.parametrize("changed", [0, 3, 5])
def test_a_changed_token_moves_no_earlier_logits_and_moves_all_later_ones(changed):
    model, ids = language_model(), text()
    base = model(ids).logits
    ids[:, changed] = (ids[:, changed] + 1) % STUDENT.vocab
    moved = (model(ids).logits - base).abs().amax(-1) > 1e-12
    assert not moved[:, :changed].any()
    assert moved[:, changed:].all()


def test_first_logits_have_a_spread_of_one_whatever_the_width():
    for dim in (16, 64, 256):
        sizes = Sizes(vocab=500, tokens=20, dim=dim, blocks=1)
        assert language_model(sizes)(text(sizes, batch=4, tokens=20)).logits.std().item() == pytest.approx(1, rel=0.15)


# Massive activations


@pytest.mark.parametrize("channels", [1, 2, 8])
def test_massive_activations_stand_on_the_first_token_of_inner_states_only(channels):
    reading = language_model()(text())
    before = [state.clone() for state in reading.hidden]
    planted = with_massive_activations(reading, 300.0, channels)
    for depth, (state, was) in enumerate(zip(planted.hidden, before)):
        expected = was.clone()
        if depth in (1, 2):  # of four: neither the embedding nor what the logits are read from
            for row in range(2):
                for channel in range(channels):
                    expected[row, 0, channel] = was[row, 0, channel] + 300
        assert torch.equal(state, expected)
        assert torch.equal(reading.hidden[depth], was)
    for name in ("logits", "attention", "experts"):
        assert getattr(planted, name) is getattr(reading, name)


# Stretching


@given(length=st.integers(1, 12), tokens=st.integers(1, 12), seed=st.integers(0, 99))
def test_stretching_is_numpy_s_interpolation_between_token_centres(length, tokens, seed):
    values = normal(2, length, 3, seed=seed)
    centres = (np.arange(tokens) + 0.5) * length / tokens - 0.5
    fast = stretched(values, tokens)
    assert fast.shape == (2, tokens, 3)
    for row in range(2):
        for channel in range(3):
            slow = np.interp(centres, np.arange(length), values[row, :, channel])
            np.testing.assert_allclose(fast[row, :, channel], slow, atol=1e-12)


# Pairs of layers


@pytest.mark.parametrize(
    ("student", "teacher", "pairs"),
    [
        (4, 4, [(0, 0), (1, 1), (2, 2), (3, 3)]),
        (5, 3, [(0, 0), (1, 1), (3, 2)]),
        (7, 3, [(0, 0), (2, 1), (4, 2)]),
        (3, 5, [(0, 0), (1, 1), (2, 3)]),
        (2, 6, [(0, 0), (1, 3)]),
        (1, 6, [(0, 0)]),
    ],
)
def test_layers_are_paired_evenly_and_the_deeper_model_s_last_is_left_out(student, teacher, pairs):
    assert layer_pairs(student, teacher) == pairs


# The router


def router(kept=2, seed=0):
    built = Router(STUDENT, TEACHER, kept).double()
    for place, parameter in enumerate(built.parameters()):
        nn.init.normal_(parameter, std=0.5, generator=generator(seed + place))
    return built


def experts(tokens=6, blocks=4):
    return tuple(normal(2, tokens, TEACHER.dim, seed=10 + block) for block in range(blocks))


@torch.no_grad()
def routed_by_hand(built, student, offered):
    """Route one text, token by token: returns weights, mix, compressed mix and what the student attends to."""
    weights, mixes, compressed, attended = [], [], [], []
    first, _, last = built.compressor
    for token, row in enumerate(student):
        chances = softmax((built.gate.weight @ row + built.gate.bias).tolist())
        chosen = sorted(range(len(chances)), key=chances.__getitem__)[-built.kept :]
        share = [chances[e] / sum(chances[c] for c in chosen) if e in chosen else 0.0 for e in range(len(chances))]
        weights.append(torch.tensor(share, dtype=torch.float64))
        mixes.append(sum(part * expert[token] for part, expert in zip(share, offered)))
        compressed.append(last.weight @ gelu(first.weight @ mixes[-1] + first.bias) + last.bias)
    for row in student:
        query = built.query.weight @ row + built.query.bias
        keys = [built.key.weight @ each + built.key.bias for each in compressed]
        looks = softmax([float(query @ key) / math.sqrt(len(row)) for key in keys])
        attended.append(sum(look * (built.value.weight @ c + built.value.bias) for look, c in zip(looks, compressed)))
    return [torch.stack(rows) for rows in (weights, mixes, compressed, attended)]


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_a_router_is_its_slow_loop(kept):
    built, student, offered = router(kept), normal(2, 6, STUDENT.dim), experts()
    routed = built(student, offered)
    for row in range(2):
        slow = routed_by_hand(built, student[row], [expert[row] for expert in offered])
        for fast, by_hand in zip((routed.weights, routed.routed, routed.compressed, routed.attended), slow):
            torch.testing.assert_close(fast[row], by_hand)
        projected = torch.stack([built.projector.weight @ token + built.projector.bias for token in student[row]])
        torch.testing.assert_close(routed.projected[row], projected)


@pytest.mark.parametrize("tokens", [1, 4, 11])
def test_experts_of_another_length_are_stretched_before_they_are_mixed(tokens):
    built, student, offered = router(), normal(2, 6, STUDENT.dim), experts(tokens)
    by_hand = tuple(
        torch.stack(
            [
                torch.tensor(
                    np.stack(
                        [
                            np.interp((np.arange(6) + 0.5) * tokens / 6 - 0.5, np.arange(tokens), channel)
                            for channel in row.T
                        ]
                    ).T
                )
                for row in expert
            ]
        )
        for expert in offered
    )
    for fast, slow in zip(built(student, offered), built(student, by_hand)):
        torch.testing.assert_close(fast, slow)


# The bridge


def test_a_bridge_makes_every_pair_of_tensors_comparable():
    bridge = Bridge(STUDENT, TEACHER, generator()).double()
    student, teacher = language_model()(text()), language_model(TEACHER)(text())
    assert bridge.pairs == layer_pairs(4, 5)
    assert bridge.logit_projector(teacher.hidden[-1]).shape == student.hidden[-1].shape
    assert bridge.pool_projector(teacher.hidden[-1].mean(1)).shape == (2, STUDENT.dim)
    assert bridge.head_projector(teacher.attention[0].movedim(1, -1)).shape == (2, 6, 6, STUDENT.heads)
    for project, (own, other) in zip(bridge.layer_projectors, bridge.pairs, strict=True):
        assert project(student.hidden[own]).shape == teacher.hidden[other].shape


def test_a_feature_projector_is_linear_norm_gelu_linear_through_the_mean_width():
    projector, row = FeatureProjector(8, 13).double(), normal(8)
    first, norm, _, last = projector
    assert (first.out_features, last.out_features) == (10, 13)
    slow = last.weight @ gelu(layer_norm(first.weight @ row + first.bias, norm)) + last.bias
    torch.testing.assert_close(projector(row), slow)


def test_a_distiller_trains_its_student_and_its_bridge_and_nothing_of_the_teacher():
    distiller = Distiller(STUDENT, TEACHER, generator())
    assert {name.split(".")[0] for name, _ in distiller.named_parameters()} == {"student", "bridge"}
    assert count(distiller) == count(language_model()) + count(Bridge(STUDENT, TEACHER, generator()))


# The moving average


def scalar(value):
    module = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(module.weight, value)
    return module


@pytest.mark.parametrize(("decay", "updates"), [(0.9, 1), (0.9, 2), (0.5, 10), (0.9999, 1557), (0.0, 3)])
def test_after_n_updates_the_start_weighs_decay_to_the_n(decay, updates):
    module = scalar(1.0)
    average = moving_average(module, decay)
    nn.init.zeros_(module.weight)
    for _ in range(updates):
        average.update_parameters(module)
    assert average.module.weight.item() == pytest.approx(decay**updates, rel=1e-9)


def test_a_moving_average_starts_where_the_module_is_and_is_no_part_of_it():
    module = language_model()
    start = [parameter.detach().clone() for parameter in module.parameters()]
    average = moving_average(module, 0.999)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1)
    assert all(torch.equal(kept, was) for kept, was in zip(average.module.parameters(), start))
