"""What `gates` says about what it saw: dead, absorbed, detached, saturated and decaying gates."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from casestudies_lib.probes.gating.bench import Motion
from casestudies_lib.probes.result import SEVERITIES, Finding, shown

CHAPTER = "mixing_gates"
LEARNS, ASLEEP, UNKNOWN = "learning", "asleep", "unknown"
DEAD, ABSORBED, ABSORBING, DETACHED, MISSED = "dead", "absorbed", "absorbing", "detached", "never moved"
# Gradient and finite difference that are further apart than this share of the larger have little in common.
MOSTLY = 0.5
FAULTY = (DEAD, ABSORBED, ABSORBING, DETACHED, MISSED)

_SEVERITY = {DEAD: "fault", ABSORBED: "fault", DETACHED: "fault", MISSED: "fault", ABSORBING: "warning", ASLEEP: "note"}
_MEANING = {
    DEAD: "Nothing flows through the branch, so the gate learns nothing, and its value, if it moves, tells nothing "
    "about the mechanism. A gate at zero before a branch of zeros is stuck for good: each waits for the other.",
    ABSORBED: "The gate is out of the graph where it stands and in it elsewhere: it cannot come back, however much "
    "the loss would gain.",
    ABSORBING: "One step across zero takes the gate out of the graph, and no gradient brings it back: its zero is a "
    "trap, not a value that training chose.",
    DETACHED: "The loss changes with the gate, yet no gradient says so: what training does to it has nothing to do "
    "with the loss.",
    MISSED: "No step moves it, whatever its gradient.",
    ASLEEP: "Silent with these very weights (a branch that starts at zero), not for good.",
}
_WHAT_TO_DO = {
    DEAD: "Look why the branch is zero or its effect is cut off (a function that returns zeros, a mask, zero weights "
    "behind it). Start either gate or branch away from zero, not both at zero.",
    ABSORBED: "Take the guard (`if alpha > 0`, relu, clamp) away: multiply always. Start again from a value inside.",
    ABSORBING: "Take the guard (`if alpha > 0`, relu, clamp) away and multiply always, or keep the gate positive by a "
    "smooth function such as softplus.",
    DETACHED: "Look for detach(), no_grad(), .item(), rounding or a comparison between gate and loss.",
    MISSED: "Call requires_grad_() and give it to the optimiser; or say that it is a constant.",
    ASLEEP: "Nothing, unless it lasts: ask again later in training.",
}


@dataclass(frozen=True)
class Reading:
    """Everything measured about one entry of one gate; None where it could not be.

    Attributes:
        gate: its name, with the head's number where it has several.
        value: as the parameter stands.
        squash: sigmoid or tanh if it passes through one, else empty.
        opening: the factor that it amounts to: after squashing, the mean on this batch; else the value.
        slope: mean slope of the squashing function, relative to its steepest.
        gradient: on the batch; None if it is out of the graph.
        difference: central finite difference of the loss.
        branch: root mean square of what it opens.
        share: opening times branch, relative to the owner's output.
        moved: by the simulated steps.
        by_decay: the share of weight decay in that.
        decay_range: where the loss draws random numbers, that share with one draw left out at a time.
        state: one of the words above.
        frozen: whether it has requires_grad=False.
        point: whether zero alone, not a side of it, is out of the graph.
        distorted: whether gradient and finite difference disagree.
    """

    gate: str
    value: float
    squash: str
    opening: float
    slope: float | None
    gradient: float | None
    difference: float | None
    branch: float | None
    share: float | None
    moved: float | None
    by_decay: float | None
    decay_range: tuple[float, float] | None
    state: str
    frozen: bool
    point: bool
    distorted: bool

    def is_moved_by_decay(self, threshold: float) -> bool:
        """Return whether decay makes at least this share of the movement, whichever random draw is left out."""
        least = self.decay_range[0] if self.decay_range else self.by_decay
        return bool(self.moved) and least is not None and least >= threshold

    def hangs_on_a_draw(self, threshold: float) -> bool:
        """Return whether the share of decay is above or below this by one draw of the loss's random numbers."""
        return self.decay_range is not None and self.decay_range[0] < threshold <= self.decay_range[1]

    def measures(self) -> dict[str, Any]:
        """Return everything but the name, by field."""
        return {name: value for name, value in asdict(self).items() if name != "gate"}


