"""The probe finds every wrong backward of the stand-ins, says how it is wrong, and is silent on the right ones."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.autograd import Function, gradcheck
from torch.nn import functional

from casestudies_lib.probes import ProbeFault, backward_check

SEEDS = range(10)


# Stand-ins: heads weighted by a gate, one right backward and several wrong ones.


class Exact(Function):
    """Weights the heads' outputs (batch tokens heads head_dim) by a gate (batch tokens heads)."""

    @staticmethod
    def forward(ctx, heads, gate):
        ctx.save_for_backward(heads, gate)
        return heads * gate[..., None]

    @staticmethod
    def backward(ctx, gradient):
        heads, gate = ctx.saved_tensors
        return gradient * gate[..., None], (gradient * heads).sum(-1)


def wrong_for_heads(change):
    """Return the function with another gradient to the heads."""

    class Wrong(Exact):
        @staticmethod
        def backward(ctx, gradient):
            _, gate = ctx.saved_tensors
            return change(gradient, gate[..., None]), Exact.backward(ctx, gradient)[1]

    return Wrong


MaskBlind = wrong_for_heads(lambda gradient, gate: gradient)
Blocked = wrong_for_heads(lambda gradient, gate: None)
BlockedInPart = wrong_for_heads(lambda gradient, gate: gradient * gate * (gate > 0.5))
WrongScale = wrong_for_heads(lambda gradient, gate: 1.05 * gradient * gate)
WrongSign = wrong_for_heads(lambda gradient, gate: -gradient * gate)
BROKEN = wrong_for_heads(lambda gradient, gate: gradient * math.nan)


class SharedExact(Function):
    """Gives each of two key/value heads (batch tokens shared head_dim) to two query heads."""

    @staticmethod
    def forward(ctx, shared):
        return shared.repeat_interleave(2, dim=2)

    @staticmethod
    def backward(ctx, gradient):
        return gradient.unflatten(2, (-1, 2)).sum(3)


class SharingIgnored(SharedExact):
    @staticmethod
    def backward(ctx, gradient):
        return gradient.unflatten(2, (-1, 2))[:, :, :, 0]


class Leaking(Function):
    """Multiplies inputs by router weights; its backward adds a router's gradient that the output does not have."""

    @staticmethod
    def forward(ctx, inputs, weight):
        ctx.save_for_backward(inputs, weight)
        return inputs @ weight

    @staticmethod
    def backward(ctx, gradient):
        inputs, weight = ctx.saved_tensors
        leak = (gradient.abs() / (1 + gradient.abs())) @ weight.mT
        return gradient @ weight.mT + leak, inputs.flatten(0, -2).mT @ gradient.flatten(0, -2)


class Ignored(Function):
    """Returns the first input; its backward teaches the second too."""

    @staticmethod
    def forward(ctx, used, unused):
        return used * 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 2, gradient


def scaled(factor):
    class Scaled(Function):
        @staticmethod
        def forward(ctx, inputs):
            return inputs.clone()

        @staticmethod
        def backward(ctx, gradient):
            return None if factor is None else gradient * factor

    return Scaled


def drawn(seed, *shapes):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]


def heads_and_gate(seed, *, hard=False):
    heads, gate = drawn(seed, (2, 5, 4, 3), (2, 5, 4))
    gate = gate.detach().sigmoid()
    return heads, (gate * (gate > 0.5) if hard else gate).requires_grad_()


def seeded(seed, build):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build()


def answers(result):
    return result.measures["answers"]


