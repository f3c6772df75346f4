"""The probe fires when training stands still or steps at the wrong pace, is silent otherwise, and leaves no trace."""

import copy
import gc
import json
import math
import random

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from casestudies_lib.probes import stepping
from casestudies_lib.probes.result import ProbeFault, ProbeInputError

SEEDS = range(10)


class Accumulator:
    """Counts batches; `query` says whether to step and, like the incident's, advances with each query."""

    def __init__(self, accumulation):
        self.accumulation, self.count = accumulation, 0

    def query(self):
        self.count += 1
        return self.count % self.accumulation == 0


def seeded(seed, build, *args):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build(*args)


def model(seed=0):
    return seeded(seed, lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)))


def batches(seed, number):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(5, 3, generator=generator) for _ in range(number)]


def adam(module):
    return torch.optim.Adam(module.parameters(), lr=0.01)


def sgd(module):
    return torch.optim.SGD(module.parameters(), lr=0.01)


def loss_of(module, batch):
    return module(batch).square().mean()


def train(module, optimiser, loader, accumulation, *, queries=1, first=True, clear=True, after_step=()):
    """Train; `queries` a batch, of which the first (or the last) decides."""
    accumulator = Accumulator(accumulation)
    for batch in loader:
        loss_of(module, batch).backward()
        answers = [accumulator.query() for _ in range(queries)]
        if answers[0 if first else -1]:
            optimiser.step()
            for also in after_step:
                also()
            if clear:
                optimiser.zero_grad()


def watched(module, optimiser, number, accumulation, *, seed=0, given=(), **training):
    watch = stepping(module, optimiser, accumulation=accumulation, **dict(given))
    train(module, optimiser, watch(batches(seed, number)), accumulation, **training)
    return watch.result()


def found(result, least="warning"):
    severities = {"note": ("note", "warning", "fault"), "warning": ("warning", "fault"), "fault": ("fault",)}[least]
    return [(finding.severity, finding.where) for finding in result.findings if finding.severity in severities]


def meaning(result, where):
    return next(finding.meaning for finding in result.findings if finding.where == where)


# The incident and its healthy twins.


@pytest.mark.parametrize("build", [adam, sgd])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_counter_asked_twice_a_batch_is_a_fault(seed, build):
    module = model(seed)
    result = watched(module, build(module), 64, 16, seed=seed, queries=2)
    assert result.ok is False
    assert ("fault", "all parameters") in found(result)
    assert "second query" in meaning(result, "all parameters")
    assert (result.measures["steps"], result.measures["steps_expected"]) == (0, 4)
    assert result.measures["tensors_moved"] == 0
    # Nothing is ever cleared either: the gradient of every batch falls on that of all before.
    assert ("fault", "gradients") in found(result)
    assert result.measures["uncleared_passes"] == 64
    with pytest.raises(ProbeFault, match="all parameters"):
        result.raise_if_found()


@pytest.mark.parametrize("build", [adam, sgd])
@pytest.mark.parametrize("seed", SEEDS)
def test_the_repaired_counter_is_silent(seed, build):
    module = model(seed)
    result = watched(module, build(module), 64, 16, seed=seed)
    assert result.ok is True
    assert result.findings == ()
    assert (result.measures["steps"], result.measures["tensors_moved"]) == (4, 4)
    assert result.measures["uncleared_passes"] == 16


@pytest.mark.parametrize("accumulation", [1, 3, 5, 15])
@pytest.mark.parametrize("number", [30, 45, 61])
def test_the_double_query_is_harmless_where_the_accumulation_is_odd(accumulation, number):
    module = model()
    result = watched(module, adam(module), number, accumulation, queries=2)
    # Counts 1, 3, 5, … hit the odd multiples, one every `accumulation` batches, the first one early.
    odd_multiples = sum(count % accumulation == 0 for count in range(1, 2 * number, 2))
    assert result.measures["steps"] == odd_multiples
    assert abs(odd_multiples - number / accumulation) < 1
    assert found(result, "note") == []
    assert result.ok is True


@pytest.mark.parametrize("seed", SEEDS)
def test_if_the_second_of_two_queries_decides_the_steps_come_twice_as_often(seed):
    module = model(seed)
    result = watched(module, adam(module), 64, 16, seed=seed, queries=2, first=False)
    assert result.measures["steps"] == 8
    assert found(result) == [("fault", "number of steps")]
    assert "factor of 2" in result.findings[0].measured


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 9),
    st.lists(st.integers(1, 25), min_size=1, max_size=4),
    st.sampled_from(["carry", "drop", "flush"]),
)
def test_every_right_way_to_count_is_right(accumulation, epochs, rest):
    module, taken, since = model(), 0, 0
    optimiser = adam(module)
    watch = stepping(module, optimiser, accumulation=accumulation)
    for length in epochs:
        loader = batches(0, length)
        since = since if rest == "carry" else 0
        for number, batch in enumerate(watch(loader), 1):
            loss_of(module, batch).backward()
            since += 1
            if since == accumulation or (rest == "flush" and number == length):
                optimiser.step()
                optimiser.zero_grad()
                taken, since = taken + 1, 0
    result = watch.result()
    assert result.measures["steps"] == taken == (result.measures["step_counter"] or 0)
    assert result.measures["steps_expected"] == sum(epochs) // accumulation
    if rest == "flush" and max(epochs) < accumulation and len(epochs) > 1:
        # Right for no step: each has fewer batches than one accumulation.
        assert result.measures["steps"] == len(epochs)
    elif taken:
        assert (result.ok, found(result, "note")) == (True, [])
    elif sum(epochs) >= accumulation:
        # Epochs shorter than one accumulation, with a counter that starts anew.
        assert (result.ok, rest) == (False, "drop")
        assert "starts anew" in meaning(result, "all parameters")
    else:
        assert result.ok is None


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 8), st.integers(1, 8), st.integers(20, 120))
def test_the_count_is_judged_by_its_factor(real, said, number):
    module = model()
    optimiser = sgd(module)
    watch = stepping(module, optimiser, accumulation=said)
    train(module, optimiser, watch(batches(0, number)), real)
    result = watch.result()
    steps, expected = number // real, number / said
    assert result.measures["steps"] == steps
    severity = {where: severity for severity, where in found(result, "note")}.get("number of steps")
    if expected - 1 < steps < expected + 1:
        assert severity is None
    if steps > 2 * (expected + 2) or expected > 2 * (steps + 2):
        assert severity == "fault"
    assert (result.ok is False) == (severity in ("warning", "fault") or (real > 2 * said))


