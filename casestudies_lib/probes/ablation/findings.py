"""What `ablation_diff` says: parts that were to differ and do not, and parts that differ unasked."""

from dataclasses import dataclass

from casestudies_lib.probes.ablation.runs import Compared
from casestudies_lib.probes.result import SEVERITIES, Finding, shown

CHAPTER = "mixing_gates"
DIFFERS, SAME, ABSENT, IDLE = "differs", "does not differ", "in neither model", "changes no output"

_MEANING = {
    SAME: "The comparison says nothing about the part that it is named after: both models have the same.",
    ABSENT: "The comparison is named after a part that is not there.",
    IDLE: "The part is built and counted, but no output depends on it: what the comparison measures is something else, "
    "such as the noise between two runs.",
}
_WHAT_TO_DO = {
    SAME: "Look how the switch reaches the code that builds the model; build both again and ask again.",
    ABSENT: "Look how the switch reaches the code that builds the model; or correct the name.",
    IDLE: "Look for a branch that returns zeros, a gate that shuts it off, or a call that was left out.",
}


@dataclass(frozen=True)
class Difference:
    """One way in which a part differs.

    Attributes:
        name: of the part; "" is the whole model.
        kind: parameter, submodule, buffer, or the whole.
        what: in which way.
        first, second: how it looks on either side.
        also: other names for the same, such as that of a parameter tied to it.
    """

    name: str
    kind: str
    what: str
    first: str | None
    second: str | None
    also: tuple[str, ...] = ()


@dataclass(frozen=True)
class Expectation:
    """What became of one name that was expected to differ, and the names that this rests on, parameters or not."""

    pattern: str
    verdict: str
    names: tuple[str, ...]
    tensors: bool = True


def findings(
    found: list[Difference], judged: list[Expectation], unexpected: list[Difference], run: Compared | None
) -> list[Finding]:
    """Return all findings, the worst first."""
    listed = [_missing(expectation) for expectation in judged if expectation.verdict != DIFFERS]
    listed += _unexpected(unexpected)
    listed += _silent(found, run)
    listed += _random(run)
    return sorted(listed, key=lambda finding: -SEVERITIES.index(finding.severity))


def _missing(expectation: Expectation) -> Finding:
    names = _listed(expectation.names)
    measured = {
        SAME: f"{names or 'the whole model'}: same in both models.",
        ABSENT: f"No parameter or submodule has that name; near it: {names or 'nothing'}.",
        IDLE: f"{names}: no output has a gradient in it."
        if expectation.tensors
        else f"{names}: other settings, and no output differs, in training mode neither.",
    }[expectation.verdict]
    verdict = expectation.verdict
    where = expectation.pattern or "the whole model"
    return Finding("fault", where, measured, _MEANING[verdict], _WHAT_TO_DO[verdict], CHAPTER)


def _unexpected(unexpected: list[Difference]) -> list[Finding]:
    if not unexpected:
        return []
    first = unexpected[0]
    sides = f": {first.first or 'none'} against {first.second or 'none'}" if first.first or first.second else ""
    finding = Finding(
        severity="warning",
        where=_listed(dict.fromkeys(each.name or "the whole model" for each in unexpected)),
        measured=f"Not expected to differ, and does; the first: {first.what}{sides}.",
        meaning="Whatever the comparison shows may be due to this.",
        what_to_do="Change one part at a time, or name this one too.",
        chapter=CHAPTER,
    )
    return [finding]


def _silent(found: list[Difference], run: Compared | None) -> list[Finding]:
    if run is None or run.random or run.gap or run.training or not found:
        return []
    finding = Finding(
        severity="note",
        where="outputs",
        measured=f"{len({each.name for each in found})} parts differ, and no output does, with shared weights equal.",
        meaning="The change is there, but these weights hide it: a gate or a last layer at zero, for instance.",
        what_to_do="Nothing, if it is meant to start that way; ask again after some training.",
        chapter=CHAPTER,
    )
    return [finding]


def _random(run: Compared | None) -> list[Finding]:
    if run is None or not run.random or run.training is not None:
        return []
    finding = Finding(
        severity="note",
        where="outputs",
        measured="A forward pass draws random numbers.",
        meaning="Outputs and single submodules cannot be compared; parameters and submodules still can.",
        what_to_do="Call eval() on both models and ask again.",
        chapter=CHAPTER,
    )
    return [finding]


def _listed(names, most: int = 4) -> str:
    names = list(names)
    more = f" and {shown(len(names) - most)} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
