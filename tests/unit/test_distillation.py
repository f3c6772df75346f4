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


@pytest.mark.parametrize(("sizes", "tokens"), [(STUDENT, 1), (STUDENT, 9), (TEACHER, 5)])
def test_a_reading_has_one_hidden_state_more_than_blocks(sizes, tokens):
    reading = language_model(sizes)(text(sizes, batch=3, tokens=tokens))
    assert reading.logits.shape == (3, tokens, sizes.vocab)
    assert [tuple(state.shape) for state in reading.hidden] == [(3, tokens, sizes.dim)] * (sizes.blocks + 1)
    assert [tuple(maps.shape) for maps in reading.attention] == [(3, sizes.heads, tokens, tokens)] * sizes.blocks
    assert [tuple(added.shape) for added in reading.experts] == [(3, tokens, sizes.dim)] * sizes.blocks


@pytest.mark.parametrize("changed", [0, 3, 5])
def test_a_changed_token_moves_no_earlier_logits_and_moves_all_later_ones(changed):
    model, ids = language_model(), text()
    base = model(ids).logits
    ids[:, changed] = (ids[:, changed] + 1) % STUDENT.vocab
    moved = (model(ids).logits - base).abs().amax(-1) > 1e-12
    assert not moved[:, :changed].any()
    assert moved[:, changed:].all()


def test_texts_in_one_batch_do_not_see_each_other():
    model, ids = language_model(), text(batch=3)
    together = model(ids).logits
    for row in range(3):
        torch.testing.assert_close(model(ids[row : row + 1]).logits[0], together[row])


@pytest.mark.parametrize("tokens", [0, 10])
def test_a_text_that_does_not_fit_the_positions_is_refused(tokens):
    with pytest.raises(ValueError, match=f"{tokens} tokens for a model of 9 positions; give 1 to 9, or raise `tokens`"):
        language_model()(torch.zeros(2, tokens, dtype=torch.int64))


def test_the_output_layer_is_the_embedding():
    model, ids = language_model(), text()
    unread = next(token for token in range(STUDENT.vocab) if token not in ids)
    base = model(ids).logits
    with torch.no_grad():
        model.embedding.weight[unread] *= 2
    expected = base.clone()
    expected[..., unread] *= 2
    torch.testing.assert_close(model(ids).logits, expected)


def test_a_language_model_has_the_parameters_of_its_stated_layers():
    dim, norm = 8, 16
    block = (3 * dim * dim + 3 * dim) + (dim * dim + dim) + (4 * dim * dim + 4 * dim) + (4 * dim * dim + dim) + 2 * norm
    assert count(language_model()) == (11 + 9) * dim + 3 * block + norm


def test_first_logits_have_a_spread_of_one_whatever_the_width():
    for dim in (16, 64, 256):
        sizes = Sizes(vocab=500, tokens=20, dim=dim, blocks=1)
        assert language_model(sizes)(text(sizes, batch=4, tokens=20)).logits.std().item() == pytest.approx(1, rel=0.15)


def test_a_model_is_reproduced_by_its_seed_whatever_the_process_draws():
    def answers(seed):
        torch.rand(3)
        distiller = Distiller(STUDENT, TEACHER, generator(seed))
        return torch.cat([parameter.flatten() for parameter in distiller.parameters()])

    assert torch.equal(answers(1), answers(1))
    assert not torch.equal(answers(1), answers(2))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"vocab": 1}, "vocab is 1; at least 2 is needed"),
        ({"tokens": 1}, "tokens is 1; at least 2 is needed"),
        ({"dim": 0}, "dim is 0; at least 1 is needed"),
        ({"heads": 0}, "heads is 0; at least 1 is needed"),
        ({"blocks": 0}, "blocks is 0; at least 1 is needed"),
        ({"dim": 30, "heads": 4}, r"width 30 is not a multiple of 4 heads; choose dim = heads \* head_dim"),
    ],
)
def test_sizes_that_no_model_has_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Sizes(**({"vocab": 5, "tokens": 6} | wrong))


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


def test_massive_activations_need_a_place_and_channels():
    shallow = language_model(Sizes(vocab=11, tokens=9, dim=8, heads=2, blocks=1))(text())
    with pytest.raises(ValueError, match="2 hidden states leave none between; read with at least 2 blocks"):
        with_massive_activations(shallow, 300.0)
    for channels in (0, 9):
        with pytest.raises(ValueError, match=f"channels is {channels}; choose 1 to 8"):
            with_massive_activations(language_model()(text()), 300.0, channels)


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


