"""Which routers, experts and heads does the task loss reach, and which router statistics move without it?"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from casestudies_lib.probes.guard import random_left_as_found
from casestudies_lib.probes.inputs import Loss, check_loss, check_module, check_whole_number, kind_of
from casestudies_lib.probes.passes import Signal, below_rounding, jittered_signals
from casestudies_lib.probes.result import SEVERITIES, Bar, Finding, ProbeInputError, ProbeResult
from casestudies_lib.probes.routing.findings import (
    AUXILIARY,
    BOTH,
    BROKEN,
    CUT,
    FROZEN,
    HARD,
    NOTHING,
    ONLY_HERE,
    PARTLY,
    REACHED,
    STARVED,
    TASK,
    Router,
    expert_findings,
    no_trial_note,
    router_findings,
    silent_auxiliary_finding,
    slot_findings,
)
from casestudies_lib.probes.routing.passes import Factory, Move, Parts, Reached, check_ran, parts_of, reached, trial

PROBE = "routing_reach"
COLUMNS = (
    "part",
    "what",
    "task gradient",
    "auxiliary gradient",
    "answer",
    "mean",
    "moves, %",
    "moves with routers held still, %",
    "moves without auxiliary, %",
)
SIGN = "Reach says nothing of a gradient's sign or size: for that ask backward_check."


@dataclass(frozen=True)
class Survey:
    """All that the passes showed.

    Attributes:
        parts: what was looked at.
        task, auxiliary: what each loss sends on the first batch.
        elsewhere: what only a further batch reaches.
        jittered: what is reached with all weights jittered.
        tries: how it was tried, in words.
        moves: by statistic; empty without a trial.
        failure: why there was none, if one was asked for.
    """

    parts: Parts
    task: Reached
    auxiliary: Reached | None
    elsewhere: frozenset[str]
    jittered: frozenset[str]
    tries: str
    moves: Mapping[str, Move] = field(default_factory=dict)
    failure: Exception | None = None

    def wakes(self, name: str) -> bool:
        """Return whether something without a gradient here has one elsewhere."""
        return name in self.elsewhere or name in self.jittered


def routing_reach(
    module: nn.Module,
    loss: Loss,
    batch: Any,
    *,
    routers: str | Iterable[str] | None = None,
    experts: str | Iterable[str] | None = None,
    gates: Mapping[str, int] | None = None,
    auxiliary: Loss | None = None,
    further_batches: Iterable[Any] = (),
    optimiser: Factory | None = None,
    steps: int = 20,
) -> ProbeResult:
    """Tell which routers, experts and heads the task loss teaches, and what moves in a router that it does not teach.

    A gradient counts as none if it is `None` or exactly zero, on `batch`, on the further batches, and once with every
    weight jittered, which wakes what a zero initialisation or an unlucky choice had silenced. The auxiliary loss is
    asked by itself, so that a router that learns from it alone is not taken for one that learns from the task.

    Statistics that move are no sign of learning: the input of a router moves while the layers before it train. With an
    `optimiser` copies of the module train for a few steps: as given, with the routers' parameters held still (what
    then still moves is drift), and without the auxiliary loss.

    Reach says nothing of a gradient's sign or size; a router whose gradient is reversed is reached all the same. For
    that ask `backward_check`.

    The module stays as it was (see `guard.left_as_found`), also after an error. Cost: one forward-backward pass a loss,
    one more and one a further batch where something is not reached, and 2 to 3 times `steps` training steps of a copy
    if an `optimiser` is given.

    Args:
        module: the model, in the mode (train or eval) you ask about.
        loss: called as `loss(module, batch)`; the task's loss alone, one finite number.
        batch: whatever your loss takes.
        routers: names or patterns (`"*.router"`) of the submodules that choose. None, with no experts and gates given
            either, looks for submodules called router, gate, gating or switch.
        experts: names or patterns of the submodules that are chosen, one an expert (`"*.experts.*"`).
        gates: patterns of submodules whose output has one slot a head or expert, each with the axis of the slots.
        auxiliary: called like `loss`; everything else that is added to it in training, weights included.
        further_batches: more batches; read only if something was not reached.
        optimiser: called with a list of parameters; returns the optimiser for a trial. None leaves movement unknown.
        steps: training steps of the trial, all on `batch`.

    Returns:
        A result whose `ok` is False if the task loss does not reach a router's parameter, an expert or a slot, or the
        auxiliary loss reaches no router; None if all that was named is frozen. `measures` has norms by part and moves
        by statistic.

    Raises:
        ProbeInputError: names the argument, what came and what to give; for a name that matches nothing, names near it.

    Source: the chapter head_routing.
    """
    check_module(module)
    check_loss(loss)
    if auxiliary is not None:
        check_loss(auxiliary)
    check_whole_number("steps", steps, 1)
    if optimiser is not None and (not callable(optimiser)):
        raise ProbeInputError(
            f"optimiser is {kind_of(optimiser)}; give a function of parameters, such as lambda p: torch.optim.Adam(p)"
        )
    names = {"routers": routers, "experts": experts, "gates": gates}
    parts = parts_of(module, **names)
    with random_left_as_found():
        survey = _surveyed(module, loss, auxiliary, batch, further_batches, parts)
        if optimiser is not None:
            survey = _with_trial(survey, module, loss, auxiliary, batch, names, optimiser, steps)
    return _result(module, survey, steps)


def _surveyed(
    module: nn.Module, loss: Loss, auxiliary: Loss | None, batch: Any, further: Iterable[Any], parts: Parts
) -> Survey:
    task = reached(module, loss, batch, parts)
    check_ran(parts, task)
    extra = None if auxiliary is None else reached(module, auxiliary, batch, parts, auxiliary=True)
    asleep = _asleep(task, parts)
    elsewhere, others = set(), 0
    for other in further if asleep or _silent_slots(task) else ():
        seen = reached(module, loss, other, parts)
        others += 1
        elsewhere |= {name for name, own in asleep.items() if _taught(seen, own)}
        task.slots.update(_added(task.slots, seen.slots))
        task.ran |= seen.ran
    seen = _jittered(module, loss, batch) if asleep else None
    tries = [
        "on this batch",
        *([f"on {others} more batch{'es' * (others > 1)}"] if others else []),
        *([] if seen is None else ["with all weights jittered"]),
    ]
    woken = {name for name, own in asleep.items() if seen and _teaches(seen, own)}
    return Survey(parts, task, extra, frozenset(elsewhere), frozenset(woken), _listed(tries))


def _jittered(module: nn.Module, loss: Loss, batch: Any) -> dict[str, Signal] | None:
    trainable = {name: value for name, value in module.named_parameters() if value.requires_grad and value.numel()}
    return jittered_signals(module, loss, batch, trainable, jitter=1.0)


def _asleep(task: Reached, parts: Parts) -> dict[str, list[str]]:
    """Return what no gradient reaches: parameters of routers one by one, and experts with all of theirs."""
    own = {parameter: [parameter] for router in parts.routers for parameter in _own(router, task)}
    own |= {name: _own(name, task) for name in parts.experts}
    return {name: names for name, names in own.items() if names and not _taught(task, names)}


def _own(name: str, seen: Reached) -> list[str]:
    return [parameter for parameter in seen.parameters if parameter.startswith(f"{name}.")]


def _taught(seen: Reached, names: Sequence[str]) -> bool:
    return any(seen.parameters[name] for name in names)


def _teaches(seen: Mapping[str, Signal], names: Sequence[str]) -> bool:
    largest = max((signal.size for signal in seen.values() if signal.finite), default=0.0)
    return any(seen[name].finite and not below_rounding(seen[name].size, largest) for name in names)


def _silent_slots(task: Reached) -> bool:
    return any(slots is not None and not all(slots) for slots in task.slots.values())


def _added(
    first: Mapping[str, list[float] | None], second: Mapping[str, list[float] | None]
) -> Iterator[tuple[str, list[float] | None]]:
    for name, slots in first.items():
        others = second.get(name)
        fits = slots is not None and others is not None and len(slots) == len(others)
        yield name, [math.hypot(a, b) for a, b in zip(slots, others)] if fits else slots


def _with_trial(
    survey: Survey,
    module: nn.Module,
    loss: Loss,
    auxiliary: Loss | None,
    batch: Any,
    names: Mapping[str, Any],
    factory: Factory,
    steps: int,
) -> Survey:
    try:
        return replace(survey, moves=trial(module, loss, auxiliary, batch, names, factory, steps))
    except ProbeInputError:
        raise
    except Exception as error:
        # Modules that cannot be copied, or an optimiser that wants a closure, say nothing about the routing.
        return replace(survey, failure=error)


def _result(module: nn.Module, survey: Survey, steps: int) -> ProbeResult:
    routers = [_router(name, survey) for name in survey.parts.routers]
    experts = {name: _expert(name, survey) for name in survey.parts.experts}
    found = _findings(survey, routers, experts, steps)
    judged = [router for router in routers if router.kind != FROZEN]
    nothing = not judged and not any(kind != FROZEN for kind in experts.values()) and not survey.parts.gates
    ok = False if any(finding.severity != "note" for finding in found) else None if nothing else True
    return ProbeResult(
        probe=PROBE,
        ok=ok,
        headline=_headline(routers, experts, survey),
        findings=tuple(found),
        columns=COLUMNS,
        rows=(*_rows(survey, experts), *_move_rows(survey)),
        bars=_bars(survey, routers, experts),
        bar_unit="norm of the task's gradient",
        measures=_measures(survey, routers, experts, steps),
        reason="all that was named is frozen or has no parameters; call requires_grad_() first" if ok is None else "",
    )


def _router(name: str, survey: Survey) -> Router:
    names = _own(name, survey.task)
    silent = tuple(parameter for parameter in names if not survey.task.parameters[parameter])
    asleep = tuple(parameter for parameter in silent if survey.wakes(parameter))
    deaf = tuple(parameter for parameter in silent if parameter not in asleep)
    task, extra = _whole(survey.task, names), survey.auxiliary
    auxiliary = None if extra is None else _whole(extra, deaf or names)
    if not names:
        kind = FROZEN
    elif not math.isfinite(task):
        kind = BROKEN
    elif deaf:
        kind = PARTLY if len(deaf) < len(names) else AUXILIARY if auxiliary else NOTHING
    else:
        kind = (BOTH if auxiliary else TASK) if task else ONLY_HERE
    return Router(name, kind, deaf, asleep, task, auxiliary)


def _expert(name: str, survey: Survey) -> str:
    names = _own(name, survey.task)
    if not names:
        return FROZEN
    if _taught(survey.task, names) or name in survey.elsewhere:
        return REACHED
    if name in survey.jittered or any(survey.task.parameters[parameter] is not None for parameter in names):
        return STARVED
    # A path that carries zeros has a weight of zero on it; no path, though it ran, is a path that was cut.
    return CUT if name in survey.task.ran else STARVED


def _whole(seen: Reached, names: Sequence[str]) -> float:
    return math.hypot(*(seen.parameters[name] or 0.0 for name in names))


def _findings(survey: Survey, routers: Sequence[Router], experts: Mapping[str, str], steps: int) -> list[Finding]:
    found = [finding for router in routers for finding in router_findings(router, survey.moves, survey.tries, steps)]
    found += expert_findings(experts, survey.tries)
    for gate in survey.parts.gates:
        found += slot_findings(gate, survey.task.slots[gate], survey.task.used[gate])
    live = [router for router in routers if router.kind != FROZEN]
    if survey.auxiliary is not None and live and not any(router.auxiliary for router in live):
        found.append(silent_auxiliary_finding())
    found += [] if survey.failure is None else [no_trial_note(survey.failure)]
    return sorted(found, key=lambda finding: -SEVERITIES.index(finding.severity))


def _headline(routers: Sequence[Router], experts: Mapping[str, str], survey: Survey) -> str:
    parts = []
    if routers:
        taught = sum(router.kind in (TASK, BOTH) for router in routers)
        parts.append(f"{taught} of {len(routers)} routers")
    if experts:
        parts.append(f"{sum(kind == REACHED for kind in experts.values())} of {len(experts)} experts")
    slots = [norm for own in survey.task.slots.values() for norm in own or ()]
    if slots:
        parts.append(f"{sum(norm > 0 for norm in slots)} of {len(slots)} slots")
    return f"The task loss reaches {', '.join(parts) or 'no slot that can be read'}. {SIGN}"


def _rows(survey: Survey, experts: Mapping[str, str]) -> list[tuple[Any, ...]]:
    rows = []
    extra = survey.auxiliary.parameters if survey.auxiliary is not None else {}
    for name in dict.fromkeys(name for router in survey.parts.routers for name in _own(router, survey.task)):
        move, norm = survey.moves.get(f"{name}, parameter"), survey.task.parameters[name]
        kind = REACHED if norm else ONLY_HERE if survey.wakes(name) else CUT
        rows.append((name, "router parameter", norm, extra.get(name), kind, None, *_moved(move)))
    for expert, kind in experts.items():
        names = _own(expert, survey.task)
        sent = _whole(survey.auxiliary, names) if survey.auxiliary is not None else None
        rows.append((expert, "expert", _whole(survey.task, names), sent, kind, None, *_moved(None)))
    for gate, slots in survey.task.slots.items():
        for place, mean in enumerate(survey.task.means[gate]):
            norm = None if slots is None else slots[place]
            kind = HARD if norm is None else REACHED if norm else CUT
            rows.append((f"{gate}[{place}]", "slot", norm, None, kind, mean, *_moved(None)))
    return rows


def _move_rows(survey: Survey) -> list[tuple[Any, ...]]:
    moved = {name: move for name, move in survey.moves.items() if not name.endswith(", parameter")}
    return [
        (*name.rsplit(", ", 1), None, None, "moves" if move.whole else "still", None, *_moved(move))
        for name, move in moved.items()
    ]


def _moved(move: Move | None) -> tuple[float | None, float | None, float | None]:
    if move is None:
        return None, None, None
    return 100 * move.whole, 100 * move.held, None if move.task is None else 100 * move.task


def _bars(survey: Survey, routers: Sequence[Router], experts: Mapping[str, str]) -> tuple[Bar, ...]:
    bars = [Bar(router.name, router.task, router.kind in (AUXILIARY, NOTHING, PARTLY)) for router in routers]
    bars += [
        Bar(name, _whole(survey.task, _own(name, survey.task)), kind in (CUT, STARVED))
        for name, kind in experts.items()
    ]
    for gate, slots in survey.task.slots.items():
        bars += [Bar(f"{gate}[{place}]", norm, not norm) for place, norm in enumerate(slots or ())]
    return tuple(bars)


def _measures(survey: Survey, routers: Sequence[Router], experts: Mapping[str, str], steps: int) -> dict[str, Any]:
    return {
        "routers": {router.name: router.kind for router in routers},
        "task_norms": {router.name: router.task for router in routers},
        "auxiliary_norms": {router.name: router.auxiliary for router in routers},
        "experts": dict(experts),
        "slots": dict(survey.task.slots),
        "means": dict(survey.task.means),
        "used": dict(survey.task.used),
        "moves": {name: move.whole for name, move in survey.moves.items()},
        "moves_with_routers_held": {name: move.held for name, move in survey.moves.items()},
        "moves_without_auxiliary": {name: move.task for name, move in survey.moves.items() if move.task is not None},
        "steps": steps if survey.moves else 0,
    }


def _listed(tries: Sequence[str]) -> str:
    return " and ".join([", ".join(tries[:-1]), tries[-1]]) if len(tries) > 1 else tries[0]