# Both ways of use.


@pytest.mark.parametrize("queries", [1, 2])
def test_wrapped_and_asked_before_and_after_agree(queries):
    answers = []
    for way in ("wrapped", "with and batch", "with", "before and after"):
        module = model()
        optimiser = adam(module)
        watch = stepping(module, optimiser, accumulation=4)
        loader = batches(0, 20)
        if way == "wrapped":
            train(module, optimiser, watch(loader), 4, queries=queries)
        elif way == "before and after":
            train(module, optimiser, loader, 4, queries=queries)
        else:
            with watch:
                train(module, optimiser, told(watch, loader) if "batch" in way else loader, 4, queries=queries)
        result = watch.result() if way in ("wrapped", "with and batch") else watch.result(batches=20)
        steps = result.measures["steps"] or 0
        answers.append((result.ok, steps, result.table().to_dict(), found(result)[:1], result.measures["batches"]))
    assert answers[0][:2] == ((True, 5) if queries == 1 else (False, 0))
    assert all(answer == answers[0] for answer in answers)


def told(watch, loader):
    for batch in loader:
        yield batch
        watch.batch()


def test_asked_before_and_after_the_steps_of_a_count_free_optimiser_stay_unknown():
    module = model()
    optimiser = sgd(module)
    watch = stepping(module, optimiser, accumulation=4)
    train(module, optimiser, batches(0, 20), 4)
    result = watch.result(batches=20)
    assert result.ok is None
    assert "keeps no count" in result.reason
    assert result.measures["tensors_moved"] == 4


def test_two_checkpoints_of_one_run_can_be_compared():
    module = model()
    optimiser = adam(module)
    train(module, optimiser, batches(0, 12), 4)
    early = copy.deepcopy((module.state_dict(), optimiser.state_dict()))
    train(module, optimiser, batches(1, 20), 4)
    late = copy.deepcopy((module.state_dict(), optimiser.state_dict()))
    module.load_state_dict(early[0])
    optimiser.load_state_dict(early[1])
    watch = stepping(module, optimiser, accumulation=4)
    module.load_state_dict(late[0])
    optimiser.load_state_dict(late[1])
    result = watch.result(batches=20)
    assert result.ok is True
    assert result.measures["steps"] == 5


def test_the_batches_come_through_unchanged_and_an_epoch_can_be_repeated():
    module = model()
    watch = stepping(module, adam(module), accumulation=1)
    loader = batches(0, 3)
    wrapped = watch(loader)
    assert len(wrapped) == 3
    assert all(one is other for one, other in zip(list(wrapped), loader))
    assert len(list(wrapped)) == 3
    assert watch.result().measures["batches"] == 6
    assert list(watch(iter([7]))) == [7]


def test_a_loop_that_breaks_may_or_may_not_have_finished_its_last_batch():
    for early in (True, False):
        module = model()
        optimiser = sgd(module)
        watch = stepping(module, optimiser, accumulation=1)
        for number, batch in enumerate(watch(batches(0, 9))):
            if early and number == 4:
                break
            loss_of(module, batch).backward()
            optimiser.step()
            optimiser.zero_grad()
            if number == 4:
                break
        result = watch.result()
        assert result.ok is True
        assert result.measures["steps"] == (4 if early else 5)
        assert found(result, "note") == []


# Other ways to stand still.


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("healthy", [True, False])
def test_a_warm_up_from_zero_that_is_never_stepped(seed, healthy):
    module = model(seed)
    optimiser = adam(module)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: step / 10)
    also = [scheduler.step] if healthy else []
    result = watched(module, optimiser, 12, 2, seed=seed, given={"scheduler": scheduler}, after_step=also)
    assert result.measures["scheduler_advance"] == (6 if healthy else 0)
    if healthy:
        assert (result.ok, result.findings) == (True, ())
        assert result.measures["lowest_rate"] == 0
        assert result.measures["highest_rate"] == pytest.approx(0.006)
    else:
        assert found(result) == [("fault", "all parameters"), ("fault", "learning rate")]
        assert "never advanced" in meaning(result, "learning rate")
        assert "learning rate was 0" in meaning(result, "all parameters")


