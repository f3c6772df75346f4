"""The probe tells a mean from a sum on every axis, whatever the data, and finds losses that padding reaches."""

import math
import random

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from registry import drawn
from torch import nn
from torch.nn import functional

from casestudies_lib.probes import ProbeInputError, reduction_scaling
from casestudies_lib.probes.reduction.trials import Slope, fitted, judged

SEEDS = range(10)
AXES = ("batch", "length", "classes")


def divergence(reduction):
    def loss(prediction, target):
        scores = functional.log_softmax(prediction, -1)
        return functional.kl_div(scores, functional.softmax(target, -1), reduction=reduction)

    return loss


def entropy(**settings):
    return lambda prediction, target: functional.cross_entropy(
        prediction.flatten(0, 1), target.flatten().long(), **settings
    )


def cosine(prediction, target):
    return (1 - functional.cosine_similarity(prediction, target, dim=-1)).mean()


def squared_norms(prediction, target):
    return (prediction - target).square().sum(-1).mean()


def pair(seed=0, shape=(3, 12, 6), labels=False):
    generator = torch.Generator().manual_seed(seed)
    prediction = torch.randn(shape, generator=generator)
    if labels:
        return prediction, torch.randint(shape[-1], shape[:-1], generator=generator)
    return prediction, torch.randn(shape, generator=generator)


def ragged(lengths=(12, 7, 2), length=12):
    return torch.arange(length) < torch.tensor(lengths)[:, None]


def severities(result):
    return [(finding.severity, finding.where) for finding in result.findings]


# Known losses: the documentation's own words on each reduction are the oracle.

# Per axis: m for mean, s for sum, n for neither, ? for cannot tell.
KNOWN = {
    "mse mean": (functional.mse_loss, False, "mmm"),
    "mse criterion": (nn.MSELoss(), False, "mmm"),
    "mse sum": (nn.MSELoss(reduction="sum"), False, "sss"),
    "sum over dims, mean over positions": (squared_norms, False, "mms"),
    "sum over batch, mean elsewhere": (lambda p, t: (p - t).square().mean((1, 2)).sum(), False, "smm"),
    "report's fix": (lambda p, t: functional.mse_loss(p, t, reduction="sum") / p.numel(), False, "mmm"),
    "sum over a fixed length": (lambda p, t: (p - t).square().sum(1).mean() / 512, False, "msm"),
    "smooth l1": (functional.smooth_l1_loss, False, "mmm"),
    "kl batchmean": (divergence("batchmean"), False, "msm"),
    "kl sum": (divergence("sum"), False, "ssm"),
    # The divergence is a sum over classes already; dividing it by their number makes it shrink with the vocabulary.
    "kl mean": (divergence("mean"), False, "mmn"),
    "entropy mean": (entropy(), True, "mm?"),
    "entropy sum": (entropy(reduction="sum"), True, "ss?"),
    "entropy smoothed": (entropy(label_smoothing=0.1), True, "mm?"),
    "entropy weighted": (entropy(weight=torch.arange(1.0, 7.0)), True, "mm?"),
    "cosine": (cosine, False, "mmm"),
    "norm": (lambda p, t: (p - t).norm(), False, "nnn"),
    "root of the mean": (lambda p, t: (p - t).square().mean().sqrt(), False, "mmm"),
    "negative": (lambda p, t: -(p * t).abs().sum((1, 2)).mean(), False, "mss"),
}
KINDS = {"m": "mean", "s": "sum", "n": "neither", "?": None}


@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides")
@pytest.mark.parametrize("name", KNOWN)
def test_a_known_loss_is_told_on_every_axis(name):
    loss, labels, kinds = KNOWN[name]
    result = reduction_scaling(loss, *pair(labels=labels), axes=AXES)
    assert result.measures["reductions"] == dict(zip(AXES, map(KINDS.get, kinds)))
    assert [f.where for f in result.findings] == [a for a, k in zip(AXES, kinds) if k in "sn" and a != "classes"]
    assert result.ok is not any(kind in "sn" for kind in kinds[:2])


