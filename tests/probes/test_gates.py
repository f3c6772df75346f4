"""The probe tells dead, absorbed, detached, saturated and decaying gates from living ones, and measures branches."""

import math

import pytest
import torch
from registry import drawn
from torch import nn
from torch.nn import functional

from casestudies_lib.probes import gates

SEEDS = range(10)
DIM, HEADS = 6, 3


def seeded(seed, build, *args, **settings):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build(*args, **settings)


class Zeros(nn.Module):
    def forward(self, values):
        return torch.zeros_like(values)


def branch_of(kind):
    branch = {"real": lambda: nn.Sequential(nn.Linear(DIM, DIM), nn.Tanh()), "zeros": Zeros}.get(kind)
    if branch is not None:
        return branch()
    branch = nn.Linear(DIM, DIM)
    nn.init.zeros_(branch.weight)
    nn.init.zeros_(branch.bias)
    return branch


FORMS = {
    "plain": lambda gate, values, branch: values + gate * branch,
    "convex": lambda gate, values, branch: (1 - gate) * values + gate * branch,
    "guarded": lambda gate, values, branch: values + gate * branch if gate > 0 else values,
    "relu": lambda gate, values, branch: values + gate.relu() * branch,
    "not zero": lambda gate, values, branch: values + gate * branch if gate != 0 else values + 0 * branch,
    "softplus": lambda gate, values, branch: values + functional.softplus(gate) * branch,
    "sigmoid": lambda gate, values, branch: values + gate.sigmoid() * branch,
    "tanh": lambda gate, values, branch: values + gate.tanh() * branch,
    "detached": lambda gate, values, branch: values + gate.detach() * branch,
    "rounded": lambda gate, values, branch: values + gate.round() * branch,
    "mostly detached": lambda gate, values, branch: values + (0.3 * gate + 0.7 * gate.detach()) * branch,
    "partly detached": lambda gate, values, branch: values + (0.7 * gate + 0.3 * gate.detach()) * branch,
    "straight through": lambda gate, values, branch: values + (gate + (gate.round() - gate).detach()) * branch,
}


class Block(nn.Module):
    def __init__(self, alpha, form, branch):
        super().__init__()
        self.alpha, self.form, self.branch = nn.Parameter(torch.tensor(alpha)), FORMS[form], branch_of(branch)

    def forward(self, values):
        return self.form(self.alpha, values, self.branch(values))


class Model(nn.Module):
    def __init__(self, alpha=0.3, form="plain", branch="real"):
        super().__init__()
        self.into, self.head = nn.Linear(4, DIM), nn.Linear(DIM, 1)
        self.block = Block(alpha, form, branch)

    def forward(self, inputs):
        return self.head(self.block(self.into(inputs)))


def batch_of(seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(16, 4, generator=generator), torch.randn(16, 1, generator=generator)


def loss(module, batch):
    return functional.mse_loss(module(batch[0]), batch[1])


def adamw(model, decay=0.1, rate=1e-3):
    return torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=decay)


def ask(seed, *args, decay=0.1, names="*alpha", **settings):
    model = seeded(seed, Model, *args)
    return gates(model, loss, batch_of(seed), names=names, optimiser=adamw(model, decay), **settings)


def states(result):
    return result.table().set_index("gate")["state"].to_dict()


def severities(result):
    return [finding.severity for finding in result.findings]


