"""The probe fires on idle parameters, is silent on their healthy twins, and measures what they cost."""

import copy
from itertools import repeat
from types import FunctionType

import pytest
import torch
from registry import TopOne, drawn
from torch import nn

from casestudies_lib.probes import ProbeFault, ProbeInputError, idle_parameters

SEEDS = range(10)


class TwoHeads(nn.Module):
    """A body with two heads; `skip` leaves the second head's forward pass out, `spare` is a layer nobody calls."""

    def __init__(self, *, skip: bool = False, spare: bool = False, dropout: float = 0.2):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(dropout))
        self.answer = nn.Linear(8, 1)
        self.mastery = nn.Sequential(nn.Linear(8, 6), nn.Softplus(), nn.Linear(6, 1))
        self.skip = skip
        if skip:
            del self.mastery
        if spare:
            self.spare = nn.Linear(3, 3)

    def forward(self, inputs):
        hidden = self.body(inputs)
        return self.answer(hidden), None if self.skip else self.mastery(hidden)


def weighted(weight):
    def loss(module, batch):
        inputs, targets = batch
        answer, mastery = module(inputs)
        total = nn.functional.mse_loss(answer, targets)
        return total if mastery is None else total + weight * nn.functional.mse_loss(mastery, targets)

    return loss


def batch_of(seed, size=16):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, 4, generator=generator), torch.randn(size, 1, generator=generator)


def seeded(seed, build, *args, **settings):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build(*args, **settings)


def kinds(result):
    return result.table().set_index("parameter")["gradient"].to_dict()


def severities(result):
    return [finding.severity for finding in result.findings]


def idle_names(result):
    return {
        name
        for name, kind in kinds(result).items()
        if kind in ("exactly zero", "none: outside the loss", "none: never used")
    }


# The fault and its healthy twins.


@pytest.mark.parametrize("seed", SEEDS)
def test_a_head_of_weight_zero_is_a_fault(seed):
    module = seeded(seed, TwoHeads)
    result = idle_parameters(module, weighted(0.0), batch_of(seed))
    assert result.ok is False
    assert [(finding.severity, finding.where) for finding in result.findings] == [("fault", "mastery")]
    assert idle_names(result) == {f"mastery.{name}" for name in ("0.weight", "0.bias", "2.weight", "2.bias")}
    assert "0 * nan" in result.findings[0].meaning


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("weight", "skip"), [(0.3, False), (0.0, True)])
def test_the_healthy_twin_is_silent(seed, weight, skip):
    module = seeded(seed, TwoHeads, skip=skip)
    optimiser = torch.optim.Adam(module.parameters(), weight_decay=1e-2)
    result = idle_parameters(module, weighted(weight), batch_of(seed), optimiser)
    assert result.ok is True
    # Silent also about the bias before the normalisation, whose gradient is rounding error.
    assert result.findings == ()
    assert result.findings == ()


@pytest.mark.parametrize("seed", SEEDS)
def test_a_module_that_never_runs_is_a_warning(seed):
    module = seeded(seed, TwoHeads, spare=True)
    optimiser = torch.optim.Adam(module.parameters(), weight_decay=1e-2)
    result = idle_parameters(module, weighted(1.0), batch_of(seed), optimiser)
    assert result.ok is False
    assert ("warning", "spare") in [(finding.severity, finding.where) for finding in result.findings]
    assert kinds(result)["spare.weight"] == "none: never used"
    assert "stay where they are" in result.findings[0].meaning


def test_a_head_that_runs_but_is_left_out_of_the_loss_is_told_from_one_that_never_runs():
    module = seeded(0, TwoHeads)
    optimiser = torch.optim.Adam(module.parameters(), weight_decay=0.1)
    result = idle_parameters(module, lambda module, batch: module(batch[0])[0].square().mean(), batch_of(0), optimiser)
    assert result.ok is False
    assert kinds(result)["mastery.0.weight"] == "none: outside the loss"
    assert severities(result)[0] == "warning"
    # No gradient at all, so that the optimiser passes them by, decay or not.
    assert result.measures["moving_values"] == 0
    # Its forward pass is spent for nothing; no backward pass reaches it.
    assert result.measures["idle_forward_flops"] == 2 * 16 * (8 * 6 + 6 * 1)
    assert result.measures["idle_backward_flops"] == 0


