"""The answer of `stepping`: whether it can be told, in one sentence, a table and a chart."""

from typing import Any

from casestudies_lib.probes.result import Bar, ProbeResult, percent, shown
from casestudies_lib.probes.steps.evidence import Evidence, relative
from casestudies_lib.probes.steps.findings import findings
from casestudies_lib.probes.steps.traces import Move

COLUMNS = (
    "part",
    "parameter group",
    "tensors",
    "tensors that moved",
    "values",
    "change, % of norm",
    "lowest learning rate",
    "highest learning rate",
)


def answer(evidence: Evidence) -> ProbeResult:
    """Return the probe's result."""
    found = findings(evidence)
    reason = "" if any(finding.severity != "note" for finding in found) else _reason(evidence)
    ok = None if reason else all(finding.severity == "note" for finding in found)
    return ProbeResult(
        probe="stepping",
        ok=ok,
        headline=_headline(evidence),
        findings=tuple(found),
        columns=COLUMNS,
        rows=_rows(evidence),
        bars=_bars(evidence, ok),
        bar_unit="optimiser steps",
        measures=_measures(evidence),
        reason=reason,
    )


def _reason(evidence: Evidence) -> str:
    """Return why no answer can be given; empty if one can."""
    steps, accumulation = evidence.steps, evidence.accumulation
    if not evidence.moves:
        return "no parameter had requires_grad when the watch began; call requires_grad_() first"
    if not evidence.batches:
        return "no batch was watched; wrap the loop in watch(loader), or give batches to result()"
    if evidence.warms_up and not evidence.moved:
        return "all steps so far ran at the learning rate 0 of a warm-up that has begun to rise; watch longer"
    if not evidence.expected and not evidence.moved:
        return f"{evidence.batches} batches are fewer than one accumulation of {accumulation}; watch longer"
    if not evidence.compared:
        return "every parameter was replaced by another object meanwhile; begin a new watch"
    if steps is None:
        return (
            f"parameters moved, but this {evidence.optimiser} keeps no count of its steps; run the loop inside "
            "watch(loader) or `with watch:` to count them"
        )
    return ""


def _headline(evidence: Evidence) -> str:
    moved, tensors, steps = len(evidence.moved), len(evidence.moves), evidence.steps
    if not tensors:
        return "The module has no trainable parameter."
    far = "" if not moved or evidence.change is None else f" (by {percent(evidence.change, 1)} of their norm)"
    taken = "an unknown number of steps" if steps is None else f"{shown(steps)} optimiser step{'s' * (steps != 1)}"
    return (
        f"{moved} of {tensors} trainable tensors moved{far} in {shown(evidence.batches)} batches; {taken}, "
        f"{shown(evidence.expected)} expected."
    )


def _rows(evidence: Evidence) -> tuple[tuple[Any, ...], ...]:
    parts: dict[tuple[str, int | None], list[Move]] = {}
    for move in evidence.moves:
        parts.setdefault((move.part, move.group), []).append(move)
    return tuple(_row(part, group, members, evidence) for (part, group), members in parts.items())


def _row(part: str, group: int | None, members: list[Move], evidence: Evidence) -> tuple[Any, ...]:
    rate = None if group is None or group >= len(evidence.rates) else evidence.rates[group]
    change = relative([move for move in members if move.moved is not None])
    return (
        part,
        group,
        len(members),
        sum(bool(move.moved) for move in members),
        sum(move.values for move in members),
        None if change is None else 100 * change,
        None if rate is None else rate.lowest,
        None if rate is None else rate.highest,
    )


def _bars(evidence: Evidence, ok: bool | None) -> tuple[Bar, ...]:
    if evidence.steps is None or not evidence.batches:
        return ()
    low, high = evidence.bounds
    wrong = ok is False and not (evidence.moved and low <= evidence.steps <= high)
    return (Bar("expected", evidence.expected, False), Bar("taken", evidence.steps, wrong))


def _measures(evidence: Evidence) -> dict[str, int | float | None]:
    average, low_high = evidence.average, [rate for rate in evidence.rates if rate.lowest is not None]
    return {
        "batches": evidence.batches,
        "steps": evidence.steps,
        "steps_expected": evidence.expected,
        "step_calls": None if evidence.calls is None else max(evidence.calls),
        "step_counter": evidence.counted,
        "tensors": len(evidence.moves),
        "tensors_moved": len(evidence.moved),
        "relative_change": evidence.change,
        "lowest_rate": min((rate.lowest for rate in low_high), default=None),
        "highest_rate": max((rate.highest for rate in low_high), default=None),
        "scheduler_advance": evidence.schedule,
        "ema_share": None if average is None else average.share,
        "ema_start_weight": None if average is None else average.start_weight,
        "backward_passes": evidence.passes,
        "uncleared_passes": evidence.pile,
        "broken_passes": evidence.broken,
    }