@pytest.mark.parametrize("seed", SEEDS)
def test_batchmean_is_a_fault_and_the_mean_over_positions_is_silent(seed):
    result = reduction_scaling(divergence("batchmean"), *pair(seed), axes=AXES, seed=seed)
    assert result.ok is False
    assert severities(result) == [("fault", "length")]
    assert "Loss grows with length, slope 1.00 ± 0.00" in result.findings[0].measured
    assert "'batchmean'" in result.findings[0].meaning

    def mended(prediction, target):
        return divergence("batchmean")(prediction.flatten(0, 1), target.flatten(0, 1))

    healthy = reduction_scaling(mended, *pair(seed), axes=AXES, seed=seed)
    assert healthy.ok is True
    assert healthy.findings == ()


def test_slopes_are_those_of_a_hand_count():
    result = reduction_scaling(divergence("batchmean"), *pair(), axes=AXES)
    assert result.measures["loss_slopes"] == {"batch": 0, "length": 1, "classes": 0}
    assert result.measures["element_slopes"] == {"batch": -1, "length": 0, "classes": -1}
    table = result.table().set_index("axis")
    assert table.iloc[:, -1].to_dict() == {"batch": -0.5, "length": 0.5, "classes": -0.5}
    assert table["size"].to_dict() == {"batch": 3, "length": 12, "classes": 6}


# Data that differs along the axis.


def trend(values):
    return values * torch.linspace(0.01, 100, values.shape[1])[:, None]


def first_token(values):
    values = values.clone()
    values[:, 0] *= 1000
    return values


def one_row(values):
    values = values.clone()
    values[0] *= 1000
    return values


@pytest.mark.parametrize("change", [trend, first_token, one_row])
@pytest.mark.parametrize("seed", SEEDS)
def test_uneven_data_makes_no_sum_of_a_mean_and_no_mean_of_a_sum(change, seed):
    prediction, target = pair(seed, (4, 40, 6))
    axes = ("batch", "length", "dim")
    mean = reduction_scaling(functional.mse_loss, change(prediction), target, axes=axes, seed=seed)
    assert set(mean.measures["reductions"].values()) == {"mean"}
    assert mean.ok is True
    rooted = reduction_scaling(KNOWN["root of the mean"][0], change(prediction), target, axes=axes, seed=seed)
    assert set(rooted.measures["reductions"].values()) == {"mean"}
    total = reduction_scaling(nn.MSELoss(reduction="sum"), change(prediction), target, axes=axes, seed=seed)
    assert set(total.measures["reductions"].values()) == {"sum"}


@pytest.mark.parametrize("seed", SEEDS)
def test_a_handful_of_positions_with_most_of_the_gradient_is_a_note(seed):
    prediction, target = pair(seed, (4, 50, 6))
    healthy = reduction_scaling(functional.mse_loss, prediction, target, axes=AXES)
    assert healthy.findings == ()
    prediction[1, 0], prediction[2, 7] = 300.0, -300.0
    result = reduction_scaling(functional.mse_loss, prediction, target, axes=AXES)
    assert result.ok is True
    assert severities(result) == [("note", "data")]
    errors = (prediction - target).square().sum(-1).flatten()
    assert (result.measures["positions"], result.measures["top_positions"]) == (200, 2)
    # For a squared error the squared gradient is the loss, up to a factor.
    share = errors.topk(2).values.sum() / errors.sum()
    assert share > 0.99
    assert result.measures["top_share"] == pytest.approx(share.item(), rel=1e-5)


@settings(max_examples=40)
@given(
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    summed=st.sets(st.sampled_from([0, 1, 2])),
    seed=st.integers(0, 99),
)
def test_every_shape_and_every_choice_of_axes_is_told(shape, summed, seed):
    prediction, target = pair(seed, shape)
    kept = math.prod(size for axis, size in enumerate(shape) if axis not in summed)

    def loss(prediction, target):
        sizes = [size for axis, size in enumerate(prediction.shape) if axis not in summed]
        return (prediction - target).abs().sum() / math.prod(sizes)

    assert loss(prediction, target) == (prediction - target).abs().sum() / kept
    result = reduction_scaling(loss, prediction, target, axes=("a", "b", "c"), seed=seed)
    assert [kind == "sum" for kind in result.measures["reductions"].values()] == [axis in summed for axis in range(3)]
    assert None not in result.measures["reductions"].values()