def findings(readings: list[Reading], motion: Motion, saturated: float, mostly_decay: float) -> list[Finding]:
    """Return all findings, the worst first; gates in the same state share one."""
    found = []
    for state, severity in _SEVERITY.items():
        there = [reading for reading in readings if reading.state == state]
        if there:
            measured = _measured(state, there, motion)
            found.append(Finding(severity, _listed(there), measured, _MEANING[state], _WHAT_TO_DO[state], CHAPTER))
    living = [reading for reading in readings if reading.state not in (DEAD, MISSED)]
    found += _saturated([r for r in living if r.slope is not None and r.slope < saturated])
    found += _decaying([r for r in readings if r.is_moved_by_decay(mostly_decay)], motion)
    found += _distorted([reading for reading in readings if reading.distorted])
    found += _points([reading for reading in readings if reading.point])
    return sorted(found, key=lambda finding: -SEVERITIES.index(finding.severity))


def _measured(state: str, there: list[Reading], motion: Motion) -> str:
    first = there[0]
    values = f"value {_each(reading.value for reading in there)}"
    if state == MISSED:
        why = "requires_grad is False" if all(reading.frozen for reading in there) else "the optimiser does not hold it"
        return f"{why[0].upper()}{why[1:]}; {values}, gradient {_each(reading.gradient for reading in there)}."
    if state == ABSORBING:
        return f"Gradient {_each(r.gradient for r in there)} at {values}, and none on the other side of zero."
    gone = "None" if first.gradient is None else "exactly 0"
    if state == DEAD:
        still = f"in {motion.steps} steps of training too"
        branch = _each(reading.branch for reading in there)
        moves = [reading.moved for reading in there if reading.moved]
        drift = f" Yet the steps move it by {_each(moves)}." if moves else ""
        return (
            f"Gradient {gone}, {still}; opening and closing it leaves the loss as it is; {values}, branch {branch} "
            f"(root mean square).{drift}"
        )
    if state == ABSORBED:
        return f"Gradient {gone} at {values}, but not zero at other values of the gate."
    if state == DETACHED:
        return f"Gradient {gone} at every value tried, while the loss differs between them; {values}."
    return f"Gradient {gone} on this batch, not any more after some steps; {values}."


def _saturated(there: list[Reading]) -> list[Finding]:
    if not there:
        return []
    measured = (
        f"Opening {_each(r.opening for r in there)} through a {there[0].squash}, whose slope there is "
        f"{_each(100 * r.slope for r in there)} % of its steepest."
    )
    meaning = "Every gradient of the gate is multiplied by that slope: it answers slowly, or not at all."
    what_to_do = "Start nearer the middle, or keep the gate's input small; a larger learning rate for it helps little."
    return [Finding("warning", _listed(there), measured, meaning, what_to_do, CHAPTER)]


def _decaying(there: list[Reading], motion: Motion) -> list[Finding]:
    if not there:
        return []
    measured = (
        f"Weight decay makes {_each(100 * r.by_decay for r in there)} % of its movement in {motion.steps} steps "
        f"({_each(r.moved for r in there)})."
    )
    meaning = "A falling gate is then a sign of decay, not of a branch that training turns off."
    what_to_do = "Take gates out of weight decay (a parameter group of their own with weight_decay=0), then look again."
    return [Finding("warning", _listed(there), measured, meaning, what_to_do, CHAPTER)]


def _distorted(there: list[Reading]) -> list[Finding]:
    if not there:
        return []
    measured = (
        f"Gradient {_each(r.gradient for r in there)}, finite difference of the loss "
        f"{_each(r.difference for r in there)}."
    )
    meaning = "The gradient is not that of the loss: part of the path is detached, or a surrogate stands in for it."
    what_to_do = "Look for detach() or a straight-through estimator, and make sure that it is meant."
    most = any(abs(r.difference - r.gradient) > MOSTLY * max(abs(r.difference), abs(r.gradient)) for r in there)
    return [Finding("warning" if most else "note", _listed(there), measured, meaning, what_to_do, CHAPTER)]


def _points(there: list[Reading]) -> list[Finding]:
    if not there:
        return []
    return [
        Finding(
            severity="note",
            where=_listed(there),
            measured="No gradient at zero, but on both sides of it.",
            meaning="Zero is a point where the gate would stay if it began there; a step from elsewhere passes it.",
            what_to_do="Do not start it at zero.",
            chapter=CHAPTER,
        )
    ]


def _listed(there: list[Reading], most: int = 4) -> str:
    names = [reading.gate for reading in there]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _each(values: Iterable[float | None], most: int = 4) -> str:
    texts = list(dict.fromkeys(shown(value) for value in values))
    return ", ".join(texts[:most]) + (" …" if len(texts) > most else "")
