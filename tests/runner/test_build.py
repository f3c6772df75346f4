"""`build` runs every chapter and publishes, or says which chapter to mend; `check` compares what is stored."""

import json
import shutil
import subprocess
import sys
import time
import types

import pytest

from casestudies_lib.runner import compare
from casestudies_lib.runner.chapters import all_chapters
from casestudies_lib.runner.errors import CasebookError, Failure
from casestudies_lib.runner.jobs import prepare
from casestudies_lib.runner.results import read_result, run_folder
from casestudies_lib.site import build


class PublishError(Exception):
    """Stands in for the publisher's error."""


@pytest.fixture
def published(monkeypatch):
    """Replace the publisher, which is tested elsewhere, by one that notes what it receives."""
    calls = []

    def publish(results, destination, address=None, *, fresh=False):
        calls.append(results)
        destination.mkdir(parents=True, exist_ok=True)
        (destination / "index.html").write_text("new")

    stand_in = types.ModuleType("casestudies_lib.site.publish")
    stand_in.publish, stand_in.PublishError = publish, PublishError
    monkeypatch.setitem(sys.modules, "casestudies_lib.site.publish", stand_in)
    return types.SimpleNamespace(calls=calls, module=stand_in)


def run_build(book, said):
    jobs = [prepare(chapter) for chapter in all_chapters()]
    return build.build(jobs, book.root / "_build" / "html", lambda progress: None, said.append)


@pytest.fixture
def old_site(book):
    page = book.root / "_build" / "html" / "index.html"
    page.parent.mkdir(parents=True)
    page.write_text("old")
    return page


def test_every_chapter_runs_and_its_result_reaches_the_publisher(book, published, old_site):
    book.write_chapter("second", number=2)
    page = run_build(book, [])
    assert page.read_text() == "new"
    (results,) = published.calls
    assert results == {slug: book.runs / slug for slug in ("tiny", "second")}
    assert [read_result(folder).verdicts[0]["chapter"] for folder in results.values()] == ["tiny", "second"]


def test_a_failing_chapter_stops_the_others_and_the_old_site_does_not_pose_as_new(book, published, old_site):
    book.write_chapter("tiny", ("1 / 0",))
    book.write_chapter("second", ("import time; time.sleep(600)",), number=2)
    said = []
    begun = time.monotonic()
    with pytest.raises(CasebookError, match=r"tiny: code cell 2 .* rerun with: casebook run tiny"):
        run_build(book, said)
    assert time.monotonic() - begun < 60
    assert published.calls == []
    assert not old_site.exists()
    assert (book.root / "_build" / "html.previous" / "index.html").read_text() == "old"
    assert "html.previous" in said[-1]
    assert book.survivors() == []


def test_a_failing_build_leaves_the_site_that_another_build_finished_meanwhile(book, published, old_site, monkeypatch):
    def other_build_finishes_first(*_arguments, **_options):
        shutil.rmtree(old_site.parent)
        old_site.parent.mkdir()
        old_site.write_text("of the other build")
        raise Failure("a chapter failed")

    monkeypatch.setattr(build, "obtain", other_build_finishes_first)
    with pytest.raises(Failure, match="a chapter failed"):
        run_build(book, [])
    assert old_site.read_text() == "of the other build"


def test_a_publisher_that_fails_is_one_line(book, published, old_site, monkeypatch):
    def refuse(results, destination, address=None, *, fresh=False):
        raise PublishError("a reference is broken")

    published.module.publish = refuse
    monkeypatch.setattr(build, "obtain", lambda jobs, notify, **options: {})
    with pytest.raises(Failure, match="the site could not be made: a reference is broken"):
        run_build(book, [])
    assert not old_site.exists()


def test_the_publisher_has_the_agreed_form():
    publisher = pytest.importorskip("casestudies_lib.site.publish", reason="the publisher is not written yet")
    assert issubclass(publisher.PublishError, Exception)
    assert list(publisher.publish.__annotations__)[:2] == ["results", "destination"]


CONTRACT = """
import json, pathlib, pytest
@pytest.mark.parametrize("slug", ["tiny", "second"])
def test_contract(slug):
    assert not pathlib.Path(f"{slug}.breaks-the-contract").exists()
"""


