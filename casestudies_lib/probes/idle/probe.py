"""Which parameters does a loss leave idle, do they still move, and what do they cost?"""

import math
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from casestudies_lib.probes.copies import simulate, state_bytes
from casestudies_lib.probes.guard import random_left_as_found
from casestudies_lib.probes.idle.findings import (
    BROKEN,
    LEARNS,
    ONLY_HERE,
    OUTSIDE,
    UNKNOWN,
    UNUSED,
    ZERO,
    Look,
    Motion,
    findings,
    flops,
)
from casestudies_lib.probes.inputs import Loss, check_loss, check_module, check_optimiser, check_whole_number
from casestudies_lib.probes.passes import Signal, WorkRecorder, jittered_signals, signals
from casestudies_lib.probes.result import Bar, ProbeInputError, ProbeResult, percent

COLUMNS = (
    "parameter",
    "values",
    "gradient",
    "used in forward pass",
    "held by optimiser",
    "change in simulated steps, % of norm",
    "optimiser state, bytes",
)
FROZEN = "frozen"
_ORDER = (ZERO, OUTSIDE, UNUSED, BROKEN, UNKNOWN, ONLY_HERE, LEARNS, FROZEN)


def idle_parameters(
    module: nn.Module,
    loss: Loss,
    batch: Any,
    optimiser: Optimizer | None = None,
    *,
    further_batches: Iterable[Any] = (),
    passes: int = 4,
    steps: int = 100,
    jitter: float = 1.0,
) -> ProbeResult:
    """Find the parameters that a loss teaches nothing, tell whether they still move, and count what they cost.

    A parameter is idle if its gradient is `None` or exactly zero on `batch`, and still is when every trainable weight
    is jittered (which wakes what a zero initialisation or a unit that is off had silenced) and on the further batches.
    What wakes up is a note; what could not be tried leaves `ok` at None. No finite trial shows that no batch at all
    would wake a parameter: give `further_batches` if your model chooses its path by the data, or if a batch may lack
    a task.

    FLOPs are those of matrix products, convolutions, attention and recurrent layers, in the first pass; an operation
    counts as idle if no non-zero gradient comes back through it. A penalty on all weights gives every one of them a
    gradient: leave it out of the loss here.

    The module stays as it was (see `guard.left_as_found`), also after an error; the optimiser is only read. What your
    own code does outside the module, such as logging, happens once a pass. Give the plain module, not a wrapper that
    synchronises gradients.

    Cost: one forward and backward pass if every parameter learns, else at most `passes`, each with a copy of the
    parameters, and a copy of the idle parameters with their optimiser state.

    Args:
        module: the model, in the mode (train or eval) you ask about.
        loss: called as `loss(module, batch)`; returns one finite number that depends on the parameters.
        batch: whatever your loss takes.
        optimiser: the one that trains the module, built over its parameters; None leaves movement unknown.
        further_batches: more batches, a DataLoader for instance; read only as far as needed.
        passes: most forward-backward passes to spend; the second is the jittered one.
        steps: simulated optimiser steps, at the present learning rate.
        jitter: noise on the weights of the second pass, in units of each tensor's root mean square.

    Returns:
        A result whose `ok` is True if every trainable parameter learns, False if one is idle (or has a gradient that is
        not finite), None if that cannot be told. `measures` holds the totals: numbers of values, FLOPs, bytes.

    Raises:
        ProbeInputError: names the argument, what came and what to give.

    Source: the chapter zero_weight_head.
    """
    check_module(module)
    check_loss(loss)
    check_optimiser(module, optimiser)
    check_whole_number("passes", passes, 1)
    check_whole_number("steps", steps, 1)
    _check_jitter(jitter)
    trainable = {name: p for name, p in module.named_parameters() if p.requires_grad and p.numel()}
    if not trainable:
        reason = "every parameter has requires_grad=False, so nothing is meant to learn; call requires_grad_() first"
        return ProbeResult("idle_parameters", None, "The module has no trainable parameter.", reason=reason)
    with random_left_as_found():
        further = islice(_iterable(further_batches), max(passes - 2, 0))
        look = _look(module, loss, batch, further, trainable, jitter if passes > 1 else None)
        motion = _motion(module, optimiser, look, steps)
    return _result(module, look, motion)