def test_four_tokens_stretched_by_hand():
    values = torch.tensor([0.0, 1.0, 2.0, 3.0]).reshape(1, 4, 1)
    assert stretched(values, 2).flatten().tolist() == [0.5, 2.5]
    assert stretched(values[:, :2], 4).flatten().tolist() == [0.0, 0.25, 0.75, 1.0]


def test_a_sequence_of_the_right_length_comes_back_as_it_is():
    values = normal(2, 5, 3)
    assert stretched(values, 5) is values


def test_stretching_to_nothing_is_refused():
    with pytest.raises(ValueError, match="tokens is 0; stretch to at least 1"):
        stretched(normal(2, 5, 3), 0)


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


@pytest.mark.parametrize(("student", "teacher"), [(0, 3), (3, 0), (-1, 2)])
def test_a_model_without_hidden_states_has_no_pairs(student, teacher):
    with pytest.raises(ValueError, match=f"{student} and {teacher} hidden states make no pair; each needs at least 1"):
        layer_pairs(student, teacher)


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


@pytest.mark.parametrize(("kept", "expected"), [(1, 1), (2, 2), (4, 4), (7, 4)])
def test_router_weights_sum_to_one_and_exactly_the_kept_ones_are_not_zero(kept, expected):
    weights = router(kept)(normal(2, 6, STUDENT.dim), experts()).weights
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 6, dtype=torch.float64))
    assert ((weights > 0).sum(-1) == expected).all()
    assert (weights >= 0).all()


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


def test_a_router_that_keeps_no_expert_is_refused():
    with pytest.raises(ValueError, match="kept is 0; at least 1 expert must be mixed"):
        Router(STUDENT, TEACHER, kept=0)


@pytest.mark.parametrize("blocks", [1, 3, 5])
def test_experts_without_a_weight_each_are_refused_even_one_that_would_broadcast(blocks):
    with pytest.raises(ValueError, match=f"{blocks} experts for a gate of 4; give one for each block"):
        router()(normal(2, 6, STUDENT.dim), experts(blocks=blocks))


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


def test_a_bridge_weighs_its_layers_equally_at_the_start():
    weights = Bridge(STUDENT, TEACHER, generator()).layer_weights
    assert weights.tolist() == [0.25] * 4
    assert weights.requires_grad


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


def test_an_epoch_of_the_report_leaves_six_sevenths_of_the_start_in_the_average():
    module = scalar(1.0)
    average = moving_average(module, 0.9999)
    nn.init.zeros_(module.weight)
    for _ in range(24_914 // 16):
        average.update_parameters(module)
    assert average.module.weight.item() == pytest.approx(0.8558, abs=1e-4)  # e to the -0.15571


def test_an_average_of_two_steps_by_hand():
    module = scalar(10.0)
    average = moving_average(module, 0.9)
    for value, expected in ((20.0, 11.0), (30.0, 12.9)):  # .9 · 10 + .1 · 20, then .9 · 11 + .1 · 30
        nn.init.constant_(module.weight, value)
        average.update_parameters(module)
        assert average.module.weight.item() == pytest.approx(expected)


def test_a_moving_average_starts_where_the_module_is_and_is_no_part_of_it():
    module = language_model()
    start = [parameter.detach().clone() for parameter in module.parameters()]
    average = moving_average(module, 0.999)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1)
    assert all(torch.equal(kept, was) for kept, was in zip(average.module.parameters(), start))


@pytest.mark.parametrize("decay", [-0.1, 1.0, 1.5, math.nan])
def test_a_decay_outside_its_range_is_refused(decay):
    with pytest.raises(ValueError, match=f"decay is {decay}; it must be at least 0 and below 1"):
        moving_average(scalar(1.0), decay)


def test_users_without_the_shape_checker_get_the_same_errors(shapes_unchecked):
    with pytest.raises(ValueError, match="10 tokens for a model of 9 positions"):
        language_model()(torch.zeros(2, 10, dtype=torch.int64))
    with pytest.raises(ValueError, match="3 experts for a gate of 4"):
        router()(normal(2, 6, STUDENT.dim), experts(blocks=3))