# The faults and their healthy twins.


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("alpha", "form", "branch"),
    [
        (0.3, "plain", "real"),
        (0.0, "plain", "real"),
        (-0.3, "plain", "real"),
        (0.3, "convex", "real"),
        # What is mixed with zeros still scales the rest.
        (0.3, "convex", "zeros"),
        (0.0, "softplus", "real"),
        (0.5, "sigmoid", "real"),
        (2.0, "sigmoid", "real"),
        (0.0, "tanh", "real"),
    ],
)
def test_a_living_gate_is_silent(alpha, form, branch, seed):
    result = ask(seed, alpha, form, branch)
    assert result.ok is True
    assert result.findings == ()
    assert states(result) == {"block.alpha": "learning"}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_a_gate_before_a_branch_of_zeros_is_dead(alpha, seed):
    result = ask(seed, alpha, "plain", "zeros")
    assert result.ok is False
    assert states(result) == {"block.alpha": "dead"}
    assert severities(result)[0] == "fault"
    assert result.measures["block.alpha"]["branch"] == 0
    # Decay alone moves it, and only if it is not zero.
    assert result.measures["block.alpha"]["by_decay"] == (1.0 if alpha else None)


@pytest.mark.parametrize("seed", SEEDS)
def test_gate_and_branch_that_both_start_at_zero_wait_for_each_other_and_either_alone_wakes_up(seed):
    stuck = ask(seed, 0.0, "plain", "zero init")
    assert stuck.ok is False
    assert states(stuck) == {"block.alpha": "dead"}
    asleep = ask(seed, 0.3, "plain", "zero init")
    assert asleep.ok is True
    assert states(asleep) == {"block.alpha": "asleep"}
    assert severities(asleep) == ["note"]
    assert ask(seed, 0.0, "plain", "real").findings == ()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("form", ["guarded", "relu"])
@pytest.mark.parametrize(
    ("alpha", "state", "severity"),
    [(0.3, "absorbing", "warning"), (0.0, "absorbed", "fault"), (-0.3, "absorbed", "fault")],
)
def test_a_guard_makes_zero_absorbing(alpha, state, severity, form, seed):
    result = ask(seed, alpha, form)
    assert result.ok is False
    assert states(result) == {"block.alpha": state}
    assert severities(result)[0] == severity


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("alpha", "state", "severity"), [(0.3, "learning", "note"), (0.0, "absorbed", "fault")])
def test_a_guard_against_zero_alone_is_a_fault_only_for_a_gate_that_starts_there(alpha, state, severity, seed):
    result = ask(seed, alpha, "not zero")
    assert states(result) == {"block.alpha": state}
    assert severities(result) == [severity]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("form", ["detached", "rounded"])
def test_a_gate_that_the_loss_feels_and_no_gradient_reaches_is_detached(form, seed):
    result = ask(seed, 0.3, form)
    assert result.ok is False
    assert states(result) == {"block.alpha": "detached"}
    assert severities(result)[0] == "fault"


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("form", "severity"), [("partly detached", "note"), ("mostly detached", "warning"), ("straight through", "warning")]
)
def test_a_gradient_that_is_not_the_losss_is_told(form, severity, seed):
    result = ask(seed, 0.3, form)
    assert states(result) == {"block.alpha": "learning"}
    assert severities(result) == [severity]
    assert "not that of the loss" in result.findings[0].meaning


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("form", "inside", "outside"), [("sigmoid", 2.0, 6.0), ("tanh", 0.5, 4.0)])
def test_a_saturated_gate_is_a_warning(form, inside, outside, seed):
    assert ask(seed, inside, form, decay=0.0).ok is True
    result = ask(seed, outside, form, decay=0.0)
    assert result.ok is False
    assert severities(result) == ["warning"]
    assert "slope" in result.findings[0].measured


@pytest.mark.parametrize("seed", SEEDS)
def test_a_gate_moved_mostly_by_decay_is_a_warning_and_without_decay_silent(seed):
    def weak(module, batch):
        return 1e-3 * loss(module, batch)

    model = seeded(seed, Model)
    for decay, ok in ((0.1, False), (0.0, True)):
        optimiser = torch.optim.SGD(model.parameters(), lr=1e-2, weight_decay=decay)
        result = gates(model, weak, batch_of(seed), names="block.alpha", optimiser=optimiser)
        assert result.ok is ok
        assert result.measures["block.alpha"]["by_decay"] == pytest.approx(float(not ok), abs=0.1)
        assert severities(result) == ([] if ok else ["warning"])