# The fault and its healthy twins.


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("hard", [False, True])
def test_the_exact_backward_passes(seed, hard):
    result = backward_check(Exact, heads_and_gate(seed, hard=hard), seed=seed)
    assert result.ok is True
    assert result.findings == ()
    assert set(answers(result).values()) == {"agrees"}
    assert result.measures["smallest_error_seen"] < 2e-4
    assert result.findings == ()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("function", "hard", "kind", "factor"),
    [
        (MaskBlind, True, "wrong direction", None),
        (MaskBlind, False, "wrong direction", None),
        (Blocked, False, "missing", None),
        (BlockedInPart, False, "missing in part", None),
        (WrongScale, False, "wrong scale", 1.05),
        (WrongScale, True, "wrong scale", 1.05),
        (WrongSign, True, "wrong sign", -1),
        (BROKEN, False, "not finite", None),
    ],
)
def test_a_wrong_backward_of_the_heads_is_found_and_named(seed, function, hard, kind, factor):
    result = backward_check(function, heads_and_gate(seed, hard=hard), seed=seed)
    assert result.ok is False
    assert answers(result) == {"input 0": kind, "input 1": "agrees"}
    assert [(finding.severity, finding.where) for finding in result.findings] == [("fault", "input 0")]
    assert result.findings[0].measured.lower().startswith(kind)
    found = result.measures["factors"].get("input 0")
    assert found == (None if factor is None else pytest.approx(factor, rel=1e-3))
    with pytest.raises(ProbeFault, match="input 0"):
        result.raise_if_found()


@pytest.mark.parametrize("seed", SEEDS)
def test_sharing_of_keys_and_values_that_the_backward_ignores_is_found(seed):
    shared = drawn(seed, (2, 5, 2, 3))
    assert backward_check(SharedExact, shared, seed=seed).ok is True
    assert answers(backward_check(SharingIgnored, shared, seed=seed)) == {"input 0": "wrong direction"}


@pytest.mark.parametrize("seed", SEEDS)
def test_a_router_gradient_that_leaks_into_the_input_is_found_there_and_only_there(seed):
    result = backward_check(Leaking, drawn(seed, (2, 5, 6), (6, 4)), seed=seed)
    assert answers(result) == {"input 0": "wrong direction", "input 1": "agrees"}


@pytest.mark.parametrize("seed", SEEDS)
def test_a_gradient_where_the_output_does_not_depend_on_the_input_is_spurious(seed):
    result = backward_check(Ignored, drawn(seed, (4, 3), (4, 3)), seed=seed)
    assert answers(result) == {"input 0": "agrees", "input 1": "spurious"}


@pytest.mark.parametrize("function", [Exact, MaskBlind, Blocked, BlockedInPart, WrongScale, WrongSign])
@pytest.mark.parametrize("seed", range(3))
def test_the_answer_is_that_of_torch_which_asks_every_element(function, seed):
    inputs = [each.detach().double().requires_grad_() for each in heads_and_gate(seed)]
    assert backward_check(function, inputs).ok is gradcheck(function.apply, inputs, raise_exception=False)


# How it is wrong.


@given(factor=st.floats(-4, 4).filter(lambda factor: abs(factor) > 0.01 and abs(factor - 1) > 0.011))
def test_any_factor_is_measured(factor):
    result = backward_check(scaled(factor), drawn(0, (3, 4)))
    assert answers(result) == {"input 0": "wrong sign" if factor < 0 else "wrong scale"}
    assert result.measures["factors"]["input 0"] == pytest.approx(factor, rel=1e-3)


@pytest.mark.parametrize("seed", SEEDS)
def test_an_error_of_scale_is_found_as_small_as_the_tolerance_says(seed):
    inputs = drawn(seed, (30, 40))
    for tolerance in (1e-2, 1e-4, 1e-6):
        assert backward_check(scaled(1 + 3 * tolerance), inputs, tolerance=tolerance, seed=seed).ok is False
        assert backward_check(scaled(1 + tolerance / 3), inputs, tolerance=tolerance, seed=seed).ok is True


@pytest.mark.parametrize("seed", SEEDS)
def test_one_wrong_element_among_ten_thousand_is_found(seed):
    class Hole(Function):
        @staticmethod
        def forward(ctx, inputs):
            return inputs.clone()

        @staticmethod
        def backward(ctx, gradient):
            holed = gradient.clone()
            holed[3, 7] = 0
            return holed

    result = backward_check(Hole, drawn(seed, (100, 100)), seed=seed)
    assert answers(result) == {"input 0": "missing in part"}


