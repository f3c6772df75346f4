"""One line for each run in the cache: what it is, and whether it would be served now."""

import json

from casestudies_lib.runner import cache_store
from casestudies_lib.runner.cache_key import changes, parts, states
from casestudies_lib.runner.cache_store import Damaged, Entry
from casestudies_lib.runner.chapters import find_chapter, read_notebook
from casestudies_lib.runner.errors import CasebookError
from casestudies_lib.runner.parameters import read_parameters


def listing() -> list[dict]:
    """Return a row for each run, by chapter, newest first; its state is served, stale or damaged, `why` says why."""
    rows = []
    for path in cache_store.entry_files():
        try:
            entry = cache_store.read_entry(path)
            cache_store.read_notebook_of(entry)
        except Damaged as error:
            rows.append(_row(path.parent.name, {}, state="damaged", why=[str(error)]))
            continue
        why = _changes(entry)
        rows.append(
            _row(entry.slug, entry.provenance, state="stale" if why else "served", why=why, number=entry.number)
        )
    return sorted(rows, key=lambda row: (row["chapter"], -row["number"]))


def _row(slug: str, provenance: dict, *, state: str, why: list[str], number: int = 0) -> dict:
    return {
        "chapter": slug, "parameters": json.dumps(provenance.get("parameters", {})), "number": number,
        "started": provenance.get("started", ""), "seconds": provenance.get("seconds"), "state": state, "why": why,
    }  # fmt: skip


def _changes(entry: Entry) -> list[str]:
    try:
        chapter = find_chapter(entry.slug)
        notebook = read_notebook(chapter.path)
        parameters = read_parameters(notebook, chapter.path.name)
    except CasebookError as error:
        return [str(error)]
    values = {p.name: entry.provenance["parameters"].get(p.name, p.default) for p in parameters}
    current = parts(entry.slug, notebook, parameters, values)
    return changes(entry.parts, current) + changes(entry.reads, states(list(entry.reads)))
