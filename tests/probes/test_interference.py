"""The probe measures who sends gradient where, finds conflict and sums that fail, and leaves the model as it was."""

import json
from types import SimpleNamespace

import pytest
import torch
from registry import drawn
from torch import nn
from torch.nn import functional

from casestudies_lib.probes import ProbeFault, ProbeInputError, interference

SEEDS = range(10)


class TwoHeads(nn.Module):
    """A small encoder of torch's own; head "first" reads token 0, head "rest" reads the others."""

    def __init__(self, *, detach: bool = False, dropout: float = 0.0):
        super().__init__()
        self.project = nn.Linear(3, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=dropout, batch_first=True)
        self.trunk = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.first, self.rest = nn.Linear(8, 1), nn.Linear(8, 1)
        self.detach = detach

    def forward(self, inputs):
        hidden = self.trunk(self.project(inputs))
        context = hidden[:, 0].detach() if self.detach else hidden[:, 0]
        return self.first(context).squeeze(-1), self.rest(hidden[:, 1:]).squeeze(-1)


def seeded(seed, build, **settings):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build(**settings)


def batch_of(seed):
    return torch.randn(16, 5, 3, generator=torch.Generator().manual_seed(seed))


def agreeing(module, batch):
    """Both heads learn the same thing from the same place."""
    first, rest = module(batch)
    target = batch.sum((1, 2)) + 4
    one, two = functional.mse_loss(first, target), functional.mse_loss(rest.mean(1), target)
    return {"first": one, "rest": two, "total": one + two}


def parts(module, batch):
    """The two losses of `agreeing` without their sum."""
    return {name: loss for name, loss in agreeing(module, batch).items() if name != "total"}


def opposed(module, batch):
    """One number is pulled up and down."""
    hidden = module.project(batch)
    return {"up": (hidden - 5).square().mean(), "down": (hidden + 5).square().mean()}


def settled(seed):
    """A model that has taken a few steps: both heads still have far to go, and the same way."""
    module = seeded(seed, TwoHeads)
    optimiser = torch.optim.Adam(module.parameters(), lr=1e-2)
    for step in range(8):
        optimiser.zero_grad()
        agreeing(module, batch_of(100 * seed + step))["total"].backward()
        optimiser.step()
    return module.eval()


# The fault and its healthy twins.


@pytest.mark.parametrize("seed", SEEDS)
def test_losses_that_pull_apart_are_a_fault(seed):
    result = interference(seeded(seed, TwoHeads), opposed, batch_of(seed), layers=["project"])
    assert result.ok is False
    assert [(finding.severity, finding.where) for finding in result.findings] == [("fault", "up and down")]
    with pytest.raises(ProbeFault):
        result.raise_if_found()


@pytest.mark.parametrize("seed", SEEDS)
def test_losses_that_agree_are_left_alone_and_a_heavy_weight_drowns_the_other(seed):
    module = settled(seed)
    healthy = interference(module, agreeing, batch_of(7), weights={"first": 1.0, "rest": 1.0}, total="total")
    assert healthy.ok is True
    assert {finding.severity for finding in healthy.findings} == {"note"}
    heavy = interference(module, parts, batch_of(7), weights={"first": 1e6, "rest": 1.0})
    assert heavy.ok is False
    assert ("warning", "rest") in [(finding.severity, finding.where) for finding in heavy.findings]


@pytest.mark.parametrize("seed", SEEDS)
def test_parts_that_do_not_add_up_to_the_total_are_a_fault(seed):
    module = settled(seed)
    result = interference(module, agreeing, batch_of(seed), weights={"first": 0.5, "rest": 1.0}, total="total")
    assert ("fault", "total") in [(finding.severity, finding.where) for finding in result.findings]
    assert result.measures["parts_missing_from_total"] > 0.01


def test_dropout_does_not_break_the_sum_because_all_parts_see_one_forward_pass():
    module = seeded(0, TwoHeads, dropout=0.5).train()
    result = interference(module, agreeing, batch_of(0), weights={"first": 1.0, "rest": 1.0}, total="total")
    assert result.measures["parts_missing_from_total"] < 1e-5