@pytest.mark.parametrize("seed", SEEDS)
def test_a_backward_that_forgets_what_comes_from_above_is_found_for_a_loss_too(seed):
    class Loss(Function):
        @staticmethod
        def forward(ctx, inputs):
            ctx.save_for_backward(inputs)
            return inputs.square().sum()

        @staticmethod
        def backward(ctx, gradient):
            return 2 * ctx.saved_tensors[0]

    assert backward_check(Loss, drawn(seed, (5,)), seed=seed).ok is False


@pytest.mark.parametrize("seed", SEEDS)
def test_a_loss_whose_gradient_points_elsewhere_is_not_taken_for_one_of_wrong_scale(seed):
    class Loss(Function):
        @staticmethod
        def forward(ctx, inputs):
            ctx.save_for_backward(inputs)
            return inputs.square().sum()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * ctx.saved_tensors[0].sign()

    assert answers(backward_check(Loss, drawn(seed, (50,)), seed=seed)) == {"input 0": "wrong direction"}


# Where it is wrong.


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("factor", "kind"), [(1.05, "wrong scale"), (-1.0, "wrong sign"), (None, "missing"), (1.0, "agrees")]
)
def test_all_tensors_before_a_wrong_backward_are_named_and_none_after_it(seed, factor, kind):
    layers = seeded(seed, lambda: nn.Sequential(*[nn.Linear(6, 6) for _ in range(4)]))
    function = scaled(factor)
    result = backward_check(
        lambda inputs: layers[2:](function.apply(layers[:2](inputs))),
        drawn(seed, (8, 6)),
        parameters=layers,
        seed=seed,
    )
    before = {"input 0", *(f"parameter {layer}.{name}" for layer in (0, 1) for name in ("weight", "bias"))}
    after = {f"parameter {layer}.{name}" for layer in (2, 3) for name in ("weight", "bias")}
    assert answers(result) == {**dict.fromkeys(before, kind), **dict.fromkeys(after, "agrees")}
    # One finding for all that is wrong alike.
    assert [set(finding.where.split(", ")) for finding in result.findings] == ([] if factor == 1.0 else [before])


@pytest.mark.parametrize("seed", SEEDS)
def test_of_many_wrong_tensors_every_one_is_named_and_none_behind_the_fault(seed):
    layers = seeded(seed, lambda: nn.Sequential(*[nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(20)]))

    def loss(inputs):
        hidden = layers[:10](inputs)
        weights = torch.full_like(hidden[:, 0], 0.5)
        return layers[10:](MaskBlind.apply(hidden, weights)).square().sum()

    result = backward_check(loss, drawn(seed, (8, 6)), parameters=layers, seed=seed)
    named = {name for name, kind in answers(result).items() if kind != "agrees"}
    before = {f"parameter {layer}.0.{name}" for layer in range(10) for name in ("weight", "bias")}
    assert named == before | {"input 0"}


class Million(nn.Module):
    """A million parameters, one layer of which may have a wrong backward."""

    def __init__(self, factor=1.0):
        super().__init__()
        self.first, self.second = nn.Linear(512, 1000), nn.Linear(1000, 512)
        self.function = scaled(factor)

    def forward(self, inputs):
        return self.second(torch.tanh(self.first(inputs)) if self.function is None else self.wrong(inputs))

    def wrong(self, inputs):
        return torch.tanh(self.function.apply(self.first.weight) @ inputs.mT + self.first.bias[:, None]).mT


@pytest.mark.parametrize("seed", SEEDS)
def test_five_per_cent_are_found_in_one_tensor_of_a_million_parameters(seed):
    (inputs,) = drawn(seed, (16, 512))
    wrong, right = seeded(seed, lambda: Million(1.05)), seeded(seed, Million)
    assert backward_check(right, inputs, seed=seed).ok is True
    result = backward_check(wrong, inputs, seed=seed)
    assert {name: kind for name, kind in answers(result).items() if kind != "agrees"} == {
        "parameter first.weight": "wrong scale"
    }
    assert result.measures["factors"]["parameter first.weight"] == pytest.approx(1.05, rel=1e-3)


# Models of others, all right.