def _check_jitter(jitter: object) -> None:
    if isinstance(jitter, bool) or not isinstance(jitter, int | float) or not 0 < jitter < math.inf:
        raise ProbeInputError(f"jitter is {jitter!r}; give a number above 0, such as 1.0")


def _iterable(further_batches: Any) -> Iterable[Any]:
    if isinstance(further_batches, Tensor | Mapping) or not isinstance(further_batches, Iterable):
        kind = type(further_batches).__name__
        raise ProbeInputError(f"further_batches is a {kind}; give several batches, such as a list or a DataLoader")
    return further_batches


def _look(
    module: nn.Module,
    loss: Loss,
    batch: Any,
    further: Iterable[Any],
    trainable: Mapping[str, Tensor],
    jitter: float | None,
) -> Look:
    """Look at the loss from several sides, until nothing is asleep or nothing is left to try."""
    recorder = WorkRecorder(module, trainable)
    first = signals(module, loss, batch, trainable, recorder)
    asleep = {name for name, signal in first.items() if signal.finite and not signal.size}
    woken, tried, others = set(), [], 0
    if asleep and jitter is not None:
        seen = jittered_signals(module, loss, batch, trainable, jitter)
        tried += [] if seen is None else ["with all weights jittered"]
        woken |= {name for name in asleep if seen is not None and seen[name].teaches}
    for other in further if asleep - woken else ():
        seen = signals(module, loss, other, trainable)
        others += 1
        woken |= {name for name in asleep if seen[name].size or not seen[name].finite}
        if not asleep - woken:
            break
    tried += [f"on {others} more batch{'es' * (others > 1)}"] if others else []
    kinds = {name: _kind(name, signal, name in woken, bool(tried), recorder) for name, signal in first.items()}
    return Look(dict(trainable), kinds, first, recorder, " and ".join(["on this batch", *tried]))


def _kind(name: str, signal: Signal, woken: bool, tried: bool, recorder: WorkRecorder) -> str:
    if not signal.finite:
        return BROKEN
    if signal.size:
        return LEARNS
    if woken:
        return ONLY_HERE
    if not tried:
        return UNKNOWN
    if signal.exists:
        return ZERO
    return OUTSIDE if name in recorder.read else UNUSED


def _motion(module: nn.Module, optimiser: Optimizer | None, look: Look, steps: int) -> Motion:
    if optimiser is None:
        return Motion(None, frozenset(), {}, steps, "no optimiser was given")
    held = {id(parameter) for group in optimiser.param_groups for parameter in group["params"]}
    names = frozenset(name for name, parameter in module.named_parameters() if id(parameter) in held)
    gradients = {
        look.parameters[name]: torch.zeros_like(look.parameters[name]) if look.kinds[name] == ZERO else None
        for name in look.idle
    }
    try:
        moved = simulate(optimiser, gradients, steps)
    except Exception as error:
        # An optimiser of the reader's own may want a closure, or attributes that no copy has.
        unknown = f"a copy of {type(optimiser).__name__} could not step ({type(error).__name__}: {error})"
        return Motion(optimiser, names, {}, steps, unknown)
    by_name = {name: moved[parameter] for name, parameter in look.parameters.items() if parameter in moved}
    return Motion(optimiser, names, by_name, steps, "")


def _result(module: nn.Module, look: Look, motion: Motion) -> ProbeResult:
    found = findings(module, look, motion)
    unknown = [name for name, kind in look.kinds.items() if kind == UNKNOWN]
    ok = False if any(finding.severity != "note" for finding in found) else None if unknown else True
    reason = f"neither jittered weights nor another batch could be tried on {len(unknown)} tensors without gradient"
    measures = _measures(look, motion)
    return ProbeResult(
        probe="idle_parameters",
        ok=ok,
        headline=_headline(measures, len(unknown), motion),
        findings=tuple(found),
        columns=COLUMNS,
        rows=_rows(module, look, motion),
        bars=_bars(measures),
        bar_unit="share of the whole, %",
        measures=measures,
        reason=f"{reason}; give further_batches, a smaller jitter or more passes" if ok is None else "",
    )


