"""Each hand-written backward pass against finite differences in float64, and against the number it should be off by."""

import pytest
import torch
from torch.autograd import gradcheck

from casestudies_lib.models.routing.backwards import SHARING, WEIGHING, WRONG_SCALE, Heuristic

SEEDS = range(10)


def point(seed):
    generator = torch.Generator().manual_seed(seed)
    heads = torch.randn(2, 4, 3, 2, generator=generator, dtype=torch.float64)
    weights = (torch.rand(2, 3, 4, generator=generator) < 0.5).double()
    return heads.requires_grad_(), weights.requires_grad_()


def shared(seed):
    return torch.randn(2, 2, 3, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()


def gradients(name, heads, weights):
    above = torch.randn(heads.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return above, torch.autograd.grad(WEIGHING[name](heads, weights), (heads, weights), above)


@pytest.mark.parametrize("name", WEIGHING)
def test_forward_every_pass_multiplies_heads_by_weights(name):
    heads, weights = point(0)
    for text in range(2):
        for head in range(4):
            for token in range(3):
                expected = heads[text, head, token] * weights[text, token, head]
                assert torch.equal(WEIGHING[name](heads, weights)[text, head, token], expected)


@pytest.mark.parametrize("name", WEIGHING)
def test_gradcheck_passes_the_exact_pass_and_no_other(name):
    found = [gradcheck(WEIGHING[name], point(seed), raise_exception=False) for seed in SEEDS]
    assert set(found) == {name == "exact"}


@pytest.mark.parametrize("name", SHARING)
def test_gradcheck_passes_exact_sharing_and_no_other(name):
    found = [gradcheck(lambda each: SHARING[name](each, 2), (shared(seed),), raise_exception=False) for seed in SEEDS]
    assert set(found) == {name == "exact"}


def test_mask_blind_sends_every_head_all_of_the_gradient_and_the_weights_none():
    heads, weights = point(1)
    above, (to_heads, to_weights) = gradients("mask-blind", heads, weights)
    assert torch.equal(to_heads, above)
    assert not to_weights.any()


def test_blocked_sends_nothing_and_wrong_scale_eight_times_the_truth():
    _, exact = gradients("exact", *point(2))
    _, blocked = gradients("blocked", *point(2))
    _, scaled = gradients("wrong scale", *point(2))
    assert not any(each.any() for each in blocked)
    assert all(torch.equal(WRONG_SCALE * right, wrong) for right, wrong in zip(exact, scaled))


def test_sharing_ignored_hears_the_first_head_of_each_group_only():
    values = shared(4)
    above = torch.arange(4.0, dtype=torch.float64).reshape(1, 4, 1, 1).expand(2, 4, 3, 2)
    for name, expected in (("exact", (1.0, 5.0)), ("sharing ignored", (0.0, 2.0))):
        (found,) = torch.autograd.grad(SHARING[name](values, 2), values, above)
        assert found[0, :, 0, 0].tolist() == list(expected)


def test_the_heuristic_sends_weight_minus_probability_whatever_comes_from_above():
    logits = torch.randn(1, 2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    weights = torch.tensor([[[1.0, 0, 0, 1], [0, 1, 0, 0]]], dtype=torch.float64)
    for factor in (1.0, -50.0):
        (found,) = torch.autograd.grad(Heuristic.apply(logits, weights, 0.5).sum() * factor, logits)
        torch.testing.assert_close(found, 0.5 * (weights - logits.detach().softmax(-1)) / 2)


@pytest.mark.parametrize("name", WEIGHING)
def test_passes_work_on_many_models_at_once(name):
    heads, weights = (torch.stack(each).detach() for each in zip(*(point(seed) for seed in range(3))))

    def loss(heads, weights):
        return WEIGHING[name](heads, weights).square().sum()

    together = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1)))(heads, weights)
    for place in range(3):
        alone = torch.func.grad(loss, argnums=(0, 1))(heads[place], weights[place])
        torch.testing.assert_close([part[place] for part in together], list(alone))
