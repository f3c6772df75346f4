"""Writes an executed notebook back to `notebooks/`, where its stored outputs are what nbval compares."""

import json
from pathlib import Path

from casestudies_lib.runner.chapters import read_notebook
from casestudies_lib.runner.cleaning import cleaned, notebook_text
from casestudies_lib.runner.errors import Failure, Mistake
from casestudies_lib.runner.jobs import Job
from casestudies_lib.runner.results import NOTEBOOK, Result, changes, inputs, replace_file, unwritable


def check_storable(job: Job) -> None:
    """Raise `Mistake` unless the job runs with the default parameters, which committed notebooks must show."""
    if job.changed:
        raise Mistake(f"--store needs the default parameters; leave out -p {', -p '.join(job.changed)}")


def store_notebook(job: Job, result: Result) -> Path:
    """Put the executed notebook, cleaned, in place of the chapter's notebook, and return its path.

    Raises:
        Failure: the notebook was edited while it ran, or cannot be written.
    """
    executed = json.loads((result.folder / NOTEBOOK).read_text(encoding="utf-8"))
    current = read_notebook(job.chapter.path)
    if _authored(current) != _authored(executed) or _inputs_changed(job, result, current):
        raise Failure(f"{job.chapter.path.name} was edited while it ran; not stored: run it again")
    try:
        replace_file(job.chapter.path, notebook_text(cleaned(executed)).encode())
    except OSError as error:
        raise Failure(unwritable(job.chapter.path, error)) from error
    return job.chapter.path


def _authored(notebook: dict) -> list[tuple[str, str]]:
    return [(cell["cell_type"], "".join(cell["source"])) for cell in cleaned(notebook)["cells"]]


def _inputs_changed(job: Job, result: Result, notebook: dict) -> list[str]:
    return changes(result.provenance["inputs"], inputs(job.chapter, notebook, job.parameters, job.values))