# Axes: other layouts, other targets, other sizes.


def test_classes_may_come_second_and_the_target_may_lack_them():
    prediction = drawn(0, 3, 6, 12)
    target = torch.arange(36).reshape(3, 12) % 6
    result = reduction_scaling(functional.cross_entropy, prediction, target, axes=("batch", "classes", "length"))
    assert result.ok is True
    assert result.measures["reductions"] == {"batch": "mean", "classes": None, "length": "mean"}
    assert "class indices" in result.table().set_index("axis").loc["classes", "reduction"]


def test_labels_that_fit_several_axes_are_taken_to_lack_the_classes():
    result = reduction_scaling(entropy(reduction="sum"), *pair(0, (6, 6, 6), labels=True), axes=AXES)
    assert result.measures["reductions"] == {"batch": "sum", "length": "sum", "classes": None}


def test_axes_may_be_named_by_number_and_only_some_of_them():
    prediction, target = pair()
    result = reduction_scaling(
        divergence("batchmean"), prediction, target.movedim(0, 1).movedim(1, 0), axes={"length": 1}
    )
    assert result.measures["reductions"] == {"length": "sum"}

    def swapped(prediction, target):
        return functional.mse_loss(prediction, target.transpose(0, 1), reduction="sum")

    result = reduction_scaling(
        swapped, prediction, target.transpose(0, 1), axes=AXES, target_axes=("length", "batch", "classes")
    )
    assert result.measures["reductions"] == dict.fromkeys(AXES, "sum")


def test_truth_values_are_no_class_indices():
    prediction, target = pair()

    def loss(prediction, target):
        wide = target[..., None].expand_as(prediction).to(prediction.dtype)
        return functional.binary_cross_entropy_with_logits(prediction, wide, reduction="sum")

    result = reduction_scaling(loss, prediction, target[..., 0] > 0, axes=AXES)
    assert result.measures["reductions"] == dict.fromkeys(AXES, "sum")


def test_a_target_that_is_broadcast_is_not_cut():
    prediction, _ = pair()
    result = reduction_scaling(
        lambda p, t: (p - t).square().mean(), prediction, torch.ones(3, 1, 6), axes=AXES, expected={"length": "mean"}
    )
    assert result.ok is True
    assert result.measures["reductions"] == dict.fromkeys(AXES, "mean")


def test_the_expectation_is_the_readers():
    given = (nn.MSELoss(reduction="sum"), *pair())
    assert reduction_scaling(*given, axes=AXES, expected=dict.fromkeys(AXES, "sum")).ok is True
    assert reduction_scaling(*given, axes=AXES, expected={}).ok is True
    assert severities(reduction_scaling(*given, axes=AXES, expected={"classes": "mean"})) == [("fault", "classes")]
    averaged = reduction_scaling(nn.MSELoss(), *pair(), axes=AXES, expected={"batch": "sum"})
    assert severities(averaged) == [("warning", "batch")]
    assert "Loss stays the same with batch, slope 0.00" in averaged.findings[0].measured
    assert averaged.ok is False


def test_a_value_that_hides_how_its_gradient_grows_is_not_called_a_mean():
    def loss(prediction, target):
        total = functional.mse_loss(prediction, target, reduction="sum")
        return total - total.detach() + functional.mse_loss(prediction, target).detach()

    result = reduction_scaling(loss, *pair(), axes=AXES)
    assert result.measures["loss_slopes"]["length"] == 0
    assert result.measures["reductions"]["length"] == "neither"
    assert result.ok is False


def test_a_loss_that_changes_sign_is_judged_by_its_gradient():
    def loss(prediction, target):
        # About 1.1 a slot: below 12 for 8 slots, above it for 16.
        return (prediction - target).abs().sum(1).mean() - 12

    result = reduction_scaling(loss, *pair(), axes=AXES)
    assert result.measures["loss_slopes"]["length"] is None
    assert result.measures["reductions"]["length"] == "sum"
    assert "Loss grows with length, slope unknown (mean 0, sum 1)" in result.findings[0].measured


