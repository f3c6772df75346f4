"""Does a backward pass, hand-written or not, match finite differences of its forward pass?"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from casestudies_lib.probes.backward.findings import ORDER, WRONG, findings, precision_note, unchecked_inputs_note
from casestudies_lib.probes.backward.search import SUSPECT, UNRESOLVED, Judgement, Search, pulls_of, search
from casestudies_lib.probes.backward.subject import (
    COARSE_STEPS,
    STEPS,
    CannotTell,
    Subject,
    check_repeatable,
    check_unwritten,
    in_precision,
    marks,
    subject_of,
)
from casestudies_lib.probes.guard import random_left_as_found
from casestudies_lib.probes.inputs import check_whole_number
from casestudies_lib.probes.result import Bar, Finding, ProbeInputError, ProbeResult

PROBE = "backward_check"
COLUMNS = ("tensor", "values", "answer", "gradient ÷ finite difference", "difference, %", "smallest error seen, %")
BARS = 12
# Two evaluations show whether the function repeats itself, four give the first slope.
LEAST_EVALUATIONS = 6
# What sixteen forward-backward passes of a module of so many values pay for; where less is at stake, more may be told.
EVALUATIONS, MANY_VALUES = 10, 900_000
MOST_EVALUATIONS = 48


def backward_check(
    function: Callable[..., Any] | nn.Module | type[torch.autograd.Function],
    inputs: Any = (),
    *,
    parameters: nn.Module | Mapping[str, Tensor] | None = None,
    directions: int = 2,
    seed: int = 0,
    tolerance: float = 1e-4,
    evaluations: int | None = None,
    replay: bool = False,
) -> ProbeResult:
    """Compare gradients with finite differences along random directions, and say which tensor's is wrong, and how.

    The function runs in float64 at your point. A random weighting of its outputs is sent backward; the same weighting
    of the outputs is differenced along a random direction in which all tensors move at once. Where the two sides
    differ, the tensors are halved until the wrong ones stand alone, and told apart: wrong sign, wrong scale (with the
    factor), missing (None or zero where the output depends on the tensor), missing in part, spurious (not zero where
    the output does not depend on it), wrong direction. A direction drawn from a normal distribution shows any error of
    the gradient, also one in few elements, unless it is smaller than the noise: `measures` and the table say how small
    an error could have been seen.

    The noise is estimated from how little the points around yours lie on a smooth curve, so rounding and kinks (a ReLU
    or a top-k exactly at its edge) widen the answer to "cannot tell", never to a fault. Discrete choices that do not
    flip within a step count as fixed. A gradient that is cut on purpose, or a straight-through estimator, is no
    derivative, and is reported.

    Module or parameters, gradients, buffers and generators stay as they were (see `guard.left_as_found`), also after an
    error. Cost: one forward pass and `directions` backward passes, and at most `evaluations` forward passes without a
    graph (six where all is well), all in float64: ten to sixteen forward-backward passes of your own in float32, more
    on a batch so small that one pass over the parameters outweighs it. Memory: `directions` + 4 copies of the
    parameters in float64.

    Args:
        function: a module, a function of tensors, or an autograd.Function (its `apply` is called).
        inputs: its positional arguments, a tuple or list, or one tensor. Tensors with `requires_grad` are compared.
        parameters: for a function that is no module: the module that it runs, or its leaf tensors by name.
        directions: random weightings of the outputs, each a backward pass; where the output is one number, random
            directions of the tensors instead, each two forward passes.
        seed: of the random directions.
        tolerance: relative error of a gradient that is accepted.
        evaluations: most forward passes to spend; more tell more tensors apart where many are wrong. None: 10 for a
            million values or more, up to 48 for fewer.
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
    if evaluations is not None:
        check_whole_number("evaluations", evaluations, LEAST_EVALUATIONS)
    if isinstance(tolerance, bool) or not isinstance(tolerance, int | float) or not 0 < tolerance < 1:
        raise ProbeInputError(f"tolerance is {tolerance!r}; give a relative error between 0 and 1, such as 1e-4")
    subject = subject_of(function, inputs, parameters)
    if not subject.tensors:
        reason = "there are neither parameters that require a gradient nor inputs with requires_grad=True"
        return _untold(f"{reason}; call requires_grad_() on an input")
    if evaluations is None:
        values = sum(tensor.numel() for tensor in subject.tensors.values())
        evaluations = min(round(EVALUATIONS * max(MANY_VALUES / values, 1.0)), MOST_EVALUATIONS)
    notes = [] if subject.inputs or not _floating_inputs(subject) else [unchecked_inputs_note()]
    try:
        with random_left_as_found():
            work, more = _searched(subject, directions, seed, float(tolerance), evaluations, replay)
    except CannotTell as why:
        return _untold(str(why))
    return _result(work, [*notes, *more], evaluations)