def test_a_zero_that_the_wiring_makes_is_said_to_be_one():
    result = interference(
        seeded(0, TwoHeads).eval(), agreeing, batch_of(0), weights={"first": 1, "rest": 1}, total="total"
    )
    assert result.measures["zero_by_construction"] == {
        "trunk.layers.1: first": [1, 2, 3, 4],
        "trunk.layers.1: rest": [0],
    }
    assert "1–4" in next(finding for finding in result.findings if "first" in finding.where).measured
    assert all("Zero by construction" in finding.meaning for finding in result.findings if finding.severity == "note")


# The numbers, against autograd asked one by one.


def test_norms_by_position_and_cosines_are_those_that_autograd_gives_one_by_one():
    module, batch = seeded(3, TwoHeads).eval(), batch_of(3)
    measures = interference(module, parts, batch).measures
    hidden = module.project(batch)
    middle = module.trunk.layers[0](hidden)
    last = module.trunk.layers[1](middle)
    loss = functional.mse_loss(module.first(last[:, 0]).squeeze(-1), batch.sum((1, 2)) + 4)
    for layer, output in (("project", hidden), ("trunk.layers.0", middle), ("trunk.layers.1", last)):
        expected = torch.autograd.grad(loss, output, retain_graph=True)[0].square().sum((0, 2)).sqrt()
        assert measures["positions"][layer]["first"] == pytest.approx(expected.tolist(), rel=1e-4, abs=1e-9)
    shared = [*module.project.parameters(), *module.trunk.parameters()]
    flat = []
    for name in ("first", "rest"):
        gradients = torch.autograd.grad(agreeing(module, batch)[name], shared)
        flat.append(torch.cat([gradient.flatten() for gradient in gradients]))
    cosine = float(torch.cosine_similarity(flat[0], flat[1], dim=0))
    assert measures["cosine"]["all shared parameters: first and rest"] == pytest.approx(cosine, rel=1e-4)
    assert measures["norms"]["all shared parameters: first and rest"] == pytest.approx(
        [float(f.norm()) for f in flat], rel=1e-4
    )