def test_the_first_step_of_a_warm_up_alone_tells_nothing():
    for way in ("wrapped", "before and after"):
        module = model()
        optimiser = adam(module)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: step / 10)
        watch = stepping(module, optimiser, accumulation=2, scheduler=scheduler)
        loader = watch(batches(0, 2)) if way == "wrapped" else batches(0, 2)
        train(module, optimiser, loader, 2, after_step=[scheduler.step])
        result = watch.result(batches=2)
        assert result.ok is None
        assert "warm-up" in result.reason


def test_a_rate_that_rises_does_not_excuse_an_optimiser_that_never_steps():
    for way in ("wrapped", "before and after"):
        module = model()
        optimiser = adam(module)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: step / 10)
        watch = stepping(module, optimiser, accumulation=1)
        optimiser.step()
        for batch in watch(batches(0, 4)) if way == "wrapped" else batches(0, 4):
            loss_of(module, batch).backward()
            scheduler.step()
        assert watch.result(batches=4).ok is False


def test_a_warm_up_does_not_excuse_steps_at_a_rate_above_zero():
    held = model()
    optimiser = adam(held)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: step / 10)
    watch = stepping(held, optimiser, accumulation=1, scheduler=scheduler)
    train(copy.deepcopy(held), optimiser, watch(batches(0, 6)), 1, after_step=[scheduler.step])
    assert found(watch.result()) == [("fault", "all parameters")]


@pytest.mark.parametrize("seed", SEEDS)
def test_an_optimiser_over_another_copy_steps_in_vain(seed):
    held = model(seed)
    optimiser = sgd(held)
    trained = copy.deepcopy(held)
    watch = stepping(held, optimiser, accumulation=1)
    train(trained, optimiser, watch(batches(seed, 8)), 1)
    result = watch.result()
    assert found(result) == [("fault", "all parameters")]
    assert result.measures["steps"] == 8
    assert "other tensors than the optimiser holds" in meaning(result, "all parameters")
    watch = stepping(trained, optimiser, accumulation=1)
    train(trained, optimiser, watch(batches(seed, 8)), 1)
    assert ("fault", "all parameters") in found(watch.result())
    assert "holds none of these parameters" in meaning(watch.result(), "all parameters")


def test_gradients_cleared_before_the_step_are_told_from_missing_ones():
    module = model()
    optimiser = adam(module)
    watch = stepping(module, optimiser, accumulation=1)
    for batch in watch(batches(0, 8)):
        loss_of(module, batch).backward()
        optimiser.zero_grad()
        optimiser.step()
    result = watch.result()
    assert found(result) == [("fault", "all parameters")]
    assert "cleared before the step" in meaning(result, "all parameters")


def test_steps_that_the_optimisers_own_counter_does_not_confirm_are_told_apart():
    module = model()
    optimiser = adam(module)
    train(module, optimiser, batches(0, 3), 1)
    watch = stepping(module, optimiser, accumulation=1)
    for _ in watch(range(5)):
        optimiser.step()
    measures = watch.result().measures
    assert (measures["steps"], measures["step_calls"], measures["step_counter"]) == (5, 5, 0)
    assert "took 5 steps" in watch.result().findings[0].measured


def test_one_withheld_step_of_few_is_a_note():
    module = model()
    optimiser = adam(module)
    watch = stepping(module, optimiser, accumulation=1)
    for number, batch in enumerate(watch(batches(0, 4))):
        loss_of(module, batch).backward()
        if number:
            optimiser.step()
        optimiser.zero_grad()
    assert (watch.result().ok, found(watch.result(), "note")) == (True, [("note", "number of steps")])


@pytest.mark.parametrize("overflow", ["always", "at the start", "never"])
def test_a_loss_scaler_that_withholds_steps(overflow):
    module = model()
    optimiser = adam(module)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    watch = stepping(module, optimiser, accumulation=1)
    for number, batch in enumerate(watch(batches(0, 20))):
        spoiled = overflow == "always" or (overflow == "at the start" and number < 2)
        loss = loss_of(module, batch) * (math.inf if spoiled else 1.0)
        scaler.scale(loss).backward()
        scaler.step(optimiser)
        scaler.update()
        optimiser.zero_grad()
    result = watch.result()
    broken = {"always": 20, "at the start": 2, "never": 0}[overflow]
    assert (result.measures["broken_passes"], result.measures["steps"]) == (broken, 20 - broken)
    if overflow == "always":
        assert found(result) == [("fault", "all parameters")]
        assert "20 of 20 backward passes gave nan or infinity" in meaning(result, "all parameters")
    else:
        assert result.ok is True
        assert found(result, "note") == ([("note", "number of steps"), ("note", "gradients")] if broken else [])


def test_steps_below_the_precision_of_the_weights_are_found():
    module = nn.Linear(3, 1).to(torch.bfloat16)
    nn.init.constant_(module.weight, 1.0)
    nn.init.constant_(module.bias, 1.0)
    optimiser = torch.optim.SGD(module.parameters(), lr=1e-5)
    watch = stepping(module, optimiser, accumulation=1)
    for _ in watch(range(5)):
        module(torch.ones(1, 3, dtype=torch.bfloat16)).sum().backward()
        optimiser.step()
        optimiser.zero_grad()
    result = watch.result()
    assert found(result) == [("fault", "all parameters")]
    assert "precision" in meaning(result, "all parameters")


