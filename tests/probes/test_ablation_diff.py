"""The probe lists what differs, misses nothing that was expected, and is silent where a pair differs as it should."""

import pytest
import torch
from torch import nn

from casestudies_lib.probes import ablation_diff

SEEDS = range(10)
DIM = 6


def seeded(seed, build, *args, **settings):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build(*args, **settings)


class Block(nn.Module):
    """A residual feed-forward; `extra` is a gated branch: real, returning zeros, never called, or absent."""

    def __init__(self, ratio=2, extra=None, alpha=0.3, slope=0.0, dropout=0.0):
        super().__init__()
        self.norm = nn.LayerNorm(DIM)
        self.up, self.act, self.down = nn.Linear(DIM, ratio * DIM), nn.LeakyReLU(slope), nn.Linear(ratio * DIM, DIM)
        self.drop, self.extra = nn.Dropout(dropout), extra
        if extra:
            self.side, self.alpha = nn.Linear(DIM, DIM), nn.Parameter(torch.tensor(alpha))

    def forward(self, values):
        out = values + self.drop(self.down(self.act(self.up(self.norm(values)))))
        if self.extra in ("real", "doubled"):
            out = out + self.alpha * self.side(values) * (2 if self.extra == "doubled" else 1)
        elif self.extra == "zeros":
            out = out + self.alpha * torch.zeros_like(self.side(values))
        return out


class Model(nn.Module):
    def __init__(self, **settings):
        super().__init__()
        self.into = nn.Linear(4, DIM)
        self.blocks = nn.ModuleList(Block(**settings) for _ in range(2))
        self.head = nn.Linear(DIM, 3)

    def forward(self, values):
        values = self.into(values)
        for block in self.blocks:
            values = block(values)
        return self.head(values)


def inputs_of(seed):
    return torch.randn(5, 4, generator=torch.Generator().manual_seed(seed))


def compare(seed, first, second, expected, **settings):
    models = seeded(seed, Model, **first), seeded(seed + 100, Model, **second)
    return ablation_diff(*models, inputs=inputs_of(seed), expected=expected, **settings)


def severities(result):
    return [(finding.severity, finding.where) for finding in result.findings]


SIDE = ["blocks.*.side", "blocks.*.alpha"]


# Pairs that differ as they should, and pairs that do not.


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ({}, {"extra": "real"}, SIDE),
        ({"extra": "real"}, {}, SIDE),
        ({}, {"ratio": 3}, ["blocks.*.up", "blocks.*.down"]),
        ({}, {"slope": 0.2}, "blocks.*.act"),
        ({}, {}, []),
        ({"extra": "real"}, {"extra": "doubled"}, ["blocks"]),
    ],
)
def test_a_pair_that_differs_as_expected_is_silent(first, second, expected, seed):
    result = compare(seed, first, second, expected)
    assert result.ok is True
    assert result.findings == ()


@pytest.mark.parametrize("seed", SEEDS)
def test_a_part_that_was_to_differ_and_does_not_is_a_fault(seed):
    result = compare(seed, {}, {}, ["blocks.*.up"])
    assert result.ok is False
    assert severities(result) == [("fault", "blocks.*.up")]
    assert result.measures["expected"] == {"blocks.*.up": "does not differ"}
    # The row is named after a wider feed-forward and changes something else.
    other = compare(seed, {}, {"extra": "real"}, ["blocks.*.up"])
    assert severities(other)[0] == ("fault", "blocks.*.up")
    assert other.findings[1].severity == "warning"
    assert "blocks.0.side" in other.measures["unexpected"]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_part_that_is_in_neither_model_is_a_fault_and_near_names_are_told(seed):
    result = compare(seed, {}, {"extra": "real"}, [*SIDE, "blocks.0.sied.weight"])
    assert severities(result) == [("fault", "blocks.0.sied.weight")]
    assert "blocks.0.side.weight" in result.findings[0].measured


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("how", ["zeros", "never called"])
def test_a_part_that_is_built_and_changes_no_output_is_a_fault(how, seed):
    result = compare(seed, {}, {"extra": how}, SIDE)
    assert result.ok is False
    assert [entry for entry in severities(result) if entry[0] == "fault"] == [("fault", name) for name in SIDE]
    assert result.measures["expected"] == dict.fromkeys(SIDE, "changes no output")
    assert result.measures["output_difference"] == 0
    inactive = [f"blocks.{place}.side" for place in range(2)] if how == "never called" else []
    assert result.measures["inactive_second"] == inactive


