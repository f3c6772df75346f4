"""What `idle_parameters` says about what it saw: idle parameters by submodule, what they cost, and what to do."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.optim import Optimizer

from casestudies_lib.probes.copies import Movement
from casestudies_lib.probes.passes import Signal, Work, WorkRecorder
from casestudies_lib.probes.result import SEVERITIES, Finding, percent, shown

CHAPTER = "zero_weight_head"
LEARNS, ZERO, OUTSIDE, UNUSED = "learns", "exactly zero", "none: outside the loss", "none: never used"
ONLY_HERE, UNKNOWN, BROKEN = "zero only here", "zero here, elsewhere unknown", "not finite"
# The worst first: a finding about several kinds speaks of the worst.
IDLE = (ZERO, OUTSIDE, UNUSED)
# The spacing of float32 at 1: a gradient smaller than this next to the largest is rounding.
FAINT = 2.0**-23

_MEASURED = {
    ZERO: "Gradient exactly 0, yet part of the loss's graph,",
    OUTSIDE: "Computed in the forward pass, but without a path from the loss (gradient None),",
    UNUSED: "Never used in the forward pass (gradient None),",
}
_MEANING = {
    ZERO: "Whatever these parameters do reaches the loss multiplied by zero, so they learn nothing. The zero protects "
    "nobody: 0 * nan and 0 * inf are nan, so one bad value in this branch spoils the gradients of all that it shares.",
    OUTSIDE: "Their output is computed, then dropped or detached, so they learn nothing.",
    UNUSED: "Nothing runs them, so they learn nothing.",
}
_WHAT_TO_DO = {
    ZERO: "If a loss weight is zero, skip the branch (an if around its forward pass, not a product with 0) or do not "
    "build it; else freeze these parameters and keep them out of the optimiser.",
    OUTSIDE: "Skip the computation, or connect its output to the loss; if it is meant as a target or for a log, freeze "
    "it and run it under no_grad().",
    UNUSED: "Do not build it, or call it; if another batch or phase uses it, give further_batches.",
}
_NOTES = {
    "unknown": (
        "No gradient on this batch, not tried elsewhere.",
        "Idle for good or only here: it cannot be told.",
        "Give further_batches, a smaller jitter or more passes.",
    ),
    "only here": (
        "No gradient on this batch with these weights, but one elsewhere.",
        "Silenced by this batch or by these very weights (a zero initialisation, a unit that is off), not by the loss.",
        "Nothing, unless it lasts: ask again later in training.",
    ),
    "rows": (
        "More than half of the rows have zero gradient on this batch.",
        "Usual for embeddings that this batch does not look up and for units that are off. Decay and old momentum "
        "move such rows.",
        "Nothing, unless these rows must stay put: then look at weight decay.",
    ),
    "faint": (
        "Gradient below rounding error, next to the largest.",
        "A loss weight that is zero only up to rounding, which a guard such as 'if weight > 0' lets pass; or a later "
        "normalisation that cancels what these parameters do.",
        "Compare loss weights with a tolerance, not with 0; look at what follows the module.",
    ),
    "missed": (
        "Gets a gradient, but the optimiser does not hold it.",
        "It never learns.",
        "Add it to the optimiser, or freeze it if that is what you want.",
    ),
    "frozen": (
        "requires_grad is False, yet the optimiser holds it.",
        "Frozen on purpose, and skipped as long as its .grad is None.",
        "Leave it out of the optimiser.",
    ),
}


@dataclass(frozen=True)
class Look:
    """What all passes together showed: a kind for every trainable parameter, and how the idle ones were tried."""

    parameters: dict[str, Tensor]
    kinds: dict[str, str]
    signals: dict[str, Signal]
    recorder: WorkRecorder
    tries: str

    @property
    def idle(self) -> list[str]:
        """Return the names of the idle parameters."""
        return [name for name, kind in self.kinds.items() if kind in IDLE]

    def values(self, names: Iterable[str]) -> int:
        """Return how many numbers these parameters hold together."""
        return sum(self.parameters[name].numel() for name in names)


@dataclass(frozen=True)
class Motion:
    """What the optimiser does to the idle parameters; `unknown` says why where that could not be tried."""

    optimiser: Optimizer | None
    held: frozenset[str]
    moved: dict[str, Movement]
    steps: int
    unknown: str


@dataclass(frozen=True)
class Group:
    """Parameters that belong together: all of a submodule (`whole`), or some of those that one holds itself."""

    owner: str
    whole: bool
    names: tuple[str, ...]


def findings(module: nn.Module, look: Look, motion: Motion) -> list[Finding]:
    """Return all findings, the worst first."""
    found = [_idle_finding(group, look, motion) for group in grouped(module, look.parameters, look.idle)]
    found += _broken_findings(look) + _notes(module, look, motion)
    return sorted(found, key=lambda finding: -SEVERITIES.index(finding.severity))


def grouped(module: nn.Module, parameters: dict[str, Tensor], names: list[str]) -> list[Group]:
    """Return the named parameters, each with the largest submodule whose trainable parameters are all among them."""
    named = {id(parameters[name]) for name in names}
    complete = {path for path, part in module.named_modules() if _all_in(named, part)}
    found: dict[tuple[str, bool], list[str]] = {}
    for name in names:
        pieces = name.split(".")[:-1]
        paths = [".".join(pieces[:length]) for length in range(len(pieces) + 1)]
        whole = next((path for path in paths if path in complete), None)
        found.setdefault((paths[-1] if whole is None else whole, whole is not None), []).append(name)
    return [Group(owner, whole, tuple(members)) for (owner, whole), members in found.items()]


def flops(works: Iterable[Work], *, backward: bool, without_signal_in: WorkRecorder | None = None) -> int:
    """Return the FLOPs of one direction; with a recorder only those through which no gradient came back."""
    recorder = without_signal_in
    chosen = (work for work in works if recorder is None or not recorder.carries_signal(work))
    return sum(work.flops for work in chosen if work.backward == backward)


def _all_in(named: set[int], part: nn.Module) -> bool:
    own = [id(parameter) for parameter in part.parameters() if parameter.requires_grad and parameter.numel()]
    return bool(own) and named.issuperset(own)


def _idle_finding(group: Group, look: Look, motion: Motion) -> Finding:
    kinds = {look.kinds[name] for name in group.names}
    kind = next(kind for kind in IDLE if kind in kinds)
    moves = any(motion.moved[name].change for name in group.names if name in motion.moved)
    return Finding(
        severity="fault" if moves or kind == ZERO else "warning",
        where=_where(group),
        measured=f"{_MEASURED[kind]} {look.tries}; {_cost(group, look)}.",
        meaning=f"{_MEANING[kind]} {_movement_sentence(group, motion)}",
        what_to_do=_WHAT_TO_DO[kind],
        chapter=CHAPTER,
    )


def _where(group: Group) -> str:
    return (group.owner or "the whole module") if group.whole else _listed(group.names)


def _cost(group: Group, look: Look) -> str:
    values, total = look.values(group.names), look.values(look.parameters)
    works = _works(group, look.recorder)
    forward, backward = (flops(works, backward=way, without_signal_in=look.recorder) for way in (False, True))
    share = percent(forward + backward, sum(work.flops for work in look.recorder.works))
    return (
        f"{shown(values)} values ({percent(values, total)} of the trainable ones), {shown(forward)} FLOPs forward and "
        f"{shown(backward)} backward ({share} of the pass)"
    )


def _works(group: Group, recorder: WorkRecorder) -> list[Work]:
    """Return the operations that ran in a group's submodule or took its parameters."""
    nodes = set().union(*(recorder.nodes_of[name] for name in group.names))
    inside = f"{group.owner}." if group.owner else ""
    return [
        work for work in recorder.works if work.node in nodes or (group.whole and f"{work.module}.".startswith(inside))
    ]


