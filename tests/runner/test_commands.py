"""The other commands as a user types them: list, verdicts, check, build, serve, teach, new, doctor, run --store."""

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import nbformat
import pytest

from casestudies_lib.runner.chapters import all_chapters, read_notebook, source_of, tags_of

REPOSITORY = Path(__file__).resolve().parents[2]
HEAVY = ["torch", "papermill", "pandas", "numpy", "scipy", "nbformat", "jupyter_client", "casestudies_lib.claims"]
AFTER_LIST = f"""
import sys
from casestudies_lib import cli
sys.argv = ["casebook", "list"]
try:
    cli.main()
except SystemExit as end:
    assert end.code == 0, end.code
sys.stderr.write(",".join(name for name in {HEAVY} if name in sys.modules))
"""


def test_list_answers_without_the_heavy_packages(ran):
    """Typer itself imports pydantic; everything else that is slow stays away."""
    done = subprocess.run([sys.executable, "-c", AFTER_LIST], env=ran.environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "fresh" in done.stdout
    assert done.stderr == ""


def test_list_shows_every_chapter_with_claims_and_the_state_of_its_run(ran):
    ran.write_chapter("second", number=2)
    (ran.root / "notebooks" / "3_broken.ipynb").write_text("{")
    rows = json.loads(ran.casebook("list", "--json").stdout)
    assert rows[0] == {"number": 1, "slug": "tiny", "title": "The tiny incident", "claims": 2, "last_run": "fresh"}
    assert (rows[1]["slug"], rows[1]["last_run"]) == ("second", "none")
    assert "3_broken.ipynb is not valid JSON" in rows[2]["title"]
    assert (rows[2]["claims"], rows[2]["last_run"]) == (None, "broken")


@pytest.mark.parametrize(
    ("change", "state"),
    [
        (lambda b: (b.root / "requirements.lock").write_text("other==1"), "stale"),
        (lambda b: (b.result() / "verdicts.json").write_text("[]"), "none"),  # what its run did not write
    ],
)
def test_list_says_when_a_run_is_not_to_be_trusted(ran, change, state):
    change(ran)
    assert json.loads(ran.casebook("list", "--json").stdout)[0]["last_run"] == state


def test_a_run_with_other_parameters_says_nothing_of_the_chapters_own(book):
    assert book.casebook("run", "tiny", "-p", "seed=7").returncode == 0
    assert json.loads(book.casebook("list", "--json").stdout)[0]["last_run"] == "none"
    assert "stale" not in book.casebook("verdicts").stderr


def test_verdicts_come_from_a_fresh_run_else_from_the_notebook_and_what_has_none_is_said(ran):
    fresh = ran.casebook("verdicts", "--json")
    asked = {"chapter", "id", "kind", "verdict", "measure", "unit", "value", "low", "high", "n", "seeds", "rule"}
    assert [(asked - r.keys(), r["from"]) for r in json.loads(fresh.stdout)] == [(set(), "run"), (set(), "run")]
    assert fresh.stderr == ""
    assert "upheld if <= 0.01; refuted if >= 0.1" in ran.casebook("verdicts").stdout
    shutil.copy(ran.result() / "notebook.ipynb", ran.root / "notebooks" / "1_tiny.ipynb")
    (ran.root / "requirements.lock").write_text("other==1\n")
    ran.write_chapter("second", number=2)
    stale = ran.casebook("verdicts", "--json")
    assert stale.returncode == 1
    assert [(r["chapter"], r["from"]) for r in json.loads(stale.stdout)] == [("tiny", "stored"), ("tiny", "stored")]
    assert "stale, not shown: " in stale.stderr
    assert "requirements.lock changed" in stale.stderr
    assert "error: second: no complete verdicts" in stale.stderr


CONTRACT = """
import pathlib, pytest
@pytest.mark.parametrize("slug", ["tiny"])
def test_contract(slug):
    assert not pathlib.Path(f"{slug}.breaks-the-contract").exists()
"""


@pytest.fixture
def checked(ran):
    """A book whose committed notebook stores its outputs, one of them compared, and that has a contract test."""
    notebook = json.loads((ran.result() / "notebook.ipynb").read_text())
    notebook["cells"][2]["metadata"]["tags"] = ["nbval-check-output"]
    (ran.root / "notebooks" / "1_tiny.ipynb").write_text(json.dumps(notebook))
    (ran.root / "tests").mkdir()
    (ran.root / "tests" / "test_notebook_contract.py").write_text(CONTRACT)
    return ran


def test_check_passes_when_a_new_execution_shows_what_is_stored(checked):
    done = checked.casebook("check")
    assert done.returncode == 0, done.stdout + done.stderr
    assert checked.survivors() == []


def test_check_fails_when_a_compared_output_differs_or_the_contract_is_broken_or_missing(checked):
    path = checked.root / "notebooks" / "1_tiny.ipynb"
    path.write_text(path.read_text().replace(r'"1\n"', r'"2\n"'))
    done = checked.casebook("check", "tiny")
    assert done.returncode == 1
    assert "error: check failed: stored outputs;" in done.stderr
    (checked.root / "tiny.breaks-the-contract").touch()
    assert "check failed: contract, stored outputs" in checked.casebook("check").stderr
    shutil.rmtree(checked.root / "tests")
    assert "test_notebook_contract.py is missing" in checked.casebook("check").stderr


def test_a_selection_that_no_contract_test_covers_fails(checked):
    checked.write_chapter("other", number=2)
    assert "check failed: contract" in checked.casebook("check", "other").stderr


def test_a_failing_chapter_stops_the_others_and_an_old_site_does_not_pose_as_new(book):
    old = book.root / "_build" / "html" / "index.html"
    old.parent.mkdir(parents=True)
    old.write_text("old")
    book.write_chapter("tiny", ("1 / 0",))
    book.write_chapter("second", ("import time; time.sleep(600)",), number=2)
    done = book.casebook("build", timeout=60)
    assert done.returncode == 1
    assert re.search(r"error: tiny: code cell 2 .* rerun with: casebook run tiny", done.stderr)
    assert not old.exists()
    assert (book.root / "_build" / "html.previous" / "index.html").read_text() == "old"
    assert book.survivors() == []


@pytest.fixture
def site(book):
    page = book.root / "_build" / "html" / "index.html"
    page.parent.mkdir(parents=True)
    page.write_text("the page")
    return book


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve_serves_this_machine_only_and_ends_cleanly(site, number):
    process = site.start("serve", "--port", "0")
    address = process.stdout.readline().split()[1]
    assert address.startswith("http://127.0.0.1:")
    assert urllib.request.urlopen(address, timeout=5).read() == b"the page"
    with pytest.raises(urllib.error.HTTPError, match="404") as missing:
        urllib.request.urlopen(address + "../../notebooks/1_tiny.ipynb", timeout=5)
    missing.value.close()
    process.send_signal(number)
    assert process.wait(5) == 0
    assert "Traceback" not in process.stderr.read()


def test_serve_says_what_is_missing_or_taken(book, site):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = site.casebook("serve", "--port", str(taken.getsockname()[1]))
    assert done.returncode == 2
    assert "cannot be had (Address already in use); choose another with --port" in done.stderr
    shutil.rmtree(book.root / "_build")
    assert "build it first: casebook build" in book.casebook("serve").stderr


@pytest.fixture
def templates(book):
    for name in ("notebooks/_template.ipynb", "data/reports/_template.toml"):
        shutil.copy(REPOSITORY / name, book.root / name)
    return book


def test_new_starts_a_chapter_with_the_next_number_that_runs_green_as_it_is(templates):
    templates.write_chapter("fourth", number=4)
    done = templates.casebook("new", "head_routing")
    assert done.returncode == 0, done.stderr
    assert "- file: notebooks/5_head_routing" in done.stderr
    notebook = read_notebook(templates.root / "notebooks" / "5_head_routing.ipynb")
    assert any('open_case("head_routing")' in source_of(cell) for cell in notebook["cells"])
    assert all(not cell["outputs"] for cell in notebook["cells"] if cell["cell_type"] == "code")
    assert templates.casebook("run", "head_routing").returncode == 0


@pytest.mark.parametrize("slug", ["Head", "1st", "a-b", "../x", "", "é", "tiny"])
def test_new_refuses_a_slug_of_another_form_or_taken(templates, slug):
    before = sorted(templates.root.rglob("*"))
    done = templates.casebook("new", slug)
    assert done.returncode == 2
    assert re.search(r"is not a slug|is taken", done.stderr)
    assert sorted(templates.root.rglob("*")) == before


def test_new_needs_the_templates_and_leaves_nothing_behind(templates):
    (templates.root / "data" / "reports" / "_template.toml").unlink()
    before = sorted(templates.root.rglob("*"))
    assert "_template.toml is missing; restore it" in templates.casebook("new", "second").stderr
    assert sorted(templates.root.rglob("*")) == before


@pytest.mark.parametrize("chapter", all_chapters(), ids=lambda chapter: chapter.slug)
def test_teach_writes_a_copy_that_shows_neither_outputs_nor_solutions(chapter, tmp_path):
    command = [sys.executable, "-m", "casestudies_lib.cli", "teach", chapter.slug]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    original = read_notebook(chapter.path)
    copy = read_notebook(tmp_path / "class" / chapter.path.name)
    solutions = [cell for cell in original["cells"] if "exercise-solution" in tags_of(cell)]
    assert len(solutions) >= 3
    assert len(copy["cells"]) == len(original["cells"]) - len(solutions)
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in copy["cells"] if "outputs" in cell)
    text = json.dumps(copy, ensure_ascii=False)
    answers = [line for cell in solutions for line in source_of(cell).splitlines() if line.startswith("answer_")]
    assert [line for line in answers if json.dumps(line, ensure_ascii=False)[1:-1] in text] == []


