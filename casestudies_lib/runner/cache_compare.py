"""Compares a fresh run with what the cache held for the very same inputs; where they differ, one of them is wrong."""

import json
from pathlib import Path

from casestudies_lib.runner import cache_store, results
from casestudies_lib.runner.cache import Hit, lookup
from casestudies_lib.runner.chapters import tags_of
from casestudies_lib.runner.errors import Failure
from casestudies_lib.runner.jobs import Job

COMPARED = "nbval-check-output"
_WORDS = ("id", "kind", "verdict", "rule")


def cached(jobs: list[Job]) -> dict[str, Hit]:
    """Return what the cache would serve for these jobs, by slug."""
    found = {job.chapter.slug: lookup(job) for job in jobs}
    return {slug: answer for slug, answer in found.items() if isinstance(answer, Hit)}


def refuse_differences(jobs: list[Job], before: dict[str, Hit], folders: dict[str, Path]) -> None:
    """Compare fresh results with cached ones of the same inputs; where they differ, neither stays in the cache.

    Raises:
        Failure: a verdict or a compared output differs; names them.
    """
    found = []
    for job in jobs:
        hit = before.get(job.chapter.slug)
        if hit is None:
            continue
        differing = differences(hit, folders[job.chapter.slug])
        if differing:
            cache_store.remove(hit.entry)
            if isinstance(fresh := lookup(job), Hit):
                cache_store.remove(fresh.entry)
            found.append(f"{job.chapter.slug}: {', '.join(differing)}")
    if found:
        raise Failure(
            f"the same inputs gave something else than the cached run did: {'; '.join(found)}; it depends on what "
            "the cache does not know of (a clock, a seed that is not set, a file that only native code reads)"
        )


def differences(hit: Hit, folder: Path) -> list[str]:
    """Return the names of verdicts and compared cells in which a result differs from a cached one."""
    fresh = json.loads((folder / results.NOTEBOOK).read_text(encoding="utf-8"))
    records = {record["id"]: record for record in results.read_result(folder).verdicts}
    words = [
        f"verdict {record['id']}"
        for record in hit.entry.verdicts
        if [record[name] for name in _WORDS] != [records.get(record["id"], {}).get(name) for name in _WORDS]
    ]
    pairs = zip(_compared(json.loads(hit.notebook)), _compared(fresh), strict=True)
    return words + [f"compared cell {n}" for n, (before, now) in enumerate(pairs, start=1) if before != now]


def _compared(notebook: dict) -> list[list]:
    cells = [cell for cell in notebook["cells"] if COMPARED in tags_of(cell)]
    return [[_text(output) for output in cell["outputs"]] for cell in cells]


def _text(output: dict) -> list:
    """Return of an output what nbval compares as text: streams, plain text, HTML and LaTeX, and names of errors."""
    data = output.get("data", {})
    kinds = ("text/plain", "text/html", "text/latex")
    texts = [output.get("text"), output.get("ename"), *(data.get(kind) for kind in kinds)]
    return ["".join(text) if isinstance(text, list) else text for text in texts]