def test_one_value_in_a_large_tensor_is_enough_to_have_moved():
    module = nn.Embedding(1000, 50)
    optimiser = torch.optim.SGD(module.parameters(), lr=1e-30)
    with torch.no_grad():
        module.weight[123, 4] = 0.0
    watch = stepping(module, optimiser, accumulation=1, every=1)
    for _ in watch(range(3)):
        module.weight[123, 4].backward()
        optimiser.step()
        optimiser.zero_grad()
    result = watch.result()
    assert (result.ok, result.measures["tensors_moved"]) == (True, 1)
    assert result.measures["relative_change"] > 0


def test_training_that_stops_half_way_is_a_fault_and_names_the_batch():
    # A pause of less than a quarter at the end says nothing yet.
    for stop, every in ((30, 10), (85, 5), (100, 10)):
        module = model()
        optimiser = adam(module)
        watch = stepping(module, optimiser, accumulation=1, every=every)
        for number, batch in enumerate(watch(batches(0, 100))):
            if number == stop:
                optimiser.param_groups[0]["lr"] = 0.0
            loss_of(module, batch).backward()
            optimiser.step()
            optimiser.zero_grad()
        result = watch.result()
        assert found(result) == ([("fault", "all parameters")] if stop == 30 else [])
        if stop == 30:
            assert "since batch 30, for 70 batches" in result.findings[0].measured


def test_samples_denser_than_the_steps_are_not_taken_for_a_standstill():
    module = model()
    result = watched(module, adam(module), 63, 32, given={"every": 1})
    assert result.ok is True


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("clear", [True, False])
def test_gradients_that_are_never_cleared(clear, set_to_none):
    module = model()
    optimiser = sgd(module)
    watch = stepping(module, optimiser, accumulation=3)
    for number, batch in enumerate(watch(batches(0, 30)), 1):
        loss_of(module, batch).backward()
        if number % 3 == 0:
            optimiser.step()
            if clear:
                optimiser.zero_grad(set_to_none=set_to_none)
    result = watch.result()
    assert found(result) == ([] if clear else [("fault", "gradients")])
    assert result.measures["uncleared_passes"] == (3 if clear else 30)


def test_several_backward_passes_a_batch_are_not_a_pile():
    module = model()
    optimiser = sgd(module)
    watch = stepping(module, optimiser, accumulation=2)
    for number, batch in enumerate(watch(batches(0, 20)), 1):
        for _ in range(3):
            loss_of(module, batch).backward()
        if number % 2 == 0:
            optimiser.step()
            optimiser.zero_grad()
    result = watch.result()
    assert (result.ok, result.measures["uncleared_passes"]) == (True, 6)


def test_weights_that_become_nan_moved_but_are_a_fault():
    module = model()
    optimiser = sgd(module)
    watch = stepping(module, optimiser, accumulation=1)
    for batch in watch(batches(0, 5)):
        (loss_of(module, batch) * math.nan).backward()
        optimiser.step()
        optimiser.zero_grad()
    result = watch.result()
    assert result.measures["tensors_moved"] == 4
    assert result.measures["relative_change"] is None
    assert result.findings[0].severity == "fault"
    assert "nan or infinity in 4 of 4 tensors" in result.findings[0].measured
    # Standing at nan is not moving.
    again = stepping(module, optimiser, accumulation=1)
    optimiser.step()
    assert again.result(batches=1).measures["tensors_moved"] == 0


# Scheduler.


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step:UserWarning")
def test_a_scheduler_that_steps_with_every_batch_runs_ahead():
    for often, expected in ((True, [("warning", "scheduler")]), (False, [])):
        module = model()
        optimiser = adam(module)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 / (1 + step))
        watch = stepping(module, optimiser, accumulation=4, scheduler=scheduler)
        accumulator = Accumulator(4)
        for batch in watch(batches(0, 24)):
            loss_of(module, batch).backward()
            stepped = accumulator.query()
            if stepped:
                optimiser.step()
                optimiser.zero_grad()
            if often or stepped:
                scheduler.step()
        result = watch.result()
        assert found(result, "note") == expected
        assert result.measures["scheduler_advance"] == (24 if often else 6)


def test_a_scheduler_that_waits_for_the_epoch_is_a_note():
    module = model()
    optimiser = adam(module)
    scheduler = torch.optim.lr_scheduler.StepLR(optimiser, 1)
    result = watched(module, optimiser, 8, 2, given={"scheduler": scheduler})
    assert result.ok is True
    assert found(result, "note") == [("note", "scheduler")]


# Averaged weights.


def average_of(kind, module, decay):
    if kind == "averaged model":
        return AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(decay))
    twin = copy.deepcopy(module)
    return twin if kind == "module" else {name: p.detach().clone() for name, p in twin.named_parameters()}


def update(average, module, decay):
    if isinstance(average, AveragedModel):
        average.update_parameters(module)
        return
    tensors = dict(average.named_parameters()) if isinstance(average, nn.Module) else average
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            tensors[name].mul_(decay).add_(parameter, alpha=1 - decay)


