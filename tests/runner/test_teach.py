"""A student copy holds every question and no answer; its checks say False until an answer stands."""

import json

import nbformat
import pytest
from nbclient import NotebookClient

from casestudies_lib import paths
from casestudies_lib.runner.chapters import Chapter, ChapterError, all_chapters, read_notebook, source_of, tags_of
from casestudies_lib.runner.errors import Failure
from casestudies_lib.runner.exercises import exercises_of
from casestudies_lib.runner.teach import student_copy, write_student_copy

TEMPLATE = paths.notebooks() / "_template.ipynb"
every_chapter = pytest.mark.parametrize("chapter", all_chapters(), ids=lambda chapter: chapter.slug)


def check_says(notebook: dict) -> list[str]:
    """Run a notebook and return what its cells that call a check display."""
    loaded = nbformat.reads(json.dumps(notebook), as_version=4)
    NotebookClient(loaded, kernel_name="python3", resources={"metadata": {"path": str(paths.notebooks())}}).execute()
    last = [(cell, source_of(cell).strip().splitlines()[-1]) for cell in loaded.cells if cell.cell_type == "code"]
    return [cell.outputs[-1].data["text/plain"] for cell, line in last if line.startswith("check_")]


@every_chapter
def test_a_student_copy_shows_neither_outputs_nor_solutions(chapter):
    original = read_notebook(chapter.path)
    copy = student_copy(original, chapter.path.name)
    text = json.dumps(copy, ensure_ascii=False)
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in copy["cells"] if "outputs" in cell)
    for exercise in exercises_of(original, chapter.path.name):
        for line in source_of(exercise.solution).splitlines():
            assert not line.startswith("answer_") or json.dumps(line, ensure_ascii=False)[1:-1] not in text
    assert len(copy["cells"]) == len(original["cells"]) - len(exercises_of(original, chapter.path.name))
    assert original == read_notebook(chapter.path)


def test_the_checks_of_a_student_copy_say_false_and_with_the_solution_true():
    original = read_notebook(TEMPLATE)
    assert check_says(student_copy(original, TEMPLATE.name)) == ["False"]
    assert check_says(original) == ["False", "True"]


def test_a_copy_that_may_hold_answers_is_never_overwritten(tmp_path):
    chapter = all_chapters()[0]
    target = write_student_copy(chapter, tmp_path / "class")
    target.write_text("years of answers")
    with pytest.raises(Failure, match="may hold answers"):
        write_student_copy(chapter, tmp_path / "class")
    assert target.read_text() == "years of answers"


def test_a_chapter_without_exercises_is_refused_by_name(tmp_path):
    notebook = read_notebook(TEMPLATE)
    notebook["cells"] = notebook["cells"][:4]
    path = tmp_path / "1_bare.ipynb"
    path.write_text(json.dumps(notebook))
    with pytest.raises(Failure, match=r"1_bare\.ipynb has no exercises"):
        write_student_copy(Chapter(1, "bare", path), tmp_path)


@pytest.mark.parametrize("tag", ["exercise-check", "exercise-stub", "exercise-solution"])
def test_an_exercise_that_lacks_a_part_is_named(tag):
    notebook = read_notebook(TEMPLATE)
    notebook["cells"] = [cell for cell in notebook["cells"] if tag not in tags_of(cell)]
    with pytest.raises(ChapterError, match=rf"exercise 1 has .*0 {tag}"):
        exercises_of(notebook, TEMPLATE.name)
