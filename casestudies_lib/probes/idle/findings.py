"""What `idle_parameters` says about what it saw: idle parameters by submodule, what they cost, and what to do."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.optim import Optimizer

from casestudies_lib.probes.copies import Movement
from casestudies_lib.probes.passes import Signal, Work, WorkRecorder, below_rounding
from casestudies_lib.probes.result import SEVERITIES, Finding, listed, percent, shown

CHAPTER = "zero_weight_head"
LEARNS, ZERO, OUTSIDE, UNUSED = "learns", "exactly zero", "none: outside the loss", "none: never used"
FAINT = "below rounding"
ONLY_HERE, UNKNOWN, BROKEN = "zero only here", "zero here, elsewhere unknown", "not finite"
# The worst first: a finding about several kinds speaks of the worst.
IDLE = (ZERO, OUTSIDE, UNUSED, FAINT)

_MEASURED = {
    ZERO: "Gradient exactly 0, yet part of the loss's graph,",
    OUTSIDE: "Computed in the forward pass, but without a path from the loss (gradient None),",
    UNUSED: "Never used in the forward pass (gradient None),",
    FAINT: "Gradient below rounding error, next to the largest,",
}
_MEANING = {
    ZERO: "Whatever these parameters do reaches the loss multiplied by zero, so they learn nothing. The zero protects "
    "nobody: 0 * nan and 0 * inf are nan, so one bad value in this branch spoils the gradients of all that it shares.",
    OUTSIDE: "Their output is computed, then dropped or detached, so they learn nothing.",
    UNUSED: "Nothing runs them, so they learn nothing.",
    FAINT: "A loss weight that is zero only up to rounding, a weight that is normalised to one (a router that chooses "
    "one expert), or a later normalisation cancels what they do. An optimiser such as Adam follows even this noise.",
}
_WHAT_TO_DO = {
    ZERO: "If a loss weight is zero, skip the branch (an if around its forward pass, not a product with 0) or do not "
    "build it; else freeze these parameters and keep them out of the optimiser.",
    OUTSIDE: "Skip the computation, or connect its output to the loss; if it is meant as a target or for a log, freeze "
    "it and run it under no_grad().",
    FAINT: "Compare loss weights with a tolerance, not with 0; look at what follows the module.",
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
    "frozen": (
        "requires_grad is False, yet the optimiser holds it.",
        "Frozen on purpose, and skipped as long as its .grad is None.",
        "Leave it out of the optimiser.",
    ),
    "frozen on the path": (
        "Frozen (requires_grad is False), yet the loss's gradient passes through it; what runs last comes first.",
        "Right for a backbone under adapters; wrong for a new head that was frozen with it.",
        "See that nothing among them is meant to learn; with LoRA, name a new head in modules_to_save.",
    ),
    "unlisted": (
        "The loss reaches it, but the module's parameters() does not list it.",
        "An optimiser built over module.parameters() never trains it. It may be a criterion's, or another model's.",
        "Give the optimisers to be told; keep layers in nn.ModuleList, nn.ModuleDict or attributes, not in a list.",
    ),
}


@dataclass(frozen=True)
class Look:
    """What all passes together showed: a kind for every trainable parameter, and how the idle ones were tried.

    `unlisted` are the parameters that the loss's graph ends in and the module's `parameters()` does not list.
    """

    parameters: dict[str, Tensor]
    kinds: dict[str, str]
    signals: dict[str, Signal]
    recorder: WorkRecorder
    tries: str
    unlisted: dict[str, Tensor]

    @property
    def idle(self) -> list[str]:
        """Return the names of the idle parameters."""
        return [name for name, kind in self.kinds.items() if kind in IDLE]

    def values(self, names: Iterable[str]) -> int:
        """Return how many numbers these parameters hold together."""
        return sum(self.parameters[name].numel() for name in names)


@dataclass(frozen=True)
class Motion:
    """What the optimisers do to the idle parameters; `unknown` says why where that could not be tried.

    `held` has the id of every tensor that one of them holds.
    """

    optimisers: tuple[Optimizer, ...]
    held: frozenset[int]
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
    found += _broken_findings(look) + _outside_findings(module, look, motion) + _notes(module, look, motion)
    return sorted(found, key=lambda finding: -SEVERITIES.index(finding.severity))


def silent(module: nn.Module, parameters: dict[str, Tensor], signals: dict[str, Signal]) -> set[str]:
    """Return the parameters with gradient zero, and those of whole submodules with nothing but rounding errors.

    A lone bias with rounding errors is usual, before a normalisation for instance, and not worth a word.
    """
    sizes = {name: signal.size for name, signal in signals.items() if signal.finite}
    largest = max(sizes.values(), default=0.0)
    faint = [name for name, size in sizes.items() if below_rounding(size, largest)]
    whole = {name for group in grouped(module, parameters, faint) if group.whole for name in group.names}
    return whole | {name for name, size in sizes.items() if not size}


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
        meaning=f"{_MEANING[kind]} {_movement_sentence(group, look, motion)}",
        what_to_do=_WHAT_TO_DO[kind],
        chapter=CHAPTER,
    )


def _where(group: Group) -> str:
    return (group.owner or "the whole module") if group.whole else listed(group.names)


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


def _movement_sentence(group: Group, look: Look, motion: Motion) -> str:
    if motion.unknown:
        return f"Whether they move is unknown, for {motion.unknown}."
    if motion.held.isdisjoint(id(look.parameters[name]) for name in group.names):
        return "The optimiser does not hold them, so they cannot move."
    moved = [motion.moved[name] for name in group.names if name in motion.moved]
    start, end, change = (math.hypot(*(getattr(move, name) for move in moved)) for name in ("start", "end", "change"))
    kind = " and ".join(dict.fromkeys(type(optimiser).__name__ for optimiser in motion.optimisers))
    if not change:
        return f"They stay where they are under this {kind}{_rate_remark(motion.optimisers)}."
    size = f"{percent(change, start)} of their norm" if start else f"{change:.3g}"
    end_up = "smaller" if end < start else "larger"
    return (
        f"Yet they move: {motion.steps} steps of this {kind} carry them {size} away and leave them {end_up}, by decay "
        "or old momentum alone."
    )


def _rate_remark(optimisers: Iterable[Optimizer]) -> str:
    rates = {float(group.get("lr", math.nan)) for optimiser in optimisers for group in optimiser.param_groups}
    return ", whose learning rate is 0 now: ask again when it is not" if rates == {0.0} else ""


def _broken_findings(look: Look) -> list[Finding]:
    names = [name for name, kind in look.kinds.items() if kind == BROKEN]
    finding = Finding(
        severity="fault",
        where=listed(names),
        measured=f"Gradient with nan or infinity in {len(names)} tensors, while the loss is finite.",
        meaning="One step with this gradient destroys the weights. A term of weight zero does this when its own "
        "gradient is infinite, for 0 * inf is nan.",
        what_to_do="Skip terms of weight zero; torch.autograd.detect_anomaly() names the first bad operation.",
        chapter=CHAPTER,
    )
    return [finding] if names else []


def _outside_findings(module: nn.Module, look: Look, motion: Motion) -> list[Finding]:
    """Return the fault of what the loss reaches and no optimiser holds, with the layers that it lies in."""
    if not motion.optimisers:
        return []
    missed = not_held(look, motion)
    unlisted = [name for name in missed if name in look.unlisted]
    places = [_where(group) for group in grouped(module, look.parameters, [n for n in missed if n in look.parameters])]
    places += dict.fromkeys(map(_owner, unlisted))
    known = {id(tensor) for tensor in [*module.parameters(), *look.recorder.leaves]}
    stale = len(motion.held - known)
    finding = Finding(
        severity="fault",
        where=listed(places),
        measured=f"The loss reaches {len(missed)} tensors of it, but the optimiser does not hold them"
        + (f"; {len(unlisted)} of them are in no parameters() of the module." if unlisted else "."),
        meaning="They never learn."
        + (
            f" The optimiser holds {stale} tensors that this loss does not reach, as if a layer was replaced since it "
            "was built."
            if stale
            else ""
        ),
        what_to_do="Build the optimiser when the module is complete, over all of it; keep layers in nn.ModuleList, "
        "nn.ModuleDict or attributes, not in a plain list; freeze what is not meant to learn. If another optimiser "
        "trains them, give all in a list.",
        chapter=CHAPTER,
    )
    return [finding] if places else []


def not_held(look: Look, motion: Motion) -> list[str]:
    """Return the names of the parameters that the loss reaches and no optimiser holds, listed by the module or not."""
    reached = {name: look.parameters[name] for name, kind in look.kinds.items() if kind in (LEARNS, ONLY_HERE, BROKEN)}
    return [name for name, tensor in (reached | look.unlisted).items() if id(tensor) not in motion.held]


def _owner(name: str) -> str:
    """Return the layer that a parameter outside the module belongs to, by its name."""
    return name.rpartition(".")[0] or name


def _notes(module: nn.Module, look: Look, motion: Motion) -> list[Finding]:
    kinds, learning = look.kinds, [name for name, kind in look.kinds.items() if kind == LEARNS]
    frozen = {name: p for name, p in module.named_parameters() if not p.requires_grad}
    named = {
        "unknown": [name for name, kind in kinds.items() if kind == UNKNOWN],
        "only here": [name for name, kind in kinds.items() if kind == ONLY_HERE],
        "rows": [f"{name} ({_rows(look.signals[name])})" for name in learning if _mostly_zero(look.signals[name])],
        "frozen": [name for name, parameter in frozen.items() if id(parameter) in motion.held],
        "frozen on the path": _frozen_on_path(module, look),
        "unlisted": list(dict.fromkeys(map(_owner, look.unlisted))) if not motion.optimisers else [],
    }
    return [Finding("note", listed(names), *_NOTES[key], CHAPTER) for key, names in named.items() if names]


def _frozen_on_path(module: nn.Module, look: Look) -> list[str]:
    """Return the submodules on the loss's path that are frozen altogether, the last to run first."""
    parameters = dict(module.named_parameters())
    last_first = [name for name in reversed(look.recorder.read) if not parameters[name].requires_grad]
    whole = [path for path, part in module.named_modules() if path and _frozen(part)]
    owners = [next((path for path in whole if name.startswith(f"{path}.")), name) for name in last_first]
    return list(dict.fromkeys(owner for owner, name in zip(owners, last_first) if look.recorder.on_path(name)))


def _frozen(part: nn.Module) -> bool:
    own = list(part.parameters())
    return bool(own) and not any(parameter.requires_grad for parameter in own)


def _rows(signal: Signal) -> str:
    return f"{signal.zero_rows} of {signal.rows} rows"


def _mostly_zero(signal: Signal) -> bool:
    return 2 * signal.zero_rows > signal.rows
