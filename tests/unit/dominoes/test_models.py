"""The network beside seven heads: what moves with the dominoes, what a stopped gradient stops, and what is refused."""

import pytest
import torch

from casestudies_lib.models.blocks import initialise
from casestudies_lib.models.dominoes import LAYERS, Attention, DominoNet, Sizes, record
from casestudies_lib.tasks.dominoes.data import load
from casestudies_lib.tasks.dominoes.examples import examples
from casestudies_lib.tasks.dominoes.tokens import FEATURES

FEATURE_SIZES = tuple(FEATURES.values())
SMALL = Sizes(FEATURE_SIZES, dim=16, heads=2, layers=2, hidden=16)


@pytest.fixture(scope="module")
def batch():
    return examples(load()["valid"]).take(slice(0, 400, 20))


def net(seed=0, **settings):
    return DominoNet(SMALL, torch.Generator().manual_seed(seed), **settings)


@pytest.mark.parametrize("trunk", LAYERS)
def test_every_trunk_gives_one_value_and_seven_scores(trunk, batch):
    answers = net(trunk=trunk)(batch.tokens)
    assert answers.q.shape == (20, 7)
    assert answers.value.shape == (20,)
    assert answers.q.std() > 0


@pytest.mark.parametrize("trunk", ["transformer", "deep sets", "set transformer"])
def test_without_positions_scores_move_with_the_dominoes(trunk, batch):
    mixed = batch.shuffled(torch.Generator().manual_seed(1))
    model = net(trunk=trunk)
    here, there = model(batch.tokens), model(mixed.tokens)
    torch.testing.assert_close(there.q, here.q.gather(1, mixed.rank), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(there.value, here.value, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("settings", [{"positions": True}, {"trunk": "recurrent"}, {"trunk": "mixer"}])
def test_with_positions_or_a_trunk_that_counts_places_they_do_not(settings, batch):
    mixed = batch.shuffled(torch.Generator().manual_seed(1))
    model = net(**settings)
    assert (model(mixed.tokens).q - model(batch.tokens).q.gather(1, mixed.rank)).abs().max() > 1e-3


@pytest.mark.parametrize("trunk", LAYERS)
def test_a_stopped_gradient_reaches_the_value_head_alone(trunk, batch):
    for stop in (False, True):
        model = net(trunk=trunk, stop_gradient=stop)
        model(batch.tokens).value.sum().backward()
        taught = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
        assert taught == ({"value_head"} if stop else {"value_head", "layers", "embedding"})


@pytest.mark.parametrize("trunk", LAYERS)
def test_the_value_gradient_at_the_output_lies_on_the_first_token_alone_and_below_on_others_too(trunk, batch):
    answers, between = record(net(trunk=trunk), batch.tokens)
    gradients = torch.autograd.grad(answers.value.sum(), between)
    assert not gradients[-1][:, 1:].any()
    assert gradients[0][:, 1:8].any()


def test_what_has_been_played_is_read_by_nobody_else(batch):
    gone = batch.tokens[..., 8] == 0
    gone[:, :8] = False
    other = batch.tokens.clone()
    other[..., 0][gone] = 0
    torch.testing.assert_close(net()(other).q, net()(batch.tokens).q)


def test_the_fused_attention_gives_what_its_two_steps_give():
    generator, attention = torch.Generator().manual_seed(0), Attention(8, 2)
    initialise(attention, generator)
    values = torch.randn(3, 5, 8, generator=generator)
    present = torch.tensor([[True] * 4 + [False]] * 3)
    weights = attention.weights(values, values, present)
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 2, 5))
    assert not weights[..., 4].any()
    torch.testing.assert_close(attention.mix(weights, values), attention(values, values, present))
    torch.testing.assert_close(
        attention.mix(attention.weights(values, values, None), values), attention(values, values)
    )


def test_the_embedding_is_one_table_a_feature_side_by_side(batch):
    embedding = net().embedding
    parts = embedding.features.weight.split(list(FEATURE_SIZES))
    side_by_side = torch.cat([part[batch.tokens[..., place]] for place, part in enumerate(parts)], dim=-1)
    torch.testing.assert_close(embedding(batch.tokens), embedding.project(side_by_side))


def test_recording_changes_no_answer_and_leaves_no_hook(batch):
    model = net()
    answers, between = record(model, batch.tokens)
    assert torch.equal(answers.q, model(batch.tokens).q)
    assert [tuple(value.shape) for value in between] == [(20, 32, 16)] * 3
    assert not any(part._forward_hooks for part in model.modules())
    torch.testing.assert_close(model.q_head(between[-1][:, 1:8]).squeeze(-1), answers.q)


@pytest.mark.parametrize("trunk", LAYERS)
def test_the_same_seed_gives_the_same_weights(trunk, batch):
    one, again, other = (net(seed, trunk=trunk)(batch.tokens).q for seed in (3, 3, 4))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
