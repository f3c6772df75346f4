"""The rows of a sweep on disk, and the task that a worker does for one of them.

A row is one JSON file with a seal of its own, named by what it follows from. It is written under a temporary name and
moved into place, so that a killed worker leaves a whole row or none. It holds verdicts, measurements and what the run
read; the executed notebook is not kept, `casebook run` makes it again.
"""

import contextlib
import fcntl
import json
import math
import os
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from casestudies_lib import paths
from casestudies_lib.records import MEASUREMENTS_MIME
from casestudies_lib.runner import results
from casestudies_lib.runner.cache_key import canonical, changes, digest, states
from casestudies_lib.runner.chapters import claim_ids, find_chapter
from casestudies_lib.runner.errors import CasebookError, Failure
from casestudies_lib.runner.execute import RunFailed, run_chapter
from casestudies_lib.runner.jobs import prepare
from casestudies_lib.runner.sweep_plan import public, row_key

FORMAT = 1
_MEASUREMENT = {"chapter": str, "claim": str, "measure": str, "unit": str, "setting": dict, "seed": int}
_ELSEWHERE = ("/", "~/", "environment ", "modules in /", "rivals of /", "modules in ~/", "rivals of ~/")


class BadRow(Failure):
    """A row file is missing, damaged, or not of this sweep; or a run's measurements are none."""


@dataclass(frozen=True)
class RowResult:
    """A finished row: its parameters, the records of its run, what it read, and what it ran on."""

    slug: str
    key: str
    parameters: dict
    verdicts: list[dict]
    measurements: list[dict]
    reads: dict[str, str]
    provenance: dict
    asked: str


def folder(slug: str) -> Path:
    """Return where a chapter's rows lie; workers on other machines must see the same folder."""
    return paths.build() / "sweeps" / slug / "rows"


def row_file(slug: str, key: str) -> Path:
    """Return the file of one row."""
    return folder(slug) / f"{key}.json"


def read_row(slug: str, key: str) -> RowResult:
    """Return one finished row.

    Raises:
        BadRow: there is none, or it does not match its seal.
    """
    path = row_file(slug, key)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        body = content["body"]
        if content["seal"] != digest(canonical(body)) or content["format"] != FORMAT:
            raise BadRow(f"{path} does not match its seal; the row runs again")
        row = RowResult(**body)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadRow(f"{path} cannot be read: {error}") from error
    if (row.slug, row.key) != (slug, key):
        raise BadRow(f"{path} holds another row")
    return row


def write_row(row: RowResult) -> str:
    """Store a finished row; returns the digest of its file."""
    body = vars(row)
    content = json.dumps({"format": FORMAT, "seal": digest(canonical(body)), "body": body}, allow_nan=False).encode()
    path = row_file(row.slug, row.key)
    results.replace_file(path, content)
    return digest(content)


def finished_rows(slug: str, keys: list[str]) -> dict[str, RowResult]:
    """Return those of these rows that are stored and of which nothing they read has changed since."""
    stored = {}
    for key in keys:
        with contextlib.suppress(BadRow):
            stored[key] = read_row(slug, key)
    now = states(sorted({name for row in stored.values() for name in row.reads}))
    return {key: row for key, row in stored.items() if not changes(row.reads, {name: now[name] for name in row.reads})}


def run_row(slug: str, assignments: list[str], key: str, time_limit: float, asked: str) -> dict:
    """Do the work of one row on a worker: run the chapter, store the row, and return the digest of its file.

    Dask may run a task more than once, and two sweeps may ask for the same row: who comes second waits and finds it.

    Args:
        slug: the chapter.
        assignments: the parameters, as texts NAME=VALUE.
        key: what the sweep calls the row.
        time_limit: seconds for the run.
        asked: empty, or the name of a fresh sweep: only rows of that sweep are taken as finished.

    Returns:
        `{"digest": ...}`, or `{"error": ...}` in one line.
    """
    try:
        job = prepare(find_chapter(slug), assignments, time_limit=time_limit)
        if row_key(job) != key:
            return {"error": "the worker has another state of the chapter, its report or the lock than you; update it"}
        folder(slug).mkdir(parents=True, exist_ok=True)
        with _locked(slug, key):
            row = finished_rows(slug, [key]).get(key)
            if row is None or (asked and row.asked != asked):
                _run(job, key, asked)
            return {"digest": digest(row_file(slug, key).read_bytes())}
    except RunFailed as error:
        return {"error": str(error.__cause__ or error)}
    except CasebookError as error:
        return {"error": str(error)}