def test_idle_parameters_that_a_living_module_holds_itself_are_named():
    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.silent = nn.Parameter(torch.ones(3, 2)), nn.Parameter(torch.ones(3, 2))

        def forward(self, inputs):
            return nn.functional.linear(inputs, self.used), nn.functional.linear(inputs, self.silent)

    def loss(module, batch):
        used, silent = module(batch)
        return used.square().sum() + 0.0 * silent.square().sum()

    result = idle_parameters(Holder(), loss, drawn(0, 5, 2))
    assert [finding.where for finding in result.findings] == ["silent"]
    assert result.measures["idle_forward_flops"] == 2 * 5 * 2 * 3
    assert "60 FLOPs forward and 60 backward" in result.findings[0].measured


# Zero here only, or cannot tell.


def test_a_zero_initialised_successor_is_not_an_idle_parameter():
    module = seeded(0, nn.Sequential, nn.Linear(4, 3), nn.Linear(3, 1))
    nn.init.zeros_(module[1].weight)
    result = idle_parameters(module, lambda module, batch: module(batch).sum(), drawn(0, 5, 4))
    assert result.ok is True
    assert kinds(result)["0.weight"] == "zero only here"
    assert severities(result) == ["note"]


def test_an_expert_that_another_batch_uses_is_not_idle():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.low, self.high, self.never = nn.Linear(1, 1), nn.Linear(1, 1), nn.Linear(1, 1)

        def forward(self, inputs):
            return (self.high if inputs.mean() > 0 else self.low)(inputs)

    module, batch = Experts(), torch.ones(4, 1)
    result = idle_parameters(module, lambda m, b: m(b).sum(), batch, further_batches=repeat(-batch))
    assert idle_names(result) == {"never.weight", "never.bias"}
    assert kinds(result)["low.weight"] == "zero only here"
    assert "on 2 more batches" in result.findings[0].measured


def test_further_batches_are_read_only_as_far_as_the_passes_allow_and_only_if_needed():
    read = []

    def batches():
        for number in range(9):
            read.append(number)
            yield batch_of(number)

    idle_parameters(seeded(0, TwoHeads), weighted(1.0), batch_of(0), further_batches=batches())
    assert read == []
    idle_parameters(seeded(0, TwoHeads), weighted(0.0), batch_of(0), further_batches=batches(), passes=3)
    assert read == [0]


@pytest.mark.parametrize("kinds_of_pass", ["one pass", "jitter breaks the loss"])
def test_what_could_not_be_tried_is_neither_good_nor_bad(kinds_of_pass):
    module = seeded(0, TwoHeads)
    before = module.answer.weight.detach().clone()

    def loss(module, batch):
        if not torch.equal(module.answer.weight, before):
            raise ArithmeticError("these are not my weights")
        return weighted(0.0)(module, batch)

    result = idle_parameters(module, loss, batch_of(0), passes=1 if kinds_of_pass == "one pass" else 4)
    assert result.ok is None
    assert "further_batches" in result.reason
    assert kinds(result)["mastery.0.weight"] == "zero here, elsewhere unknown"
    assert torch.equal(module.answer.weight, before)
    settled = idle_parameters(module, loss, batch_of(0), further_batches=[batch_of(1)])
    assert settled.ok is False


def test_rows_that_a_batch_does_not_look_up_are_a_note_also_with_sparse_gradients():
    for sparse in (False, True):
        module = nn.Embedding(10, 3, sparse=sparse)
        result = idle_parameters(module, lambda m, b: m(b).sum(), torch.tensor([1, 1, 4]))
        assert result.ok is True
        assert [finding.where for finding in result.findings] == ["weight (8 of 10 rows)"]