MODELS = {
    "transformer": (lambda: nn.TransformerEncoderLayer(16, 4, 32, batch_first=True).eval(), (3, 7, 16)),
    "convolution": (
        lambda: nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        (4, 3, 8, 8),
    ),
    "recurrent": (lambda: nn.LSTM(4, 6), (9, 3, 4)),
    "relu": (lambda: nn.Sequential(*[layer for _ in range(5) for layer in (nn.Linear(64, 64), nn.ReLU())]), (32, 64)),
    "norm": (lambda: nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.GELU(), nn.RMSNorm(6)), (4, 5)),
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", MODELS)
def test_right_models_are_passed(name, seed):
    build, shape = MODELS[name]
    result = backward_check(seeded(seed, build), drawn(seed, shape), seed=seed)
    assert result.ok is True
    assert result.findings == ()


def test_outputs_in_tuples_and_mappings_are_looked_into_and_those_without_a_graph_left_out():
    def function(inputs):
        return {"sums": (inputs.sum(0), inputs.cumsum(1)), "log": inputs.detach().square(), "best": inputs.argmax()}

    assert backward_check(function, drawn(0, (3, 4))).ok is True


def test_a_function_of_which_nothing_has_a_graph_misses_its_gradient():
    result = backward_check(lambda inputs: inputs.detach() * 2, drawn(0, (3, 4)))
    assert answers(result) == {"input 0": "missing"}
    assert "stop-gradient" in result.findings[0].what_to_do


def test_inputs_that_ask_for_no_gradient_are_handed_on_and_said_to_be_unchecked():
    result = backward_check(nn.Linear(3, 2), torch.ones(4, 3))
    assert result.ok is True
    assert [(finding.severity, finding.where) for finding in result.findings] == [("note", "inputs")]
    assert set(answers(result)) == {"parameter weight", "parameter bias"}
    looked_up = backward_check(nn.Embedding(5, 3, sparse=True), torch.tensor([1, 1, 4]))
    assert looked_up.ok is True
    assert looked_up.findings == ()


def test_infinite_outputs_are_left_out():
    mask = torch.zeros(4, 4).masked_fill(torch.ones(4, 4).triu(1) > 0, -math.inf)
    assert backward_check(lambda scores: scores * 2 + mask, drawn(0, (4, 4))).ok is True


def test_an_unused_parameter_has_no_gradient_on_either_side():
    module = nn.ModuleDict({"used": nn.Linear(3, 3), "unused": nn.Linear(3, 3)})
    result = backward_check(lambda inputs: module["used"](inputs), drawn(0, (2, 3)), parameters=module)
    assert result.ok is True
    assert answers(result)["parameter unused.weight"] == "zero on both sides"


def test_discrete_choices_that_do_not_flip_count_as_fixed():
    def top_two(scores):
        return scores.softmax(-1) * (scores >= scores.topk(2, -1).values[..., -1:])

    assert backward_check(top_two, drawn(0, (6, 8))).ok is True


# Cannot tell.


def reason(result):
    assert result.ok is None
    assert all(finding.severity == "note" for finding in result.findings)
    return result.reason


def test_nothing_to_compare_is_no_answer():
    assert "requires_grad" in reason(backward_check(nn.ReLU(), torch.ones(3)))
    assert "requires_grad" in reason(backward_check(nn.Linear(2, 2).requires_grad_(False), torch.ones(3, 2)))
    assert backward_check(nn.ReLU(), drawn(0, (3,))).ok is True


def test_a_random_function_is_no_answer_unless_one_draw_may_be_judged():
    module = nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5))
    assert "eval()" in reason(backward_check(module, drawn(0, (8, 6))))
    assert backward_check(module, drawn(0, (8, 6)), replay=True).ok is True
    assert backward_check(module.eval(), drawn(0, (8, 6))).ok is True


def test_a_function_with_a_generator_of_its_own_is_no_answer():
    generator = torch.Generator()

    def function(inputs):
        return inputs * torch.rand(inputs.shape, generator=generator, dtype=inputs.dtype)

    assert "generator of its own" in reason(backward_check(function, drawn(0, (4,)), replay=True))