@pytest.mark.parametrize("seed", SEEDS)
def test_a_part_behind_a_gate_at_zero_is_a_note_alone(seed):
    result = compare(seed, {}, {"extra": "real", "alpha": 0.0}, SIDE)
    assert result.ok is True
    assert severities(result) == [("note", "outputs")]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("second", "where"),
    [
        ({"extra": "real", "slope": 0.2}, "blocks.0.act"),
        ({"extra": "real", "ratio": 3}, "blocks.0.up"),
    ],
)
def test_a_difference_that_nobody_named_is_a_warning(second, where, seed):
    result = compare(seed, {}, second, SIDE)
    assert result.ok is False
    assert [finding.severity for finding in result.findings] == ["warning"]
    assert where in result.measures["unexpected"]
    assert all("side" not in name for name in result.measures["unexpected"])


@pytest.mark.parametrize("seed", SEEDS)
def test_a_difference_in_code_alone_is_found_in_the_innermost_submodule(seed):
    result = compare(seed, {"extra": "real"}, {"extra": "doubled"}, [])
    assert result.ok is False
    assert result.measures["behaving_differently"] == ["blocks.0", "blocks.1"]
    assert result.measures["unexpected"] == ["blocks.0", "blocks.1"]
    blind = ablation_diff(seeded(0, Model, extra="real"), seeded(1, Model, extra="doubled"), expected=[])
    assert blind.ok is True


def test_a_difference_in_the_outermost_forward_is_found_too():
    class Scaled(Model):
        def forward(self, values):
            return 2 * super().forward(values)

    result = ablation_diff(Model(), Scaled(), inputs=inputs_of(0), expected=[])
    assert result.measures["unexpected"] == [""]
    assert severities(result) == [("warning", "the whole model")]


# Numbers, by hand.


def test_parameters_are_counted_and_named():
    result = ablation_diff(Model(), Model(ratio=3, extra="real"))
    plain = 4 * DIM + DIM + 2 * (2 * DIM + DIM * 2 * DIM + 2 * DIM + 2 * DIM * DIM + DIM) + 3 * DIM + 3
    wider = plain + 2 * (DIM * DIM + DIM + DIM * DIM) + 2 * (DIM * DIM + DIM + 1)
    assert (result.measures["parameters_first"], result.measures["parameters_second"]) == (plain, wider)
    reshaped = [f"blocks.{place}.{name}" for place in range(2) for name in ("up.weight", "up.bias", "down.weight")]
    assert result.measures["reshaped"] == reshaped
    assert set(result.measures["only_second"]) == {
        f"blocks.{place}.{name}" for place in range(2) for name in ("alpha", "side.weight", "side.bias")
    }
    row = result.table().set_index(["name", "kind"]).loc[("blocks.0.up.weight", "parameter")]
    assert (row["first"], row["second"]) == ("12 × 6", "18 × 6")


def test_the_difference_of_outputs_is_that_of_shared_weights():
    first, second = seeded(0, Model, slope=0.0), seeded(1, Model, slope=0.2)
    result = ablation_diff(first, second, inputs=inputs_of(0))
    twin = seeded(1, Model, slope=0.2)
    twin.load_state_dict(first.state_dict())
    one, other = first.double()(inputs_of(0).double()), twin.double()(inputs_of(0).double())
    expected = (one - other).abs().max() / one.square().mean().sqrt()
    assert result.measures["output_difference"] == pytest.approx(expected.item(), rel=1e-6)


def test_values_count_only_if_asked_for():
    first, second = seeded(0, Model), seeded(0, Model)
    with torch.no_grad():
        second.head.bias.fill_(2.0)
    assert ablation_diff(first, second, inputs=inputs_of(0), expected=[]).ok is True
    assert ablation_diff(first, second, expected=["head.bias"], values=True).ok is True
    assert ablation_diff(first, second, expected=[], values=True).measures["unexpected"] == ["head.bias"]


def test_a_frozen_parameter_is_a_difference():
    second = Model()
    second.head.weight.requires_grad_(False)
    result = ablation_diff(Model(), second, inputs=inputs_of(0), expected=["head.weight"])
    assert result.ok is True
    assert ablation_diff(Model(), second, expected=[]).measures["unexpected"] == ["head.weight"]