@pytest.mark.parametrize("kind", ["averaged model", "module", "mapping"])
@pytest.mark.parametrize("decay", [0.9999, 0.5])
def test_an_average_that_hardly_leaves_the_start(kind, decay):
    module = model()
    optimiser = adam(module)
    average = average_of(kind, module, decay)
    start = copy.deepcopy(module.state_dict())
    result = watched(
        module,
        optimiser,
        60,
        1,
        given={"ema": average, "ema_decay": decay},
        after_step=[lambda: update(average, module, decay)],
    )
    # By hand: the projection of one displacement on the other.
    tensors = {n: p.detach() for n, p in (average if kind == "mapping" else average_parameters(average)).items()}
    live = torch.cat([(p.detach() - start[n]).flatten() for n, p in module.named_parameters()]).double()
    mean = torch.cat([(tensors[n] - start[n]).flatten() for n, _ in module.named_parameters()]).double()
    assert result.measures["ema_share"] == pytest.approx((live @ mean / (live @ live)).item(), rel=1e-3)
    # The first update of an AveragedModel is a copy.
    updates = 59 if kind == "averaged model" else 60
    assert result.measures["ema_start_weight"] == pytest.approx(decay**updates)
    if decay == 0.5:
        assert (result.ok, result.findings) == (True, ())
    else:
        assert found(result) == [("warning", "averaged weights (ema)")]
        assert result.measures["ema_share"] < 0.2
        # ln(.05) / ln(.9999) = 29 955.8.
        assert "29 956 updates" in result.findings[0].what_to_do


def average_parameters(average):
    return dict((average.module if isinstance(average, AveragedModel) else average).named_parameters())


def test_an_average_that_is_never_updated_is_a_fault():
    module = model()
    average = AveragedModel(module)
    result = watched(module, adam(module), 10, 1, given={"ema": average})
    assert found(result) == [("fault", "averaged weights (ema)")]


def test_an_average_that_began_elsewhere_is_not_measured_against_the_live_start():
    module = model()
    train(module, adam(module), batches(3, 20), 1)
    average = average_of("module", model(), 0.999)
    given = {"ema": average, "ema_decay": 0.999}
    result = watched(module, adam(module), 20, 1, given=given, after_step=[lambda: update(average, module, 0.999)])
    assert result.ok is True
    assert result.measures["ema_share"] is result.measures["ema_start_weight"] is None


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod."])
@pytest.mark.parametrize("side", ["average", "model"])
def test_prefixes_of_wrappers_do_not_hide_the_average(prefix, side):
    module = model()
    wrapped, inner = module, average_of("mapping", module, 0.9)
    if side == "average":
        inner = {f"{prefix}{name}": tensor for name, tensor in inner.items()}
    else:
        for piece in reversed(prefix.strip(".").split(".")):
            holder = nn.Module()
            holder.add_module(piece, wrapped)
            wrapped = holder
    optimiser = adam(module)
    watch = stepping(wrapped, optimiser, accumulation=1, ema=inner)
    train(module, optimiser, watch(batches(0, 6)), 1)
    assert found(watch.result()) == [("fault", "averaged weights (ema)")]


@pytest.mark.parametrize("use_buffers", [True, False])
def test_buffers_of_an_average_that_stay_at_the_start_are_a_warning(use_buffers):
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    average = copy.deepcopy(module)
    after = [lambda: update(average, module, 0.5)]
    if use_buffers:
        after.append(lambda: average[1].running_mean.lerp_(module[1].running_mean, 0.5))
        after.append(lambda: average[1].running_var.lerp_(module[1].running_var, 0.5))
    result = watched(module, adam(module), 30, 1, given={"ema": average}, after_step=after)
    assert found(result) == ([] if use_buffers else [("warning", "averaged weights (ema)")])
    if not use_buffers:
        assert "1.running_mean, 1.running_var" in result.findings[0].measured