@pytest.mark.parametrize("seed", SEEDS)
def test_a_gate_that_no_step_can_move_is_a_fault(seed):
    model = seeded(seed, Model)
    rest = [parameter for name, parameter in model.named_parameters() if "alpha" not in name]
    result = gates(model, loss, batch_of(seed), names="*alpha", optimiser=torch.optim.AdamW(rest))
    assert [(f.severity, f.where) for f in result.findings] == [("fault", "block.alpha")]
    assert "optimiser does not hold it" in result.findings[0].measured
    model.block.alpha.requires_grad_(False)
    frozen = gates(model, loss, batch_of(seed), names="*alpha")
    assert "Requires_grad is False" in frozen.findings[0].measured
    assert states(frozen) == {"block.alpha": "frozen"}
    assert frozen.measures["block.alpha"]["gradient"] != 0
    assert not model.block.alpha.requires_grad


# Numbers, by hand.


@pytest.mark.parametrize("form", ["plain", "sigmoid", "tanh"])
def test_branch_opening_slope_and_gradient_are_those_of_a_hand_count(form):
    model = seeded(0, Model, 0.7, form)
    inputs = batch_of(0)[0]
    measures = gates(model, loss, batch_of(0), names="block.alpha").measures["block.alpha"]
    hidden = model.into(inputs)
    branch = model.block.branch(hidden).square().mean().sqrt().item()
    whole = model.block(hidden).square().mean().sqrt().item()
    opening = {"plain": 0.7, "sigmoid": 1 / (1 + math.exp(-0.7)), "tanh": math.tanh(0.7)}[form]
    slope = {"plain": None, "sigmoid": 4 * opening * (1 - opening), "tanh": 1 - opening**2}[form]
    assert measures["branch"] == pytest.approx(branch, rel=1e-5)
    assert measures["opening"] == pytest.approx(opening, rel=1e-5)
    assert measures["share"] == pytest.approx(opening * branch / whole, rel=1e-5)
    assert measures["slope"] == (None if slope is None else pytest.approx(slope, rel=1e-5))
    (gradient,) = torch.autograd.grad(loss(model, batch_of(0)), model.block.alpha)
    assert measures["gradient"] == pytest.approx(gradient.item(), rel=1e-4)
    assert measures["difference"] == pytest.approx(gradient.item(), rel=1e-4)


@pytest.mark.parametrize("kind", ["SGD", "Adam", "AdamW"])
def test_the_share_of_decay_is_that_of_two_trainings_by_hand(kind):
    def trained(decay):
        model = seeded(3, Model)
        own, rest = [model.block.alpha], [p for n, p in model.named_parameters() if n != "block.alpha"]
        groups = [{"params": rest, "weight_decay": 0.3}, {"params": own, "weight_decay": decay}]
        optimiser = getattr(torch.optim, kind)(groups, lr=1e-2)
        for step in range(6):
            optimiser.zero_grad()
            loss(model, batch_of(step % 2)).backward()
            optimiser.step()
        return model.block.alpha.item() - 0.3

    model = seeded(3, Model)
    optimiser = getattr(torch.optim, kind)(model.parameters(), lr=1e-2, weight_decay=0.3)
    result = gates(
        model, loss, batch_of(0), names="*alpha", optimiser=optimiser, further_batches=[batch_of(1)], steps=6
    )
    both, alone = trained(0.3), trained(0.0)
    assert result.measures["block.alpha"]["moved"] == pytest.approx(both, rel=1e-3)
    share = abs(both - alone) / (abs(both - alone) + abs(alone))
    assert result.measures["block.alpha"]["by_decay"] == pytest.approx(share, rel=1e-2)


