"""Writes the student copy of a chapter: no outputs, no solutions, every check and stub in place."""

import copy
from pathlib import Path

from casestudies_lib.runner.chapters import Chapter, read_notebook, tags_of
from casestudies_lib.runner.cleaning import cleaned, notebook_text
from casestudies_lib.runner.errors import Failure
from casestudies_lib.runner.exercises import SOLUTION, STUB, exercises_of
from casestudies_lib.runner.results import replace_file, unwritable

_COMPARED = "nbval-check-output"


def student_copy(notebook: dict, name: str) -> dict:
    """Return a notebook for students.

    Args:
        notebook: the chapter's notebook as a dictionary; it is left as it is.
        name: its file name, for messages.

    Raises:
        ChapterError: the chapter has no exercises, or one lacks its check, stub or solution.
    """
    if not exercises_of(notebook, name):
        raise Failure(f"{name} has no exercises; write one as contributing.md shows, then try again")
    result = cleaned(notebook)
    result["cells"] = [_emptied(cell) for cell in result["cells"] if SOLUTION not in tags_of(cell)]
    return result


def _emptied(cell: dict) -> dict:
    """Return the cell without outputs; a stub is no longer compared, because its answer is meant to change."""
    if cell["cell_type"] != "code":
        return cell
    emptied = copy.deepcopy(cell) | {"outputs": [], "execution_count": None}
    if STUB in tags_of(cell):
        emptied["metadata"]["tags"] = [tag for tag in tags_of(cell) if tag != _COMPARED]
    return emptied


def write_student_copy(chapter: Chapter, folder: Path) -> Path:
    """Write the student copy of a chapter into a folder and return its path.

    Raises:
        Failure: there are no exercises, a file of that name is there already, or the folder cannot be written.
    """
    content = notebook_text(student_copy(read_notebook(chapter.path), chapter.path.name))
    target = folder / chapter.path.name
    if target.exists():
        raise Failure(f"{target} exists already and may hold answers; name another folder with --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(target, content.encode())
    except OSError as error:
        raise Failure(unwritable(folder, error)) from error
    return target
