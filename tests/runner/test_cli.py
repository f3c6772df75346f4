"""The light commands: list, verdicts, doctor, new and serve."""

import json
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request

import pytest

from casestudies_lib.runner import doctor
from casestudies_lib.runner.chapters import find_chapter, read_notebook, source_of
from casestudies_lib.runner.errors import Failure, Mistake
from casestudies_lib.runner.starter import start_chapter

HEAVY = [
    "torch",
    "papermill",
    "pandas",
    "numpy",
    "scipy",
    "nbformat",
    "jupyter_client",
    "psutil",
    "casestudies_lib.claims",
]
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


def test_list_answers_without_the_heavy_packages(book):
    """Typer itself imports pydantic; everything else that is slow stays away."""
    done = subprocess.run([sys.executable, "-c", AFTER_LIST], env=book.environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "tiny" in done.stdout
    assert done.stderr == ""


def test_list_shows_every_chapter_with_claims_and_the_state_of_its_run(ran):
    ran.write_chapter("second", number=2)
    (ran.root / "notebooks" / "3_broken.ipynb").write_text("{")
    rows = json.loads(ran.casebook("list", "--json").stdout)
    assert rows[0] == {"number": 1, "slug": "tiny", "title": "The tiny incident", "claims": 2, "last_run": "fresh"}
    assert (rows[1]["slug"], rows[1]["last_run"]) == ("second", "none")
    assert "3_broken.ipynb is not valid JSON" in rows[2]["title"]
    assert rows[2]["claims"] is None


@pytest.mark.parametrize(
    ("change", "state"),
    [
        (lambda b: (b.root / "requirements.lock").write_text("other==1"), "stale"),
        (lambda b: (b.runs / "tiny" / "verdicts.json").write_text("[]"), "damaged"),
        (lambda b: (b.runs / "tiny" / "notebook.failed.ipynb").write_text("{}"), "failed"),
    ],
)
def test_list_says_when_a_run_is_not_to_be_trusted(ran, change, state):
    change(ran)
    assert json.loads(ran.casebook("list", "--json").stdout)[0]["last_run"] == state


def test_verdicts_carry_all_that_a_program_asks_for(ran):
    records = json.loads(ran.casebook("verdicts", "--json").stdout)
    asked = {
        "chapter",
        "id",
        "kind",
        "verdict",
        "measure",
        "unit",
        "value",
        "low",
        "high",
        "n",
        "seeds",
        "rule",
        "from",
    }
    assert [asked - record.keys() for record in records] == [set(), set()]


def test_a_chapter_without_verdicts_is_said_and_the_others_are_shown(ran):
    ran.write_chapter("second", number=2)
    done = ran.casebook("verdicts", "--json")
    assert done.returncode == 1
    assert {record["chapter"] for record in json.loads(done.stdout)} == {"tiny"}
    assert "error: second: no complete verdicts" in done.stderr


def test_a_table_is_complete_where_there_is_no_terminal(ran):
    shown = ran.casebook("verdicts").stdout
    assert "upheld if <= 0.01; refuted if >= 0.1" in shown


def test_help_lists_every_command(book):
    done = book.casebook("--help")
    assert done.returncode == 0
    commands = ("list", "run", "check", "verdicts", "build", "serve", "new", "doctor")
    assert [name for name in commands if f" {name} " not in done.stdout] == []


def template(book):
    path = book.write_chapter("template", ('case = open_case("_template")',), number=9)
    book.write_report("template").unlink()
    return path.rename(path.with_name("_template.ipynb"))


def test_new_starts_a_chapter_with_the_next_number_and_a_valid_report(book):
    template(book)
    book.write_chapter("fourth", number=4)
    done = book.casebook("new", "head_routing")
    assert done.returncode == 0, done.stderr
    assert "- file: notebooks/5_head_routing" in done.stderr
    chapter = find_chapter("head_routing")
    assert chapter.number == 5
    notebook = read_notebook(chapter.path)
    assert 'open_case("head_routing")' in [source_of(cell)[7:] for cell in notebook["cells"]]
    assert all(not cell["outputs"] for cell in notebook["cells"] if cell["cell_type"] == "code")
    from casestudies_lib.claims import load_report

    assert [claim.id for claim in load_report("head_routing").claims] == ["H1"]


@pytest.mark.parametrize("slug", ["Head", "1st", "a-b", "a b", "../x", "", "é", "tiny"])
def test_new_refuses_a_slug_that_is_none_or_taken(book, slug):
    template(book)
    before = sorted(book.root.rglob("*"))
    with pytest.raises(Mistake, match=r"is no slug|is taken"):
        start_chapter(slug)
    assert sorted(book.root.rglob("*")) == before


def test_new_leaves_nothing_behind_when_the_second_file_cannot_be_written(book, monkeypatch):
    template(book)
    before = sorted(book.root.rglob("*"))
    from casestudies_lib.runner import starter

    real = starter.replace_file

    def full(path, content):
        if path.suffix == ".toml":
            raise OSError(28, "No space left on device")
        real(path, content)

    monkeypatch.setattr(starter, "replace_file", full)
    with pytest.raises(Failure, match="is full"):
        start_chapter("second")
    assert sorted(book.root.rglob("*")) == before


def test_new_needs_the_template(book):
    with pytest.raises(Failure, match=r"_template\.ipynb is missing"):
        start_chapter("second")


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


def test_serve_without_a_site_says_how_to_build_it(book):
    done = book.casebook("serve")
    assert done.returncode == 2
    assert "build it first: casebook build" in done.stderr


def test_serve_on_a_taken_port_says_so(site):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = site.casebook("serve", "--port", str(taken.getsockname()[1]))
    assert done.returncode == 2
    assert "is taken; choose another with --port" in done.stderr


def test_the_lock_is_read_with_extras_comments_and_markers():
    lock = "# head\ntorch==2.13.0\nuvicorn[standard]==1.0 ; python_version > '3'\nx==1 # why\n\n-r other.txt\n"
    assert doctor.locked_versions(lock) == {"torch": "2.13.0", "uvicorn": "1.0", "x": "1"}


def test_doctor_finds_what_is_wrong_with_the_packages_and_says_how_to_mend_it(book, monkeypatch):
    installed = {"right": "1.0", "torch": "2.13.0+cpu", "old": "0.9"}
    monkeypatch.setattr(doctor, "_installed", lambda name: installed.get(name, "not installed"))
    lock = book.root / "requirements.lock"
    lock.write_text("right==1.0\ntorch==2.13.0\n")
    assert [check.state for check in doctor.package_versions()] == ["right"]
    lock.write_text("right==1.0\nold==1.0\nabsent==1.0\n")
    found = {check.name: check for check in doctor.package_versions()}
    assert found["package old"].found == "0.9 instead of 1.0"
    assert found["package absent"].found == "not installed instead of 1.0"
    assert {check.state for check in found.values()} == {"wrong"}
    assert all(check.fix for check in found.values())


def test_doctor_finds_a_folder_that_takes_no_file(book):
    assert doctor.folder_writable(book.root / "not" / "yet").state == "right"
    (book.root / "file").write_text("")
    assert doctor.folder_writable(book.root / "file").state == "wrong"


def test_doctor_names_the_target_that_installs_a_browser(monkeypatch):
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    assert (doctor.browser().state, "make browser" in doctor.browser().fix) == ("missing", True)


def test_doctor_starts_a_kernel_and_fails_when_something_needed_is_wrong(book):
    done = book.casebook("doctor", "--json")
    checks = {check["name"]: check for check in json.loads(done.stdout)}
    assert checks["kernel"]["state"] == "right"
    assert sys.executable in checks["kernel"]["found"]
    assert checks["package psutil"]["state"] == "wrong"  # the book's lock asks for a version that never was
    assert done.returncode == 1
    assert book.survivors() == []


def test_doctor_reports_a_kernel_that_cannot_start(book, monkeypatch):
    monkeypatch.setattr(doctor.sys, "executable", "/bin/false")
    assert doctor.kernel_starts().state == "wrong"