# Foreign models.


@pytest.mark.parametrize("seed", SEEDS)
def test_a_transformer_layer_with_another_activation_or_none_more(seed):
    def encoder(activation="relu", layers=2):
        layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, activation, batch_first=True)
        return nn.ModuleDict({"encoder": nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)})

    def call(model, values):
        return model["encoder"](values)

    values = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(seed))
    pair = seeded(seed, encoder), seeded(seed + 1, encoder)
    assert ablation_diff(*pair, inputs=values, call=call, expected=[]).ok is True
    other = seeded(seed + 1, encoder, "gelu")
    result = ablation_diff(pair[0], other, inputs=values, call=call, expected=["encoder.layers.*"])
    assert result.ok is True
    assert result.measures["behaving_differently"] == ["encoder.layers.0", "encoder.layers.1"]
    deeper = ablation_diff(pair[0], seeded(0, encoder, layers=3), inputs=values, call=call, expected=["*.layers.2"])
    assert deeper.ok is True


def test_inputs_may_be_one_several_or_named():
    class Two(nn.Module):
        def __init__(self, sign):
            super().__init__()
            self.layer, self.sign = nn.Linear(2, 2), sign

        def forward(self, left, right=0.0):
            return {"out": [self.layer(left) + self.sign * right]}

    values = torch.ones(3, 2)
    for inputs, differs in ((values, False), ((values, values), True), ({"left": values, "right": values}, True)):
        result = ablation_diff(Two(1.0), Two(-1.0), inputs=inputs, expected=[])
        assert result.ok is not differs


def test_dropout_leaves_outputs_out_and_says_so():
    pair = seeded(0, Model, dropout=0.5), seeded(1, Model, dropout=0.5)
    result = ablation_diff(*pair, inputs=inputs_of(0), expected=[])
    assert result.ok is None
    assert "eval()" in result.reason
    missing = ablation_diff(*pair, inputs=inputs_of(0), expected=["blocks.*.up"])
    assert missing.ok is False
    assert ablation_diff(*(model.eval() for model in pair), inputs=inputs_of(0), expected=[]).ok is True


def test_models_that_insist_on_single_precision_are_compared_in_it():
    class Single(nn.Module):
        def __init__(self, **settings):
            super().__init__()
            self.inner = Model(**settings)

        def forward(self, values):
            if values.dtype != torch.float32:
                raise TypeError("single precision only")
            return self.inner(values)

    assert ablation_diff(Single(), Single(), inputs=inputs_of(0), expected=[]).ok is True
    assert ablation_diff(Single(), Single(slope=0.2), inputs=inputs_of(0), expected=["inner.*.act"]).ok is True


# What a model fills, ties, makes from its settings, or does in training alone.


class Cache:
    """Keys and values of earlier calls, by layer."""

    def __init__(self):
        self.kept = {}

    def extended(self, layer, values):
        self.kept[layer] = torch.cat([self.kept.get(layer, values[:, :0]), values], dim=1)
        return self.kept[layer]


class Attending(nn.Module):
    """Attends to all that its cache holds; the scores are summed in single precision, or not."""

    def __init__(self, layer, scale=1.0, weights=False, single=False):
        super().__init__()
        self.query, self.layer, self.scale = nn.Linear(DIM, DIM), layer, scale
        self.weights, self.single = weights, single

    def forward(self, values, cache):
        held = cache.extended(self.layer, values)
        scores = self.scale * self.query(values) @ held.mT
        weights = scores.softmax(-1, dtype=torch.float32 if self.single else None).to(values.dtype)
        return values + weights @ held, weights if self.weights else None


class Decoder(nn.Module):
    def __init__(self, **settings):
        super().__init__()
        self.layers = nn.ModuleList(Attending(layer, **settings) for layer in range(2))

    def forward(self, values, cache=None):
        cache = Cache() if cache is None else cache
        for layer in self.layers:
            values, _ = layer(values, cache)
        return values, cache