def test_a_gradient_is_not_zero_because_its_square_is():
    module = nn.Linear(2, 1)
    result = idle_parameters(module, lambda m, b: 1e-30 * m(b).sum(), torch.ones(3, 2))
    assert result.ok is True


def test_a_weight_that_is_zero_only_up_to_rounding_teaches_nothing():
    rounded = 1 - sum([0.1] * 10)
    assert 0 < rounded < 1e-15
    result = idle_parameters(seeded(0, TwoHeads), weighted(rounded), batch_of(0))
    assert result.ok is False
    assert [(finding.severity, finding.where) for finding in result.findings] == [("warning", "mastery")]
    assert "rounding" in result.findings[0].measured
    assert kinds(result)["mastery.0.weight"] == "below rounding"


def test_an_infinite_gradient_times_zero_is_a_fault_of_its_own():
    def loss(module, batch):
        answer, mastery = module(batch[0])
        return answer.square().mean() + 0.0 * (mastery - mastery.detach()).abs().sqrt().mean()

    result = idle_parameters(seeded(0, TwoHeads), loss, batch_of(0))
    assert result.ok is False
    assert kinds(result)["body.0.weight"] == "not finite"
    with pytest.raises(ProbeFault, match=r"body\.0\.weight"):
        result.raise_if_found()


# Frozen, tied, not held.


def test_frozen_parameters_are_no_fault_but_a_note_if_the_optimiser_holds_them():
    module = seeded(0, TwoHeads)
    module.mastery.requires_grad_(False)
    quiet = torch.optim.Adam([p for p in module.parameters() if p.requires_grad])
    assert all("mastery" not in f.where for f in idle_parameters(module, weighted(0.0), batch_of(0), quiet).findings)
    result = idle_parameters(module, weighted(0.0), batch_of(0), torch.optim.Adam(module.parameters()))
    assert result.ok is True
    assert kinds(result)["mastery.0.weight"] == "frozen"
    assert any(f.severity == "note" and "mastery.0.weight" in f.where for f in result.findings)


def test_a_module_that_is_frozen_altogether_gives_no_answer():
    result = idle_parameters(nn.Linear(2, 1).requires_grad_(False), lambda m, b: m(b).sum(), torch.ones(1, 2))
    assert result.ok is None
    assert "requires_grad" in result.reason


def test_tied_weights_are_one_parameter_and_learn_if_one_of_their_uses_does():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
            self.second.weight = self.first.weight

        def forward(self, inputs):
            return self.first(inputs), self.second(inputs)

    def loss(module, batch):
        first, second = module(batch)
        return first.square().mean() + 0.0 * second.square().mean()

    result = idle_parameters(Tied(), loss, torch.ones(4, 3))
    assert kinds(result) == {
        "first.weight = second.weight": "learns",
        "first.bias": "learns",
        "second.bias": "exactly zero",
    }
    # The second use of the weight teaches nothing although the weight learns.
    assert result.measures["idle_forward_flops"] == 2 * 4 * 3 * 3


def test_parameters_that_the_optimiser_does_not_hold_cannot_move():
    module = seeded(0, TwoHeads)
    optimiser = torch.optim.Adam([*module.body.parameters(), *module.answer.parameters()], weight_decay=0.1)
    result = idle_parameters(module, weighted(0.0), batch_of(0), optimiser)
    assert result.measures["moving_values"] == 0
    assert "does not hold them" in result.findings[0].meaning


# Outside the optimiser.


class Branches(nn.Module):
    """Two layers kept in a way that may list them or not, and one that is listed."""

    def __init__(self, keep):
        super().__init__()
        self.branches, self.out = keep([nn.Linear(4, 4), nn.Linear(4, 4)]), nn.Linear(4, 1)

    def forward(self, inputs):
        for branch in layers_in(self.branches):
            inputs = branch(inputs).tanh()
        return self.out(inputs)


