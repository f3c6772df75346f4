"""On the real kernel: what is unchanged does not run, and what a change reaches runs and says why."""

import json
import shutil

import nbformat
import pytest

from casestudies_lib.runner import cache_bound, cache_compare
from casestudies_lib.runner.chapters import all_chapters, find_chapter, read_notebook
from casestudies_lib.runner.errors import Failure
from casestudies_lib.runner.execute import obtain
from casestudies_lib.runner.jobs import prepare
from casestudies_lib.runner.results import read_result
from casestudies_lib.site import build

RESULT_FILES = ["notebook.ipynb", "provenance.json", "verdicts.json"]
COUNTING = "import pathlib; print(pathlib.Path('../data/{}.txt').read_text())"


@pytest.fixture
def two(book, tmp_path):
    """A book of two chapters that read a data file each."""
    for number, slug in enumerate(("tiny", "second"), start=1):
        (book.root / "data" / f"{slug}.txt").write_text("old")
        book.write_chapter(slug, (COUNTING.format(slug),), number=number)
    return book


def obtained(**options) -> dict[str, list[str]]:
    """Ask for the results of all chapters; returns for each why it ran, nothing where it did not."""
    said = {}
    obtain([prepare(chapter) for chapter in all_chapters()], say=said.__setitem__, **options)
    return said


def test_exactly_the_chapters_that_a_change_reaches_run_and_say_why(two):
    assert obtained() == {slug: ["no earlier run in the cache"] for slug in ("tiny", "second")}
    assert obtained() == {"tiny": [], "second": []}
    (two.root / "data" / "second.txt").write_text("new")
    assert obtained() == {"tiny": [], "second": ["data/second.txt changed"]}
    shown = nbformat.read(two.runs / "second" / "notebook.ipynb", 4).cells[2].outputs[0].text
    assert shown == "new\n"
    assert obtained(fresh=True) == {slug: ["a fresh run was asked for"] for slug in ("tiny", "second")}


def test_a_cached_result_is_left_as_a_run_would_leave_it(two):
    first = two.casebook("run", "tiny", "-p", "seed=3", "--json")
    assert first.returncode == 0, first.stderr
    folder = two.runs / json.loads(first.stdout)["folder"].rpartition("/")[2]
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    shutil.rmtree(folder)
    again = two.casebook("run", "tiny", "-p", "seed=3", "--json")
    assert again.stdout == first.stdout
    assert "tiny: nothing it read has changed, so it did not run again; --fresh runs it" in again.stderr
    assert "cells, " not in again.stderr
    assert sorted(before) == sorted(path.name for path in folder.iterdir()) == RESULT_FILES
    assert (folder / "verdicts.json").read_bytes() == before["verdicts.json"]
    old, new = json.loads(before["notebook.ipynb"]), json.loads((folder / "notebook.ipynb").read_text())
    assert [comparable(cell) for cell in old["cells"]] == [comparable(cell) for cell in new["cells"]]
    assert read_result(folder).provenance["started"] == json.loads(before["provenance.json"])["started"]


def comparable(cell: dict) -> tuple:
    """Return what a page shows of a cell: no time stamps, no ids."""
    return cell["cell_type"], "".join(cell["source"]), cell.get("outputs"), cell.get("execution_count")


def test_an_edit_of_prose_runs_nothing_and_reaches_the_page(two):
    obtained()
    path = find_chapter("tiny").path
    notebook = read_notebook(path)
    notebook["cells"][0]["source"] = "# The tiny incident\n\nNew words."
    path.write_text(json.dumps(notebook))
    assert obtained() == {"tiny": [], "second": []}
    served = nbformat.read(two.runs / "tiny" / "notebook.ipynb", 4)
    assert "New words." in served.cells[0].source
    assert served.cells[2].outputs[0].text == "old\n"


def test_a_failed_run_and_a_run_that_starts_another_process_do_not_enter(two):
    two.write_chapter("tiny", ("1 / 0",))
    two.write_chapter("second", ("import subprocess; subprocess.run(['true'])",), number=2)
    assert two.casebook("run", "tiny").returncode == 1
    assert two.casebook("run", "second").returncode == 0
    assert json.loads(two.casebook("cache", "ls", "--json").stdout) == []
    assert read_result(two.runs / "second").provenance["not_cached"] == ["it starts another process (true)"]


def test_a_file_that_changes_while_the_chapter_runs_keeps_the_run_out_of_the_cache(two):
    edit = "import ctypes; libc = ctypes.CDLL(None); libc.truncate(b'../data/tiny.txt', 1)"
    two.write_chapter("tiny", (COUNTING.format("tiny"), edit))
    assert two.casebook("run", "tiny").returncode == 0
    assert json.loads(two.casebook("cache", "ls", "--json").stdout) == []


def test_a_full_disk_under_the_cache_costs_the_entry_and_not_the_result(two, monkeypatch):
    (two.root / "_build").mkdir()
    (two.root / "_build" / "cache").write_text("no folder")
    done = two.casebook("run", "tiny")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (two.runs / "tiny").iterdir()) == RESULT_FILES


def test_cache_ls_says_what_would_be_served_and_gc_makes_room(two):
    obtained()
    (two.root / "data" / "second.txt").write_text("new")
    rows = json.loads(two.casebook("cache", "ls", "--json").stdout)
    assert [(row["chapter"], row["state"], row["why"]) for row in rows] == [
        ("second", "stale", ["data/second.txt changed"]), ("tiny", "served", []),
    ]  # fmt: skip
    assert "data/second.txt changed" in two.casebook("cache", "ls").stdout
    swept = json.loads(two.casebook("cache", "gc", "--keep", "0", "--json").stdout)
    assert (swept["removed"], swept["kept"]) == (2, 0)
    assert json.loads(two.casebook("cache", "ls", "--json").stdout) == []


def test_cache_gc_keeps_to_a_size_and_spares_what_a_build_needs(two):
    obtained()
    (two.root / "data" / "second.txt").write_text("new")
    swept = json.loads(two.casebook("cache", "gc", "--keep-gb", "0", "--json").stdout)
    assert (swept["removed"], swept["kept"]) == (1, 1)
    assert [row["chapter"] for row in json.loads(two.casebook("cache", "ls", "--json").stdout)] == ["tiny"]


def test_a_cache_that_has_outgrown_its_limit_is_made_smaller_after_a_run(two, monkeypatch):
    obtained()
    (two.root / "data" / "second.txt").write_text("new")
    monkeypatch.setattr(cache_bound.keep_within, "__defaults__", (1,))
    obtained()
    rows = json.loads(two.casebook("cache", "ls", "--json").stdout)
    assert [(row["chapter"], row["state"]) for row in rows] == [("second", "served"), ("tiny", "served")]


def test_a_fresh_build_that_differs_from_the_cached_one_is_a_failure_and_neither_stays(two, monkeypatch):
    monkeypatch.setattr(build, "_put_aside", lambda *arguments: None)
    path = two.write_chapter("tiny", ("import time\nprint(time.time_ns())",))
    notebook = read_notebook(path)
    notebook["cells"][2]["metadata"]["tags"] = [cache_compare.COMPARED]
    path.write_text(json.dumps(notebook))
    jobs = [prepare(chapter) for chapter in all_chapters()]
    obtain(jobs)
    with pytest.raises(Failure, match=r"something else than the cached run did: tiny: compared cell 1"):
        build.build(jobs, two.root / "site", lambda progress: None, lambda line: None, fresh=True)
    assert obtained()["tiny"] == ["no earlier run in the cache"]
    assert obtained()["second"] == []
