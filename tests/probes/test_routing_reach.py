"""The probe tells routers, experts and heads that the task teaches from those that merely move."""

import json

import pytest
import torch
from registry import TopOne, regression, seeded, squared_error
from torch import nn
from torch.nn import functional

from casestudies_lib.probes import ProbeFault, routing_reach

SEEDS = range(10)
DIM, EXPERTS = 6, 4


class Mixture(nn.Module):
    """A layer, a router and experts; `fault` says what is wrong with how the router's choice reaches the output."""

    def __init__(self, kept=2, fault=""):
        super().__init__()
        self.before = nn.Linear(DIM, DIM)
        self.router = nn.Linear(DIM, EXPERTS)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(DIM, 8), nn.GELU(), nn.Linear(8, DIM)) for _ in range(EXPERTS)
        )
        self.after = nn.Linear(DIM, 1)
        self.kept, self.fault = kept, fault
        # A router that chooses every expert for a good part of what it sees.
        nn.init.orthogonal_(self.before.weight)
        nn.init.orthogonal_(self.router.weight, gain=3)
        nn.init.zeros_(self.before.bias)
        nn.init.zeros_(self.router.bias)
        if fault == "starved":
            self.router.bias.data[2] = -30.0

    def probabilities(self, inputs):
        hidden = self.before(inputs).tanh()
        return hidden, self.router(hidden).softmax(-1)

    def forward(self, inputs):
        hidden, probabilities = self.probabilities(inputs)
        best = probabilities.topk(self.kept, -1)
        gates = torch.zeros_like(probabilities).scatter(-1, best.indices, best.values)
        if self.fault == "detached":
            gates = gates.detach()
        if self.fault == "hard":
            gates = (gates > 0).to(inputs)
        if self.fault == "reversed":
            gates = 2 * gates.detach() - gates
        outputs = [expert(hidden) for expert in self.experts]
        if self.fault == "cut":
            outputs[2] = outputs[2].detach()
        return self.after(hidden + sum(gates[:, place, None] * out for place, out in enumerate(outputs)))


class SoftGate(nn.Module):
    """Heads of an attention, each weighted by a sigmoid; a threshold may be compared with, which teaches it nothing."""

    def __init__(self, compared=False):
        super().__init__()
        self.heads = nn.Linear(DIM, 4 * 3)
        self.router = nn.ModuleDict({"score": nn.Linear(DIM, 4), "threshold": nn.Linear(DIM, 1)})
        self.gate, self.split = nn.Sigmoid(), nn.Unflatten(-1, (4, 3))
        self.out = nn.Linear(12, 1)
        self.compared = compared

    def forward(self, inputs):
        score, threshold = self.router["score"](inputs), self.router["threshold"](inputs)
        weights = self.gate(score if self.compared else score - threshold)
        if self.compared:
            weights = weights * (score > threshold)
        return self.out((self.split(self.heads(inputs)) * weights[..., None]).flatten(-2))


def loss(module, batch):
    inputs, targets = batch
    return functional.mse_loss(module(inputs), targets)


def balance(module, batch):
    """Return the load-balancing loss of a mixture."""
    _, probabilities = module.probabilities(batch[0])
    return 0.1 * EXPERTS * probabilities.mean(0).square().sum()


def batch_of(seed, size=96):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, DIM, generator=generator), torch.randn(size, 1, generator=generator)


def adam(parameters):
    return torch.optim.Adam(parameters, lr=1e-2)


def where(result):
    return [(finding.severity, finding.where) for finding in result.findings]


EVERYTHING = {"routers": "router", "experts": "experts.?", "gates": {"router": -1}}


# The healthy twins.


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kept", [1, 2, EXPERTS])
def test_a_weighted_mixture_is_reached_everywhere(seed, kept):
    module = seeded(seed, Mixture, kept)
    batches = [batch_of(seed + 100), batch_of(seed + 200)]
    result = routing_reach(
        module,
        loss,
        batch_of(seed, 400),
        **EVERYTHING,
        auxiliary=balance,
        optimiser=adam,
        further_batches=batches,
        steps=3,
    )
    assert result.ok is True
    assert result.findings == ()
    assert result.measures["routers"] == {"router": "task and auxiliary"}
    assert set(result.measures["experts"].values()) == {"reached"}
    assert result.findings == ()


