"""Does a loss grow with the length of a sequence, or with any other axis of its prediction?"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from casestudies_lib.probes.guard import left_as_found, random_left_as_found
from casestudies_lib.probes.inputs import check_whole_number
from casestudies_lib.probes.reduction.batch import (
    CLASS_AXES,
    Answer,
    Axes,
    Batch,
    Caller,
    block,
    caller,
    expectations,
    named_batch,
    random_anchor,
)
from casestudies_lib.probes.reduction.findings import Overview, findings, unmet
from casestudies_lib.probes.reduction.trials import VALUES, MaskTrial, Scaling, Slope, mask_trial, scaling
from casestudies_lib.probes.result import Bar, ProbeInputError, ProbeResult

COLUMNS = (
    "axis",
    "size",
    "reduction",
    "expected",
    "loss, slope (mean 0, sum 1)",
    "standard error",
    "gradient per element, slope (mean −1, sum 0)",
    "gradient norm, slope (mean −½, sum +½)",
)
FEATURE_AXES = (*CLASS_AXES, "dim")
# Values on which the loss is computed as a whole, in the reader's precision.
WHOLE = 2**23
HALF = (torch.float16, torch.bfloat16)


def reduction_scaling(
    loss: Callable[..., Any],
    prediction: Float[Tensor, "*prediction"],
    target: Shaped[Tensor, "*target"],
    *,
    axes: Axes,
    target_axes: Axes | None = None,
    mask: Bool[Tensor, "*mask"] | None = None,
    mask_axes: Axes | None = None,
    loss_takes_mask: bool | None = None,
    expected: Mapping[str, str | None] | None = None,
    tolerance: float = 0.1,
    seed: int = 0,
) -> ProbeResult:
    """Measure how a loss, and its gradient with respect to the prediction, grow with the size of each axis.

    On doubly logarithmic axes a mean has slope 0 and a sum slope 1, while the gradient of one element of the
    prediction has slope −1 for a mean and 0 for a sum. (The norm of the gradient goes with the square root of the
    number of elements, −½ and +½.) Blocks of your tensors are repeated along one axis at a time, so that what differs
    along the axis in your data does not pass for a property of the loss; `loss_slopes.scaling` says more.

    Slopes are measured in float64 where the loss permits. With a mask, predictions at masked positions are changed and
    padding is added, neither of which should change the loss. Where 1 % of the positions hold most of the squared
    gradient, a note says so.

    All calls get copies of the tensors. A loss that is a module is restored (see `guard.left_as_found`), and so are the
    random generators; nothing else that the loss closes over is.

    Cost: about one forward and backward pass over 8 million values, and a few dozen over 131 thousand or fewer (over
    8 × 2 × classes, if that is more); in half precision also a forward pass over all values.

    Args:
        loss: called as `loss(prediction, target)`, or `loss(prediction, target, mask)` if it has a third argument that
            is required or whose name contains "mask"; returns one number. A function or a criterion.
        prediction: what the loss is differentiated for; real numbers.
        target: numbers or class indices.
        axes: a name for each dimension of the prediction, or a mapping from some names to dimensions. The names
            `classes` and `vocab` stand for alternatives, of which slices are no answers.
        target_axes: the same for the target; by default those of the prediction that fit, without its classes.
        mask: booleans, True where a position is real; also for a loss that knows the masked positions by its target.
        mask_axes: the same for the mask; by default the target's axes, or the prediction's first.
        loss_takes_mask: whether the mask is the loss's third argument; None goes by the signature.
        expected: what you expect of some axes, `mean` or `sum`; by default a mean of all but `classes` and `vocab`.
        tolerance: how far a slope may lie from 0 or 1.
        seed: where blocks are taken.

    Returns:
        A result whose `ok` is False if an axis is not what was expected, masked positions take part, padding thins the
        loss, the loss overflows, ignores its target or has a gradient that is not finite; None if an expectation could
        not be tried; else True.
        `measures` holds loss, slopes and reductions by axis.

    Raises:
        ProbeInputError: names the argument, what came and what to give.

    Source: the chapter distillation_loss; PyTorch documentation of torch.nn.KLDivLoss (`batchmean`).
    """
    ask = caller(loss, mask, loss_takes_mask)
    batch, asked = named_batch(prediction, target, mask, axes, target_axes, mask_axes)
    wanted = expectations(expected, asked)
    _check_tolerance(tolerance)
    check_whole_number("seed", seed, 0)
    with ExitStack() as restored:
        restored.enter_context(left_as_found(loss) if isinstance(loss, nn.Module) else random_left_as_found())
        restored.enter_context(torch.inference_mode(False))
        generator = torch.Generator().manual_seed(seed)
        part = _rows_of(batch, random_anchor(batch, generator))
        overview, gradient = _overview(ask, batch, part)
        working, piece, answer = _working(ask, batch, part, generator)
        if _differ(answer, again := working(piece)):
            return _no_answer(answer, again)
        overview = replace(overview, ignores_target=_ignores_target(working, piece, answer))
        overview = _concentrated(overview, gradient, part)
        scalings = [scaling(working, batch, axis, tolerance, generator) for axis in asked]
        trial = None if mask is None else mask_trial(working, batch)
    return _result(scalings, wanted, overview, trial)


def _check_tolerance(tolerance: object) -> None:
    if isinstance(tolerance, bool) or not isinstance(tolerance, int | float) or not 0 < tolerance < 0.5:
        raise ProbeInputError(f"tolerance is {tolerance!r}; give a number above 0 and below 0.5, such as 0.1")


def _rows_of(batch: Batch, anchor: Mapping[str, int]) -> Batch:
    """Return a part that holds `WHOLE` values at most, cut along the first axes first: whole sequences, if few."""
    sizes = batch.sizes
    for axis in [axis for axis in sizes if axis not in CLASS_AXES]:
        sizes[axis] = max(1, min(sizes[axis], WHOLE * sizes[axis] // math.prod(sizes.values())))
    starts = {axis: min(anchor[axis], batch.sizes[axis] - size) for axis, size in sizes.items()}
    return batch.cut(starts, sizes)


def _overview(ask: Caller, batch: Batch, part: Batch) -> tuple[Overview, Tensor]:
    """Return the loss as the reader computes it, and its gradient on a part."""
    half = batch.prediction.dtype in HALF
    # Few numbers exceed float32, whole tensor or not; a sum of many exceeds float16.
    seen = batch if half else part
    plain, precise = ask(seen, gradient=not half), None
    if not math.isfinite(plain.value):
        precise = _finite_in_float64(ask, seen, plain.value)
    gradient = plain.gradient
    if half or precise is not None:
        gradient = _first_that_works([replace(ask, dtype=torch.float32 if half else torch.float64), ask], part).gradient
    broken = int((~torch.isfinite(gradient)).sum())
    return Overview(plain.value, precise, batch.prediction.dtype, 0, 0, 0.0, False, broken), gradient


def _finite_in_float64(ask: Caller, seen: Batch, plain: float) -> float:
    """Return the loss in float64, or say where its infinity or NaN comes from.

    Raises:
        ProbeInputError: it is not finite in float64 either, or cannot be computed.
    """
    with suppress(ProbeInputError):
        precise = replace(ask, dtype=torch.float64)(seen, gradient=False).value
        if math.isfinite(precise):
            return precise
    counts = [int((~torch.isfinite(tensor)).sum()) for tensor in seen.tensors[:2]]
    raise ProbeInputError(
        f"loss is {plain}, in float64 too; prediction of shape {tuple(seen.prediction.shape)} holds {counts[0]} values "
        f"that are not finite, target of shape {tuple(seen.target.shape)} {counts[1]}; give a batch with a finite loss"
    )


def _first_that_works(asks: Sequence[Caller], batch: Batch) -> Answer:
    for ask in asks[:-1]:
        with suppress(ProbeInputError):
            return ask(batch)
    return asks[-1](batch)


def _working(ask: Caller, batch: Batch, part: Batch, generator: torch.Generator) -> tuple[Caller, Batch, Answer]:
    """Return the loss in float64 or else as given, with a small piece on which it is finite, or else the part."""
    pieces = [block(batch, {}, random_anchor(batch, generator), VALUES) for _ in range(3)]
    for piece in [*pieces, part]:
        for each in (replace(ask, dtype=torch.float64), ask):
            with suppress(ProbeInputError):
                answer = each(piece)
                if math.isfinite(answer.value):
                    return each, piece, answer
    # Only a loss that is finite here in float64 alone comes so far, and that was tried.
    return ask, part, ask(part)


def _differ(first: Answer, second: Answer) -> bool:
    """Return whether two answers differ by more than rounding."""
    size = first.gradient.nan_to_num(0, 0, 0).abs().max().item()
    close = torch.allclose(first.gradient, second.gradient, rtol=1e-5, atol=1e-6 * size, equal_nan=True)
    return not close or not math.isclose(first.value, second.value, rel_tol=1e-6)


def _ignores_target(ask: Caller, piece: Batch, answer: Answer) -> bool:
    """Return whether no other target that the loss accepts changes its answer."""
    tried = False
    for other in _other_targets(piece.target):
        if torch.equal(other, piece.target):
            continue
        with suppress(ProbeInputError):
            if _differ(answer, ask(replace(piece, tensors=(piece.prediction, other, *piece.tensors[2:])))):
                return False
            tried = True
    return tried


def _other_targets(target: Tensor) -> list[Tensor]:
    """Return targets of the same kind: the values elsewhere, and numbers or classes that most losses accept."""
    elsewhere = target.flatten().roll(1).reshape(target.shape)
    if target.is_floating_point():
        return [elsewhere, 0.5 * target, target + 1]
    if target.dtype == torch.bool:
        return [elsewhere, ~target]
    # Class 0 and class 1 change places; marks such as -100 stay.
    return [elsewhere, torch.where(target == 0, 1, torch.where(target > 0, 0, target)).to(target.dtype)]


def _concentrated(overview: Overview, gradient: Tensor, part: Batch) -> Overview:
    """Return the overview with the share of the squared gradient that lies in 1 % of the positions."""
    features = [number for number, axis in enumerate(part.axes[0]) if axis in FEATURE_AXES]
    norms = torch.linalg.vector_norm(gradient.float(), dim=features) if features else gradient.abs()
    squares = norms.double().flatten().square()
    squares = squares[squares > 0]
    total = squares.sum().item()
    if not squares.numel() or not math.isfinite(total):
        return overview
    top = math.ceil(squares.numel() / 100)
    share = squares.topk(top).values.sum().item() / total
    return replace(overview, positions=squares.numel(), top=top, top_share=share)


def _no_answer(first: Answer, second: Answer) -> ProbeResult:
    reason = (
        f"two calls on the same tensors gave {first.value:.6g} and {second.value:.6g}, or different gradients; switch "
        "dropout and other randomness of the loss off, such as by loss.eval()"
    )
    return ProbeResult("reduction_scaling", None, "The loss answers differently each time.", reason=reason)


def _result(
    scalings: Sequence[Scaling], expected: Mapping[str, str | None], overview: Overview, trial: MaskTrial | None
) -> ProbeResult:
    found = findings(scalings, expected, overview, trial)
    open_questions = [each.reason for each in scalings if each.kind is None and expected[each.axis] is not None]
    open_questions += [trial.reason] if trial is not None and not trial.tried else []
    ok = False if any(finding.severity != "note" for finding in found) else None if open_questions else True
    return ProbeResult(
        probe="reduction_scaling",
        ok=ok,
        headline=_headline(scalings),
        findings=found,
        columns=COLUMNS,
        rows=tuple(_row(each, expected[each.axis]) for each in scalings),
        bars=tuple(
            Bar(each.axis, _shown(each), unmet(each, expected[each.axis]))
            for each in scalings
            if _shown(each) is not None
        ),
        bar_unit="slope of log loss against log size (mean 0, sum 1)",
        measures=_measures(scalings, overview, trial),
        reason="; ".join(open_questions) if ok is None else "",
    )


def _shown(scaling: Scaling) -> float | None:
    return _number(scaling.value, 0) if scaling.value is not None else _number(scaling.element, 1)


def _number(slope: Slope | None, offset: float = 0) -> float | None:
    return None if slope is None else slope.slope + offset


def _headline(scalings: Sequence[Scaling]) -> str:
    """Return which axes the loss is a mean of, and which a sum."""
    words = {
        "mean": "keeps its size along {} (mean)",
        "sum": "grows with {} as a sum does",
        "neither": "is neither mean nor sum along {}",
        None: "could not be measured along {}",
    }
    axes = {kind: [each.axis for each in scalings if each.kind == kind] for kind in words}
    return f"The loss {', '.join(words[kind].format(_joined(names)) for kind, names in axes.items() if names)}."


def _joined(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _row(scaling: Scaling, expected: str | None) -> tuple[Any, ...]:
    error = scaling.value or scaling.element
    return (
        scaling.axis,
        scaling.size,
        scaling.kind or f"unknown: {scaling.reason}",
        expected,
        _number(scaling.value),
        None if error is None else error.error,
        _number(scaling.element),
        _number(scaling.norm),
    )


def _measures(scalings: Sequence[Scaling], overview: Overview, trial: MaskTrial | None) -> dict[str, Any]:
    tried = trial is not None and trial.tried
    return {
        "loss": overview.value,
        "loss_in_float64": overview.precise,
        "reductions": {each.axis: each.kind for each in scalings},
        "loss_slopes": {each.axis: _number(each.value) for each in scalings},
        "element_slopes": {each.axis: _number(each.element) for each in scalings},
        "ignores_target": overview.ignores_target,
        "broken_gradient_elements": overview.broken,
        "positions": overview.positions,
        "top_positions": overview.top,
        "top_share": overview.top_share,
        "masked_change": trial.largest if tried else None,
        "padding_ratio": trial.padding_ratio if tried else None,
    }
