"""Logged norms are those that the optimiser used, on the steps asked for, and the hook leaves with the block."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import optimizer as optimisers

from casestudies_lib.models.gates.gradient_log import log_gradient_norms
from casestudies_lib.probes.names import UnknownName


def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    module.register_parameter("alpha", nn.Parameter(torch.ones(())))
    return module


def train(module, optimiser, steps, accumulation=1, clip=None):
    """Return the norm of each parameter's gradient before each step, read by hand."""
    generator, seen = torch.Generator().manual_seed(1), []
    for _ in range(steps):
        optimiser.zero_grad()
        for _ in range(accumulation):
            module(torch.randn(5, 3, generator=generator)).square().mean().backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(module.parameters(), clip)
        seen.append({n: math.nan if p.grad is None else p.grad.norm().item() for n, p in module.named_parameters()})
        optimiser.step()
    return seen


def hooks():
    return len(optimisers._global_optimizer_pre_hooks) + len(optimisers._global_optimizer_post_hooks)


@pytest.mark.parametrize(("every", "logged"), [(1, range(7)), (3, [0, 3, 6]), (100, [0])])
@pytest.mark.parametrize(("accumulation", "clip"), [(1, None), (2, None), (1, 0.01)])
def test_norms_are_those_before_each_wanted_step(every, logged, accumulation, clip):
    module = model()
    optimiser = torch.optim.AdamW(module.parameters(), weight_decay=0.5)
    with log_gradient_norms(module, ["2.*", "0.weight"], every) as log:
        by_hand = train(module, optimiser, 7, accumulation, clip)
    table = log.table()
    assert list(table.columns) == ["step", "name", "norm"]
    names = ["0.weight", "2.weight", "2.bias"]
    assert list(zip(table["step"], table["name"])) == [(step, name) for step in logged for name in names]
    expected = [by_hand[step][name] for step in logged for name in names]
    assert table["norm"].tolist() == pytest.approx(expected, rel=1e-5)


def test_off_sets_no_hook_and_gives_an_empty_table_of_the_same_kind():
    module, before = model(), hooks()
    with log_gradient_norms(module, "alpha", every=None) as off:
        assert hooks() == before
        train(module, torch.optim.SGD(module.parameters(), lr=0.1), 2)
    with log_gradient_norms(module, "alpha", every=1) as on:
        train(module, torch.optim.SGD(module.parameters(), lr=0.1), 2)
    assert len(off.table()) == 0
    assert (off.table().dtypes == on.table().dtypes).all()


def test_no_gradient_is_nan_and_a_gradient_of_zeros_or_of_tiny_numbers_is_not():
    module = nn.ParameterDict({name: nn.Parameter(torch.ones(2)) for name in ("none", "zero", "tiny")})
    module["large"] = nn.Parameter(torch.ones(40_000))
    optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
    with log_gradient_norms(module, "*") as log:
        (0 * module["zero"].sum() + 1e-30 * module["tiny"].sum() + 1e-30 * module["large"].sum()).backward()
        optimiser.step()
    norms = log.table().set_index("name")["norm"]
    assert math.isnan(norms["none"])
    assert norms["zero"] == 0
    assert norms["tiny"] == pytest.approx(math.sqrt(2) * 1e-30)
    assert norms["large"] == pytest.approx(200e-30)


def test_norms_of_sparse_half_and_huge_gradients_are_right():
    module = nn.ModuleDict({"table": nn.Embedding(6, 2, sparse=True), "short": nn.Linear(2, 1, bias=False).bfloat16()})
    module.huge = nn.Parameter(torch.ones(40_000))
    optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
    with log_gradient_norms(module, "*") as log:
        looked_up = module["table"](torch.tensor([1, 1, 3])).sum()
        (looked_up + module["short"](torch.ones(1, 2).bfloat16()).sum() + 1e20 * module.huge.sum()).backward()
        optimiser.step()
    norms = log.table().set_index("name")["norm"]
    # Row 1 is looked up twice and row 3 once: gradients 2, 2, 1, 1.
    assert norms["table.weight"] == pytest.approx(math.sqrt(10))
    assert norms["short.weight"] == pytest.approx(math.sqrt(2))
    assert norms["huge"] == pytest.approx(200e20)


def test_each_optimiser_counts_its_own_steps_and_strangers_none():
    module, stranger = model(), model()
    body = torch.optim.SGD(module[0].parameters(), lr=0.1)
    head = torch.optim.SGD(module[2].parameters(), lr=0.1)
    other = torch.optim.SGD(stranger.parameters(), lr=0.1)
    with log_gradient_norms(module, ["0.bias", "2.bias", "alpha"], every=2) as log:
        train(stranger, other, 3)
        train(module, body, 4)
        train(module, head, 1)
    rows = list(log.table()[["step", "name"]].itertuples(index=False, name=None))
    # No optimiser holds alpha: it goes with the steps of the first.
    assert rows == [(0, "alpha"), (0, "0.bias"), (2, "alpha"), (2, "0.bias"), (0, "2.bias")]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_the_hook_leaves_also_after_an_error_and_the_log_stays_readable(error):
    module, before = model(), hooks()
    optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
    logs = []

    def broken():
        with log_gradient_norms(module, "0.bias") as log:
            logs.append(log)
            assert hooks() == before + 1
            train(module, optimiser, 2)
            raise error

    with pytest.raises(error):
        broken()
    assert hooks() == before
    train(module, optimiser, 2)
    assert logs[0].table()["step"].tolist() == [0, 1]


@pytest.mark.parametrize("every", [None, 1, 2])
def test_training_is_the_same_with_and_without_the_log(every):
    plain, logged = model(), model()
    train(plain, torch.optim.AdamW(plain.parameters()), 5)
    optimiser = torch.optim.AdamW(logged.parameters())
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1.0)
    with log_gradient_norms(logged, "*", every):
        train(logged, optimiser, 5)
    assert schedule.get_last_lr() == [1e-3]
    for one, other in zip(plain.parameters(), logged.parameters()):
        assert torch.equal(one, other)


def test_the_record_grows_by_one_small_tensor_a_logged_step():
    module = model()
    with log_gradient_norms(module, "*", every=5) as log:
        train(module, torch.optim.SGD(module.parameters(), lr=0.1), 20)
    assert len(log.table()) == 4 * len(list(module.parameters()))
    assert np.isfinite(log.table()["norm"]).sum() == 4 * 4


@pytest.mark.parametrize("every", [0, -1, 1.5, True, "2"])
def test_an_interval_that_is_none_is_refused(every):
    with pytest.raises(ValueError, match=r"every is .*None for no logging"), log_gradient_norms(model(), "*", every):
        pass


def test_a_name_that_matches_nothing_is_refused_with_near_ones():
    with pytest.raises(UnknownName, match=r"called 'alhpa'; near it: alpha"), log_gradient_norms(model(), "alhpa"):
        pass