def test_a_loss_that_compares_each_token_with_the_next_label_is_told():
    def shifted(reduction):
        return lambda p, t: functional.cross_entropy(p[:, :-1].flatten(0, 1), t[:, 1:].flatten(), reduction=reduction)

    given = pair(0, (3, 64, 6), labels=True)
    assert reduction_scaling(shifted("mean"), *given, axes=AXES).ok is True
    assert reduction_scaling(shifted("sum"), *given, axes=AXES).measures["reductions"]["length"] == "sum"


def test_a_table_as_long_as_the_axis_is_worked_around_or_said():
    weights = torch.linspace(1, 2, 12)

    def prefix(prediction, target):
        return ((prediction - target).square().mean((0, 2)) * weights[: prediction.shape[1]]).mean()

    assert reduction_scaling(prefix, *pair(), axes=AXES, tolerance=0.3).measures["reductions"]["length"] == "mean"

    def fixed(prediction, target):
        return ((prediction - target).square().mean((0, 2)) * weights).mean()

    result = reduction_scaling(fixed, *pair(), axes=AXES)
    assert result.ok is None
    assert result.measures["reductions"] == {"batch": "mean", "length": None, "classes": "mean"}
    assert "takes no other size of length" in result.reason


# Cannot tell.


def test_a_loss_of_zero_gives_no_answer():
    prediction, _ = pair()
    result = reduction_scaling(functional.mse_loss, prediction, prediction, axes=AXES)
    assert result.ok is None
    assert "zero" in result.reason
    assert result.measures["loss_slopes"]["length"] is None


def test_a_loss_that_is_no_power_of_the_size_gives_no_answer():
    def loss(prediction, target):
        return functional.mse_loss(prediction, target) * (100.0 if prediction.shape[1] == 16 else 1.0)

    result = reduction_scaling(loss, *pair(0, (3, 64, 6)), axes={"length": 1}, tolerance=0.49)
    assert result.ok is None
    assert "no power" in result.reason


def test_a_loss_with_dropout_gives_no_answer_until_it_is_switched_off():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.noise = nn.Dropout(0.5)

        def forward(self, prediction, target):
            return functional.mse_loss(self.noise(prediction), target)

    loss = Noisy()
    result = reduction_scaling(loss, *pair(), axes=AXES)
    assert result.ok is None
    assert "dropout" in result.reason
    assert reduction_scaling(loss.eval(), *pair(), axes=AXES).ok is True


def test_two_sizes_of_a_power_law_give_its_slope_and_bends_give_an_error():
    assert fitted([1, 2, 4], [[3, 12, 48], [-1, -4, -16]]) == Slope(2.0, 0.0)
    # log2 values 0, 1, 1: slope ½, residuals −1/6, 1/3, −1/6; standard error √((1/6)/(3−2)/2), in logs of 2.
    bent = fitted([1, 2, 4], [[1, 2, 2]])
    assert bent.slope == pytest.approx(0.5)
    assert bent.error == pytest.approx(math.sqrt(1 / 6 / 2))
    for sizes, curves in (([2, 2], [[1, 1]]), ([1, 2], []), ([1, 2], [[0.0, 1]]), ([1, 2], [[math.inf, 1]])):
        with pytest.raises(ValueError, match="two sizes"):
            fitted(sizes, curves)


@pytest.mark.parametrize(
    ("value", "element", "kind"),
    [
        (0, -1, "mean"),
        (1, 0, "sum"),
        (0.09, -0.91, "mean"),
        (0.11, -1, "neither"),
        (1, -1, "neither"),
        (None, 0, "sum"),
        (0.5, None, "neither"),
    ],
)
def test_value_and_gradient_must_agree(value, element, kind):
    slopes = [None if slope is None else Slope(slope, 0.0) for slope in (value, element)]
    assert judged(*slopes, tolerance=0.1) == kind


# Masks.


def over_tokens(prediction, target, mask):
    return ((prediction - target).square().mean(-1) * mask).sum() / mask.sum()


def over_slots(prediction, target, mask):
    return ((prediction - target).square().mean(-1) * mask).mean()


def over_rows(prediction, target, mask):
    per_row = ((prediction - target).square().mean(-1) * mask).sum(1) / mask.sum(1).clamp(min=1)
    return per_row.mean()


