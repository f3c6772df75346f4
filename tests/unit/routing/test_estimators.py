"""Estimators of a gradient through one discrete choice, against the enumerated truth."""

import pytest
import torch

from casestudies_lib.models.routing import estimators as estimate


def case(seed, heads=4):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, generator=generator, dtype=torch.float64) for size in ((heads,), (heads, 5), (5,))]


def test_the_enumerated_gradient_is_autograd_s_of_the_expected_loss():
    logits, outputs, target = case(0)
    leaf = logits.clone().requires_grad_()
    expected = sum(leaf.softmax(-1)[head] * (outputs[head] - target).square().sum() for head in range(len(logits)))
    (gradient,) = torch.autograd.grad(expected, leaf)
    torch.testing.assert_close(estimate.exact(logits, outputs, target), gradient)


@pytest.mark.parametrize("name", ["Gumbel-softmax"])
def test_the_relaxation_s_estimate_is_autograd_s(name):
    logits, outputs, target = case(1)
    noise = estimate.gumbel(6, 4, torch.Generator().manual_seed(0))
    found = estimate.estimators(0.7)[name](logits, outputs, target, noise)
    for draw in range(6):
        leaf = logits.clone().requires_grad_()
        loss = estimate.loss_of(((leaf + noise[draw]) / 0.7).softmax(-1), outputs, target)
        torch.testing.assert_close(found[draw], torch.autograd.grad(loss, leaf)[0])


def test_straight_through_is_the_choice_forward_and_the_softmax_backward():
    logits, outputs, target = case(2)
    noise = estimate.gumbel(6, 4, torch.Generator().manual_seed(0))
    found = estimate.straight_through(logits, outputs, target, noise)
    for draw in range(6):
        leaf = logits.clone().requires_grad_()
        soft = leaf.softmax(-1)
        choice = torch.nn.functional.one_hot((logits + noise[draw]).argmax(), 4).double()
        loss = estimate.loss_of(choice + soft - soft.detach(), outputs, target)
        torch.testing.assert_close(found[draw], torch.autograd.grad(loss, leaf)[0])


def test_gumbel_noise_makes_the_argmax_a_draw_from_the_softmax():
    logits = case(3)[0]
    noise = estimate.gumbel(200_000, 4, torch.Generator().manual_seed(0))
    shares = torch.bincount((logits + noise).argmax(-1), minlength=4) / len(noise)
    torch.testing.assert_close(shares.double(), logits.softmax(-1), atol=0.005, rtol=0)


@pytest.mark.parametrize("seed", range(5))
def test_only_the_score_function_is_unbiased(seed):
    logits, outputs, target = case(seed)
    noise, truth = estimate.gumbel(400_000, 4, torch.Generator().manual_seed(seed)), None
    truth = estimate.exact(logits, outputs, target)
    bias = {}
    for name, method in estimate.estimators(1.0).items():
        estimates = method(logits, outputs, target, noise)
        found, spread = estimate.bias_and_spread(estimates, truth)
        bias[name] = found / (spread / len(noise) ** 0.5)  # in standard errors
    assert bias.pop("score function") < 4
    assert min(bias.values()) > 8


def test_a_colder_relaxation_is_less_biased_and_spreads_more():
    logits, outputs, target = case(6)
    noise, truth = estimate.gumbel(200_000, 4, torch.Generator().manual_seed(0)), estimate.exact(*case(6))
    bias, spread = zip(
        *(
            estimate.bias_and_spread(estimate.gumbel_softmax(logits, outputs, target, noise, heat), truth)
            for heat in (0.1, 0.5, 2.0)
        )
    )
    assert bias[0] < bias[1] < bias[2]
    assert spread[0] > spread[1] > spread[2]
