"""Faults around a run: two builds at once, a clock that goes back, a library that is not Python."""

import json
import os
import re
import shutil
import time
from pathlib import Path

import nbformat
import pytest
import yaml

import casestudies_lib
from casestudies_lib.runner import results
from casestudies_lib.site.links import broken_links

fault = pytest.mark.fault
REPOSITORY = Path(__file__).resolve().parents[2]
BACKWARDS = """\
import time

_now, _calls = time.time, 0


def backwards():
    global _calls
    _calls += 1
    return _now() - 3600.0 * _calls


time.time = backwards
time.time_ns = lambda: int(backwards() * 1e9)
"""


@fault("The clock is set back, again and again, while a chapter runs")
def test_a_clock_that_goes_back_neither_spoils_durations_nor_makes_a_result_stale_or_fresh(book, tmp_path, observed):
    (tmp_path / "clock").mkdir()
    (tmp_path / "clock" / "sitecustomize.py").write_text(BACKWARDS)
    book.write_chapter("tiny", ("import time; assert time.time() > time.time() + 1800",))
    environment = book.environment | {"PYTHONPATH": str(tmp_path / "clock")}
    begun = time.monotonic()
    done = book.casebook("run", "tiny", env=environment)
    folder = book.runs / "tiny"
    proof = [book.one_whole_result(folder)]
    assert 0 < results.read_result(folder).provenance["seconds"] <= time.monotonic() - begun + 0.1
    proof.append("the run time is that of a clock nobody sets")
    for path in [path for path in book.root.rglob("*") if path.is_file()]:
        os.utime(path, (0, 0) if path.is_relative_to(folder) else (4e9, 4e9))  # inputs look newer than the result
    assert state(book, environment) == "fresh"
    notebook = book.root / "notebooks" / "1_tiny.ipynb"
    notebook.write_text(notebook.read_text().replace("1800", "1801"))
    os.utime(notebook, (0, 0))  # the edit looks older than the result
    assert state(book, environment) == "stale"
    proof.append("dates of files decide nothing: only an edit makes the result stale")
    said = re.sub(r"\([0-9.]+ s\)", "(S s)", book.messages(done.stderr))
    observed(said, done.returncode, proof, {book.root: "BOOK"})


def state(book, environment):
    return json.loads(book.casebook("list", "--json", env=environment).stdout)[0]["last_run"]


@pytest.fixture
def library(tmp_path):
    """A private copy of the library, and the environment in which it is the one that counts."""
    copy = tmp_path / "library" / "casestudies_lib"
    shutil.copytree(Path(casestudies_lib.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


IMPORTING = "import casestudies_lib.site.links"


@fault("A module that a chapter imports is not Python")
def test_a_syntax_error_in_a_module_that_a_chapter_imports_names_module_and_line(book, library, observed):
    book.write_chapter("tiny", (IMPORTING,))
    environment = book.environment | {"PYTHONPATH": str(library.parent)}
    assert book.casebook("run", "tiny", env=environment).returncode == 0
    earlier = book.stored_in(book.runs / "tiny")
    (library / "runner" / "links.py").write_text("x = 1\ny = (\n")
    done = book.casebook("run", "tiny", env=environment)
    said = book.messages(done.stderr)
    assert "raised SyntaxError: '(' was never closed (links.py, line 2)" in said
    assert state(book, environment) == "failed"
    proof = [book.spared(book.runs / "tiny", earlier), "`casebook list` calls the chapter's last run failed"]
    observed(said, done.returncode, [*proof, book.all_ended()], {book.root: "BOOK", library.parent: "BOOK"})


@fault("A module of the runner is not Python")
@pytest.mark.parametrize("module", ["execute.py", "worker.py"])
def test_a_syntax_error_in_the_runner_names_module_and_line(book, library, observed, module):
    (library / "runner" / module).write_text("x = 1\ny = (\n")
    done = book.casebook("run", "tiny", env=book.environment | {"PYTHONPATH": str(library.parent)})
    said = book.messages(done.stderr)
    assert "'(' was never closed" in said
    assert "Traceback" not in said
    proof = [book.nothing_stored(book.runs), book.all_ended()]
    if module == "execute.py":
        observed(said, done.returncode, proof, {book.root: "BOOK", library.parent: "BOOK"})


LESSON = """\
[[lessons]]
title = "A lesson"
text = "It was there all along."
ask = "Was it?"
exhibits = [{ chapter = "tiny", claim = "T1", shows = "it" }]
"""


def add_pages(book):
    """Give the book the pages of the real one, with its own chapter in place of the real ones."""
    shutil.copytree(REPOSITORY / "book", book.root / "book")
    shutil.copyfile(REPOSITORY / "data" / "faults.json", book.root / "data" / "faults.json")
    contents = yaml.safe_load((book.root / "book" / "_toc.yml").read_text())
    for part in contents["parts"]:
        if any(entry["file"].startswith("notebooks/") for entry in part["chapters"]):
            part["chapters"] = [{"file": "notebooks/1_tiny"}]
    (book.root / "book" / "lessons.toml").write_text(LESSON)
    (book.root / "book" / "_toc.yml").write_text(yaml.safe_dump(contents, sort_keys=False))


@fault("Two builds at once")
def test_two_builds_at_once_leave_one_whole_site(book, observed):
    add_pages(book)
    notebook = nbformat.read(book.root / "notebooks" / "1_tiny.ipynb", 4)
    notebook.cells.insert(1, nbformat.v4.new_markdown_cell("(t1)=\n## One\n"))
    notebook.cells.insert(2, nbformat.v4.new_markdown_cell("(t2)=\n## Two\n"))
    nbformat.write(notebook, book.root / "notebooks" / "1_tiny.ipynb")
    started = [book.start("build") for _ in range(2)]
    statuses, said = [process.wait(120) for process in started], [process.stderr.read() for process in started]
    assert statuses == [0, 0], said
    site = book.root / "_build" / "html"
    assert broken_links(site) == []
    assert json.loads((site / "downloads" / "verdicts.json").read_text())[0]["id"] == "T1"
    left = {path.name for path in (book.root / "_build").iterdir()} - {"html", "runs", "stage", "cache"}
    assert left == set()
    proof = ["both builds succeed", "one whole site: every link of it leads somewhere", "nothing half-written"]
    proof += [book.one_whole_result(book.runs / "tiny"), book.all_ended()]
    lines = sorted({book.messages(text).splitlines()[-1] for text in said})
    observed("\n".join(lines), max(statuses), proof, {book.root: "BOOK"})