def _movement_sentence(group: Group, motion: Motion) -> str:
    if motion.unknown:
        return f"Whether they move is unknown, for {motion.unknown}."
    if not motion.held.intersection(group.names):
        return "The optimiser does not hold them, so they cannot move."
    moved = [motion.moved[name] for name in group.names if name in motion.moved]
    start, end, change = (math.hypot(*(getattr(move, name) for move in moved)) for name in ("start", "end", "change"))
    kind = type(motion.optimiser).__name__
    if not change:
        return f"They stay where they are under this {kind}{_rate_remark(motion.optimiser)}."
    size = f"{percent(change, start)} of their norm" if start else f"{change:.3g}"
    end_up = "smaller" if end < start else "larger"
    return (
        f"Yet they move: {motion.steps} steps of this {kind} carry them {size} away and leave them {end_up}, by decay "
        "or old momentum alone."
    )


def _rate_remark(optimiser: Optimizer) -> str:
    rates = {float(group.get("lr", math.nan)) for group in optimiser.param_groups}
    return ", whose learning rate is 0 now: ask again when it is not" if rates == {0.0} else ""


def _broken_findings(look: Look) -> list[Finding]:
    names = [name for name, kind in look.kinds.items() if kind == BROKEN]
    finding = Finding(
        severity="fault",
        where=_listed(names),
        measured=f"Gradient with nan or infinity in {len(names)} tensors, while the loss is finite.",
        meaning="One step with this gradient destroys the weights. A term of weight zero does this when its own "
        "gradient is infinite, for 0 * inf is nan.",
        what_to_do="Skip terms of weight zero; torch.autograd.detect_anomaly() names the first bad operation.",
        chapter=CHAPTER,
    )
    return [finding] if names else []


def _notes(module: nn.Module, look: Look, motion: Motion) -> list[Finding]:
    kinds, learning = look.kinds, [name for name, kind in look.kinds.items() if kind == LEARNS]
    named = {
        "unknown": [name for name, kind in kinds.items() if kind == UNKNOWN],
        "only here": [name for name, kind in kinds.items() if kind == ONLY_HERE],
        "rows": [f"{name} ({_rows(look.signals[name])})" for name in learning if _mostly_zero(look.signals[name])],
        "faint": _faint_modules(module, look, learning),
        "missed": [name for name in learning if motion.optimiser is not None and name not in motion.held],
        "frozen": [name for name, p in module.named_parameters() if not p.requires_grad and name in motion.held],
    }
    return [Finding("note", _listed(names), *_NOTES[key], CHAPTER) for key, names in named.items() if names]


def _rows(signal: Signal) -> str:
    return f"{signal.zero_rows} of {signal.rows} rows"


def _mostly_zero(signal: Signal) -> bool:
    return 2 * signal.zero_rows > signal.rows


def _faint_modules(module: nn.Module, look: Look, learning: list[str]) -> list[str]:
    """Return the submodules with nothing but rounding errors for gradients.

    A lone bias of that kind is usual, before a normalisation for instance, and not worth a word.
    """
    largest = max((look.signals[name].size for name in learning), default=0.0)
    faint = [name for name in learning if look.signals[name].size < FAINT * largest]
    return [_where(group) for group in grouped(module, look.parameters, faint) if group.whole]


def _listed(names: Iterable[str], most: int = 4) -> str:
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
