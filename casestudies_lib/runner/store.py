"""Writes an executed notebook back to `notebooks/`, where its stored outputs are what nbval compares.

What is committed is read by everybody: a notebook that is too large, that shows what no page may show, or that holds a
folder or a secret of the machine it ran on, is not stored.
"""

import json

from casestudies_lib.runner.chapters import read_notebook, source_of
from casestudies_lib.runner.cleaning import cleaned, notebook_text
from casestudies_lib.runner.code_rules import notebook_code_problems
from casestudies_lib.runner.errors import Failure, Mistake
from casestudies_lib.runner.jobs import Job
from casestudies_lib.runner.page_outputs import unpublishable
from casestudies_lib.runner.private import private_traces_in
from casestudies_lib.runner.results import NOTEBOOK, Result, replace_file, staleness, unwritable

STORED_LIMIT = 1_000_000  # bytes of a stored notebook


def check_storable(job: Job) -> None:
    """Raise `Mistake` unless the job runs with the default parameters, which committed notebooks must show."""
    if job.changed:
        raise Mistake(f"--store needs the default parameters; leave out -p {', -p '.join(job.changed)}")


def store_notebook(job: Job, result: Result) -> list[str]:
    """Put the executed notebook, cleaned, in place of the chapter's notebook.

    Returns:
        What else changed while it ran, in words: then its outputs may belong to neither state, and it should run again.

    Raises:
        Failure: the notebook was edited while it ran, may not be stored as it is, or cannot be written.
    """
    executed = json.loads((result.folder / NOTEBOOK).read_text(encoding="utf-8"))
    current = read_notebook(job.chapter.path)
    if _authored(current) != _authored(executed):
        raise Failure(f"{job.chapter.path.name} was edited while it ran; not stored: run it again")
    changed = staleness(result, job.chapter, job.parameters)
    content = notebook_text(cleaned(executed)).encode()
    if objections := storing_objections(cleaned(executed), len(content)):
        raise Failure(f"{job.chapter.path.name} is not stored: {'; '.join(objections)}")
    try:
        replace_file(job.chapter.path, content)
    except OSError as error:
        raise Failure(unwritable(job.chapter.path, error)) from error
    return changed


def storing_objections(notebook: dict, size: int) -> list[str]:
    """Return in words why a notebook of this many bytes may not be committed; empty where it may."""
    found = [*notebook_code_problems(notebook), *unpublishable(notebook)]
    found += [f"it holds {trace}" for trace in private_traces_in(notebook)]
    if size > STORED_LIMIT:
        found.append(f"it has {size:,} bytes, at most {STORED_LIMIT:,} are stored; show fewer or smaller outputs")
    return found


def _authored(notebook: dict) -> list[tuple[str, str, dict]]:
    return [(cell["cell_type"], source_of(cell), cell["metadata"]) for cell in cleaned(notebook)["cells"]]