def layers_in(kept):
    kept = kept() if isinstance(kept, FunctionType) else kept
    return list(kept.values() if isinstance(kept, dict) else kept)


def square(module, batch):
    return (module(batch[0]) - batch[1]).square().mean()


UNLISTED = {
    "list": (list, "branches[0], branches[1]"),
    "dictionary": (lambda layers: dict(zip("ab", layers)), "branches['a'], branches['b']"),
    "closure": (lambda layers: lambda: layers, "layers[0], layers[1]"),
}


@pytest.mark.parametrize("kept", UNLISTED)
def test_layers_that_no_parameters_lists_are_a_fault_and_named(kept):
    keep, where = UNLISTED[kept]
    module = seeded(0, Branches, keep)
    result = idle_parameters(module, square, batch_of(0), torch.optim.Adam(module.parameters()))
    assert result.ok is False
    assert [(finding.severity, finding.where) for finding in result.findings] == [("fault", where)]
    assert "4 of them are in no parameters()" in result.findings[0].measured
    assert result.measures["outside_tensors"] == 4
    # Whoever trains them, all is well; without an optimiser nobody can know.
    hidden = [parameter for layer in layers_in(module.branches) for parameter in layer.parameters()]
    both = [torch.optim.Adam(module.parameters()), torch.optim.SGD(hidden, 0.1)]
    assert idle_parameters(module, square, batch_of(0), both).findings == ()
    unknown = idle_parameters(module, square, batch_of(0))
    assert (unknown.ok, severities(unknown), unknown.findings[0].where) == (True, ["note"], where)


def test_layers_in_a_module_list_are_silent():
    module = seeded(0, Branches, nn.ModuleList)
    result = idle_parameters(module, square, batch_of(0), torch.optim.Adam(module.parameters()))
    assert (result.ok, result.findings) == (True, ())


def test_a_group_that_was_forgotten_is_a_fault_named_by_module():
    module = seeded(0, TwoHeads)
    optimiser = torch.optim.Adam([*module.body.parameters(), *module.answer.parameters()], weight_decay=0.1)
    result = idle_parameters(module, weighted(1.0), batch_of(0), optimiser)
    assert (result.ok, [(f.severity, f.where) for f in result.findings]) == (False, [("fault", "mastery")])
    assert "the loss reaches 4 that no optimiser holds" in result.headline
    other = torch.optim.SGD(module.mastery.parameters(), lr=0.1)
    assert idle_parameters(module, weighted(1.0), batch_of(0), [optimiser, other]).ok is True


@pytest.mark.parametrize("replaced", ["one layer", "the whole model"])
def test_what_was_replaced_after_the_optimiser_was_built_is_a_fault(replaced):
    module = seeded(0, TwoHeads)
    optimiser = torch.optim.Adam(module.parameters())
    if replaced == "one layer":
        module.answer = nn.Linear(8, 1)
    else:
        module = seeded(1, TwoHeads)
    result = idle_parameters(module, weighted(1.0), batch_of(0), optimiser)
    fault = result.findings[0]
    where, stale = ("answer", 2) if replaced == "one layer" else ("the whole module", 10)
    assert (result.ok, fault.severity, fault.where) == (False, "fault", where)
    assert f"holds {stale} tensors that this loss does not reach" in fault.meaning


def test_a_criterion_with_parameters_of_its_own_is_fine_where_an_optimiser_holds_it():
    class Uncertain(nn.Module):
        def __init__(self):
            super().__init__()
            self.log_variance = nn.Parameter(torch.zeros(()))

        def forward(self, error):
            return error * (-self.log_variance).exp() + self.log_variance

    module, criterion = seeded(0, TwoHeads), Uncertain()

    def loss(module, batch):
        return criterion(weighted(1.0)(module, batch))

    held = torch.optim.Adam([*module.parameters(), *criterion.parameters()])
    assert idle_parameters(module, loss, batch_of(0), held).findings == ()
    missed = idle_parameters(module, loss, batch_of(0), torch.optim.Adam(module.parameters()))
    assert (missed.ok, missed.findings[0].where) == (False, "criterion")