def test_a_function_that_keeps_state_is_no_answer():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.calls = 0

        def forward(self, inputs):
            self.calls += 1
            return inputs * self.calls

    module = Counting()
    assert "keeps state" in reason(backward_check(module, drawn(0, (4,))))
    assert module.calls == 0


def test_a_function_that_changes_its_inputs_is_no_answer():
    inputs = drawn(0, (4,))
    before = inputs[0].detach().clone()
    assert "in place" in reason(backward_check(lambda x: x.mul_(2), inputs))
    assert torch.equal(inputs[0], before)


@pytest.mark.parametrize("way", ["no_grad", "data"])
def test_a_function_that_changes_its_parameters_is_no_answer(way):
    class Shrinking(nn.Linear):
        def forward(self, inputs):
            if way == "data":
                self.weight.data.mul_(0.9)
            else:
                with torch.no_grad():
                    self.weight.mul_(0.9)
            return super().forward(inputs)

    module = Shrinking(3, 3)
    before = module.weight.detach().clone()
    assert "changes parameter weight in place" in reason(backward_check(module, drawn(0, (4, 3))))
    assert torch.equal(module.weight, before)


def test_experts_by_a_grouped_product_are_measured_in_double_and_empty_groups_too():
    matrices = drawn(0, (3, 8, 8))[0]
    ends = torch.tensor([4, 4, 12], dtype=torch.int32)

    def experts(rows, matrices):
        return functional.grouped_mm(rows.tanh(), matrices, offs=ends)

    inputs = [*drawn(1, (12, 8)), matrices]
    result = backward_check(experts, inputs)
    assert result.ok is True
    assert result.findings == ()
    rows = inputs[0].detach().tanh()
    by_hand = torch.cat([rows[:4] @ matrices[0], rows[4:] @ matrices[2]])
    torch.testing.assert_close(experts(*inputs), by_hand)
    wrong = backward_check(lambda rows, matrices: experts(scaled(1.01).apply(rows), matrices), inputs)
    assert answers(wrong) == {"input 0": "wrong scale", "input 1": "agrees"}


def overwriting(during):
    """Return an exponential that writes into its input, behind the back of autograd, in one of its passes."""

    class Overwriting(Function):
        @staticmethod
        def forward(ctx, inputs):
            out = inputs.exp()
            ctx.save_for_backward(inputs, out.clone())
            if during == "forward":
                inputs.data.mul_(0.5)
            return out

        @staticmethod
        def backward(ctx, gradient):
            inputs, out = ctx.saved_tensors
            if during == "backward":
                inputs.data.copy_(gradient)
            return gradient * out

    return Overwriting


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("during", ["forward", "backward"])
def test_a_pass_that_overwrites_its_input_unseen_is_a_fault_though_its_own_gradient_is_right(during, seed):
    inputs = drawn(seed, (4, 3))
    before = inputs[0].detach().clone()
    result = backward_check(overwriting(during), inputs, seed=seed)
    assert result.ok is False
    assert answers(result) == {"input 0": "agrees"}
    assert [(finding.severity, finding.where) for finding in result.findings] == [("fault", "input 0")]
    assert f"after the {during} pass" in result.findings[0].measured
    assert torch.equal(inputs[0], before)
    # Inside a function that hands it a tensor of its own it does harm only if another operation keeps that tensor.
    kept = backward_check(lambda x: overwriting(during).apply(x.sigmoid()).sum(), inputs, seed=seed)
    assert answers(kept) == {"input 0": "wrong direction"}
    assert backward_check(lambda x: overwriting(during).apply(x + 1).sum(), inputs, seed=seed).ok is True
    assert backward_check(overwriting("never"), inputs, seed=seed).ok is True


def only_float32(function):
    def strict(inputs):
        if inputs.dtype != torch.float32:
            raise TypeError("this kernel knows float32 only")
        return function(inputs)

    return strict