@pytest.mark.parametrize("seed", SEEDS)
def test_a_soft_gate_is_reached_in_every_head(seed):
    module = seeded(seed, SoftGate)
    result = routing_reach(module, loss, batch_of(seed), routers="router.*", gates={"gate": -1, "split": 1})
    assert result.ok is True
    assert result.findings == ()
    assert result.measures["routers"] == {"router.score": "task", "router.threshold": "task"}
    assert [len(slots) for slots in result.measures["slots"].values()] == [4, 4]


# The faults.


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("fault", ["detached", "hard"])
def test_a_router_that_the_task_does_not_see_is_a_fault_whatever_the_auxiliary_loss_does(seed, fault):
    module = seeded(seed, Mixture, 2, fault)
    alone = routing_reach(module, loss, batch_of(seed), routers="router")
    assert where(alone) == [("fault", "router")]
    assert alone.measures["routers"] == {"router": "nothing"}
    assert "no auxiliary loss was given" in alone.findings[0].measured
    fed = routing_reach(module, loss, batch_of(seed), routers="router", auxiliary=balance)
    assert where(fed) == [("fault", "router")]
    assert fed.measures["routers"] == {"router": "auxiliary only"}
    assert fed.measures["auxiliary_norms"]["router"] > 0
    with pytest.raises(ProbeFault, match="router"):
        fed.raise_if_found()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("fault", "severity", "kind"),
    [("cut", "fault", "not reached"), ("starved", "warning", "not chosen")],
)
def test_an_expert_that_nothing_reaches_is_named_and_told_from_one_that_is_not_chosen(seed, fault, severity, kind):
    result = routing_reach(
        seeded(seed, Mixture, 2, fault), loss, batch_of(seed, 400), experts="experts.?", further_batches=[batch_of(77)]
    )
    assert where(result) == [(severity, "experts.2")]
    assert {name for name, own in result.measures["experts"].items() if own != "reached"} == {"experts.2"}
    assert result.measures["experts"]["experts.2"] == kind


@pytest.mark.parametrize("seed", SEEDS)
def test_a_gradient_that_is_rounding_does_not_reach_a_router(seed):
    faulty, healthy = (
        routing_reach(seeded(seed, TopOne, normalised), squared_error, regression(seed), routers="router")
        for normalised in (True, False)
    )
    assert [(f.severity, f.where) for f in faulty.findings] == [("fault", "router")]
    assert (healthy.ok, healthy.findings) == (True, ())


@pytest.mark.parametrize("seed", SEEDS)
def test_a_threshold_that_is_only_compared_with_is_found_beside_a_score_that_learns(seed):
    result = routing_reach(seeded(seed, SoftGate, compared=True), loss, batch_of(seed), routers="router")
    assert where(result) == [("fault", "router: router.threshold.weight, router.threshold.bias")]
    assert result.measures["routers"] == {"router": "task, in part"}


@pytest.mark.parametrize("seed", SEEDS)
def test_an_auxiliary_loss_that_is_only_printed_is_a_warning(seed):
    for printed in (lambda m, b: balance(m, b).detach(), lambda m, b: balance(m, b).item()):
        result = routing_reach(seeded(seed, Mixture), loss, batch_of(seed), routers="router", auxiliary=printed)
        assert where(result) == [("warning", "auxiliary")]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_reversed_router_is_reached_all_the_same_and_the_answer_says_that_it_cannot_tell(seed):
    result = routing_reach(seeded(seed, Mixture, 2, "reversed"), loss, batch_of(seed), routers="router")
    assert result.ok is True
    assert "nothing of a gradient's sign" in result.headline
    assert "backward_check" in result.headline


# What moves without the task.