def regardless(prediction, target, mask):
    return functional.mse_loss(prediction, target)


def centred(prediction, target, mask):
    """Return a loss whose masked positions have reached the others through an average."""
    return over_tokens(prediction - prediction.mean(1, keepdim=True), target, mask)


@pytest.mark.parametrize("mask", [ragged(), ragged((12, 12, 12)), ragged().flip(1), ragged((12, 1, 1))])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_mean_over_real_tokens_is_silent_and_one_over_slots_is_not(mask, seed):
    given = {"axes": AXES, "mask": mask, "seed": seed}
    for healthy in (over_tokens, over_rows):
        result = reduction_scaling(healthy, *pair(seed), **given)
        assert result.findings == ()
        assert result.ok is True
        assert (result.measures["masked_change"], result.measures["padding_ratio"]) == (0, pytest.approx(1))
    diluted = reduction_scaling(over_slots, *pair(seed), **given)
    assert severities(diluted) == [("fault", "padding")]
    assert diluted.measures["padding_ratio"] == pytest.approx(0.5)
    for leaking in (regardless, centred):
        result = reduction_scaling(leaking, *pair(seed), **given)
        assert severities(result) == [("fault", "masked positions")]
        assert result.ok is False


def test_a_gradient_at_masked_positions_is_found_even_if_the_loss_hides_it():
    def loss(prediction, target, mask):
        leak = (prediction * ~mask[..., None]).sum()
        return over_tokens(prediction, target, mask) + 0.1 * (leak - leak.detach())

    result = reduction_scaling(loss, *pair(), axes=AXES, mask=ragged(), expected={})
    assert severities(result) == [("fault", "masked positions")]
    assert "change the loss by 0 of itself" in result.findings[0].measured


@pytest.mark.parametrize("seed", SEEDS)
def test_a_target_that_marks_the_padding_needs_no_third_argument(seed):
    prediction, labels = pair(seed, labels=True)
    marked = labels.masked_fill(~ragged(), -100)
    given = {"axes": AXES, "mask": ragged(), "seed": seed}
    assert reduction_scaling(entropy(), prediction, marked, **given).findings == ()

    def over_all(prediction, target):
        return entropy(reduction="sum")(prediction, target) / target.numel()

    assert severities(reduction_scaling(over_all, prediction, marked, **given)) == [("fault", "padding")]
    unmarked = reduction_scaling(entropy(), prediction, labels, **given)
    assert severities(unmarked) == [("fault", "masked positions")]
    # Without the mask, padding in the batch is no obstacle to the slopes.
    result = reduction_scaling(entropy(), prediction, marked, axes=AXES, seed=seed)
    assert result.measures["reductions"] == {"batch": "mean", "length": "mean", "classes": None}


@pytest.mark.parametrize("seed", SEEDS)
def test_blocks_of_nothing_but_marked_targets_are_passed_over(seed):
    prediction, labels = pair(seed, (2, 64, 6), labels=True)
    labels[:, 16:] = -100
    # A block of 16 slots that begins after the sixteenth has a loss of nan.
    result = reduction_scaling(entropy(), prediction, labels, axes=AXES, seed=seed)
    assert result.ok is True


def test_masks_of_other_shapes_are_understood():
    prediction, target = pair(0, (3, 12))
    mask = ragged()

    def loss(prediction, target, mask):
        return ((prediction - target).square() * mask).sum() / mask.sum()

    assert reduction_scaling(loss, prediction, target, axes=("batch", "length"), mask=mask).findings == ()
    wide = mask[..., None].expand(3, 12, 6)
    assert reduction_scaling(loss, *pair(), axes=("batch", "length", "dim"), mask=wide).findings == ()
    rows = torch.tensor([True, True, False])

    def by_row(prediction, target, mask):
        return loss(prediction, target, mask[:, None, None]) / prediction[0].numel()

    assert reduction_scaling(by_row, *pair(), axes=AXES, mask=rows).findings == ()

    def sideways(prediction, target, mask):
        return over_slots(prediction, target, mask.T)

    turned = reduction_scaling(sideways, *pair(), axes=AXES, mask=mask.T, mask_axes=("length", "batch"))
    assert severities(turned) == [("fault", "padding")]


