"""Logged gradient norms against those read by hand in the loop."""

import contextlib
import math

import pytest
import torch
from torch import nn
from torch.optim.optimizer import _global_optimizer_pre_hooks as hooks

from casestudies_lib.models.blocks import initialise
from casestudies_lib.models.gates.gradient_log import log_gradient_norms


def model():
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    initialise(module, torch.Generator().manual_seed(0))
    module.register_parameter("alpha", nn.Parameter(torch.ones(())))
    return module


def train(module, optimiser, steps, accumulation=1):
    """Return the norm of each parameter's gradient before each step, read by hand."""
    generator, seen = torch.Generator().manual_seed(1), []
    for _ in range(steps):
        optimiser.zero_grad()
        for _ in range(accumulation):
            module(torch.randn(5, 3, generator=generator)).square().mean().backward()
        seen.append({name: value.grad for name, value in module.named_parameters()})
        seen[-1] = {name: math.nan if g is None else float(g.double().norm()) for name, g in seen[-1].items()}
        optimiser.step()
    return seen


@pytest.mark.parametrize(("every", "logged"), [(1, range(7)), (3, [0, 3, 6]), (100, [0])])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_norms_are_those_before_each_wanted_step(every, logged, accumulation):
    module = model()
    optimiser = torch.optim.Adam(module.parameters(), lr=0.1)
    stranger = torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1)
    with log_gradient_norms(module, ["0.*", "alpha"], every) as log:
        stranger.step()
        by_hand = train(module, optimiser, 7, accumulation)
    names = ["0.weight", "0.bias", "alpha"]
    expected = [(step, name, by_hand[step][name]) for step in logged for name in names]
    rows = list(log.table().itertuples(index=False, name=None))
    assert [row[:2] for row in rows] == [row[:2] for row in expected]
    assert [row[2] for row in rows] == pytest.approx([row[2] for row in expected], nan_ok=True)


def test_no_gradient_is_nan_and_a_gradient_of_zeros_or_of_tiny_numbers_is_not():
    module = nn.ParameterDict({name: nn.Parameter(torch.ones(2)) for name in ("none", "zeros", "tiny")})
    module.zeros.grad, module.tiny.grad = torch.zeros(2), torch.full((2,), 1e-30)
    with log_gradient_norms(module, ["*"]) as log:
        torch.optim.SGD(module.parameters(), lr=0.1).step()
    norms = log.table().set_index("name")["norm"]
    assert math.isnan(norms["none"])
    assert norms["zeros"] == 0
    assert norms["tiny"] == pytest.approx(2**0.5 * 1e-30)


def test_the_hook_leaves_also_after_an_error_and_the_log_stays_readable():
    module, before = model(), len(hooks)
    optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
    with contextlib.suppress(KeyboardInterrupt), log_gradient_norms(module, "*alpha") as log:
        train(module, optimiser, 2)
        raise KeyboardInterrupt
    assert (len(hooks), len(log.table())) == (before, 2)


def test_a_name_that_matches_nothing_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"'beta' matches no parameter; there are alpha, 0\.weight"):
        log_gradient_norms(model(), ["beta"]).__enter__()
