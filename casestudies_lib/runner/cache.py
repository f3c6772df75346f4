"""Never runs twice what gives the same: finds a complete run whose declared inputs and whose reads are all unchanged.

A hit needs the same key (see `cache_key`), the same state of everything that the run read (see `cache_recorder`), and
an entry that matches its own seal (see `cache_store`). Anything else is a miss, which says why.
"""

import contextlib
import copy
import json
from dataclasses import dataclass
from pathlib import Path

from casestudies_lib import paths
from casestudies_lib.runner import cache_store, results
from casestudies_lib.runner.cache_key import Key, changes, key_of, states
from casestudies_lib.runner.cache_store import Damaged, Entry
from casestudies_lib.runner.chapters import claim_ids, read_notebook, tags_of
from casestudies_lib.runner.cleaning import notebook_text
from casestudies_lib.runner.completeness import Incomplete, verdicts_of
from casestudies_lib.runner.jobs import Job

INJECTED = "injected-parameters"


@dataclass(frozen=True)
class Hit:
    """A complete run that is still true, and the chapter's notebook as it stands."""

    entry: Entry
    notebook: bytes
    source: dict


@dataclass(frozen=True)
class Miss:
    """There is none; the reasons in words, each of them one."""

    reasons: list[str]


def key(job: Job) -> Key:
    """Return the key of a job: its declared inputs, known before it runs."""
    return key_of(job.chapter.slug, read_notebook(job.chapter.path), job.parameters, job.values)


def lookup(job: Job) -> Hit | Miss:
    """Find a complete run of this job of which every input is unchanged."""
    source = read_notebook(job.chapter.path)
    wanted = key_of(job.chapter.slug, source, job.parameters, job.values)
    entries, reasons = _entries(job.chapter.slug)
    now = states(sorted({name for entry in entries for name in entry.reads}))
    for entry in entries:
        if entry.key != wanted.digest or _changed(entry, now):
            continue
        try:
            notebook = cache_store.read_notebook_of(entry)
            _merged(notebook, source, job.chapter.slug)
            return Hit(entry, notebook, source)
        except (Damaged, Incomplete) as error:
            reasons.append(str(error))
    return Miss(reasons + _why_not(entries, wanted, now))


def _changed(entry: Entry, now: dict[str, str]) -> list[str]:
    """Return in words what of an entry's reads is not as it was."""
    return changes(entry.reads, {name: now[name] for name in entry.reads})


def _entries(slug: str) -> tuple[list[Entry], list[str]]:
    """Return a chapter's entries, newest first, and what is to be said of damaged ones."""
    found, reasons = [], []
    for path in cache_store.entry_files(slug):
        try:
            found.append(cache_store.read_entry(path))
        except Damaged as error:
            reasons.append(f"its entry in the cache is damaged: {error}")
    return sorted(found, key=lambda entry: entry.number, reverse=True), reasons


def _why_not(entries: list[Entry], wanted: Key, now: dict[str, str]) -> list[str]:
    """Return what differs from the run that is nearest: the fewest differences, and of those the newest."""
    if not entries:
        return ["no earlier run in the cache"]
    found = [changes(entry.parts, wanted.parts) + _changed(entry, now) for entry in entries]
    return min(found, key=len)


def _merged(executed: bytes, source: dict, slug: str) -> tuple[dict, list[dict]]:
    """Return the present notebook with the outputs of a run of the same code, and the verdicts in it.

    Raises:
        Incomplete: the outputs do not fit the notebook, or the verdicts not the report file.
    """
    ran = json.loads(executed)
    outputs = [cell for cell in ran["cells"] if cell["cell_type"] == "code"]
    cells, position = [], 0
    for cell in copy.deepcopy(source["cells"]):
        if cell["cell_type"] == "code":
            if position < len(outputs) and INJECTED in tags_of(outputs[position]):
                cells.append(outputs[position])
                position += 1
            if position == len(outputs):
                break
            cell |= {name: outputs[position][name] for name in ("outputs", "execution_count")}
            position += 1
        cells.append(cell)
    if position != len(outputs) or len(cells) < len(source["cells"]):
        raise Incomplete("the cached notebook has other cells")
    notebook = source | {"cells": cells, "metadata": {**ran["metadata"], **source["metadata"]}}
    return notebook, verdicts_of(notebook, slug, claim_ids(slug))


def serve(job: Job, hit: Hit) -> Path:
    """Put a cached result into the job's folder as a run would leave it, with the prose as it stands.

    Raises:
        ResultError: the result folder cannot be written.
    """
    notebook, verdicts = _merged(hit.notebook, hit.source, job.chapter.slug)
    provenance = {name: value for name, value in hit.entry.provenance.items() if name != "files"}
    with contextlib.suppress(OSError):  # a cache that cannot be written serves all the same
        cache_store.mark_used(hit.entry)
    with results.scratch_folder(job.destination) as scratch:
        return results.write_result(job.destination, scratch, notebook_text(notebook).encode(), verdicts, provenance)


def enter(job: Job, key: Key, reads: dict[str, str], notebook: bytes, verdicts: list[dict], provenance: dict) -> None:
    """Store a complete run.

    Args:
        job: what ran.
        key: its key, from before it ran.
        reads: the state of everything it read, as the recorder found it.
        notebook: the executed notebook file.
        verdicts: the records in it.
        provenance: what its result folder says of the run.

    Raises:
        OSError: the cache cannot be written; nothing half is left in it.
    """
    cache_store.write_entry(job.chapter.slug, key.digest, key.parts, reads, verdicts, provenance, notebook)


def last_seconds(job: Job) -> float:
    """Return how long the chapter's newest run here took; where there was none, `committed_seconds`."""
    entries, _ = _entries(job.chapter.slug)
    same = [entry for entry in entries if entry.provenance.get("parameters") == job.values]
    return next((entry.seconds for entry in same or entries), committed_seconds(job.chapter.slug))


def committed_seconds(slug: str) -> float:
    """Return the mean time of a row of the chapter's committed sweep, or infinity: it may be the longest of all.

    It decides about an order alone, so evidence that cannot be read is left to those who need what is in it.
    """
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, ZeroDivisionError):
        provenance = json.loads((paths.root() / "data" / "evidence" / f"{slug}.json").read_text(encoding="utf-8"))
        return float(provenance["seconds"]) / provenance["rows"]
    return float("inf")