def test_a_mask_of_the_labels_shape_has_the_labels_axes():
    prediction, labels = pair(0, (3, 6, 6), labels=True)
    mask = ragged((6, 3, 2), 6)
    given = {"axes": ("batch", "classes", "length"), "mask": mask}
    marked = labels.masked_fill(~mask, -100)
    assert reduction_scaling(functional.cross_entropy, prediction, marked, **given).findings == ()


def test_a_mask_is_not_taken_for_another_third_argument():
    prediction, labels = pair(labels=True)
    mask = ragged()
    # The third argument of F.cross_entropy is a table of class weights.
    result = reduction_scaling(
        functional.cross_entropy,
        prediction.transpose(1, 2),
        labels.masked_fill(~mask, -100),
        axes=("batch", "classes", "length"),
        mask=mask,
    )
    assert result.findings == ()

    def optional(prediction, target, padding_mask=None):
        return over_tokens(prediction, target, padding_mask)

    assert reduction_scaling(optional, *pair(), axes=AXES, mask=mask).findings == ()

    def shy(prediction, target, real=None):
        return over_tokens(prediction, target, mask if real is None else real)

    assert reduction_scaling(shy, *pair(), axes=AXES, mask=mask, loss_takes_mask=True).ok is True


def test_a_loss_that_squeezes_single_rows_away_can_be_tried():
    def loss(prediction, target):
        return functional.cross_entropy(prediction.squeeze().transpose(1, 2), target)

    prediction, labels = pair(labels=True)
    result = reduction_scaling(loss, prediction, labels.masked_fill(~ragged(), -100), axes=AXES, mask=ragged())
    assert result.ok is True
    assert result.measures["padding_ratio"] == pytest.approx(1)


def test_a_required_third_argument_is_the_mask_by_any_name():
    def loss(prediction, target, real):
        return over_tokens(prediction, target, real)

    assert reduction_scaling(loss, *pair(), axes=AXES, mask=ragged()).findings == ()


@pytest.mark.parametrize("seed", SEEDS)
def test_blocks_are_taken_where_something_is_real(seed):
    mask = torch.zeros(2, 2048, dtype=torch.bool)
    mask[0, 5] = True
    result = reduction_scaling(over_tokens, *pair(seed, (2, 2048, 2)), axes=AXES, mask=mask, seed=seed)
    assert result.ok is True


def test_classes_are_never_cut_for_another_axis():
    weights = torch.ones(5000)
    loss = entropy(weight=weights, reduction="sum")
    result = reduction_scaling(loss, *pair(0, (4, 40, 5000), labels=True), axes=AXES, expected={})
    assert result.measures["reductions"] == {"batch": "sum", "length": "sum", "classes": None}


def test_a_mask_without_padding_says_nothing_about_a_loss_that_does_not_take_it():
    result = reduction_scaling(functional.mse_loss, *pair(), axes=AXES, mask=ragged((12, 12, 12)))
    assert result.ok is None
    assert "True everywhere" in result.reason


def test_a_gradient_that_is_not_finite_under_the_mask_is_a_fault():
    def loss(prediction, target, mask):
        # The root's gradient at zero is infinite, and 0 * inf is nan.
        away = ((prediction - target).abs() * mask[..., None]).sum(-1)
        return (away.square() + 0 * away).sqrt().sum() / mask.sum()

    result = reduction_scaling(loss, *pair(), axes=AXES, mask=ragged())
    assert severities(result) == [("fault", "gradient")]
    assert result.measures["broken_gradient_elements"] == (~ragged()).sum() * 6
    # What the mask does could not be told; the fault stands without it.
    assert result.measures["masked_change"] is None
    assert result.measures["reductions"]["length"] == "mean"


# Precision.


