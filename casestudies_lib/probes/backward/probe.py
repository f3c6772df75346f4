"""Does a backward pass, hand-written or not, match finite differences of its forward pass?"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from casestudies_lib.probes.backward.comparison import FAINT, UNRESOLVED, Bench, Judgement, judged, reaches_and_sizes
from casestudies_lib.probes.backward.findings import (
    ORDER,
    WRONG,
    findings,
    overwritten_finding,
    precision_note,
    unchecked_inputs_note,
)
from casestudies_lib.probes.backward.subject import (
    COARSE_STEPS,
    STEPS,
    CannotTell,
    Subject,
    check_repeatable,
    check_unwritten,
    in_precision,
    marks,
    overwritten,
    subject_of,
    values_of,
)
from casestudies_lib.probes.guard import random_left_as_found
from casestudies_lib.probes.inputs import check_whole_number
from casestudies_lib.probes.result import Bar, Finding, ProbeInputError, ProbeResult

PROBE = "backward_check"
COLUMNS = ("tensor", "values", "answer", "gradient ÷ finite difference", "difference, %", "smallest error seen, %")
BARS = 12


def backward_check(
    function: Callable[..., Any] | nn.Module | type[torch.autograd.Function],
    inputs: Any = (),
    *,
    parameters: nn.Module | Mapping[str, Tensor] | None = None,
    directions: int = 2,
    seed: int = 0,
    tolerance: float = 1e-4,
    replay: bool = False,
) -> ProbeResult:
    """Compare gradients with finite differences along random directions, and say which tensor's is wrong, and how.

    The function runs in float64 at your point; what it casts to float32 itself stays in float64 too. A random weighting
    of its outputs is sent backward; the same weighting of the outputs is differenced along a random direction in which
    all tensors move at once. Where the two sides differ, each tensor is moved alone, and what is wrong is told apart:
    wrong sign, wrong scale (with the factor), missing (None or zero where the output depends on the tensor), missing in
    part, spurious (not zero where the output does not depend on it), wrong direction. A direction drawn from a normal
    distribution shows any error of the gradient, also one in few elements, unless it is smaller than the noise:
    `measures` and the table say how small an error could have been seen. A pass that overwrites its inputs, which
    spoils the gradients of whatever else keeps them, is a fault too.

    The noise is estimated from how little the points around yours lie on a smooth curve, so rounding and kinks (a ReLU
    or a top-k exactly at its edge) widen the answer to "cannot tell", never to a fault. Discrete choices that do not
    flip within a step count as fixed. A gradient that is cut on purpose, or a straight-through estimator, is no
    derivative, and is reported.

    Module or parameters, gradients, buffers and generators stay as they were (see `guard.left_as_found`), also after an
    error. Cost where all is well: one forward pass, `directions` backward passes and six to ten forward passes without
    a graph, all in float64; else two forward passes more for every tensor, and some ten for every wrong one. Memory:
    `directions` + 4 copies of the parameters in float64.

    Args:
        function: a module, a function of tensors, or an autograd.Function (its `apply` is called).
        inputs: its positional arguments, a tuple or list, or one tensor. Tensors with `requires_grad` are compared.
        parameters: for a function that is no module: the module that it runs, or its leaf tensors by name.
        directions: random weightings of the outputs, each a backward pass; where the output is one number, random
            directions of the tensors instead, each four forward passes.
        seed: of the random directions.
        tolerance: relative error of a gradient that is accepted.
        replay: judge a random function on one draw, by giving it the same random numbers in every run.

    Returns:
        A result whose `ok` is True if every gradient agrees, False if one is wrong, None if that cannot be told:
        nothing to compare; a random function; one that changes its inputs or parameters in place; noise or kinks that
        would hide an error of 5 %. `measures["smallest_error_seen"]` is the relative error, in the tensor where that is
        largest, that would have been found.

    Raises:
        ProbeInputError: names the argument, what came and what to give.

    Source: the chapter head_routing; random projections of both sides as in torch.autograd.gradcheck's fast mode.
    """
    check_whole_number("directions", directions, 1)
    if isinstance(tolerance, bool) or not isinstance(tolerance, int | float) or not 0 < tolerance < 1:
        raise ProbeInputError(f"tolerance is {tolerance!r}; give a relative error between 0 and 1, such as 1e-4")
    subject = subject_of(function, inputs, parameters)
    if not subject.tensors:
        reason = "there are neither parameters that require a gradient nor inputs with requires_grad=True"
        return _untold(f"{reason}; call requires_grad_() on an input")
    notes = [] if subject.inputs or not _floating_inputs(subject) else [unchecked_inputs_note()]
    try:
        with random_left_as_found():
            bench, judgements, more = _compared(subject, directions, seed, float(tolerance), replay)
    except CannotTell as why:
        return _untold(str(why))
    return _result(bench, judgements, [*more, *notes])


def _floating_inputs(subject: Subject) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(subject.arguments) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


Answer = tuple[Bench, dict[str, Judgement], list[Finding]]


def _compared(subject: Subject, directions: int, seed: int, tolerance: float, replay: bool) -> Answer:
    try:
        with in_precision(subject, torch.float64) as doubled:
            return _answer(doubled, directions, seed, tolerance, replay, STEPS)
    except (RuntimeError, TypeError, NotImplementedError) as error:
        # A kernel or a tensor of the function's own that knows only its own type.
        refusal = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    with in_precision(subject, None) as plain:
        bench, judgements, more = _answer(plain, directions, seed, tolerance, replay, COARSE_STEPS)
    dtype = str(next(iter(bench.subject.tensors.values())).dtype).removeprefix("torch.")
    return bench, judgements, [*more, precision_note(dtype, refusal)]


def _answer(
    subject: Subject, directions: int, seed: int, tolerance: float, replay: bool, steps: Sequence[float]
) -> Answer:
    generator = torch.Generator().manual_seed(seed)
    with subject.at_start():
        start, handed = marks(subject), subject.handed()
        before = values_of(handed)
        outputs = subject.outputs_for(handed)
        check_unwritten(subject, start)
        written = {"forward": overwritten(handed, before)}
        _check_finite(outputs)
        asked = [place for place, output in enumerate(outputs) if output.requires_grad] or list(range(len(outputs)))
        upstreams = _upstreams([output.detach() for output in outputs], asked, directions, generator)
        gradients = [_backward(subject, outputs, upstream) for upstream in upstreams]
        written["backward"] = [name for name in overwritten(handed, before) if name not in written["forward"]]
        check_unwritten(subject, start)
    centre = check_repeatable(subject, [output.detach() for output in outputs], replay)
    reaches, sizes = reaches_and_sizes(subject, gradients)
    bench = Bench(subject, centre, upstreams, gradients, reaches, sizes, generator, tolerance, steps)
    # One number has but one weighting; many numbers need but one direction, which every weighting asks anew.
    judgements = judged(bench, directions if len(upstreams) < directions else 1)
    return bench, judgements, [overwritten_finding(names, during) for during, names in written.items() if names]


def _check_finite(outputs: Sequence[Tensor]) -> None:
    if any(bool(output.isnan().any()) for output in outputs) or not any(bool(o.isfinite().any()) for o in outputs):
        raise ProbeInputError("the outputs hold nan, or nothing finite; give inputs at which the function is finite")


def _upstreams(
    outputs: Sequence[Tensor], asked: Sequence[int], directions: int, generator: torch.Generator
) -> list[list[Tensor]]:
    """Return random gradients of the outputs: of size 1, but not quite, so that a backward must use them to be right.

    One number has only one upstream gradient but for its size. Infinite outputs (a mask's) get none.
    """
    found = []
    for _ in range(directions if sum(outputs[place].numel() for place in asked) > 1 else 1):
        loudness = math.exp(torch.rand((), generator=generator).item() - 0.5)
        drawn = [torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out) for out in outputs]
        kept = [
            torch.where(out.isfinite(), draw, 0.0) if place in asked else torch.zeros_like(out)
            for place, (out, draw) in enumerate(zip(outputs, drawn))
        ]
        size = math.sqrt(sum(float(each.double().square().mean()) for each in kept) / len(asked))
        found.append([each * (loudness / size) for each in kept])
    return found


def _backward(subject: Subject, outputs: Sequence[Tensor], upstream: Sequence[Tensor]) -> dict[str, Tensor | None]:
    tensors = subject.tensors
    reached = [(output, weight) for output, weight in zip(outputs, upstream) if output.requires_grad]
    if not reached:
        return dict.fromkeys(tensors)
    found = torch.autograd.grad(
        [output for output, _ in reached],
        list(tensors.values()),
        [weight for _, weight in reached],
        retain_graph=True,
        allow_unused=True,
    )
    return {name: None if grad is None else grad.detach().to_dense() for name, grad in zip(tensors, found)}


def _untold(reason: str) -> ProbeResult:
    return ProbeResult(PROBE, None, "The gradients could not be compared with finite differences.", reason=reason)


def _result(bench: Bench, judgements: Mapping[str, Judgement], others: Sequence[Finding]) -> ProbeResult:
    found = findings(judgements)
    open_ones = [name for name, judgement in judgements.items() if judgement.kind == UNRESOLVED]
    faulty = found or any(finding.severity == "fault" for finding in others)
    ok = False if faulty else None if open_ones else True
    measures = _measures(bench, judgements)
    return ProbeResult(
        probe=PROBE,
        ok=ok,
        headline=_headline(judgements, measures) + (" An input is overwritten." if faulty and not found else ""),
        findings=(*found, *others),
        columns=COLUMNS,
        rows=_rows(bench, judgements),
        bars=_bars(judgements),
        bar_unit="difference between gradient and finite difference, % of the larger",
        measures=measures,
        reason=_reason(open_ones) if ok is None else "",
    )


def _reason(names: Sequence[str]) -> str:
    return (
        f"at every step tried, rounding or a kink would hide an error of 5 % in {', '.join(names[:4])}"
        f"{f' and {len(names) - 4} more' if len(names) > 4 else ''}; let the function compute in float64 throughout, "
        "take constants of another order out of its output, or move the inputs off ties and zeros"
    )


def _measures(bench: Bench, judgements: Mapping[str, Judgement]) -> dict[str, Any]:
    smallest = [judgement.smallest for judgement in judgements.values() if judgement.smallest is not None]
    return {
        "tensors": len(judgements),
        "wrong": sum(judgement.kind in WRONG for judgement in judgements.values()),
        "answers": {name: judgement.kind for name, judgement in judgements.items()},
        "factors": {name: judgement.factor for name, judgement in judgements.items() if judgement.factor is not None},
        "smallest_error_seen": max(smallest, default=None),
        "backward_passes": len(bench.upstreams),
    }


def _headline(judgements: Mapping[str, Judgement], measures: Mapping[str, Any]) -> str:
    count, kinds = len(judgements), list(measures["answers"].values())
    unseen = kinds.count(UNRESOLVED) + kinds.count(FAINT)
    left = f"; {unseen} could not be judged" if unseen else ""
    if measures["wrong"]:
        return f"{measures['wrong']} of {count} gradients disagree with finite differences{left}."
    smallest = measures["smallest_error_seen"]
    others = "the others" if unseen else "any of them"
    seen = "" if smallest is None else f"; an error of {100 * smallest:.2g} % in {others} would have been seen"
    return f"No gradient of {count} was found to disagree with finite differences{left}{seen}."


def _rows(bench: Bench, judgements: Mapping[str, Judgement]) -> tuple[tuple[Any, ...], ...]:
    worst_first = sorted(judgements.items(), key=lambda entry: ORDER.index(entry[1].kind))
    tensors = bench.subject.tensors
    return tuple(
        (
            name,
            tensors[name].numel(),
            each.kind,
            each.factor,
            _hundredfold(each.difference),
            _hundredfold(each.smallest),
        )
        for name, each in worst_first
    )


def _hundredfold(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _bars(judgements: Mapping[str, Judgement]) -> tuple[Bar, ...]:
    worst_first = sorted(judgements.items(), key=lambda entry: ORDER.index(entry[1].kind))[:BARS]
    return tuple(Bar(name, 100 * (each.difference or 0.0), each.kind in WRONG) for name, each in worst_first)