@pytest.mark.parametrize("seed", SEEDS)
def test_the_output_of_a_router_that_learns_nothing_moves_by_the_drift_of_its_input_alone(seed):
    module = seeded(seed, Mixture, 2, "detached")
    measures = (
        result := routing_reach(module, loss, batch_of(seed), routers="router", optimiser=adam, steps=10)
    ).measures
    moved = measures["moves"]["router, mean output"]
    assert moved > 1e-3
    assert measures["moves_with_routers_held"]["router, mean output"] == pytest.approx(moved)
    assert measures["moves"]["router.weight, parameter"] == 0
    assert "100 % of that with the routers' own parameters held still" in result.findings[0].measured


@pytest.mark.parametrize("seed", SEEDS)
def test_what_the_auxiliary_loss_moves_is_told_from_drift(seed):
    module = seeded(seed, Mixture, 2, "hard")
    measures = routing_reach(
        module, loss, batch_of(seed), routers="router", auxiliary=balance, optimiser=adam, steps=10
    ).measures
    assert measures["moves"]["router.weight, parameter"] > 1e-3
    assert measures["moves_without_auxiliary"]["router.weight, parameter"] == 0
    assert measures["moves_without_auxiliary"]["router, mean output"] > 0


def test_the_trial_does_what_training_does():
    module, batch = seeded(0, Mixture), batch_of(0)
    measures = routing_reach(module, loss, batch, routers="router", optimiser=adam, steps=7).measures
    before = module.router.weight.detach().clone()
    optimiser = adam(module.parameters())
    for _ in range(7):
        optimiser.zero_grad()
        loss(module, batch).backward()
        optimiser.step()
    moved = (module.router.weight.detach() - before).norm() / before.norm()
    assert measures["moves"]["router.weight, parameter"] == pytest.approx(float(moved), rel=1e-4)


def test_weight_decay_moves_what_no_loss_teaches():
    module = seeded(0, SoftGate, compared=True)

    def decayed(parameters):
        return torch.optim.SGD([{"params": parameters}], lr=0.1, weight_decay=0.1)

    def with_zero(module, batch):
        return loss(module, batch) + 0 * sum(p.sum() for p in module.router["threshold"].parameters())

    result = routing_reach(module, with_zero, batch_of(0), routers="router.threshold", optimiser=decayed, steps=5)
    # Five steps by a factor of 0.99 each.
    assert result.measures["moves"]["router.threshold.weight, parameter"] == pytest.approx(1 - 0.99**5, rel=1e-3)
    assert result.measures["moves_with_routers_held"]["router.threshold.weight, parameter"] == 0
    assert result.ok is False


def test_buffers_of_a_router_are_statistics_too():
    class Counting(nn.Linear):
        def __init__(self):
            super().__init__(DIM, 1)
            self.register_buffer("load", torch.ones(1))

        def forward(self, inputs):
            if torch.is_grad_enabled():
                self.load += 1
            return super().forward(inputs)

    module = nn.ModuleDict({"router": Counting()})
    result = routing_reach(
        module, lambda m, b: functional.mse_loss(m["router"](b[0]), b[1]), batch_of(0), optimiser=adam, steps=4
    )
    assert result.measures["moves"]["router.load, buffer"] == 4
    assert result.measures["moves_with_routers_held"]["router.load, buffer"] in (0, 4)
    assert module["router"].load.item() == 1


def test_a_model_that_cannot_be_copied_still_gets_its_answer():
    module = seeded(0, Mixture)
    module.stream = (number for number in range(3))
    result = routing_reach(module, loss, batch_of(0), routers="router", optimiser=adam)
    assert result.ok is True
    assert where(result) == [("note", "trial")]
    assert result.measures["steps"] == 0


# The numbers.


def test_norms_are_those_that_autograd_gives():
    module, batch = seeded(3, Mixture), batch_of(3)
    measures = routing_reach(module, loss, batch, **EVERYTHING).measures
    hidden = module.before(batch[0]).tanh()
    logits = module.router(hidden)
    best = logits.softmax(-1).topk(2, -1)
    gates = torch.zeros_like(logits).scatter(-1, best.indices, best.values)
    mixed = sum(gates[:, place, None] * expert(hidden) for place, expert in enumerate(module.experts))
    value = functional.mse_loss(module.after(hidden + mixed), batch[1])
    wanted = [logits, module.router.weight, module.router.bias]
    expected = torch.autograd.grad(value, wanted)
    assert measures["slots"]["router"] == pytest.approx(expected[0].norm(dim=0).tolist(), rel=1e-4)
    whole = torch.cat([each.flatten() for each in expected[1:]]).norm()
    assert measures["task_norms"]["router"] == pytest.approx(float(whole), rel=1e-4)
    assert measures["means"]["router"] == pytest.approx(logits.mean(0).tolist(), rel=1e-4)