def test_a_cosine_known_by_hand():
    class Line(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Linear(1, 2, bias=False)

        def forward(self, batch):
            return self.scale(batch)

    def losses(module, batch):
        out = module(batch).sum((0, 1))
        return {"a": out[0] * 3.0 + out[1] * 4.0, "b": out[0] * 1.0, "c": -out[1]}

    measures = interference(Line(), losses, torch.ones(1, 3, 1)).measures["cosine"]
    assert measures["all shared parameters: a and b"] == pytest.approx(0.6)
    assert measures["all shared parameters: a and c"] == pytest.approx(-0.8)
    assert measures["all shared parameters: b and c"] == pytest.approx(0.0)


# Models of others.


def test_outputs_in_tuples_and_dictionaries_are_looked_into():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.unit = nn.GRU(4, 4, batch_first=True)

        def forward(self, inputs):
            return {"hidden": self.unit(inputs)[0], "note": "nothing"}

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.block, self.head = nn.Embedding(9, 4), Block(), nn.Linear(4, 2)

        def forward(self, tokens):
            return SimpleNamespace(logits=self.head(self.block(self.embed(tokens))["hidden"]))

    def losses(module, tokens):
        logits = module(tokens).logits
        return {"early": logits[:, 0].square().mean(), "late": (logits[:, -1] - 1).square().mean()}

    tokens = torch.arange(12).reshape(2, 6) % 9
    positions = interference(Model(), losses, tokens).measures["positions"]
    assert set(positions) == {"embed", "block", "head"}
    assert [norm > 0 for norm in positions["embed"]["early"]] == [True, *[False] * 5]
    assert all(norm > 0 for norm in positions["embed"]["late"])


def test_another_axis_of_positions_may_be_chosen():
    module = nn.Sequential(nn.Conv1d(2, 3, 3, padding=1), nn.ReLU(), nn.Conv1d(3, 3, 3, padding=1))

    def losses(model, batch):
        out = model(batch)
        return {"left": out[..., 0].square().mean(), "right": (out[..., -1] - 1).square().mean()}

    result = interference(module, losses, drawn(0, 4, 2, 7), position_axis=2)
    assert [norm > 0 for norm in result.measures["positions"]["2"]["left"]] == [True, *[False] * 6]
    assert not any("last axis" in finding.measured for finding in result.findings)


@pytest.mark.parametrize("layers", [None, ["trunk.layers.0"]])
def test_features_are_not_taken_for_positions(layers):
    complaint = r"position_axis is 2, the last axis of .* shape \(16, 5, 8\).*Allowed are 1 to 1, such as 1"
    with pytest.raises(ProbeInputError, match=complaint):
        interference(seeded(0, TwoHeads), agreeing, batch_of(0), position_axis=2, layers=layers)


def test_a_convolution_beside_linear_layers_does_not_hide_their_features():
    module = seeded(0, lambda: nn.Sequential(nn.Conv1d(5, 5, 1), nn.Linear(3, 3)))

    def losses(model, batch):
        out = model(batch)
        return {"a": out.square().mean(), "b": (out - 1).square().mean()}

    with pytest.raises(ProbeInputError, match=r"layer '1'.*a Linear, keeps features there"):
        interference(module, losses, batch_of(0), position_axis=2)
    for name in ("0", ""):  # a convolution alone, and a block that holds one
        chosen = interference(module, losses, batch_of(0), position_axis=2, layers=[name])
        assert set(chosen.measures["positions"]) == {name}


def test_a_last_axis_of_which_nothing_tells_earns_a_note():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.by = nn.Parameter(torch.ones(3))

        def forward(self, inputs):
            return inputs * self.by

    def losses(model, batch):
        out = model(batch)
        return {"a": out.square().mean(), "b": (out + 0.1).square().mean()}

    result = interference(nn.Sequential(Scale(), Scale()), losses, batch_of(0), position_axis=2)
    notes = [finding for finding in result.findings if "last axis" in finding.measured]
    assert [(note.severity, note.where) for note in notes] == [("note", "0, 1")]
    assert "(16, 5, 3)" in notes[0].measured
    usual = interference(nn.Sequential(Scale(), Scale()), losses, batch_of(0))
    assert not any("last axis" in finding.measured for finding in usual.findings)


def test_a_gradient_that_is_not_finite_is_a_fault_and_no_nan_in_the_table():
    module = nn.Linear(2, 2)

    def losses(model, batch):
        out = model(batch)
        return {"a": out.square().mean(), "b": (out - out.detach()).clamp(min=0).sqrt().mean()}

    result = interference(module, losses, drawn(0, 3, 4, 2), layers=[""])
    assert result.ok is False
    assert "nan or infinity" in result.findings[0].measured
    assert "NaN" not in json.dumps(result.to_dict())


# What it cannot work with.


def test_losses_that_share_no_parameter_are_refused():
    with pytest.raises(ProbeInputError, match=r"'first' and 'rest' share no parameters that both teach.*detach"):
        interference(seeded(0, TwoHeads, detach=True), parts, batch_of(0))


def test_a_loss_that_is_zero_everywhere_is_named_and_no_detach_is_looked_for():
    def losses(module, batch):
        both = parts(module, batch)
        return {"first": both["first"], "rest": both["rest"] * 0}

    with pytest.raises(ProbeInputError, match="loss 'rest': its gradient is zero everywhere") as caught:
        interference(seeded(0, TwoHeads), losses, batch_of(0))
    assert "detach" not in str(caught.value)


def test_a_loss_that_reaches_no_parameter_is_not_said_to_have_a_gradient_of_zero():
    def losses(module, batch):
        return {"first": parts(module, batch)["first"], "apart": torch.ones(2, requires_grad=True).sum()}

    with pytest.raises(ProbeInputError, match="share no parameters"):
        interference(seeded(0, TwoHeads), losses, batch_of(0))