def _measures(look: Look, motion: Motion) -> dict[str, int | None]:
    works, recorder = look.recorder.works, look.recorder
    moving = [name for name in look.idle if name in motion.moved and motion.moved[name].change]
    return {
        "idle_tensors": len(look.idle),
        "tensors": len(look.parameters),
        "idle_values": look.values(look.idle),
        "values": look.values(look.parameters),
        "idle_forward_flops": flops(works, backward=False, without_signal_in=recorder),
        "forward_flops": flops(works, backward=False),
        "idle_backward_flops": flops(works, backward=True, without_signal_in=recorder),
        "backward_flops": flops(works, backward=True),
        "moving_values": None if motion.unknown else look.values(moving),
        "idle_state_bytes": None if motion.unknown else sum(move.state_bytes for move in motion.moved.values()),
        "steps": motion.steps,
    }


def _headline(measures: Mapping[str, int | None], unknown: int, motion: Motion) -> str:
    idle, tensors = measures["idle_tensors"], measures["tensors"]
    if not idle:
        doubt = f"; {unknown} could not be told" if unknown else ""
        return f"No idle parameter was found among {tensors} trainable tensors{doubt}."
    work = percent(
        measures["idle_forward_flops"] + measures["idle_backward_flops"],
        measures["forward_flops"] + measures["backward_flops"],
    )
    share = percent(measures["idle_values"], measures["values"])
    return (
        f"{idle} of {tensors} trainable tensors ({share} of the values) are idle; {_movement(measures, motion)}; "
        f"{work} of the FLOPs teach nothing."
    )


def _movement(measures: Mapping[str, int | None], motion: Motion) -> str:
    moving = measures["moving_values"]
    if moving is None:
        return f"whether they move is unknown, for {motion.unknown}"
    if not moving:
        return "they stay put"
    return "they still move" if moving == measures["idle_values"] else "some of them still move"


def _rows(module: nn.Module, look: Look, motion: Motion) -> tuple[tuple[Any, ...], ...]:
    """Return one row a parameter, the idle ones first; tied parameters stand under all their names."""
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    listed = [(look.kinds.get(name, FROZEN), name, parameter) for name, parameter in module.named_parameters()]
    listed.sort(key=lambda entry: _ORDER.index(entry[0]))
    return tuple(
        (
            " = ".join(names[id(parameter)]),
            parameter.numel(),
            kind,
            name in look.recorder.read if name in look.parameters else None,
            None if motion.optimiser is None else name in motion.held,
            _change(name, motion),
            _state_bytes(name, parameter, motion),
        )
        for kind, name, parameter in listed
    )


def _change(name: str, motion: Motion) -> float | None:
    """Return the simulated change in percent of the start; None where not simulated, or where the start is zero."""
    move = motion.moved.get(name)
    if move is None:
        return None
    if not move.change:
        return 0.0
    return 100 * move.change / move.start if move.start else None


def _state_bytes(name: str, parameter: Tensor, motion: Motion) -> int | None:
    if motion.optimiser is None:
        return None
    return motion.moved[name].state_bytes if name in motion.moved else state_bytes(motion.optimiser, parameter)


def _bars(measures: Mapping[str, int | None]) -> tuple[Bar, ...]:
    bars = []
    for label, key in (("values", "values"), ("forward FLOPs", "forward_flops"), ("backward FLOPs", "backward_flops")):
        if whole := measures[key]:
            share = 100 * measures[f"idle_{key}"] / whole
            bars += [Bar(f"{label}, idle", share, True), Bar(f"{label}, learning", 100 - share, False)]
    return tuple(bars)
