"""Many seeds at once against a plain loop: same losses, same weights, nothing shared between seeds."""

import copy
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from casestudies_lib import cohort
from casestudies_lib.cohort import CohortError, train, train_one_by_one
from casestudies_lib.models.blocks import initialise
from casestudies_lib.models.distillation.model import LanguageModel, Sizes
from casestudies_lib.models.gates import switches as gates
from casestudies_lib.models.gates.model import GatedModel
from casestudies_lib.models.gates.switches import Switches


class Rows(NamedTuple):
    inputs: Tensor
    target: Tensor


@dataclass(frozen=True)
class Weighted:
    rows: dict
    weight: Tensor
    name: str


def perceptron(seed, width=8):
    torch_state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, width), nn.LayerNorm(width), nn.GELU(), nn.Linear(width, 1))
    torch.random.set_rng_state(torch_state)
    return model


def batches(seeds, steps, rows=4):
    generators = [torch.Generator().manual_seed(1000 + seed) for seed in range(seeds)]
    for _ in range(steps):
        yield [Rows(torch.randn(rows, 5, generator=g), torch.randn(rows, generator=g)) for g in generators]


def square_error(model, batch):
    return (model(batch.inputs).squeeze(-1) - batch.target).square().mean()


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=3e-3)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


def both(models, loss, make_batches, make_optimiser, **options):
    """Return the losses of both ways and the largest difference between the weights they end with."""
    twins = copy.deepcopy(models)
    together = train(models, loss, make_batches(), make_optimiser, **options)
    apart = train_one_by_one(twins, loss, make_batches(), make_optimiser, **options)
    states = [(a.state_dict(), b.state_dict()) for a, b in zip(models, twins)]
    return together, apart, max(float((a[name] - b[name]).abs().max()) for a, b in states for name in a)


@settings(max_examples=6)
@given(
    seeds=st.integers(1, 6), rows=st.integers(1, 9), width=st.integers(4, 24),
    make_optimiser=st.sampled_from([adamw, sgd]), limit=st.sampled_from([None, 0.1, 1.0]),
)  # fmt: skip
@example(seeds=5, rows=32, width=64, make_optimiser=adamw, limit=1.0)
def test_losses_agree_with_the_loop_over_many_steps(seeds, rows, width, make_optimiser, limit):
    models = [perceptron(seed, width) for seed in range(seeds)]
    together, apart, _ = both(models, square_error, lambda: batches(seeds, 30, rows), make_optimiser, limit=limit)
    assert together.shape == (30, seeds)
    assert torch.allclose(together, apart, rtol=1e-5, atol=1e-5)


def test_a_transformer_with_tied_weights_agrees_with_the_loop():
    sizes = Sizes(vocab=11, tokens=8, dim=8, heads=2, blocks=2)

    def texts():
        generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
        for _ in range(20):
            yield [torch.randint(11, (2, 8), generator=generator) for generator in generators]

    def next_token(model, ids):
        return functional.cross_entropy(model(ids[:, :-1]).logits.transpose(1, 2), ids[:, 1:])

    models = [LanguageModel(sizes, torch.Generator().manual_seed(seed)) for seed in range(3)]
    together, apart, _ = both(models, next_token, texts, adamw, limit=1.0)
    assert torch.allclose(together, apart, rtol=1e-5, atol=1e-5)


SWITCHES = {
    "five mechanisms": Switches(
        reciprocal="transpose", latent=8, head_gate="past_tokens", cross_token=True, reciprocal_mlp="both"
    ),
    "planted branch": Switches(planted="useful"),
}


@pytest.mark.parametrize("name", SWITCHES)
def test_the_gated_models_of_a_chapter_agree_with_the_loop_over_many_steps(name):
    """At chapter 3's sizes, fewer seeds aside, where the chapter itself trains a cohort."""
    sizes = gates.Sizes(vocab=60, tokens=32, dim=32, heads=4, blocks=2)

    def texts():
        generators = [torch.Generator().manual_seed(seed) for seed in range(4)]
        for _ in range(15):
            yield [(torch.randint(60, (1, 33), generator=g), torch.randn(1, 32, 32, generator=g)) for g in generators]

    def next_token(model, batch):
        return functional.cross_entropy(model(batch[0][:, :-1], batch[1]).mT, batch[0][:, 1:])

    models = [GatedModel(sizes, SWITCHES[name], torch.Generator().manual_seed(seed)) for seed in range(4)]
    together, apart, _ = both(models, next_token, texts, adamw)
    assert torch.allclose(together, apart, rtol=1e-5, atol=1e-5)