def test_momentum_that_the_optimiser_already_holds_counts():
    model = seeded(0, Model)
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)
    loss(model, batch_of(0)).backward()
    optimiser.step()
    optimiser.state[model.block.alpha]["momentum_buffer"].fill_(50.0)
    start = model.block.alpha.item()
    result = gates(model, loss, batch_of(0), names="*alpha", optimiser=optimiser, steps=1)
    assert result.measures["block.alpha"]["moved"] == pytest.approx(-0.45, rel=0.1)
    assert model.block.alpha.item() == start


# Gates a head, gates behind a projection, several at once.


class Heads(nn.Module):
    """Each head through its own gate, raw or as the bias of a projection before a sigmoid; some heads give zeros."""

    def __init__(self, how, values=(0.5, 0.5, 0.5), silent=()):
        super().__init__()
        self.mix, self.out, self.how, self.silent = nn.Linear(DIM, DIM), nn.Linear(DIM, 1), how, list(silent)
        if how == "raw":
            self.gate = nn.Parameter(torch.tensor(values).view(1, HEADS, 1))
        else:
            self.to_heads = nn.Linear(DIM, HEADS)
            with torch.no_grad():
                self.to_heads.weight.mul_(0.1)
                self.to_heads.bias.copy_(torch.tensor(values))

    def forward(self, values):
        heads = self.mix(values).unflatten(-1, (HEADS, -1))
        heads = heads.index_fill(1, torch.tensor(self.silent, dtype=torch.long), 0.0)
        opening = self.gate if self.how == "raw" else self.to_heads(values).sigmoid().unsqueeze(-1)
        return self.out((opening * heads).flatten(1))


def head_loss(module, batch):
    return functional.mse_loss(module(batch), batch.sum(1, keepdim=True))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("how", "name"), [("raw", "gate"), ("projected", "to_heads.bias")])
def test_one_dead_head_is_told_from_the_living_ones(how, name, seed):
    batch = torch.randn(8, DIM, generator=torch.Generator().manual_seed(seed))
    healthy = gates(seeded(seed, Heads, how), head_loss, batch, names=name)
    assert healthy.ok is True
    result = gates(seeded(seed, Heads, how, silent=[1]), head_loss, batch, names=name)
    assert result.ok is False
    assert states(result) == {f"{name}[{h}]": "dead" if h == 1 else "learning" for h in range(HEADS)}
    assert [finding.where for finding in result.findings] == [f"{name}[1]"]


def test_a_bias_of_two_before_a_sigmoid_is_read_on_the_batch():
    model = seeded(0, Heads, "projected", (2.0, 0.0, -6.0))
    batch = torch.randn(8, DIM, generator=torch.Generator().manual_seed(0))
    result = gates(model, head_loss, batch, names="to_heads.bias")
    opening = model.to_heads(batch).sigmoid()
    table = result.table()
    assert table["opening"].tolist() == pytest.approx(opening.mean(0).tolist(), rel=1e-5)
    slopes = (400 * opening * (1 - opening)).mean(0).tolist()
    assert table["slope, % of steepest"].tolist() == pytest.approx(slopes, rel=1e-5)
    assert [finding.where for finding in result.findings] == ["to_heads.bias[2]"]


def test_a_sigmoid_further_down_the_model_is_not_the_gates():
    class Late(nn.Module):
        def __init__(self):
            super().__init__()
            self.alpha, self.layer = nn.Parameter(torch.tensor(0.5)), nn.Linear(DIM, DIM)

        def forward(self, values):
            return self.layer(values + self.alpha * values.tanh()).sigmoid()

    result = gates(Late(), lambda module, batch: module(batch).mean(), drawn(0, 4, DIM), names="alpha")
    assert result.measures["alpha"]["squash"] == ""
    assert result.measures["alpha"]["slope"] is None


def test_branches_names_the_submodule_that_a_gate_multiplies():
    model, batch = seeded(0, Model), batch_of(0)
    named = gates(model, loss, batch, names="*alpha", branches={"block.alpha": "block.branch"})
    assert named.measures["block.alpha"]["branch"] == pytest.approx(
        model.block.branch(model.into(batch[0])).square().mean().sqrt().item(), rel=1e-5
    )


