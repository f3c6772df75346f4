"""One line for each chapter, also for one whose notebook or report is broken."""

from casestudies_lib.runner.chapters import Chapter, claim_ids, read_notebook, title_of
from casestudies_lib.runner.errors import CasebookError
from casestudies_lib.runner.verdicts import run_state


def overview(chapter: Chapter) -> dict:
    """Return number, slug, title, number of claims and state of the last run; a fault stands in place of the title."""
    row = {"number": chapter.number, "slug": chapter.slug, "title": "", "claims": None, "last_run": run_state(chapter)}
    try:
        row["title"] = title_of(read_notebook(chapter.path))
        row["claims"] = len(claim_ids(chapter.slug))
    except CasebookError as error:
        row["title"] = row["title"] or f"({error})"
    return row