class Wrapped(torch.optim.Optimizer):
    """Hands everything on to the optimiser inside, as the wrapper of a trainer does; so does the scheduler's."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    param_groups = property(lambda self: self.optimizer.param_groups)
    state = property(lambda self: self.optimizer.state)

    def step(self, closure=None):
        self.optimizer.step(closure)

    def zero_grad(self, set_to_none=True):
        self.optimizer.zero_grad(set_to_none)


class WrappedScheduler:
    def __init__(self, scheduler):
        self.scheduler, self.step = scheduler, scheduler.step


def test_an_optimiser_and_a_scheduler_are_taken_out_of_a_trainers_wrappers():
    module = model()
    inner = sgd(module)
    optimiser, scheduler = Wrapped(inner), WrappedScheduler(torch.optim.lr_scheduler.ConstantLR(inner))
    given = {"scheduler": scheduler}
    result = watched(module, optimiser, 12, 2, given=given, after_step=[scheduler.step])
    assert (result.ok, result.findings) == (True, ())
    assert (result.measures["step_calls"], result.measures["scheduler_advance"]) == (6, 6)


def test_frozen_parameters_do_not_hide_where_the_average_began():
    module = model()
    module[0].requires_grad_(False)
    average = average_of("mapping", module, 0.9999)
    optimiser = torch.optim.Adam(module[2].parameters(), lr=0.01)
    given = {"ema": average, "ema_decay": 0.9999}
    result = watched(module, optimiser, 20, 1, given=given, after_step=[lambda: update(average, module, 0.9999)])
    assert found(result) == [("warning", "averaged weights (ema)")]


# What may stand while the rest moves.


def test_parameters_that_do_not_move_are_told_apart_by_who_holds_them():
    module = nn.ModuleDict({"body": model()} | {name: nn.Linear(2, 2) for name in ("frozen", "apart", "idle")})
    module["frozen"].requires_grad_(False)
    optimiser = torch.optim.Adam([p for name in ("body", "frozen", "idle") for p in module[name].parameters()])
    watch = stepping(module, optimiser, accumulation=1)
    train(module["body"], optimiser, watch(batches(0, 6)), 1)
    result = watch.result()
    assert result.ok is False
    assert found(result, "note") == [("warning", "idle.weight, idle.bias"), ("note", "apart.weight, apart.bias")]
    assert "idle_parameters" in result.findings[0].what_to_do
    table = result.table().set_index("part")
    assert table["tensors that moved"].to_dict() == {"body": 4, "apart": 0, "idle": 0}


def test_a_group_that_stays_at_rate_zero_is_named():
    module = model()
    optimiser = torch.optim.Adam(
        [{"params": module[0].parameters(), "lr": 0.0}, {"params": module[2].parameters(), "lr": 0.01}]
    )
    result = watched(module, optimiser, 10, 1)
    assert found(result, "note") == [("warning", "parameter group 0")]
    table = result.table().set_index("parameter group")
    assert table["tensors that moved"].to_dict() == {0: 0, 1: 2}
    assert table["highest learning rate"].to_dict() == {0: 0.0, 1: 0.01}


def test_the_change_is_that_of_a_hand_count():
    module = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[3.0, 4.0]]))
    optimiser = torch.optim.SGD(module.parameters(), lr=0.5)
    watch = stepping(module, optimiser, accumulation=1)
    for _ in watch(range(1)):
        module(torch.tensor([[1.0, 0.0]])).sum().backward()
        optimiser.step()
    # By 0.5 on a norm of 5.
    assert watch.result().measures["relative_change"] == pytest.approx(0.1)
    assert watch.result().rows[0][5] == pytest.approx(10)


# Other people's models and optimisers.


def test_a_module_swapped_meanwhile_is_a_fault_unless_the_optimiser_knows():
    for known in (False, True):
        module = model()
        optimiser = adam(module)
        watch = stepping(module, optimiser, accumulation=1)
        train(module, optimiser, watch(batches(0, 3)), 1)
        module[2] = nn.Linear(4, 1)
        if known:
            optimiser.add_param_group({"params": module[2].parameters()})
        train(module, optimiser, watch(batches(0, 3)), 1)
        result = watch.result()
        assert result.ok is known
        assert found(result, "note") == [("note" if known else "fault", "2.weight, 2.bias")]


def test_another_optimiser_that_moves_everything_is_a_warning():
    module = model()
    idle, busy = sgd(module), sgd(module)
    watch = stepping(module, idle, accumulation=1)
    train(module, busy, watch(batches(0, 6)), 1)
    assert found(watch.result()) == [("warning", "optimiser")]


def test_lbfgs_calls_its_closure_many_times_but_steps_once_a_batch():
    module = model()
    optimiser = torch.optim.LBFGS(module.parameters(), lr=0.1, max_iter=5)
    watch = stepping(module, optimiser, accumulation=1)
    for batch in watch(batches(0, 6)):

        def closure(batch=batch):
            optimiser.zero_grad()
            loss = loss_of(module, batch)
            loss.backward()
            return loss

        optimiser.step(closure)
    result = watch.result()
    assert (result.ok, result.measures["steps"], result.measures["uncleared_passes"]) == (True, 6, 1)
    assert result.measures["backward_passes"] > 6


class Odd(nn.Module):
    """Tied, complex and 0-dimensional parameters, and a sparse gradient; answers with a dictionary."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.turn = nn.Parameter(torch.ones(3, dtype=torch.complex64))
        self.table = nn.Embedding(7, 3, sparse=True)

    def forward(self, inputs):
        hidden = self.second(self.first(inputs)) + self.table(torch.tensor([1, 1, 2, 3, 3]))
        return {"loss": self.scale * (hidden * self.turn).abs().square().mean()}


@pytest.mark.parametrize("moves", [True, False])
def test_tied_complex_scalar_and_sparse_parameters(moves):
    module = seeded(0, Odd)
    optimiser = torch.optim.SGD(module.parameters(), lr=0.01)
    watch = stepping(module, optimiser, accumulation=2, every=3)
    for number, batch in enumerate(watch(batches(0, 12)), 1):
        module(batch)["loss"].backward()
        if moves and number % 2 == 0:
            optimiser.step()
            optimiser.zero_grad()
    result = watch.result()
    assert result.ok is moves
    # The tied weight counts once.
    assert result.measures["tensors"] == 6
    assert result.measures["tensors_moved"] == (6 if moves else 0)
    json.dumps(result.to_dict(), allow_nan=False)


@pytest.mark.parametrize("build", [torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adagrad, torch.optim.NAdam])
def test_the_hook_and_the_optimisers_own_counter_agree(build):
    module = model()
    result = watched(module, build(module.parameters()), 21, 4)
    assert result.measures["step_calls"] == result.measures["step_counter"] == result.measures["steps"] == 5


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_watch_works_where_no_graph_is_built(mode):
    module = model()
    optimiser = adam(module)
    with mode():
        watch = stepping(module, optimiser, accumulation=1)
    train(module, optimiser, watch(batches(0, 4)), 1)
    with mode():
        assert watch.result().ok is True
        assert list(watch(range(3))) == [0, 1, 2]


def test_a_transformer_in_a_compiled_wrapper():
    module = seeded(0, nn.TransformerEncoderLayer, 8, 2, 16, 0.0, "relu", 1e-5, True)
    compiled = torch.compile(module, backend="eager")
    optimiser = torch.optim.AdamW(compiled.parameters())
    watch = stepping(compiled, optimiser, accumulation=1)
    for batch in watch([torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(n)) for n in range(3)]):
        compiled(batch).square().mean().backward()
        optimiser.step()
        optimiser.zero_grad()
    assert (watch.result().ok, watch.result().measures["backward_passes"]) == (True, 3)