@contextlib.contextmanager
def _locked(slug: str, key: str) -> Iterator[None]:
    """Keep other workers from the same row; the lock dies with its process."""
    locks = folder(slug) / "locks"
    locks.mkdir(exist_ok=True)
    descriptor = os.open(locks / key, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _run(job, key: str, asked: str) -> None:
    slug = job.chapter.slug
    for left in folder(slug).glob(f".run-{key[:16]}-*"):  # by a killed worker, whose last processes may still end in it
        shutil.rmtree(left, ignore_errors=True)
    scratch = folder(slug) / f".run-{key[:16]}-{secrets.token_hex(4)}"
    failed = folder(slug) / f"{key}.failed.ipynb"
    try:
        result = results.read_result(run_chapter(replace(job, destination=scratch), enter=False))
        failed.unlink(missing_ok=True)
        write_row(_row(job, key, asked, result))
    except RunFailed:
        with contextlib.suppress(OSError):
            (scratch / results.FAILED).replace(failed)
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _row(job, key: str, asked: str, result: results.Result) -> RowResult:
    notebook = json.loads((result.folder / results.NOTEBOOK).read_text(encoding="utf-8"))
    slug, provenance = job.chapter.slug, result.provenance
    about = ("casebook", "python", "platform", "torch", "threads", "cpu_capability", "peak_memory_mb", "seconds")
    return RowResult(
        slug=slug,
        key=key,
        parameters=public(job.parameters, job.values),
        verdicts=result.verdicts,
        measurements=measurements_of(notebook, slug, claim_ids(slug)),
        reads=_within(provenance["inputs"], slug),
        provenance={name: provenance.get(name) for name in about} | {"lock": provenance["inputs"]["requirements.lock"]},
        asked=asked,
    )


def _within(inputs: dict[str, str], slug: str) -> dict[str, str]:
    """Return the inputs that lie in the repository; the chapter's own evidence is made from rows, not an input."""
    kept = {name: state for name, state in inputs.items() if "/" in name and not name.startswith(_ELSEWHERE)}
    return {name: state for name, state in kept.items() if not name.startswith(f"data/evidence/{slug}.")}


def measurements_of(notebook: dict, slug: str, claims: list[str]) -> list[dict]:
    """Return the measurement records that an executed notebook shows; there need not be any.

    Raises:
        BadRow: a record is not of the form that `Case.record` makes.
    """
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    shown = [output["data"][MEASUREMENTS_MIME] for output in outputs if MEASUREMENTS_MIME in output.get("data", {})]
    if len(shown) > 1:
        raise BadRow(f"{len(shown)} cell outputs with measurements; show case.evidence() in exactly one cell")
    records = shown[0] if shown else []
    if not isinstance(records, list):
        raise BadRow("the measurements are no list of records")
    for number, record in enumerate(records, start=1):
        if fault := _fault(record, slug, claims):
            raise BadRow(f"measurement {number} {fault}; make measurements with case.record")
    return records


def _fault(record: object, slug: str, claims: list[str]) -> str:
    if not isinstance(record, dict) or record.keys() != {*_MEASUREMENT, "value"}:
        return f"does not have exactly the fields {', '.join([*_MEASUREMENT, 'value'])}"
    for name, kind in _MEASUREMENT.items():
        if type(record[name]) is not kind:
            return f"has a {name} that is no {kind.__name__}"
    if type(record["value"]) not in (int, float) or not math.isfinite(record["value"]):
        return "has a value that is no finite number"
    if record["chapter"] != slug or record["claim"] not in claims:
        return f"speaks of {record['chapter']} {record['claim']}, which is no claim of {slug}"
    if not all(isinstance(value, str | int | float) for value in record["setting"].values()):
        return "has a setting that holds more than texts and numbers"
    return ""
