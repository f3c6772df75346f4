"""Which parameters does a loss leave idle, do they still move, and what do they cost?"""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from casestudies_lib.probes.copies import simulate, state_bytes
from casestudies_lib.probes.guard import random_left_as_found
from casestudies_lib.probes.idle.findings import (
    BROKEN,
    FAINT,
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
    not_held,
    silent,
)
from casestudies_lib.probes.inputs import Loss, check_loss, check_module, check_whole_number, optimisers_of
from casestudies_lib.probes.passes import Signal, WorkRecorder, jittered_signals, signals
from casestudies_lib.probes.result import Bar, ProbeInputError, ProbeResult, percent
from casestudies_lib.probes.unlisted import unlisted_parameters

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
UNLISTED = "learns, in no parameters()"
_ORDER = (ZERO, OUTSIDE, UNUSED, FAINT, BROKEN, UNKNOWN, ONLY_HERE, LEARNS, FROZEN)


def idle_parameters(
    module: nn.Module,
    loss: Loss,
    batch: Any,
    optimiser: Optimizer | Sequence[Optimizer] | None = None,
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
    a task. A module whose gradients are all below rounding next to the largest counts as taught nothing, too.

    A parameter that the loss reaches and no optimiser holds is a fault. It is searched for in the loss's graph, and so
    also found where `module.parameters()` does not list it: in a plain list, a dictionary or a closure. Frozen modules
    on the loss's path are listed in a note.

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
        optimiser: the one that trains the module, or a list of all that do; they may hold more, such as a criterion's
            parameters. None leaves movement unknown, and what is held.
        further_batches: more batches, a DataLoader for instance; read only as far as needed.
        passes: most forward-backward passes to spend; the second is the jittered one.
        steps: simulated optimiser steps, at the present learning rate.
        jitter: noise on the weights of the second pass, in units of each tensor's root mean square.

    Returns:
        A result whose `ok` is True if every trainable parameter learns, False if one is idle, is outside the optimiser
        or has a gradient that is not finite, None if that cannot be told. `measures` holds the totals: numbers of
        values, FLOPs, bytes.

    Raises:
        ProbeInputError: names the argument, what came and what to give.

    Source: the chapter zero_weight_head.
    """
    check_module(module)
    check_loss(loss)
    optimisers = optimisers_of(optimiser)
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
        motion = _motion(optimisers, look, steps)
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
    recorder = WorkRecorder(module, dict(module.named_parameters()))
    first = signals(module, loss, batch, trainable, recorder)
    asleep = silent(module, trainable, first)
    woken, tried, others = set(), [], 0
    if asleep and jitter is not None:
        seen = jittered_signals(module, loss, batch, trainable, jitter)
        tried += [] if seen is None else ["with all weights jittered"]
        # A gradient that jitter makes infinite tells nothing.
        woken |= {name for name in asleep - silent(module, trainable, seen) if seen[name].finite} if seen else set()
    for other in further if asleep - woken else ():
        woken |= asleep - silent(module, trainable, signals(module, loss, other, trainable))
        others += 1
        if not asleep - woken:
            break
    tried += [f"on {others} more batch{'es' * (others > 1)}"] if others else []
    kinds = {
        name: _kind(signal, name in recorder.read, name in asleep, name in woken, bool(tried))
        for name, signal in first.items()
    }
    unlisted = _unlisted(module, loss, batch, recorder)
    return Look(dict(trainable), kinds, first, recorder, " and ".join(["on this batch", *tried]), unlisted)


def _kind(signal: Signal, used: bool, asleep: bool, woken: bool, tried: bool) -> str:
    if not signal.finite:
        return BROKEN
    if not asleep:
        return LEARNS
    if woken:
        return ONLY_HERE
    if not tried:
        return UNKNOWN
    if signal.exists:
        return FAINT if signal.size else ZERO
    return OUTSIDE if used else UNUSED


def _unlisted(module: nn.Module, loss: Loss, batch: Any, recorder: WorkRecorder) -> dict[str, Tensor]:
    """Return the parameters that the loss's graph ends in and the module does not list, by name."""
    skipped = {id(tensor) for tensor in [*module.parameters(), *tree_leaves(batch)] if isinstance(tensor, Tensor)}
    ends = {id(leaf): leaf for leaf in recorder.leaves if id(leaf) not in skipped}
    named = unlisted_parameters(module, loss).items()
    found = {name: ends.pop(id(tensor)) for name, tensor in named if id(tensor) in ends}
    # Other plain tensors with requires_grad may be inputs that a penalty needs the gradient of.
    unnamed = [leaf for leaf in ends.values() if isinstance(leaf, nn.Parameter)]
    return found | {f"parameter {n} of shape {tuple(p.shape)} outside the module": p for n, p in enumerate(unnamed, 1)}


def _motion(optimisers: list[Optimizer], look: Look, steps: int) -> Motion:
    held = frozenset(id(p) for optimiser in optimisers for group in optimiser.param_groups for p in group["params"])
    if not optimisers:
        return Motion((), held, {}, steps, "no optimiser was given")
    gradients = {
        look.parameters[name]: torch.zeros_like(look.parameters[name]) if look.signals[name].exists else None
        for name in look.idle
    }
    moved = {}
    for optimiser in optimisers:
        try:
            moved |= simulate(optimiser, gradients, steps)
        except Exception as error:
            # An optimiser of the reader's own may want a closure, or attributes that no copy has.
            unknown = f"a copy of {type(optimiser).__name__} could not step ({type(error).__name__}: {error})"
            return Motion(tuple(optimisers), held, {}, steps, unknown)
    by_name = {name: moved[parameter] for name, parameter in look.parameters.items() if parameter in moved}
    return Motion(tuple(optimisers), held, by_name, steps, "")


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
        "outside_tensors": len(not_held(look, motion)) if motion.optimisers else None,
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
    outside = measures["outside_tensors"]
    missed = f"; the loss reaches {outside} that no optimiser holds" if outside else ""
    if not idle:
        doubt = f"; {unknown} could not be told" if unknown else ""
        return f"No idle parameter was found among {tensors} trainable tensors{doubt}{missed}."
    work = percent(
        measures["idle_forward_flops"] + measures["idle_backward_flops"],
        measures["forward_flops"] + measures["backward_flops"],
    )
    share = percent(measures["idle_values"], measures["values"])
    return (
        f"{idle} of {tensors} trainable tensors ({share} of the values) are idle; {_movement(measures, motion)}; "
        f"{work} of the FLOPs teach nothing{missed}."
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
    rows = [(look.kinds.get(name, FROZEN), name, parameter) for name, parameter in module.named_parameters()]
    rows = [(UNLISTED, *item) for item in look.unlisted.items()] + sorted(rows, key=lambda row: _ORDER.index(row[0]))
    return tuple(
        (
            " = ".join(names.get(id(parameter), [name])),
            parameter.numel(),
            kind,
            kind == UNLISTED or (name in look.recorder.read if name in look.parameters else None),
            id(parameter) in motion.held if motion.optimisers else None,
            _change(name, motion),
            _state_bytes(name, parameter, motion),
        )
        for kind, name, parameter in rows
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
    if not motion.optimisers:
        return None
    if name in motion.moved:
        return motion.moved[name].state_bytes
    return sum(state_bytes(optimiser, parameter) for optimiser in motion.optimisers)


def _bars(measures: Mapping[str, int | None]) -> tuple[Bar, ...]:
    bars = []
    for label, key in (("values", "values"), ("forward FLOPs", "forward_flops"), ("backward FLOPs", "backward_flops")):
        if whole := measures[key]:
            share = 100 * measures[f"idle_{key}"] / whole
            bars += [Bar(f"{label}, idle", share, True), Bar(f"{label}, learning", 100 - share, False)]
    return tuple(bars)