def answers_shown(book, slug):
    done = book.casebook("run", slug)
    assert done.returncode == 0, done.stderr
    notebook = nbformat.read(book.result(slug) / "notebook.ipynb", 4)
    calls = [
        c for c in notebook.cells if c.cell_type == "code" and c.source.strip().splitlines()[-1].startswith("check_")
    ]
    return [cell.outputs[-1].data["text/plain"] for cell in calls]


def test_the_checks_of_a_student_copy_say_false_and_with_the_solution_true(templates):
    assert templates.casebook("new", "class_case").returncode == 0
    path = templates.root / "notebooks" / "2_class_case.ipynb"
    assert templates.casebook("teach", "class_case", "--out", "class").returncode == 0
    assert answers_shown(templates, "class_case") == ["False", "True"]
    shutil.rmtree(templates.runs)
    shutil.copy(templates.root / "class" / path.name, path)
    assert answers_shown(templates, "class_case") == ["False"]


def test_a_copy_that_may_hold_answers_is_never_overwritten_and_a_chapter_without_exercises_is_named(templates):
    assert templates.casebook("new", "class_case").returncode == 0
    assert templates.casebook("teach", "class_case").returncode == 0
    (copy,) = (templates.root / "class").iterdir()
    copy.write_text("years of answers")
    again = templates.casebook("teach", "class_case")
    assert again.returncode == 1
    assert "may hold answers; name another folder with --out" in again.stderr
    assert copy.read_text() == "years of answers"
    assert "1_tiny.ipynb has no exercises" in templates.casebook("teach", "tiny").stderr