@pytest.fixture
def checked(ran):
    """A book whose committed notebook stores its outputs, one of them compared, and that has a contract test."""
    notebook = json.loads((ran.runs / "tiny" / "notebook.ipynb").read_text())
    notebook["cells"][2]["metadata"]["tags"] = ["nbval-check-output"]
    path = ran.root / "notebooks" / "1_tiny.ipynb"
    path.write_text(json.dumps(notebook))
    (ran.root / "tests").mkdir()
    (ran.root / "tests" / "test_notebook_contract.py").write_text(CONTRACT)
    return ran


def test_check_passes_when_a_new_execution_shows_what_is_stored(checked):
    done = checked.casebook("check")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "stored outputs: passed" in done.stderr
    assert checked.survivors() == []


def test_check_fails_when_a_compared_output_differs(checked):
    path = checked.root / "notebooks" / "1_tiny.ipynb"
    notebook = json.loads(path.read_text())
    assert notebook["cells"][2]["outputs"][0]["text"] == ["1\n"]
    notebook["cells"][2]["outputs"][0]["text"] = ["2\n"]
    path.write_text(json.dumps(notebook))
    done = checked.casebook("check", "tiny")
    assert done.returncode == 1
    assert "error: check failed: stored outputs" in done.stderr


def test_check_executes_nothing_that_a_true_run_has_shown_already(checked):
    assert checked.casebook("run", "tiny").returncode == 0
    done = checked.casebook("check")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing it read has changed" in done.stderr
    assert "cells, " not in done.stderr
    assert "tiny: 0/5 cells" in checked.casebook("check", "--fresh").stderr


@pytest.mark.parametrize(
    ("cell", "stored", "passes"),
    [
        ("print(1)\nprint(2)", {"output_type": "stream", "name": "stdout", "text": "1\n2\n"}, True),
        ("print(1)\nprint(2)", {"output_type": "stream", "name": "stdout", "text": "1\n2"}, False),
        ("print(1)", {"output_type": "stream", "name": "stderr", "text": "1\n"}, False),
        ("6 * 7", {"output_type": "execute_result", "data": {"text/plain": "42"}, "metadata": {}}, True),
        ("6 * 7", {"output_type": "execute_result", "data": {"text/plain": "43"}, "metadata": {}}, False),
        ("6 * 7", None, False),
    ],
)
def test_replayed_runs_are_compared_by_the_rules_of_nbval_itself(checked, cell, stored, passes):
    """The control executes under plain nbval; both must come to the same conclusion."""
    path = checked.write_chapter("tiny", (cell,))
    notebook = json.loads(path.read_text())
    notebook["cells"][2]["metadata"]["tags"] = ["nbval-check-output"]
    for number, entry in enumerate(notebook["cells"][1:], start=1):
        entry["execution_count"] = number
    if stored is not None:
        extra = {"execution_count": 2} if stored["output_type"] == "execute_result" else {}
        notebook["cells"][2]["outputs"] = [stored | extra]
    path.write_text(json.dumps(notebook))
    plain = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--nbval-lax", "--nbval-current-env", path]
    assert (subprocess.run(plain, capture_output=True, cwd=checked.root).returncode == 0) is passes
    done = checked.casebook("check", "tiny")
    assert (done.returncode == 0) is passes, done.stdout + done.stderr


def test_check_fails_when_the_contract_is_broken(checked, monkeypatch):
    (checked.root / "tiny.breaks-the-contract").write_text("")
    monkeypatch.setattr(compare, "nbval_command", lambda chapters, ran: [sys.executable, "-c", ""])
    failed = compare.compare(all_chapters(), folders(), everything=False, announce=lambda line: None)
    assert failed == ["contract"]


def folders() -> dict:
    return {chapter.slug: run_folder(chapter, {}) for chapter in all_chapters()}


def test_check_refuses_to_compare_without_the_contract_test(ran):
    with pytest.raises(Failure, match=r"test_notebook_contract\.py is missing"):
        compare.compare(all_chapters(), folders(), everything=True, announce=lambda line: None)


def test_a_selection_that_no_contract_test_covers_is_a_failure(checked, monkeypatch):
    checked.write_chapter("third", number=3)
    monkeypatch.setattr(compare, "nbval_command", lambda chapters, ran: [sys.executable, "-c", ""])
    chosen = [chapter for chapter in all_chapters() if chapter.slug == "third"]
    assert compare.compare(chosen, folders(), everything=False, announce=lambda line: None) == ["contract"]