def test_inputs_that_a_penalty_differentiates_are_not_taken_for_parameters():
    def loss(module, batch):
        mixed = (0.5 * batch[0]).requires_grad_()
        slope = torch.autograd.grad(module(mixed)[0].sum(), mixed, create_graph=True)[0]
        return weighted(1.0)(module, batch) + (slope.norm(dim=1) - 1).square().mean()

    module = seeded(0, TwoHeads)
    inputs, targets = batch_of(0)
    given = inputs.requires_grad_(), targets
    result = idle_parameters(module, loss, given, torch.optim.Adam(module.parameters()))
    assert (result.ok, result.findings) == (True, ())


def test_frozen_modules_on_the_path_of_the_loss_are_a_note_that_names_the_last_first():
    module = seeded(0, TwoHeads)
    module.mastery.requires_grad_(False)
    module.answer.requires_grad_(False)
    optimiser = torch.optim.Adam(module.body.parameters())
    result = idle_parameters(module, weighted(0.3), batch_of(0), optimiser)
    assert (result.ok, [(f.severity, f.where) for f in result.findings]) == (True, [("note", "mastery, answer")])
    # A frozen body below heads that learn, and a head that the loss leaves out, hide nothing that should learn.
    module.requires_grad_(True)
    module.body.requires_grad_(False)
    heads = torch.optim.Adam([*module.answer.parameters(), *module.mastery.parameters()])
    assert idle_parameters(module, weighted(0.3), batch_of(0), heads).findings == ()


@pytest.mark.parametrize("seed", SEEDS)
def test_a_router_whose_gradient_is_rounding_is_taught_nothing(seed):
    faulty, healthy = (seeded(seed, TopOne, normalised) for normalised in (True, False))
    result = idle_parameters(faulty, square, batch_of(seed, 64), torch.optim.AdamW(faulty.parameters()))
    assert [(f.severity, f.where) for f in result.findings if f.severity != "note"] == [("fault", "router")]
    assert idle_parameters(healthy, square, batch_of(seed, 64), torch.optim.AdamW(healthy.parameters())).ok is True


# Movement.

OPTIMISERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.01),
    "sgd with decay": lambda p: torch.optim.SGD(p, lr=0.01, weight_decay=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adam": lambda p: torch.optim.Adam(p, lr=0.001),
    "adam with decay": lambda p: torch.optim.Adam(p, lr=0.001, weight_decay=1e-5),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.001, weight_decay=1e-5, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.001),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.001, momentum=0.9, weight_decay=0.01),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.001, weight_decay=0.01),
    "adadelta": lambda p: torch.optim.Adadelta(p, lr=0.1, weight_decay=0.01),
}
STILL_WHEN_FRESH = {"sgd", "momentum", "adam"}


def train(module, optimiser, loss, batch, steps):
    for _ in range(steps):
        optimiser.zero_grad()
        loss(module, batch).backward()
        optimiser.step()


@pytest.mark.parametrize("history", [0, 3])
@pytest.mark.parametrize("name", OPTIMISERS)
def test_the_predicted_movement_is_what_training_does(name, history):
    module = seeded(1, TwoHeads, dropout=0.0)
    optimiser = OPTIMISERS[name](module.parameters())
    # A head that was trained first leaves momentum behind.
    train(module, optimiser, weighted(1.0), batch_of(1), history)
    result = idle_parameters(module, weighted(0.0), batch_of(1), optimiser, steps=20)
    before = {key: value.detach().clone() for key, value in module.named_parameters()}
    train(module, optimiser, weighted(0.0), batch_of(1), 20)
    table = result.table().set_index("parameter")
    for key, parameter in module.mastery.named_parameters(prefix="mastery"):
        moved = 100 * (parameter.detach() - before[key]).norm() / before[key].norm()
        assert table.loc[key, "change in simulated steps, % of norm"] == pytest.approx(moved.item(), rel=1e-4, abs=1e-9)
        kept = sum(
            value.numel() * value.element_size()
            for value in optimiser.state[parameter].values()
            if torch.is_tensor(value)
        )
        assert table.loc[key, "optimiser state, bytes"] == kept
    stays = name in STILL_WHEN_FRESH and (history == 0 or name == "sgd")
    assert result.measures["moving_values"] == (0 if stays else 8 * 6 + 6 + 6 + 1)
    assert ("stay where they are" in result.findings[0].meaning) == stays