@pytest.mark.parametrize("seed", SEEDS)
def test_a_sum_that_overflows_in_half_precision_is_a_fault_and_the_mean_is_not(seed):
    prediction, target = (8 * part.half() for part in pair(seed, (4, 32, 16)))
    result = reduction_scaling(nn.MSELoss(reduction="sum"), prediction, target, axes=AXES, expected={})
    assert severities(result) == [("fault", "float16")]
    exact = (prediction.double() - target.double()).square().sum().item()
    assert exact > 65504
    assert result.measures["loss_in_float64"] == pytest.approx(exact)
    assert set(result.measures["reductions"].values()) == {"sum"}
    mean = reduction_scaling(nn.MSELoss(), prediction, target, axes=AXES)
    assert mean.ok is True
    assert mean.measures["loss_in_float64"] is None


def test_a_sum_overflows_where_only_the_whole_tensor_is_too_large():
    target = torch.zeros(20, 1024, 512, dtype=torch.float16)
    # 0.0833² · 20 · 1024 · 512 is 72 759; the 16 rows of which the gradient is taken come to 58 207.
    result = reduction_scaling(nn.MSELoss(reduction="sum"), target + 0.0833, target, axes=AXES, expected={})
    assert severities(result) == [("fault", "float16")]
    assert result.measures["loss_in_float64"] == pytest.approx(72759, rel=1e-3)


def test_a_loss_that_refuses_float64_is_measured_as_it_is():
    table = torch.ones(6)

    def loss(prediction, target):
        return functional.cross_entropy(prediction.flatten(0, 1), target.flatten(), weight=table, reduction="sum")

    result = reduction_scaling(loss, *pair(labels=True), axes=AXES)
    assert result.measures["loss_slopes"]["length"] == pytest.approx(1, abs=1e-4)
    assert result.measures["reductions"]["length"] == "sum"


# Bad input.


@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize("constant", [False, True])
def test_a_loss_that_ignores_its_target_is_found(labels, constant):
    prediction, target = pair(labels=labels)
    target = torch.ones_like(target) if constant else target
    result = reduction_scaling(lambda p, t: p.square().mean(), prediction, target, axes=AXES)
    assert severities(result) == [("warning", "target")]
    assert result.ok is False
    used = reduction_scaling(entropy() if labels else functional.mse_loss, prediction, target, axes=AXES)
    assert used.findings == ()
    # The mean of the target is the same in every order.
    shifted = reduction_scaling(lambda p, t: (p.mean() - t.float().mean()) ** 2, prediction, target, axes=AXES)
    assert not shifted.measures["ignores_target"]


# As found.


class Recorder(nn.Module):
    def __init__(self, error=False):
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))
        self.scale = nn.Parameter(torch.ones(1))
        self.error = error

    def forward(self, prediction, target):
        self.calls += 1
        random.random(), numpy.random.rand(), torch.rand(1)
        target.zero_()
        if self.error and self.calls > 2:
            return prediction.detach().sum()
        return self.scale * functional.mse_loss(prediction, target)


@pytest.mark.parametrize("error", [False, True])
def test_everything_stays_as_it_was(error):
    prediction, target = pair()
    prediction.requires_grad_().grad = torch.ones_like(prediction)
    loss = Recorder(error)
    values = [tensor.detach().clone() for tensor in (prediction, target, prediction.grad)]
    versions = prediction._version, target._version
    states = random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    with torch.no_grad():
        if error:
            with pytest.raises(ProbeInputError, match="without a graph"):
                reduction_scaling(loss, prediction, target, axes=AXES)
        else:
            reduction_scaling(loss, prediction, target, axes=AXES)
        assert not torch.is_grad_enabled()
    assert all(map(torch.equal, values, (prediction.detach(), target, prediction.grad)))
    assert versions == (prediction._version, target._version)
    assert (prediction.requires_grad, target.requires_grad) == (True, False)
    assert (loss.calls.item(), loss.scale.grad, loss.training) == (0, None, True)
    assert states == (random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist())


def test_inputs_made_in_inference_mode_and_parts_of_a_graph_are_taken():
    with torch.inference_mode():
        assert reduction_scaling(functional.mse_loss, *pair(), axes=AXES).ok is True
        frozen = pair()
    assert reduction_scaling(functional.mse_loss, *frozen, axes=AXES).ok is True
    prediction, target = pair()
    prediction = nn.Linear(6, 6)(prediction)
    assert reduction_scaling(functional.mse_loss, prediction, target, axes=AXES).ok is True
    prediction.sum().backward()
