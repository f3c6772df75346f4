"""A chapter's committed sweep as the explorer needs it: one row a run and claim, and the values of each parameter."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from casestudies_lib.claims import Region, Report
from casestudies_lib.runner import evidence
from casestudies_lib.runner.chapters import find_chapter
from casestudies_lib.runner.errors import Failure
from casestudies_lib.site.sweep_measures import measure_tables

_PREFIX = "param_"
_NEEDED = ("claim", "verdict", "value", "low", "high")
_NOT_SWEPT = ("seed", "n_seeds")


class SweepError(Failure):
    """The evidence of a sweep cannot be shown; the message names file and column."""


@dataclass(frozen=True)
class SweptClaims:
    """What a sweep found: rows of claim, verdict, value, low, high, seed and one index for each parameter.

    `measures` holds the measurements behind them as tables, in HTML.
    """

    slug: str
    parameters: dict[str, list[str]]
    rows: list[dict]
    measures: str = ""


def read_sweep(report: Report) -> SweptClaims | None:
    """Return the committed sweep of a chapter, or None where there is none.

    Raises:
        BadTable: the evidence is damaged.
        SweepError: it lacks a column, or names a claim that the report does not hold.
    """
    if report.slug not in evidence.slugs():
        return None
    return sweep_of(report, evidence.read_evidence(report.slug).lines)


def sweep_of(report: Report, frame: pd.DataFrame) -> SweptClaims | None:
    """Return the sweep in a table of evidence; None where no parameter takes two values. Raises as `read_sweep`."""
    verdicts = frame[frame["verdict"].notna() & frame["value"].notna()] if set(_NEEDED) <= set(frame) else None
    if verdicts is None:
        raise SweepError(f"the evidence of {report.slug} lacks {', '.join(set(_NEEDED) - set(frame))}; sweep it again")
    known = [claim.id for claim in report.claims]
    if unknown := sorted(set(verdicts["claim"]) - set(known)):
        raise SweepError(f"the evidence of {report.slug} holds {', '.join(unknown)}; its report does not: sweep again")
    swept = [
        column
        for column in verdicts
        if column.startswith(_PREFIX)
        and column.removeprefix(_PREFIX) not in _NOT_SWEPT
        and verdicts[column].nunique() > 1
    ]
    if not swept:
        return None
    values = {column: sorted(verdicts[column].unique().tolist()) for column in swept}
    rows = [_row(record, values) for record in verdicts.to_dict("records")]
    names = {column.removeprefix(_PREFIX): [value_text(value) for value in found] for column, found in values.items()}
    rows.sort(key=lambda row: (known.index(row["claim"]), row["seed"]))
    return SweptClaims(report.slug, names, rows, measure_tables(frame, list(names)))


def _row(record: dict, values: dict[str, list]) -> dict:
    numbers = {name: float(record[name]) for name in ("value", "low", "high")}
    seed = record.get(f"{_PREFIX}seed", record.get("seed", 0))
    places = {f"i_{column.removeprefix(_PREFIX)}": found.index(record[column]) for column, found in values.items()}
    return {"claim": record["claim"], "verdict": record["verdict"], "seed": int(seed), **numbers, **places}


def value_text(value: object) -> str:
    """Return the value of a parameter as the explorer names it."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def thresholds(report: Report) -> list[dict]:
    """Return the finite ends of every claim's regions, which the explorer draws dotted."""
    found = []
    for claim in report.claims:
        regions: Sequence[Region] = (claim.upheld_if, claim.refuted_if)
        ends = {end for region in regions for low, high, _ in region.parts for end in (low, high)}
        found += [{"claim": claim.id, "end": end} for end in sorted(ends) if abs(end) != float("inf")]
    return found


def provenance_of(report: Report) -> tuple[dict, list[str]] | None:
    """Return the provenance of a chapter's evidence, and what changed since in words; None where there is none."""
    if report.slug not in evidence.slugs():
        return None
    provenance = evidence.read_evidence(report.slug).provenance
    return provenance, evidence.staleness(find_chapter(report.slug), provenance)