def test_training_moves_the_models_that_were_handed_in_and_leaves_them_independent():
    models = [perceptron(seed) for seed in range(3)]
    before = copy.deepcopy(models)
    train(models, square_error, batches(3, 5), adamw)
    assert all(not torch.equal(a[0].weight, b[0].weight) for a, b in zip(models, before))
    first = models[0][0].weight.clone()
    with torch.no_grad():
        models[1][0].weight.zero_()
    assert torch.equal(models[0][0].weight, first)
    assert models[0][0].weight.untyped_storage().nbytes() == first.untyped_storage().nbytes()


def test_each_models_gradient_is_clipped_by_its_own_norm():
    models = [perceptron(seed) for seed in range(4)]
    stacked = cohort.stack(models)
    cohort.losses(stacked, square_error, next(batches(4, 1))).sum().backward()
    by_hand = [sum(float(value.grad[place].square().sum()) for value in stacked.trainable) ** 0.5 for place in range(4)]
    limit = sorted(by_hand)[1] * 1.01  # two are clipped, two are not
    norms = cohort.clip(stacked, limit)
    after = [sum(float(value.grad[place].square().sum()) for value in stacked.trainable) ** 0.5 for place in range(4)]
    assert norms.tolist() == pytest.approx(by_hand, rel=1e-5)
    assert after == pytest.approx([min(norm, limit) for norm in by_hand], rel=1e-4)


def test_frozen_parameters_stay_and_the_rest_learns():
    models = [perceptron(seed) for seed in range(3)]
    for model in models:
        model[0].requires_grad_(False)
    before = copy.deepcopy(models)
    together, apart, _ = both(models, square_error, lambda: batches(3, 50), adamw)
    assert torch.allclose(together, apart, rtol=1e-5, atol=1e-5)
    for model, old in zip(models, before):
        assert torch.equal(model[0].weight, old[0].weight)
        assert not torch.equal(model[3].weight, old[3].weight)


def test_running_statistics_of_batch_norm_are_kept_for_each_seed():
    def normed(seed):
        model = nn.Sequential(nn.Linear(5, 6, bias=False), nn.BatchNorm1d(6), nn.Linear(6, 1))
        initialise(model, torch.Generator().manual_seed(seed))
        return model

    together, apart, apart_by = both([normed(seed) for seed in range(3)], square_error, lambda: batches(3, 20), sgd)
    assert torch.allclose(together, apart, rtol=1e-5, atol=1e-5)
    assert apart_by < 1e-4


def test_a_schedule_scales_the_rate_that_the_optimiser_was_made_with():
    together, apart, _ = both(
        [perceptron(seed) for seed in range(2)], square_error, lambda: batches(2, 20), adamw,
        schedule=lambda step: min(1.0, (step + 1) / 10),
    )  # fmt: skip
    assert torch.allclose(together, apart, rtol=1e-5, atol=1e-5)
    still = perceptron(0)
    before = copy.deepcopy(still)
    train([still], square_error, batches(1, 3), adamw, schedule=lambda step: 0.0)
    assert torch.equal(still[0].weight, before[0].weight)


def test_the_watcher_sees_each_step_its_losses_and_the_models_as_they_are_then():
    seen = {train: [], train_one_by_one: []}
    for way, kept in seen.items():

        def watch(step, losses, models, kept=kept):
            kept.append((step, losses.tolist(), [float(model[0].weight.detach().sum()) for model in models]))

        record = way([perceptron(seed) for seed in range(2)], square_error, batches(2, 4), adamw, watch=watch)
        assert [losses for _, losses, _ in kept] == record.tolist()
    for here, there in zip(seen[train], seen[train_one_by_one], strict=True):
        assert here[0] == there[0]
        assert here[1] == pytest.approx(there[1], abs=1e-5)
        assert here[2] == pytest.approx(there[2], abs=1e-5)
    assert seen[train][0][2] != seen[train][1][2]