def test_a_slot_that_nothing_uses_is_named():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate, self.out = nn.Linear(DIM, 3), nn.Linear(2, 1)

        def forward(self, inputs):
            return self.out(self.gate(inputs)[:, :2])

    result = routing_reach(Half(), loss, batch_of(0), gates={"gate": -1})
    assert where(result) == [("warning", "gate: slots 2")]
    assert "1 of 3 slots" in result.findings[0].measured
    assert "1 have outputs other than zero" in result.findings[0].measured


def test_further_batches_are_read_only_if_something_was_not_reached():
    read = []

    def batches():
        for number in range(3):
            read.append(number)
            yield batch_of(number)

    routing_reach(seeded(0, Mixture), loss, batch_of(0), routers="router", further_batches=batches())
    assert read == []
    routing_reach(seeded(0, Mixture, 2, "hard"), loss, batch_of(0), routers="router", further_batches=batches())
    assert read == [0, 1, 2]


def test_an_expert_that_another_batch_chooses_is_reached():
    class Sign(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = nn.ModuleList([nn.Linear(DIM, 1), nn.Linear(DIM, 1)])

        def forward(self, inputs):
            return self.experts[int(inputs.mean() > 0)](inputs)

    high, low = (torch.ones(4, DIM), torch.ones(4, 1)), (-torch.ones(4, DIM), torch.ones(4, 1))
    alone = routing_reach(Sign(), loss, high, experts="experts.*")
    assert where(alone) == [("warning", "experts.0")]
    assert routing_reach(Sign(), loss, high, experts="experts.*", further_batches=[low]).ok is True


def test_experts_that_are_all_zero_silence_the_router_only_for_now():
    module = seeded(0, Mixture)
    for expert in module.experts:
        nn.init.zeros_(expert[2].weight)
        nn.init.zeros_(expert[2].bias)
    result = routing_reach(module, loss, batch_of(0), routers="router")
    assert result.ok is True
    assert [finding.severity for finding in result.findings] == ["note"]
    assert result.measures["routers"] == {"router": "nothing here, the task elsewhere"}


def test_a_mask_of_booleans_can_carry_no_gradient_and_is_said_to():
    class Compare(nn.Module):
        def forward(self, scores):
            return scores > 0

    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.heads, self.score, self.mask = nn.Linear(DIM, 4), nn.Linear(DIM, 4), Compare()

        def forward(self, inputs):
            return (self.heads(inputs) * self.mask(self.score(inputs))).sum(-1, keepdim=True)

    result = routing_reach(Masked(), loss, batch_of(0), routers="score", gates={"mask": -1})
    assert where(result) == [("fault", "score"), ("note", "mask")]
    assert result.measures["slots"]["mask"] is None


def test_a_router_is_looked_for_by_its_usual_names():
    assert routing_reach(seeded(0, Mixture), loss, batch_of(0)).measures["routers"] == {"router": "task"}


def test_a_gradient_that_is_not_finite_is_a_fault():
    def broken(module, batch):
        out = module(batch[0])
        return (out - out.detach()).abs().sqrt().mean()

    result = routing_reach(seeded(0, Mixture), broken, batch_of(0), routers="router")
    assert result.ok is False
    assert "nan or infinity" in result.findings[0].measured
    json.dumps(result.to_dict(), allow_nan=False)


def test_frozen_routers_give_no_answer():
    module = seeded(0, Mixture)
    module.router.requires_grad_(False)
    result = routing_reach(module, loss, batch_of(0), routers="router")
    assert result.ok is None
    assert "frozen" in result.reason
    assert result.findings[0].severity == "note"