def test_doctor_names_packages_that_differ_from_the_lock_and_finds_the_kernel(book):
    (book.root / "requirements.lock").write_text("# head\npsutil==0\nabsent[extra]==1.0 ; python_version > '3'\n")
    done = book.casebook("doctor", "--json")
    checks = {check["name"]: check for check in json.loads(done.stdout)}
    assert checks["kernel"]["state"] == "right"
    assert re.fullmatch(r"[\d.]+ instead of 0", checks["package psutil"]["found"])
    assert checks["package absent"]["found"] == "not installed instead of 1.0"
    assert all(check["fix"] for check in checks.values() if check["state"] != "right")
    assert done.returncode == 1


def test_doctor_says_that_the_kernel_or_the_browser_is_missing(book, tmp_path):
    (book.root / "requirements.lock").write_text("psutil\n")
    hide = "import sys; sys.modules['ipykernel'] = sys.modules['jupyter_client.kernelspec'] = None\n"
    (tmp_path / "sitecustomize.py").write_text(hide)
    environment = book.environment | {"PYTHONPATH": str(tmp_path), "PATH": str(tmp_path)}
    done = book.casebook("doctor", "--json", env=environment)
    states = {check["name"]: (check["state"], check["fix"]) for check in json.loads(done.stdout)}
    assert states["kernel"][0] == "wrong"
    assert states["browser"] == ("missing", "needed for page tests and PDF; install it with: make browser")