def test_batches_may_be_nested_and_a_weight_may_differ_between_seeds():
    def weighted(model, batch):
        assert batch.name == "arm"
        return batch.weight * (model(batch.rows["x"]).squeeze(-1) - batch.rows["pair"][1]).square().mean()

    def nested():
        for step in batches(3, 20):
            yield [
                Weighted({"x": row.inputs, "pair": [None, row.target]}, torch.tensor(1.0 + place), "arm")
                for place, row in enumerate(step)
            ]

    together, apart, _ = both([perceptron(0) for _ in range(3)], weighted, nested, sgd)
    assert torch.allclose(together, apart, rtol=1e-5, atol=1e-5)


def branches(model, batch):
    return square_error(model, batch) * (2 if model(batch.inputs).sum() > 0 else 1)


def indexes_by_mask(model, batch):
    return (model(batch.inputs).squeeze(-1) - batch.target)[batch.target > 0].square().mean()


def takes_a_float(model, batch):
    return square_error(model, batch) * float(batch.target[0])


def draws(model, batch):
    return functional.dropout(model(batch.inputs), 0.5).mean()


@pytest.mark.parametrize(
    ("loss", "says"),
    [
        (branches, r"asks for the value of a tensor \(.*`if loss > 1:`.*\): use torch\.where"),
        (indexes_by_mask, r"depends on values \(.*boolean mask as index\): use torch\.where, or multiply by the mask"),
        (takes_a_float, r"asks for the value of a tensor \(`\.item\(\)`"),
        (draws, r"draws random numbers in its forward pass"),
    ],
)
def test_what_vmap_refuses_is_said_with_what_to_do_and_the_loop_still_takes_it(loss, says):
    with pytest.raises(CohortError, match=says) as refused:
        train([perceptron(seed) for seed in range(2)], loss, batches(2, 1), adamw)
    assert "train_one_by_one" in str(refused.value)
    assert train_one_by_one([perceptron(seed) for seed in range(2)], loss, batches(2, 1), adamw).shape == (1, 2)


def test_an_error_of_the_models_own_stays_what_it_is():
    def broken(model, batch):
        raise RuntimeError("the teacher is missing")

    with pytest.raises(RuntimeError, match="the teacher is missing") as own:
        train([perceptron(0)], broken, batches(1, 1), adamw)
    assert not isinstance(own.value, CohortError)


class Scaled(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.linear, self.factor = nn.Linear(5, 1), factor

    def forward(self, values):
        return self.factor * self.linear(values)


def evaluating(model):
    return model.eval()


def partly_frozen(model):
    model[0].weight.requires_grad_(False)
    return model


@pytest.mark.parametrize(
    ("models", "says"),
    [
        (lambda: [], "no model; give one for each seed"),
        (lambda: [perceptron(0)] * 2, "stands twice"),
        (lambda: [perceptron(0, 8), perceptron(1, 9)], r"model 1 differs from model 0 in 0\.out_features|in_features"),
        (lambda: [perceptron(0), Scaled(1.0)], "differs from model 0 in"),
        (lambda: [Scaled(1.0), Scaled(2.0)], r"in factor: 2\.0 instead of 1\.0"),
        (lambda: [Scaled(torch.tensor(1.0)), Scaled(torch.tensor(2.0))], "in factor"),
        (lambda: [perceptron(0), evaluating(perceptron(1))], r"in 0\.training: False instead of True"),
        (lambda: [perceptron(0), partly_frozen(perceptron(1))], r"the shape of 0\.weight"),
        (lambda: [perceptron(0), perceptron(1).double()], r"the shape of 0\.bias"),
    ],
)
def test_models_that_are_not_alike_are_refused_by_what_differs(models, says):
    """Without this, the first model's settings would silently be used for all."""
    with pytest.raises(CohortError, match=says):
        cohort.stack(models())


def test_models_are_whole_again_after_an_error():
    models = [perceptron(seed) for seed in range(2)]
    before = copy.deepcopy(models)
    with pytest.raises(CohortError):
        train(models, draws, batches(2, 1), adamw)
    for model, old in zip(models, before):
        assert torch.equal(model[0].weight, old[0].weight)
        assert model[0].weight.untyped_storage().nbytes() == model[0].weight.nbytes