def test_adam_with_coupled_decay_walks_about_one_learning_rate_a_step():
    module = nn.Linear(50, 50)
    nn.init.constant_(module.weight, 1.0)
    nn.init.constant_(module.bias, 1.0)
    optimiser = torch.optim.Adam(module.parameters(), lr=1e-3, weight_decay=1e-2)
    other = nn.Linear(2, 1)
    both = nn.ModuleDict({"idle": module, "other": other})
    result = idle_parameters(
        both,
        lambda m, b: m["other"](b).sum() + 0 * m["idle"].weight.sum() + 0 * m["idle"].bias.sum(),
        torch.ones(1, 2),
        optimiser,
    )
    # 100 steps of 1e-3 from 1.0.
    assert result.table().set_index("parameter").loc["idle.weight"].iloc[4] == pytest.approx(10, rel=0.02)
    assert "carry them 9.8" in result.findings[0].meaning
    assert "smaller" in result.findings[0].meaning


def test_each_group_moves_by_its_own_settings():
    module = seeded(0, TwoHeads)
    optimiser = torch.optim.AdamW(
        [
            {"params": [*module.body.parameters(), *module.answer.parameters()]},
            {"params": module.mastery[0].parameters(), "weight_decay": 0.0},
            {"params": module.mastery[2].parameters(), "weight_decay": 0.5, "lr": 0.01},
        ]
    )
    table = idle_parameters(module, weighted(0.0), batch_of(0), optimiser, steps=10).table().set_index("parameter")
    column = "change in simulated steps, % of norm"
    assert table.loc["mastery.0.weight", column] == 0
    assert table.loc["mastery.2.weight", column] == pytest.approx(100 * (1 - (1 - 0.005) ** 10), rel=1e-4)


def test_a_learning_rate_of_zero_is_said():
    module = seeded(0, TwoHeads)
    optimiser = torch.optim.Adam(module.parameters(), lr=1e-3, weight_decay=0.1)
    torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: step / 10)
    result = idle_parameters(module, weighted(0.0), batch_of(0), optimiser)
    assert "learning rate is 0" in result.findings[0].meaning


def test_an_optimiser_that_cannot_step_alone_leaves_movement_unknown():
    module = seeded(0, TwoHeads)
    result = idle_parameters(module, weighted(0.0), batch_of(0), torch.optim.LBFGS(module.parameters()))
    assert result.ok is False
    assert result.measures["moving_values"] is None
    assert "unknown" in result.findings[0].meaning


# Cost.


def test_flops_are_those_of_a_hand_count():
    module = seeded(0, TwoHeads)
    measures = idle_parameters(module, weighted(0.0), batch_of(0)).measures
    mastery = 2 * 16 * (8 * 6 + 6 * 1)
    body, answer = 2 * 16 * 4 * 8, 2 * 16 * 8 * 1
    assert measures["idle_forward_flops"] == mastery
    assert measures["forward_flops"] == mastery + body + answer
    # Backward: once for the weight, once for the input; the batch needs no gradient.
    assert measures["idle_backward_flops"] == 2 * mastery
    assert measures["backward_flops"] == 2 * mastery + body + 2 * answer
    assert measures["idle_values"] == 8 * 6 + 6 + 6 + 1