@pytest.mark.parametrize("given", [False, True])
def test_a_model_that_fills_a_cache_does_not_differ_from_itself_and_another_scale_is_seen(given):
    cache = Cache()
    if given:
        cache.extended(0, torch.ones(2, 1, DIM))
    values = torch.randn(2, 5, DIM, generator=torch.Generator().manual_seed(0))
    inputs = (values, cache) if given else values
    one, two, other = seeded(0, Decoder), seeded(1, Decoder), seeded(1, Decoder, scale=0.5)
    assert ablation_diff(one, two, inputs=inputs, expected=[]).findings == ()
    result = ablation_diff(one, other, inputs=inputs, expected=[])
    assert result.measures["behaving_differently"] == ["layers.0", "layers.1"]
    assert {layer: kept.shape[1] for layer, kept in cache.kept.items()} == ({0: 1} if given else {})


@pytest.mark.parametrize("settings", [{"weights": True}, {"single": True}])
@pytest.mark.parametrize("turned", [False, True])
def test_another_implementation_of_the_same_is_no_difference(settings, turned):
    pair = [seeded(0, Decoder), seeded(1, Decoder, **settings)]
    values = torch.randn(2, 5, DIM, generator=torch.Generator().manual_seed(0))
    assert ablation_diff(*(pair[::-1] if turned else pair), inputs=values, expected=[]).findings == ()


class Masked(nn.Module):
    """One attention to earlier positions alone: by a mask that its caller makes, or by a flag of its own."""

    def __init__(self, flag, factor=1.0):
        super().__init__()
        self.flag = flag
        self.into, self.attention = nn.Linear(DIM, DIM), MaskedAttention(flag)
        self.factor = factor

    def forward(self, values):
        length = values.shape[1]
        mask = None if self.flag else torch.ones(length, length, dtype=torch.bool).tril()
        return self.attention(self.factor * self.into(values), mask)


class MaskedAttention(nn.Module):
    def __init__(self, flag):
        super().__init__()
        self.flag = flag

    def forward(self, values, mask=None):
        flag = self.flag and mask is None
        return nn.functional.scaled_dot_product_attention(values, values, values, mask, is_causal=flag)


@pytest.mark.parametrize("flag", [False, True])
def test_a_part_that_takes_its_arguments_in_another_form_is_not_blamed_for_what_lies_before_it(flag):
    values = torch.randn(2, 5, DIM, generator=torch.Generator().manual_seed(0))
    assert ablation_diff(Masked(flag), Masked(not flag), inputs=values, expected=[]).ok is True
    changed = ablation_diff(Masked(flag), Masked(not flag, factor=2.0), inputs=values, expected=[])
    assert changed.measures["unexpected"] == [""]


class Turned(nn.Module):
    """Turns by angles that are made from the settings, after a norm with running statistics."""

    def __init__(self, base):
        super().__init__()
        self.into, self.norm = nn.Linear(4, DIM), nn.BatchNorm1d(DIM)
        self.turn = nn.Module()
        self.turn.register_buffer("angles", base ** -torch.linspace(0, 1, DIM))

    def forward(self, values):
        return self.norm(self.into(values)) * self.turn.angles.cos()


@pytest.mark.parametrize("seed", SEEDS)
def test_a_buffer_made_from_the_settings_is_a_difference_and_running_statistics_are_none(seed):
    first, second = seeded(seed, Turned, 100.0), seeded(seed + 1, Turned, 100.0)
    second(3 + inputs_of(seed))
    pair = first.eval(), second.eval()
    assert ablation_diff(*pair, inputs=inputs_of(seed), expected=[]).findings == ()
    other = seeded(seed, Turned, 1000.0).eval()
    assert ablation_diff(first, other, inputs=inputs_of(seed), expected=["turn"]).ok is True
    unasked = ablation_diff(first, other, inputs=inputs_of(seed), expected=[])
    assert unasked.measures["unexpected"] == ["turn.angles", ""]


class Tied(nn.Module):
    def __init__(self, tied):
        super().__init__()
        self.embed, self.head = nn.Embedding(7, DIM), nn.Linear(DIM, 7, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, ids):
        return self.head(self.embed(ids).tanh())


