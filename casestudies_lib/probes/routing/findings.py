"""What `routing_reach` says about what it saw: routers, experts and slots that the task loss does not reach."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from casestudies_lib.probes.result import Finding, percent
from casestudies_lib.probes.routing.passes import Move

CHAPTER = "head_routing"
TASK, BOTH, AUXILIARY, NOTHING = "task", "task and auxiliary", "auxiliary only", "nothing"
PARTLY = "task, in part"
ONLY_HERE, FROZEN, BROKEN = "nothing here, the task elsewhere", "frozen", "not finite"
REACHED, STARVED, CUT, HARD = "reached", "not chosen", "not reached", "no gradient possible"
# A statistic that moves by less than this share of its size is rounding.
MOVED = 1e-6


@dataclass(frozen=True)
class Router:
    """What teaches one router.

    Attributes:
        name: of the submodule.
        kind: one of the words above.
        deaf: parameters that the task loss does not reach.
        asleep: parameters that it reaches only elsewhere: on another batch, or with other weights.
        task: norm of the task's gradient over all parameters.
        auxiliary: norm of the auxiliary loss's gradient over the deaf parameters, or over all where none is.
    """

    name: str
    kind: str
    deaf: tuple[str, ...]
    asleep: tuple[str, ...]
    task: float
    auxiliary: float | None


def router_findings(router: Router, moves: Mapping[str, Move], tries: str, steps: int) -> list[Finding]:
    """Return what is wrong with a router, and what is worth knowing."""
    if router.kind == FROZEN:
        return [_note(router.name, "No parameter of it has requires_grad=True.", "It does not learn.")]
    if router.kind == BROKEN:
        return [_broken_finding(router.name)]
    found = [_deaf_finding(router, moves, tries, steps)] if router.deaf else []
    if router.asleep:
        found.append(
            _note(
                _listed(router.asleep),
                "The task loss sends no gradient on this batch with these weights, but does elsewhere.",
                "Silenced by this batch or by these very weights (experts that are all alike, a zero initialisation).",
            )
        )
    return found


def _deaf_finding(router: Router, moves: Mapping[str, Move], tries: str, steps: int) -> Finding:
    if router.auxiliary is None:
        auxiliary = "no auxiliary loss was given"
    elif router.auxiliary:
        auxiliary = f"the auxiliary loss sends one of norm {router.auxiliary:.3g}"
    else:
        auxiliary = "nor does the auxiliary loss"
    partly = router.kind == PARTLY
    return Finding(
        severity="fault",
        where=f"{router.name}: {_listed(router.deaf)}" if partly else router.name,
        measured=f"The task loss sends no gradient to {'these' if partly else 'its'} parameters {tries}; {auxiliary}."
        + _moving_sentence(router, moves, steps),
        meaning="What they decide does not follow from the task. Statistics that move show that something moves them, "
        "not that the router learns to route.",
        what_to_do="Let the task see the router: multiply what is chosen by the router's probability, use a soft gate, "
        "or an estimator (straight-through, Gumbel-softmax); look for a detach or a comparison in between.",
        chapter=CHAPTER,
    )


def _broken_finding(name: str) -> Finding:
    return Finding(
        severity="fault",
        where=name,
        measured="The task's gradient to its parameters holds nan or infinity.",
        meaning="One step with this gradient destroys the router.",
        what_to_do="torch.autograd.detect_anomaly() names the first bad operation.",
        chapter=CHAPTER,
    )


def expert_findings(kinds: Mapping[str, str], tries: str) -> list[Finding]:
    """Return one finding for the experts that nothing reaches, and one for those that are never chosen."""
    return _grouped(
        kinds,
        cut=(
            f"They run, yet there is no path from the task loss to their parameters ({tries}).",
            "They learn nothing, chosen or not.",
            "Look for a detach, a no_grad, or an output that is dropped.",
        ),
        starved=(
            f"They did not run, or run with a weight of zero on all that they return ({tries}).",
            "They are not chosen: on this data they learn nothing.",
            "Give further_batches to see whether it lasts; then balance the load, or add noise to the router.",
        ),
    )


def slot_findings(gate: str, slots: list[float] | None, used: list[float]) -> list[Finding]:
    """Return the finding for the slots of a gate that get no gradient."""
    if slots is None:
        return [
            _note(
                gate,
                "Its output is no plain floating-point tensor (a boolean mask, an index, a tuple).",
                "No gradient can be read off it; ask at a place where the weights are numbers.",
            )
        ]
    dead = [place for place, norm in enumerate(slots) if not norm]
    if not dead:
        return []
    chosen = [place for place in dead if used[place]]
    detail = f"of these, {len(chosen)} have outputs other than zero" if chosen else "their outputs are all zero"
    finding = Finding(
        severity="warning" if len(dead) < len(slots) else "fault",
        where=f"{gate}: slots {', '.join(map(str, dead[:12]))}{' …' if len(dead) > 12 else ''}",
        measured=f"The task's gradient at {len(dead)} of {len(slots)} slots is exactly zero on this batch; {detail}.",
        meaning="The task does not say whether it wants more or less of them.",
        what_to_do="Where outputs are zero the slots were not chosen: look at more batches. Else look for a comparison "
        "or a detach after this gate.",
        chapter=CHAPTER,
    )
    return [finding]


def silent_auxiliary_finding() -> Finding:
    """Return the finding for an auxiliary loss that reaches no router parameter."""
    return Finding(
        severity="warning",
        where="auxiliary",
        measured="The auxiliary loss sends no gradient to any parameter of a router.",
        meaning="Its weight changes what is printed, not what is learned.",
        what_to_do="Compute it from the router's probabilities, not from counts or detached values, or drop it.",
        chapter=CHAPTER,
    )


def no_trial_note(error: Exception) -> Finding:
    """Return the caveat for a module that could not be copied or trained."""
    return _note(
        "trial",
        f"A copy could not be trained ({type(error).__name__}: {error}).",
        "What moves without the task is unknown.",
    )


def _moving_sentence(router: Router, moves: Mapping[str, Move], steps: int) -> str:
    """Say what moves all the same: the router's outputs, buffers and the parameters that the task does not reach."""
    own = {key: move for key, move in moves.items() if key.startswith((f"{router.name},", f"{router.name}."))}
    taught = {key for key in own if key.endswith(", parameter") and key.rsplit(", ", 1)[0] not in router.deaf}
    moving = {key: move for key, move in own.items() if key not in taught and move.whole > MOVED}
    if not moving:
        return f" In {steps} steps of a copy nothing of that moves." if moves else ""
    furthest = max(moving, key=lambda key: moving[key].whole)
    move, (part, what) = moving[furthest], furthest.rsplit(", ", 1)
    drift = f"{percent(min(move.held, move.whole), move.whole)} of that with the routers' own parameters held still"
    task = (
        "" if move.task is None else f", {percent(min(move.task, move.whole), move.whole)} without the auxiliary loss"
    )
    return (
        f" Yet {len(moving)} of its statistics move in {steps} steps of a copy, most of all {what} of {part}, by "
        f"{100 * move.whole:.3g} % ({drift}{task})."
    )


def _grouped(kinds: Mapping[str, str], cut: tuple[str, str, str], starved: tuple[str, str, str]) -> list[Finding]:
    found = []
    for kind, severity, texts in ((CUT, "fault", cut), (STARVED, "warning", starved)):
        names = [name for name, own in kinds.items() if own == kind]
        if names:
            found.append(Finding(severity, _listed(names), *texts, CHAPTER))
    return found


def _note(where: str, measured: str, meaning: str) -> Finding:
    return Finding("note", where, measured, meaning, "Nothing, if that is what you want.", CHAPTER)


def _listed(names: Iterable[str], most: int = 6) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