def test_store_writes_the_executed_notebook_back_and_it_serves_verdicts(book):
    path = book.root / "notebooks" / "1_tiny.ipynb"
    before = nbformat.read(path, 4)
    refused = book.casebook("run", "tiny", "-p", "seed=1", "--store")
    assert refused.stderr.splitlines() == ["error: --store needs the default parameters; leave out -p seed"]
    assert not book.runs.exists()
    done = book.casebook("run", "tiny", "--store")
    assert done.returncode == 0, done.stderr
    after = nbformat.read(path, 4)
    assert [cell.source for cell in after.cells] == [cell.source for cell in before.cells]
    assert [cell.execution_count for cell in after.cells if cell.cell_type == "code"] == [1, 2]
    assert not any({"papermill", "execution"} & set(cell.metadata) for cell in after.cells)
    assert "papermill" not in after.metadata
    nbformat.validate(after)
    text = path.read_text()
    assert book.casebook("run", "tiny", "--store", "--fresh").returncode == 0
    assert path.read_text() == text
    shutil.rmtree(book.runs)
    served = json.loads(book.casebook("verdicts", "--json").stdout)
    assert [(entry["id"], entry["from"]) for entry in served] == [("T1", "stored"), ("T2", "stored")]


EDIT = """
import json, pathlib
path = pathlib.Path("1_tiny.ipynb")
notebook = json.loads(path.read_text())
notebook["cells"][0]["source"] = "# Edited meanwhile"
path.write_text(json.dumps(notebook))
"""


def test_store_never_overwrites_what_the_author_saved_during_the_run(book):
    path = book.write_chapter("tiny", (EDIT,))
    done = book.casebook("run", "tiny", "--store")
    assert done.returncode == 1
    assert "was edited since it ran; not stored" in done.stderr
    assert "# Edited meanwhile" in path.read_text()


def test_store_refuses_what_is_too_large_or_tells_of_the_machine_or_runs_script(book):
    script = "from IPython.display import HTML; HTML('<script>1</script>')"
    path = book.write_chapter("tiny", ("print('x' * 1_000_001)", "import os; print(os.environ['API_TOKEN'])", script))
    before = path.read_bytes()
    done = book.casebook("run", "tiny", "--store", env=book.environment | {"API_TOKEN": book.secret})
    assert done.returncode == 1
    (line,) = [line for line in book.said(done).splitlines() if line.startswith("error")]
    assert "shows the HTML element 'script'" in line
    assert "it holds the value of the environment variable API_TOKEN" in line
    assert "at most 1,000,000 are stored; show fewer or smaller outputs" in line
    assert book.secret not in done.stderr
    assert path.read_bytes() == before