@pytest.mark.parametrize("seed", SEEDS)
def test_in_float32_alone_it_still_sees_five_per_cent_and_says_what_it_could_not_do(seed):
    inputs = drawn(seed, (6, 5))
    right = backward_check(only_float32(lambda x: scaled(1.0).apply(x).tanh()), inputs, seed=seed)
    assert right.ok is True
    assert right.findings[0].where == "precision"
    assert "float32 only" in right.findings[0].measured
    assert 1e-4 < right.measures["smallest_error_seen"] < 0.05
    wrong = backward_check(only_float32(lambda x: scaled(1.1).apply(x).tanh()), inputs, seed=seed)
    assert answers(wrong) == {"input 0": "wrong scale"}


@pytest.mark.parametrize("seed", SEEDS)
def test_where_float32_cannot_resolve_it_does_not_judge(seed):
    for factor in (1.0, -1.0):
        function = only_float32(lambda x, factor=factor: 1e8 + scaled(factor).apply(x))
        result = backward_check(function, drawn(seed, (6, 5)), seed=seed)
        assert "rounding" in reason(result)
        assert (
            result.headline == "No gradient of 1 was found to disagree with finite differences; 1 could not be judged."
        )


@pytest.mark.parametrize("seed", SEEDS)
def test_float32_inside_a_function_that_cannot_be_lifted_is_noticed_by_its_noise(seed):
    single = torch.ones(())
    result = backward_check(lambda x: scaled(1.05).apply(x.to(single)).tanh(), drawn(seed, (6, 5)), seed=seed)
    assert answers(result) == {"input 0": "wrong scale"}
    assert result.rows[0][-1] > 0.001


CASTS = {
    "method": lambda x: x.float(),
    "to": lambda x: x.to(torch.float32),
    "type": lambda x: x.type(torch.float32),
    "softmax": lambda x: nn.functional.softmax(x, dim=-1, dtype=torch.float32),
    "norm": lambda x: x * torch.rsqrt(x.to(torch.float32).pow(2).mean(-1, keepdim=True) + 1e-6).to(x.dtype),
    "made": lambda x: x.exp() + torch.full(x.shape, 1e4, dtype=torch.float32).mul_(x),
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("cast", CASTS)
def test_a_function_that_casts_to_float32_is_measured_in_double_all_through(cast, seed):
    inputs = drawn(seed, (6, 5))
    right = backward_check(lambda x: CASTS[cast](scaled(1.0).apply(x)), inputs, seed=seed)
    assert right.ok is True
    assert right.measures["smallest_error_seen"] < 3e-4
    wrong = backward_check(lambda x: CASTS[cast](scaled(1.001).apply(x)), inputs, seed=seed)
    assert answers(wrong) == {"input 0": "wrong scale"}


@pytest.mark.parametrize("seed", SEEDS)
def test_a_point_on_a_kink_is_not_judged(seed):
    (inputs,) = drawn(seed, (6, 5))
    with torch.no_grad():
        inputs[:, 2:] = 0
    assert "kink" in reason(backward_check(lambda x: x.relu(), inputs, seed=seed))
    moved = (inputs.detach() + 0.1).requires_grad_()
    assert backward_check(lambda x: x.relu(), moved, seed=seed).ok is True


# It leaves everything as it was.


def test_bare_parameters_and_inputs_of_another_graph_are_left_too():
    (weight, start) = drawn(0, (3, 3), (2, 3))
    inputs = start * 2
    weight.grad = torch.ones(3, 3)
    before = weight.detach().clone()
    result = backward_check(lambda x: x @ weight, inputs, parameters={"weight": weight})
    assert answers(result) == {"input 0": "agrees", "parameter weight": "agrees"}
    assert weight.dtype == torch.float32
    assert torch.equal(weight, before)
    assert torch.equal(weight.grad, torch.ones(3, 3))
    inputs.sum().backward()
    assert torch.equal(start.grad, torch.full((2, 3), 2.0))


def test_an_error_of_the_readers_own_comes_through():
    def function(inputs):
        raise LookupError("the reader's own")

    with pytest.raises(LookupError, match="the reader's own"):
        backward_check(function, drawn(0, (2,)))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        backward_check(nn.Linear(3, 3), drawn(0, (2, 5)))