def _floating_inputs(subject: Subject) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(subject.arguments) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _searched(
    subject: Subject, directions: int, seed: int, tolerance: float, evaluations: int, replay: bool
) -> tuple[Search, list[Finding]]:
    try:
        with in_precision(subject, torch.float64) as doubled:
            return _work(doubled, directions, seed, tolerance, evaluations, replay, STEPS), []
    except (RuntimeError, TypeError, NotImplementedError) as error:
        # A kernel or a tensor of the function's own that knows only its own type.
        refusal = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    with in_precision(subject, None) as plain:
        work = _work(plain, directions, seed, tolerance, evaluations, replay, COARSE_STEPS)
    dtype = str(next(iter(work.subject.tensors.values())).dtype).removeprefix("torch.")
    return work, [precision_note(dtype, refusal)]


def _work(
    subject: Subject,
    directions: int,
    seed: int,
    tolerance: float,
    evaluations: int,
    replay: bool,
    steps: Sequence[float],
) -> Search:
    generator = torch.Generator().manual_seed(seed)
    with subject.at_start():
        start = marks(subject)
        outputs = subject.run()
        check_unwritten(subject, start)
        _check_finite(outputs)
        asked = [place for place, output in enumerate(outputs) if output.requires_grad] or list(range(len(outputs)))
        upstreams = _upstreams([output.detach() for output in outputs], asked, directions, generator)
        gradients = [_backward(subject, outputs, upstream) for upstream in upstreams]
    centre = check_repeatable(subject, [output.detach() for output in outputs], replay)
    pulls = pulls_of(subject, upstreams, gradients)
    work = Search(subject, centre, pulls, generator, tolerance, evaluations - 2)
    # One number has but one weighting; many numbers need but one direction, which every weighting asks anew.
    search(work, directions if len(upstreams) < directions else 1, steps)
    return work


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


def _result(work: Search, notes: Sequence[Finding], evaluations: int) -> ProbeResult:
    judged = work.judged
    found = findings(judged)
    open_ones = [name for name, judgement in judged.items() if judgement.kind == UNRESOLVED]
    ok = False if found else None if open_ones else True
    measures = _measures(work, evaluations)
    return ProbeResult(
        probe=PROBE,
        ok=ok,
        headline=_headline(judged, measures),
        findings=(*found, *notes),
        columns=COLUMNS,
        rows=_rows(work),
        bars=_bars(judged),
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


def _measures(work: Search, evaluations: int) -> dict[str, Any]:
    judged = work.judged
    smallest = [judgement.smallest for judgement in judged.values() if judgement.smallest is not None]
    return {
        "tensors": len(judged),
        "wrong": sum(judgement.kind in WRONG for judgement in judged.values()),
        "answers": {name: judgement.kind for name, judgement in judged.items()},
        "factors": {name: judgement.factor for name, judgement in judged.items() if judgement.factor is not None},
        "smallest_error_seen": max(smallest, default=None),
        "evaluations": evaluations - work.left,
        "backward_passes": len(work.pulls.upstreams),
        "step": work.step,
    }


def _headline(judged: Mapping[str, Judgement], measures: Mapping[str, Any]) -> str:
    if measures["wrong"]:
        suspects = sum(judgement.kind == SUSPECT for judgement in judged.values())
        doubt = f", among them {suspects} of which at least one does" if suspects else ""
        return f"{measures['wrong']} of {len(judged)} gradients disagree with finite differences{doubt}."
    smallest = measures["smallest_error_seen"]
    seen = "" if smallest is None else f"; an error of {100 * smallest:.2g} % in any of them would have been seen"
    return f"No gradient of {len(judged)} was found to disagree with finite differences{seen}."


def _rows(work: Search) -> tuple[tuple[Any, ...], ...]:
    names = sorted(work.judged, key=lambda name: ORDER.index(work.judged[name].kind))
    return tuple(
        (
            name,
            work.subject.tensors[name].numel(),
            work.judged[name].kind,
            work.judged[name].factor,
            _hundredfold(work.judged[name].difference),
            _hundredfold(work.judged[name].smallest),
        )
        for name in names
    )


def _hundredfold(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _bars(judged: Mapping[str, Judgement]) -> tuple[Bar, ...]:
    names = sorted(judged, key=lambda name: ORDER.index(judged[name].kind))[:BARS]
    return tuple(Bar(name, 100 * (judged[name].difference or 0.0), judged[name].kind in WRONG) for name in names)