# Left as found.


def everything(module, optimiser):
    hooks = [len(optimiser._optimizer_step_post_hooks), len(optimiser._optimizer_step_pre_hooks)]
    hooks += [p._backward_hooks for p in module.parameters()] + [len(part._forward_hooks) for part in module.modules()]
    flags = [(p.requires_grad, p._version, None if p.grad is None else p.grad.clone()) for p in module.parameters()]
    return copy.deepcopy([hooks, module.training, flags, module.state_dict(), optimiser.state_dict()])


def same(one, other):
    torch.testing.assert_close(one, other, rtol=0, atol=0)
    return True


@pytest.mark.parametrize("end", ["end", "break", "error in the loop", "error in the loader"])
def test_everything_is_left_as_found(end):
    def loader():
        yield from batches(0, 3)
        if end == "error in the loader":
            raise KeyError("loader")

    def run(wrap):
        module = model()
        optimiser = adam(module)
        for number, batch in enumerate(wrap(module, optimiser)):
            loss_of(module, batch).backward()
            optimiser.step()
            if number == 1 and end == "break":
                break
            if number == 1 and end == "error in the loop":
                raise KeyError("loop")
        return module, optimiser

    kept = {}

    def watched_loader(module, optimiser):
        kept["watched"] = module, optimiser
        kept["watch"] = stepping(module, optimiser, accumulation=1, every=1)
        return kept["watch"](loader())

    def plain_loader(module, optimiser):
        kept["plain"] = module, optimiser
        return loader()

    states = random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    for wrap in (plain_loader, watched_loader):
        if "error" in end:
            with pytest.raises(KeyError, match=end.split()[-1]):
                run(wrap)
        else:
            run(wrap)
    kept["watch"].result()
    gc.collect()
    assert kept["watched"][1]._optimizer_step_post_hooks == {}
    assert same(everything(*kept["watched"]), everything(*kept["plain"]))
    # Not the watch, only building the model draws, inside a fork.
    assert states == (random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist())


def test_hooks_of_the_reader_stay():
    module, heard = model(), []
    optimiser = adam(module)
    optimiser.register_step_post_hook(lambda *call: heard.append("step"))
    module[2].bias.register_hook(lambda gradient: heard.append("gradient"))
    watch = stepping(module, optimiser, accumulation=1)
    with watch, watch:
        train(module, optimiser, batches(0, 2), 1)
    train(module, optimiser, batches(0, 1), 1)
    assert heard == ["gradient", "step"] * 3
    assert watch.result(batches=2).measures["step_calls"] == 2


def test_a_parameter_frozen_after_the_watch_began_takes_no_hook_and_is_a_fault():
    module = model()
    optimiser = adam(module)
    watch = stepping(module, optimiser, accumulation=1)
    module[2].requires_grad_(False)
    train(module, optimiser, watch(batches(0, 4)), 1)
    assert found(watch.result(), "note") == [("fault", "2.weight, 2.bias")]
    assert "requires_grad became False by batch 1" in watch.result().findings[0].measured


@pytest.mark.parametrize("held", [True, False])
def test_what_thaws_in_mid_run_is_a_fault_unless_an_optimiser_holds_it(held):
    module = model()
    module[2].requires_grad_(False)
    optimiser = adam(module if held else module[0])
    watch = stepping(module, optimiser, accumulation=1)
    module[2].requires_grad_(True)
    train(module, optimiser, watch(batches(0, 4)), 1)
    assert found(watch.result(), "note") == [("note" if held else "fault", "2.weight, 2.bias")]


def test_a_parameter_that_is_frozen_only_between_its_own_steps_is_silent():
    module = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 1)])
    optimisers = [sgd(part) for part in module]
    watch = stepping(module, optimisers, accumulation=1)
    for batch in watch(batches(0, 20)):
        for own, other, optimiser in zip(module, reversed(module), optimisers):
            own.requires_grad_(True), other.requires_grad_(False)
            module[1](module[0](batch)).square().mean().backward()
            optimiser.step()
            optimiser.zero_grad()
    assert (watch.result().ok, watch.result().findings) == (True, ())


# Outside the optimiser.


class Listed(nn.Module):
    """A layer in a plain list before one that is listed."""

    def __init__(self):
        super().__init__()
        self.hidden, self.out = [nn.Linear(3, 3)], nn.Linear(3, 1)

    def forward(self, inputs):
        return self.out(self.hidden[0](inputs))


def closed_over():
    """Return a model whose forward() uses a layer that it does not own."""
    hidden = [nn.Linear(3, 3)]

    class Closed(nn.Module):
        def __init__(self):
            super().__init__()
            self.out = nn.Linear(3, 1)

        def forward(self, inputs):
            return self.out(hidden[0](inputs))

    return Closed()


@pytest.mark.parametrize("fault", ["plain list", "closure", "forgotten group", "replaced layer"])
def test_what_gets_a_gradient_and_no_optimiser_holds_is_a_fault(fault):
    module = seeded(0, {"plain list": Listed, "closure": closed_over}.get(fault, model))
    optimiser = adam(module[0] if fault == "forgotten group" else module)
    if fault == "replaced layer":
        module[2] = nn.Linear(4, 1)
    watch = stepping(module, optimiser, accumulation=1)
    train(module, optimiser, watch(batches(0, 6)), 1)
    where = "hidden[0]" if fault in ("plain list", "closure") else "2"
    assert found(watch.result()) == [("fault", where)]
    assert "does not hold" in meaning(watch.result(), where)


