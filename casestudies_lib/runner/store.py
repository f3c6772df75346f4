"""Writes an executed notebook back to `notebooks/`, where its stored outputs are what nbval compares."""

import json

from casestudies_lib.runner.chapters import read_notebook, source_of
from casestudies_lib.runner.cleaning import cleaned, notebook_text
from casestudies_lib.runner.errors import Failure, Mistake
from casestudies_lib.runner.jobs import Job
from casestudies_lib.runner.results import NOTEBOOK, Result, replace_file, staleness, unwritable


def check_storable(job: Job) -> None:
    """Raise `Mistake` unless the job runs with the default parameters, which committed notebooks must show."""
    if job.changed:
        raise Mistake(f"--store needs the default parameters; leave out -p {', -p '.join(job.changed)}")


def store_notebook(job: Job, result: Result) -> list[str]:
    """Put the executed notebook, cleaned, in place of the chapter's notebook.

    Returns:
        What else changed while it ran, in words: then its outputs may belong to neither state, and it should run again.

    Raises:
        Failure: the notebook was edited while it ran, or cannot be written.
    """
    executed = json.loads((result.folder / NOTEBOOK).read_text(encoding="utf-8"))
    current = read_notebook(job.chapter.path)
    if _authored(current) != _authored(executed):
        raise Failure(f"{job.chapter.path.name} was edited while it ran; not stored: run it again")
    changed = staleness(result, job.chapter, job.parameters)
    try:
        replace_file(job.chapter.path, notebook_text(cleaned(executed)).encode())
    except OSError as error:
        raise Failure(unwritable(job.chapter.path, error)) from error
    return changed


def _authored(notebook: dict) -> list[tuple[str, str, dict]]:
    return [(cell["cell_type"], source_of(cell), cell["metadata"]) for cell in cleaned(notebook)["cells"]]