# Models in other people's style.


@pytest.mark.parametrize("evaluated", [False, True])
def test_a_transformer_encoder_with_an_unused_layer(evaluated):
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, activation="gelu")
    encoder = seeded(0, nn.TransformerEncoder, layer, 2, enable_nested_tensor=False).train(not evaluated)
    extra = nn.ModuleDict({"encoder": encoder, "extra": copy.deepcopy(layer)})
    inputs = drawn(0, 3, 5, 16)
    optimiser = torch.optim.AdamW(extra.parameters())
    assert idle_parameters(encoder, lambda m, b: m(b).square().mean(), inputs).ok is True
    result = idle_parameters(extra, lambda m, b: m["encoder"](b).square().mean(), inputs, optimiser)
    assert [f.where for f in result.findings if f.severity != "note"] == ["extra"]
    zero = idle_parameters(
        extra, lambda m, b: m["encoder"](b).square().mean() + 0 * m["extra"](b).sum(), inputs, optimiser
    )
    assert [(f.severity, f.where) for f in zero.findings if f.severity != "note"] == [("fault", "extra")]
    assert zero.measures["moving_values"] == sum(p.numel() for p in extra["extra"].parameters() if p.abs().sum())
    # One of three equal layers.
    assert zero.measures["idle_forward_flops"] * 3 == zero.measures["forward_flops"]


@pytest.mark.parametrize("build", [nn.LSTM, nn.GRU])
def test_a_recurrent_layer_whose_last_layer_is_skipped(build):
    module = seeded(0, build, 5, 7, 2, batch_first=True, dropout=0.1)
    healthy = idle_parameters(module, lambda m, b: m(b)[0].square().mean(), drawn(0, 3, 4, 5))
    assert healthy.ok is True
    gates = 4 if build is nn.LSTM else 3
    assert healthy.measures["forward_flops"] == 2 * 3 * 4 * gates * 7 * (5 + 7 + 7 + 7)
    both = nn.ModuleDict({"first": module, "second": seeded(1, build, 7, 7)})
    idle = idle_parameters(
        both,
        lambda m, b: m["first"](b)[0].square().mean() + 0 * m["second"](m["first"](b)[0])[0].mean(),
        drawn(0, 3, 4, 5),
    )
    assert [f.where for f in idle.findings if f.severity == "fault"] == ["second"]


def test_a_checkpointed_module_is_seen_through():
    module = seeded(0, TwoHeads)
    plain = idle_parameters(module, weighted(0.0), batch_of(0))

    def loss(module, batch):
        answer, mastery = torch.utils.checkpoint.checkpoint(module, batch[0], use_reentrant=False)
        return answer.square().mean() + 0.0 * mastery.square().mean()

    result = idle_parameters(module, loss, batch_of(0))
    assert idle_names(result) == idle_names(plain)
    assert result.measures["idle_forward_flops"] == plain.measures["idle_forward_flops"]


def test_checkpointing_that_hides_its_parameters_is_refused_instead_of_raising_a_false_alarm():
    def loss(module, batch):
        return torch.utils.checkpoint.checkpoint(module, batch, use_reentrant=True).sum()

    with pytest.raises(ProbeInputError, match="use_reentrant=False"):
        idle_parameters(nn.Linear(2, 1), loss, torch.ones(3, 2, requires_grad=True))


@pytest.mark.parametrize("warm", [False, True])
def test_a_compiled_module_is_seen_as_written(warm):
    module = seeded(0, TwoHeads)
    plain = idle_parameters(module, weighted(0.0), batch_of(0))
    compiled = torch.compile(module, backend="eager")
    if warm:
        weighted(0.0)(compiled, batch_of(0)).backward()
    result = idle_parameters(compiled, weighted(0.0), batch_of(0))
    assert [f.where for f in result.findings if f.severity == "fault"] == ["_orig_mod.mastery"]
    assert result.measures == plain.measures