@pytest.mark.parametrize("tied", [False, True])
def test_tied_weights_against_untied_are_a_difference_under_either_name_and_nothing_else(tied):
    ids = torch.arange(7)[None]
    pair = seeded(0, Tied, tied), seeded(1, Tied, not tied)
    assert ablation_diff(*pair, inputs=ids, expected=["head"]).ok is True
    assert ablation_diff(*pair, inputs=ids, expected=["head.weight"]).ok is True
    result = ablation_diff(*pair, expected=["embed"])
    assert result.ok is True
    row = result.table().set_index("name").loc["head.weight"]
    assert {row["first"], row["second"]} == {"tied to embed.weight", "on its own"}
    assert ablation_diff(*pair, inputs=ids, expected=[]).ok is False
    assert ablation_diff(seeded(0, Tied, tied), seeded(1, Tied, tied), inputs=ids, expected=[]).findings == ()


class Switched(nn.Module):
    """Switches that no module shows: a scale, dropout by function, the weight of an auxiliary loss."""

    def __init__(self, scale=1.0, dropout=0.0, coefficient=0.0):
        super().__init__()
        self.into, self.gate, self.head = nn.Linear(4, DIM), nn.Linear(DIM, 2), nn.Linear(DIM, 1)
        self.scale, self.dropout, self.coefficient = scale, dropout, coefficient

    def forward(self, values):
        hidden = nn.functional.dropout(self.into(values).tanh(), self.dropout, self.training)
        self.auxiliary = self.coefficient * self.gate(hidden).square().mean()
        return self.scale * self.head(hidden)


def switched_loss(model, values):
    return model(values).square().mean() + model.auxiliary


@pytest.mark.parametrize("expected", ["", "*"])
def test_a_switch_that_no_module_shows_is_expected_of_the_whole_model(expected):
    inputs = inputs_of(0)
    assert ablation_diff(Switched(), Switched(scale=2.0), inputs=inputs, expected=expected).ok is True
    result = ablation_diff(Switched(), Switched(), inputs=inputs, expected=expected)
    assert severities(result) == [("fault", expected or "the whole model")]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("expected", ["", "gate"])
@pytest.mark.parametrize("setting", ["dropout", "coefficient"])
def test_a_switch_of_training_alone_is_seen_by_the_loss(setting, expected, seed):
    first, repeated, second = Switched(), Switched(), Switched(**{setting: 0.5})
    settings = {"inputs": inputs_of(seed), "loss": switched_loss}
    found = expected == "" or setting == "coefficient"
    assert ablation_diff(first.eval(), second.eval(), expected=expected, **settings).ok is found
    assert ablation_diff(first.eval(), second.eval(), expected=[], **settings).ok is False
    assert ablation_diff(first.eval(), repeated.eval(), expected=[], **settings).findings == ()
    assert ablation_diff(first.eval(), repeated.eval(), expected=expected, **settings).ok is False
    blind = ablation_diff(first.eval(), second.eval(), expected=[], inputs=inputs_of(seed))
    assert blind.ok is True


def test_two_models_that_draw_random_numbers_are_compared_by_their_losses_under_the_same():
    settings = {"inputs": inputs_of(0), "loss": switched_loss}
    pair = Switched(dropout=0.5), Switched(dropout=0.5)
    assert ablation_diff(*pair, expected=[], **settings).ok is True
    assert ablation_diff(pair[0], Switched(dropout=0.3), expected=[], **settings).ok is False


class Discarding(nn.Module):
    """A layer without parameters, the result of which is used or not."""

    def __init__(self, norm, used):
        super().__init__()
        self.layer, self.norm, self.used = nn.Linear(4, DIM), norm, used

    def forward(self, values):
        values = self.layer(values)
        return self.norm(values) if self.used else values + 0 * self.norm(values)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (nn.Identity(), nn.LayerNorm(DIM, elementwise_affine=False)),
        (nn.Dropout(0.0), nn.Dropout(0.5)),
    ],
)
def test_a_setting_without_parameters_that_changes_no_output_is_a_fault(one, other):
    for used in (True, False):
        pair = Discarding(one, used).eval(), Discarding(other, used).eval()
        result = ablation_diff(*pair, inputs=inputs_of(0), expected="norm")
        assert result.ok is used
        assert result.measures["expected"] == {"norm": "differs" if used else "changes no output"}


# Without an expectation.


def test_without_an_expectation_there_is_a_list_and_no_answer():
    result = ablation_diff(Model(), Model(extra="real"), inputs=inputs_of(0))
    assert result.ok is None
    assert "name the parts that should differ" in result.reason
    assert "blocks.0.alpha" in set(result.table()["name"])
    assert set(result.table()["expected"]) == {None}