def test_several_optimisers_are_watched_together_and_one_that_never_steps_is_a_fault():
    for broken in (False, True):
        module = model()
        optimisers = [adam(module[0]), sgd(module[2])]
        watch = stepping(module, optimisers, accumulation=1)
        for batch in watch(batches(0, 6)):
            module.zero_grad()
            loss_of(module, batch).backward()
            for optimiser in optimisers[: 1 if broken else 2]:
                optimiser.step()
        result = watch.result()
        assert found(result, "note") == ([("fault", "2.weight, 2.bias")] if broken else [])
        assert result.measures["steps"] == 6
        if broken:
            assert "never stepped" in meaning(result, "2.weight, 2.bias")


# Still, and why.


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_gradient_whose_steps_round_away_is_a_fault_of_precision(dtype):
    module = nn.Sequential(nn.RMSNorm(3), nn.Linear(3, 1)).to(dtype)
    nn.init.constant_(module[1].weight, 0.01)
    optimiser = torch.optim.AdamW(module.parameters(), lr=2e-4, weight_decay=0.0)
    watch = stepping(module, optimiser, accumulation=1)
    train(module, optimiser, watch([batch.to(dtype) for batch in batches(0, 12)]), 1)
    # Next to 1.0 the nearest bfloat16 numbers are 2**-8 and 2**-7 away, and 2e-4 rounds to neither.
    faults = [finding for finding in watch.result().findings if "0.weight" in finding.where]
    assert [finding.severity for finding in faults] == (["fault"] if dtype is torch.bfloat16 else [])
    assert all("precision" in finding.meaning for finding in faults)


@pytest.mark.parametrize("gradient", [True, False])
def test_a_tensor_that_moved_and_then_stopped_is_a_fault(gradient):
    module = model()
    optimiser = torch.optim.SGD([{"params": module[0].parameters()}, {"params": module[2].parameters()}], lr=0.01)
    watch = stepping(module, optimiser, accumulation=1)
    for number, batch in enumerate(watch(batches(0, 40)), 1):
        hidden = module[1](module[0](batch))
        module[2](hidden if gradient or number <= 20 else hidden.detach()).square().mean().backward()
        if gradient and number > 20:
            optimiser.param_groups[0]["lr"] = 1e-30
        optimiser.step()
        optimiser.zero_grad()
    assert found(watch.result()) == [("fault", "0.weight, 0.bias")]
    assert "stand still since batch 20, for 20 batches" in watch.result().findings[0].measured
    assert ("still get gradients" in watch.result().findings[0].meaning) == gradient


@pytest.mark.parametrize("rest", ["step on it", "run on"])
def test_epochs_shorter_than_the_accumulation(rest):
    module, taken = model(), 0
    optimiser = adam(module)
    watch = stepping(module, optimiser, accumulation=8)
    for _ in range(16):
        for number, batch in enumerate(watch(batches(0, 3)), 1):
            loss_of(module, batch).backward()
            taken += 1
            if number == 3 if rest == "step on it" else taken % 8 == 0:
                optimiser.step()
                optimiser.zero_grad()
    # 48 batches: 6 steps of 8, or 16 of 3.
    assert found(watch.result()) == ([("fault", "number of steps")] if rest == "step on it" else [])
    if rest == "step on it":
        assert "No epoch has the 8 batches" in meaning(watch.result(), "number of steps")


# Cannot tell.


def test_no_answer_is_given_where_none_can_be():
    module = model()
    assert "no batch was watched" in stepping(module, adam(module), accumulation=1).result().reason
    few = watched(module, adam(module), 7, 8)
    assert few.ok is None
    assert "fewer than one accumulation of 8" in few.reason
    optimiser = adam(module)
    module.requires_grad_(False)
    frozen = stepping(module, optimiser, accumulation=1, ema=module).result(batches=9)
    assert frozen.ok is None
    assert "requires_grad" in frozen.reason


def test_less_than_one_accumulation_is_enough_if_the_rest_is_stepped_on():
    module = model()
    optimiser = adam(module)
    watch = stepping(module, optimiser, accumulation=8)
    for batch in watch(batches(0, 3)):
        loss_of(module, batch).backward()
    with watch:
        optimiser.step()
    assert (watch.result().ok, watch.result().measures["steps"]) == (True, 1)


def test_batches_are_counted_once():
    module = model()
    watch = stepping(module, adam(module), accumulation=1)
    with pytest.raises(ProbeInputError, match="batches is a int"):
        watch(3)
    list(watch(range(3)))
    with pytest.raises(ProbeInputError, match="batches is 4, yet the watch has counted 3"):
        watch.result(batches=4)
    with pytest.raises(ProbeInputError, match="batches is -1"):
        watch.result(batches=-1)
    assert watch.result(batches=3).measures["batches"] == 3


# Forms of the answer.


def test_the_answer_has_a_chart_and_survives_json():
    module = model()
    result = watched(module, adam(module), 32, 16, queries=2)
    assert [bar.get_hatch() for bar in result.plot().patches] == [None, "///"]
    read = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert read["findings"][0]["chapter"] == "distillation_loss"
    assert "0 of 4 trainable tensors moved in 32 batches; 0 optimiser steps, 2 expected." in repr(result)