def test_gates_in_a_list_of_parameters_are_measured_where_they_act():
    class Listed(nn.Module):
        def __init__(self):
            super().__init__()
            self.mixes = nn.ParameterList([nn.Parameter(torch.tensor(0.5)) for _ in range(2)])
            self.first, self.second = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)

        def forward(self, values):
            return values + self.mixes[0] * self.first(values) + self.mixes[1] * self.second(values)

    model, batch = Listed(), drawn(0, 4, DIM)
    result = gates(model, lambda module, batch: module(batch).square().mean(), batch, names="mixes.*")
    for place, layer in enumerate((model.first, model.second)):
        expected = layer(batch).square().mean().sqrt().item()
        assert result.measures[f"mixes.{place}"]["branch"] == pytest.approx(expected, rel=1e-5)


# Random models, models in their own precision, optimisers that cannot step.


@pytest.mark.parametrize("seed", SEEDS)
def test_dropout_and_running_statistics_raise_no_alarm(seed):
    def build():
        model = Model()
        model.into = nn.Sequential(nn.Linear(4, DIM), nn.BatchNorm1d(DIM), nn.Dropout(0.3))
        return model

    model = seeded(seed, build)
    assert gates(model, loss, batch_of(seed), names="*alpha", optimiser=adamw(model)).ok is True


def test_the_answer_does_not_hang_on_one_draw_of_dropout():
    """On this model single draws put the share of decay anywhere from 7 to 54 %; their mean is settled near 12 %."""

    def build():
        model = Model()
        model.into = nn.Sequential(nn.Linear(4, DIM), nn.BatchNorm1d(DIM), nn.Dropout(0.3))
        return model

    model, answers = seeded(2, build), []
    for draw in range(4):
        torch.manual_seed(draw)
        answers.append(gates(model, loss, batch_of(2), names="*alpha", optimiser=adamw(model), mostly_decay=0.3))
    assert {answer.ok for answer in answers} == {True}
    least, most = next(iter(answers[0].measures.values()))["decay_range"]
    assert 0.05 < least < most < 0.2


def test_a_share_of_decay_that_one_draw_decides_is_left_open(monkeypatch):
    from casestudies_lib.probes.gating import probe

    model = seeded(0, lambda: Model())
    ask = {"names": "*alpha", "optimiser": adamw(model)}
    assert gates(model, loss, batch_of(0), **ask).ok is True
    monkeypatch.setattr(probe, "_decay_range", lambda *_: (0.7, 0.8))
    result = gates(model, loss, batch_of(0), **ask)
    assert result.ok is None
    assert "depends on the random numbers that the loss draws" in result.reason


@pytest.mark.parametrize("seed", SEEDS)
def test_a_model_that_insists_on_single_precision_is_judged_in_it(seed):
    class Single(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, values):
            if values.dtype != torch.float32:
                raise TypeError("single precision only")
            return self.inner(values)

    for (alpha, form, branch), ok in {
        (0.3, "plain", "real"): True,
        (0.3, "plain", "zeros"): False,
        (0.0, "guarded", "real"): False,
        (0.3, "detached", "real"): False,
    }.items():
        model = Single(seeded(seed, Model, alpha, form, branch))
        assert gates(model, loss, batch_of(seed), names="*alpha").ok is ok


def test_a_dead_gate_is_unknown_where_no_step_can_be_tried():
    model = seeded(0, Model, 0.3, "plain", "zeros")
    result = gates(model, loss, batch_of(0), names="*alpha", optimiser=torch.optim.LBFGS(model.parameters()))
    assert result.ok is None
    assert "LBFGS could not step" in result.reason
    living = seeded(0, Model)
    optimiser = torch.optim.LBFGS(living.parameters())
    assert gates(living, loss, batch_of(0), names="*alpha", optimiser=optimiser).ok is True
