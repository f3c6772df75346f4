"""Evidence: the results of sweeps, committed in `data/evidence/`, as one Parquet file and its provenance a chapter.

`casebook evidence update` puts a sweep there; `casebook evidence check` runs a random tenth of its rows again and
compares the verdicts. The site's explorers read it with `read_evidence`.
"""

import math
import random
from collections.abc import Callable
from pathlib import Path

from casestudies_lib import paths
from casestudies_lib.runner import table
from casestudies_lib.runner.chapters import Chapter
from casestudies_lib.runner.errors import Failure, Mistake
from casestudies_lib.runner.inputs import differences, few, portable
from casestudies_lib.runner.jobs import prepare
from casestudies_lib.runner.plan import plan_of
from casestudies_lib.runner.results import current_inputs
from casestudies_lib.runner.sweep import folder_of, run_rows
from casestudies_lib.runner.table import BadTable, Sweep

__all__ = ["BadTable", "Sweep", "check_again", "read_evidence", "slugs", "staleness", "update"]


def folder() -> Path:
    """Return where evidence is committed."""
    return paths.root() / "data" / "evidence"


def slugs() -> list[str]:
    """Return the chapters that have evidence, in alphabetical order."""
    return sorted(path.stem for path in folder().glob("*.parquet"))


def read_evidence(slug: str) -> Sweep:
    """Return the lines (a data frame, columns in `data/README.md`) and the provenance of a chapter's evidence.

    Raises:
        BadTable: there is none, it is cut short, or its provenance belongs to something else.
    """
    sweep = table.read(folder() / f"{slug}.parquet")
    if sweep.provenance["chapter"] != slug:
        raise BadTable(f"{slug}.parquet holds evidence of {sweep.provenance['chapter']}; restore it")
    return sweep


def staleness(chapter: Chapter, provenance: dict) -> list[str]:
    """Return in words which code, report or data changed since the evidence was made; empty where it is still true.

    The lock is not among them: which versions made a row stands in its lines.
    """
    return differences(provenance["inputs"], portable(current_inputs(chapter)))


def update(chapter: Chapter, name: str | None = None) -> tuple[Path, Sweep]:
    """Put a sweep of a chapter into `data/evidence/`; returns the Parquet file, and what it holds.

    Args:
        chapter: the chapter.
        name: which sweep; where there is only one, it need not be named.

    Raises:
        Mistake: there is no sweep, no sweep of this name, or more than one and no name.
        Failure: the sweep is older than the chapter's code, or a row of it failed.
    """
    there = {path.stem: path for path in sorted(folder_of(chapter.slug).glob("*.parquet"))}
    if not there:
        raise Mistake(f"no finished sweep of {chapter.slug}; run one: casebook sweep {chapter.slug} --grid NAME=V,V")
    if (name or next(iter(there))) not in there or (name is None and len(there) > 1):
        commands = [f"{each} ({table.read(path).provenance['command']})" for each, path in there.items()]
        raise Mistake(f"name one of the sweeps of {chapter.slug} with --sweep: {'; '.join(commands)}")
    sweep = table.read(there[name or next(iter(there))])
    if words := staleness(chapter, sweep.provenance):
        command = sweep.provenance["command"]
        raise Failure(f"the sweep of {chapter.slug} is older than its code: {few(words)}; run again: {command}")
    if failed := sweep.provenance["failures"]:
        raise Failure(f"{failed} rows of this sweep failed; evidence holds whole sweeps: mend the chapter, sweep again")
    path = table.write(folder() / f"{chapter.slug}.parquet", sweep)
    return path, read_evidence(chapter.slug)


def check_again(
    chapter: Chapter, share: float, draw: int, workers: int | None, time_limit: float, say: Callable[[str], None]
) -> dict:
    """Run a random share of a chapter's evidence again, on this machine, and compare the verdicts.

    Args:
        chapter: the chapter.
        share: of the rows, rounded up to a whole row; 0 only asks whether the evidence is still true.
        draw: the seed of the draw; the same draws the same rows.
        workers: rows at once; by default one a core.
        time_limit: seconds for each row.
        say: receives a line for each row.

    Returns:
        The keys that ran, and in words each verdict that differs or row that failed.

    Raises:
        Failure: the evidence is damaged, or older than its chapter's code.
    """
    evidence = read_evidence(chapter.slug)
    if words := staleness(chapter, evidence.provenance):
        raise Failure(
            f"the evidence of {chapter.slug} is older than its chapter's code: {few(words)}; make it again: "
            f"{evidence.provenance['command']} && casebook evidence update {chapter.slug}"
        )
    verdicts = evidence.lines[evidence.lines["record"] == "verdict"]
    keys = sorted(set(verdicts["key"]))
    drawn = sorted(random.Random(draw).sample(keys, math.ceil(share * len(keys))))
    first = prepare(chapter, time_limit=time_limit)
    again = plan_of(first, [_assignments(first.parameters, verdicts, key) for key in drawn], {})
    rows, failures, _ = run_rows(again, scheduler=None, workers=workers, fresh=True, say=say) if drawn else ({}, {}, 0)
    faults = []
    for key, row in zip(drawn, again.rows):
        name = f"{chapter.slug}, row {key[:10]} ({row.job.command})"
        if row.key in failures:
            faults.append(f"{name} failed: {failures[row.key]}")
            continue
        before = verdicts[verdicts["key"] == key].set_index("claim")["verdict"].to_dict()
        now = {record["id"]: record["verdict"] for record in rows[row.key]["verdicts"]}
        faults += [
            f"{name}: {claim} was {before.get(claim, 'not judged')} and is {now.get(claim, 'not judged')}"
            for claim in sorted(before.keys() | now.keys())
            if before.get(claim) != now.get(claim)
        ]
    return {"rows": drawn, "differences": faults}


def _assignments(parameters: list, lines, key: str) -> list[str]:
    """Return the parameters of a row of the evidence as texts NAME=VALUE."""
    first, found = lines[lines["key"] == key].iloc[0], []
    for parameter in parameters:
        value = first[f"param_{parameter.name}"]
        if parameter.unit == "path" and value:
            raise Failure(f"row {key[:10]} read {value!r}, a file that is not committed; it cannot run again here")
        found.append(f"{parameter.name}={type(parameter.default)(value)}")
    return found
