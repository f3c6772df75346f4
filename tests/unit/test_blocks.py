"""Shared parts of the models: dropout with its own stream, heads, masks, weights drawn from a generator."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from casestudies_lib.models.blocks import Dropout, causal_mask, feed_forward, initialise, merge_heads, split_heads


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_keeps_the_expectation_and_drops_the_stated_share(rate):
    count = 100_000
    thinned = Dropout(rate, generator())(torch.full((count,), 3.0))
    error = math.sqrt(rate * (1 - rate) / count)
    assert (thinned == 0).float().mean().item() == pytest.approx(rate, abs=4 * error)
    assert thinned.mean().item() == pytest.approx(3, abs=4 * 3 * error / (1 - rate))
    kept = thinned[thinned != 0]
    assert kept.unique().item() == pytest.approx(3 / (1 - rate))


def test_dropout_draws_from_its_generator_and_nowhere_else():
    before = torch.random.get_rng_state()
    values, own = torch.ones(50), generator(1)
    first = Dropout(0.5, own)(values)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not torch.equal(own.get_state(), generator(1).get_state())
    torch.rand(7)  # whatever the process draws elsewhere
    assert torch.equal(Dropout(0.5, generator(1))(values), first)
    assert not torch.equal(Dropout(0.5, generator(2))(values), first)


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_dropout_neither_draws_nor_changes_anything_when_it_has_nothing_to_do(rate):
    own, values = generator(3), torch.randn(20, generator=generator())
    layer = Dropout(rate, own)
    if rate:
        layer.eval()
    assert torch.equal(layer(values), values)
    assert torch.equal(own.get_state(), generator(3).get_state())


def test_dropout_passes_gradient_only_through_what_it_kept():
    values = torch.full((200,), 2.0, dtype=torch.float64, requires_grad=True)
    thinned = Dropout(0.25, generator())(values)
    thinned.sum().backward()
    assert torch.equal(values.grad, thinned.detach() / 2)


@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 4), st.integers(1, 4))
def test_merging_undoes_splitting_into_heads(batch, tokens, heads, head_dim):
    values = torch.arange(batch * tokens * heads * head_dim, dtype=torch.float32).reshape(batch, tokens, -1)
    split = split_heads(values, heads)
    assert split.shape == (batch, heads, tokens, head_dim)
    for head in range(heads):
        assert torch.equal(split[:, head], values[:, :, head * head_dim : (head + 1) * head_dim])
    assert torch.equal(merge_heads(split), values)


def test_a_query_sees_itself_and_everything_before():
    mask = causal_mask(5)
    assert [[bool(mask[query, key]) for key in range(5)] for query in range(5)] == [
        [key <= query for key in range(5)] for query in range(5)
    ]


def test_initialise_draws_the_default_distributions_from_its_generator_alone():
    module = nn.Sequential(nn.Linear(400, 300), nn.Embedding(300, 100), nn.LayerNorm(8))
    before = torch.random.get_rng_state()
    initialise(module, generator(5))
    assert torch.equal(torch.random.get_rng_state(), before)
    linear, embedding, norm = module
    # PyTorch's default for a linear layer is uniform within 1 / sqrt(400) = 0.05, of deviation 0.05 / sqrt(3).
    for drawn in (linear.weight, linear.bias):
        assert 0.049 < drawn.abs().max().item() <= 0.05
    assert linear.weight.std().item() == pytest.approx(0.05 / math.sqrt(3), rel=0.02)
    assert (embedding.weight.mean().item(), embedding.weight.std().item()) == pytest.approx((0, 1), abs=0.03)
    assert norm.weight.tolist() == [1] * 8
    assert norm.bias.tolist() == [0] * 8


def test_feed_forward_is_linear_relu_dropout_linear():
    layers = feed_forward(3, 5, 2, 0.4, generator()).eval()
    first, _, dropout, last = layers
    values = torch.randn(4, 3, generator=generator(1))
    expected = torch.stack([last.bias + last.weight @ (first.weight @ row + first.bias).clamp(min=0) for row in values])
    torch.testing.assert_close(layers(values), expected)
    assert dropout.rate == 0.4
