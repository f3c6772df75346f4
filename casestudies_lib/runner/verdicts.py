"""The verdicts that may be shown: from runs that are still true, else from the outputs stored in the notebook."""

from collections.abc import Callable

from casestudies_lib.runner import results
from casestudies_lib.runner.chapters import Chapter, claim_ids, read_notebook
from casestudies_lib.runner.completeness import Incomplete, verdicts_of
from casestudies_lib.runner.errors import CasebookError, Failure
from casestudies_lib.runner.parameters import read_parameters


def current_verdicts(chapter: Chapter, warn: Callable[[str], None]) -> list[dict]:
    """Return a chapter's verdict records, each with `from`: "run" or "stored".

    Args:
        chapter: the chapter.
        warn: receives a line about a run that cannot be served.

    Raises:
        Failure: neither a run that is still true nor stored outputs hold the verdicts.
    """
    notebook = read_notebook(chapter.path)
    folder = results.run_folder(chapter, {})
    if (folder / results.SEAL).exists():
        try:
            result = results.read_result(folder)
            changes = results.staleness(result, chapter, read_parameters(notebook, chapter.path.name))
            if not changes:
                return [{"from": "run", **record} for record in result.verdicts]
            warn(f"{chapter.slug}: the last run is stale, not shown: {_few(changes)}; run: casebook run {chapter.slug}")
        except CasebookError as error:
            warn(f"{chapter.slug}: the last run is not shown: {error}")
    try:
        return [{"from": "stored", **record} for record in verdicts_of(notebook, chapter.slug, claim_ids(chapter.slug))]
    except Incomplete as error:
        raise Failure(
            f"{chapter.slug}: no complete verdicts stored in its notebook ({error}); run: casebook run {chapter.slug}"
        ) from error


def _few(changes: list[str]) -> str:
    return ", ".join(changes[:4]) + (f" and {len(changes) - 4} more" if len(changes) > 4 else "")


def run_state(chapter: Chapter) -> str:
    """Return what is known of the chapter's default run: none, fresh, stale, damaged, or failed."""
    folder = results.run_folder(chapter, {})
    if (folder / results.FAILED).exists():
        return "failed"
    if not (folder / results.SEAL).exists():
        return "none"
    try:
        parameters = read_parameters(read_notebook(chapter.path), chapter.path.name)
        return "stale" if results.staleness(results.read_result(folder), chapter, parameters) else "fresh"
    except CasebookError:
        return "damaged"
