"""`casebook run` as a user types it: a whole result, or one clear line, a non-zero exit and nothing half-written."""

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import nbformat
import psutil
import pytest


@pytest.fixture(scope="module")
def stored(finished):
    assert finished.completed.returncode == 0, finished.completed.stderr
    return finished.result()


def test_a_run_leaves_a_result_and_prints_it_as_json(finished, stored):
    printed = json.loads(finished.completed.stdout)
    assert printed["folder"] == str(stored)
    assert [entry["id"] for entry in printed["verdicts"]] == ["T1", "T2"]
    assert printed["verdicts"] == json.loads((stored / "verdicts.json").read_text())


def test_progress_names_each_cell_on_standard_error(finished):
    lines = finished.completed.stderr.splitlines()
    assert [line.split(",")[0] for line in lines[1:6]] == [f"tiny: {done}/5 cells" for done in range(5)]
    assert "code cell 1 (`seed = 0" in lines[1]


def test_the_kernel_has_one_thread_starts_beside_the_notebook_and_draws_inline(finished, stored):
    """The fixture sets another plot backend, seven threads, and a kernel named python3 that does not start."""
    cells = nbformat.read(stored / "notebook.ipynb", 4).cells
    assert cells[2].outputs[0].text == "1\n"
    assert cells[3].outputs[0].data["text/plain"] == repr(str(finished.root / "notebooks"))
    assert cells[4].outputs[0].text == "module://matplotlib_inline.backend_inline\n"


def test_provenance_says_what_ran_on_what_and_no_secret(finished, stored):
    provenance = json.loads((stored / "provenance.json").read_text())
    assert (provenance["chapter"], provenance["threads"], provenance["cells"]) == ("tiny", 1, 5)
    assert provenance["parameters"]["optimiser"] == "adam"
    assert provenance["torch"].startswith("2.")
    assert provenance["peak_memory_mb"] > 10
    assert {"code cells", "parameter seed", "requirements.lock", "data/reports/tiny.toml", "threads"} <= provenance[
        "inputs"
    ].keys()
    assert {"python", "platform", "casebook", "started", "seconds"} <= provenance.keys()
    assert not [path for path in stored.iterdir() if finished.secret.encode() in path.read_bytes()]


def test_what_did_not_change_does_not_run_again_unless_asked(ran):
    again = ran.casebook("run", "tiny")
    assert "nothing changed, its last run stays" in again.stderr
    assert "cells, " not in again.stderr
    assert "tiny: 0/5 cells" in ran.casebook("run", "tiny", "--fresh").stderr
    assert len(ran.results()) == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "tyni"], "no chapter 'tyni'; did you mean tiny?"),
        (["run", "tiny", "-p", "sed=1"], "unknown parameter 'sed'; did you mean seed?"),
        (["run", "tiny", "-p", "a=1;import os=1"], "unknown parameter 'a'"),
        (["run", "tiny", "-p", "n_seeds=many"], "n_seeds = 'many' is not a whole number"),
        (["run", "tiny", "-p", "n_seeds=4"], "allowed: 5 to 64 (seeds; paired seeds for every effect)"),
        (["run", "tiny", "-p", "records=nowhere"], "there is no"),
        (["run", "tiny", "--time-limit", "nan"], "give a positive number"),
        (["run", "tiny", "--cell-limit", "-1"], "--cell-limit is -1"),
        (["run"], "Missing argument"),
        (["rum"], "No such command 'rum'"),
    ],
)
def test_a_wrong_command_is_one_line_before_any_kernel_starts(book, arguments, says):
    done = book.casebook(*arguments)
    assert done.returncode == 2
    assert says in book.said(done)
    assert book.said(done).count("\n") == 0
    assert done.stdout == ""
    assert not book.runs.exists()


BROKEN = {
    "parameters": (lambda book: book.write_chapter("tiny", parameters=None), "1_tiny.ipynb has no parameters cell"),
    "notebook": (lambda book: (book.root / "notebooks/1_tiny.ipynb").write_text('{"cells": ['), "is not valid JSON"),
    "TOML": (lambda book: (book.root / "data/reports/tiny.toml").write_text("x ="), "tiny.toml is not valid TOML"),
    "report": (lambda book: (book.root / "data/reports/tiny.toml").unlink(), "no report file tiny.toml"),
}


@pytest.mark.parametrize("part", BROKEN)
def test_a_broken_chapter_is_one_line_before_any_kernel_starts(book, part):
    damage, says = BROKEN[part]
    damage(book)
    done = book.casebook("run", "tiny")
    assert done.returncode == 2
    assert says in book.said(done)
    assert not book.runs.exists()


STUBBORN = 'import re; re.match(r"(a+)+$", "a" * 64 + "b")'  # holds the interpreter lock for ever
FAILING = {
    "an error": ("1 / 0", [], "code cell 2 (`1 / 0`) raised ZeroDivisionError: division by zero"),
    "a clean exit": ("import sys; sys.exit(0)", [], "code cell 2 (`import sys; sys.exit(0)`) raised SystemExit: 0"),
    "a killed kernel": ("import os; os.kill(os.getpid(), 9)", [], "the kernel died in code cell 2 (`import os;"),
    "an endless cell": (STUBBORN, ["--time-limit", "8"], "time limit of 8 s reached in code cell 2 (`import re;"),
    "a slow cell": ("import time; time.sleep(600)", ["--cell-limit", "1"], "cell limit of 1 s reached in code cell 2"),
    "100 MB of output": ("for _ in range(100): print('x' * 10**6)", [], "too much output in code cell 2"),
    "a long error": ("raise ValueError('x' * 2**24)", [], "too much output in code cell 2"),
    "an undeclared file": (
        "from casestudies_lib import paths; paths.data_file('data/text/harbour.txt')", [],
        "raised LookupError: data/text/harbour.txt is not declared",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAILING)
def test_a_failed_run_names_the_cell_keeps_its_notebook_and_spares_the_earlier_result(ran, fault):
    cell, options, says = FAILING[fault]
    (earlier,) = ran.results()
    before = {path.name: path.read_bytes() for path in earlier.iterdir()}
    ran.write_chapter("tiny", (cell, "'never reached'"))
    begun = time.monotonic()
    done = ran.casebook("run", "tiny", *options)
    assert time.monotonic() - begun < 40
    assert done.returncode == 1
    line = ran.said(done).splitlines()[-1]
    assert line.startswith("error: ")
    assert says in line
    assert f"rerun with: casebook run tiny{' ' * bool(options)}{' '.join(options)}" in line
    (partial,) = (ran.runs / "tiny").glob("*.failed.ipynb")
    assert f"partial notebook: {partial}" in line
    cells = nbformat.read(partial, 4).cells
    assert (cells[1].execution_count, cells[-1].execution_count) == (1, None)
    assert ran.results() == [earlier]
    assert {path.name: path.read_bytes() for path in earlier.iterdir()} == before
    assert ran.survivors() == []


def test_a_run_without_all_its_verdicts_is_a_failure(book):
    book.write_report("tiny", ("T1", "T2", "T3"))
    done = book.casebook("run", "tiny")
    assert done.returncode == 1
    assert "no verdict for T3; judge each claim of tiny.toml once" in book.said(done)
    assert book.results() == []


EDITS_ITSELF = """\
import pathlib
path = pathlib.Path("1_tiny.ipynb")
path.write_text(path.read_text().replace("edit" + "me", "edited"))
"editme"
"""


def test_a_chapter_that_is_edited_while_it_runs_is_not_stored(book):
    book.write_chapter("tiny", (EDITS_ITSELF,))
    done = book.casebook("run", "tiny")
    assert done.returncode == 1
    assert "tiny was edited while it ran (code cells changed)" in book.said(done)
    assert book.results() == []


def test_a_path_parameter_is_taken_from_the_callers_folder_and_out_gets_a_copy(book, tmp_path):
    (tmp_path / "some records.txt").write_text("1 2 3")
    book.write_chapter("tiny", ("print(records)",))
    done = book.casebook("run", "tiny", "-p", "records=some records.txt", "--out", "there {x}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    cells = nbformat.read(tmp_path / "there {x}" / "notebook.ipynb", 4).cells
    assert cells[3].outputs[0].text == f"{tmp_path / 'some records.txt'}\n"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    refused = book.casebook("run", "tiny", "--out", tmp_path / "full")
    assert "holds other files (thesis.tex); name an empty or a new folder" in book.said(refused)


@contextlib.contextmanager
def mounted(folder: Path, options: str):
    """Mount a small filesystem of its own, which root is held to like everybody else."""
    folder.mkdir()
    # A user who may call sudo without a password, as on many CI machines, mounts through it.
    become_root = [] if os.getuid() == 0 else ["sudo", "-n"]
    command = [*become_root, "mount", "-t", "tmpfs", "-o", f"{options},uid={os.getuid()}", "tmpfs", folder]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
        refused = done.stderr.strip() if done.returncode else ""
    except FileNotFoundError as error:
        refused = str(error)
    if refused:
        pytest.skip(f"this user may not mount a filesystem: {refused}")
    try:
        yield folder
    finally:
        subprocess.run([*become_root, "umount", "-l", folder], check=True)


def test_a_read_only_output_folder_is_refused_before_any_kernel_starts(book, tmp_path):
    with mounted(tmp_path / "ro", "size=1m,ro") as folder:
        done = book.casebook("run", "tiny", "--out", folder / "out")
    assert done.returncode == 1
    assert "Read-only file system" in book.said(done)
    assert not book.runs.exists()


def test_a_disk_that_is_full_from_the_start_is_one_line(book):
    with mounted(book.root / "_build", "size=64k") as folder:
        with contextlib.suppress(OSError), (folder / "filler").open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)
        done = book.casebook("run", "tiny")
        assert done.returncode == 1
        assert re.search("the disk of .* is full; nothing was stored: make room", book.said(done))
        assert book.results() == []


@pytest.mark.parametrize(("size", "status"), [("900k", 1), ("20m", 0)])
def test_a_disk_that_fills_while_the_notebook_is_saved_leaves_nothing_half_written(book, size, status):
    book.write_chapter("tiny", ("print('x' * 10**6)",))
    with mounted(book.root / "_build", f"size={size}"):
        done = book.casebook("run", "tiny")
        assert done.returncode == status
        assert ("is full; nothing was stored: make room" in book.said(done)) is bool(status)
        assert len(book.results()) == 1 - status


def test_two_runs_at_once_execute_the_chapter_once_and_both_succeed(book):
    book.write_chapter("tiny", ("with open('../ran.txt', 'a') as log: print('ran', file=log)",))
    started = [book.start("run", "tiny") for _ in range(2)]
    assert [process.wait(60) for process in started] == [0, 0], [process.stderr.read() for process in started]
    assert len(book.results()) == 1
    assert (book.root / "ran.txt").read_text() == "ran\n"


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


def test_a_clock_that_goes_back_neither_spoils_durations_nor_makes_a_result_stale_or_fresh(book, tmp_path):
    (tmp_path / "clock").mkdir()
    (tmp_path / "clock" / "sitecustomize.py").write_text(BACKWARDS)
    book.write_chapter("tiny", ("import time; assert time.time() > time.time() + 1800",))
    begun = time.monotonic()
    assert book.casebook("run", "tiny", env=book.environment | {"PYTHONPATH": str(tmp_path / "clock")}).returncode == 0
    seconds = json.loads((book.result() / "provenance.json").read_text())["seconds"]
    assert 0 < seconds <= time.monotonic() - begun + 0.1
    for path in [path for path in book.root.rglob("*") if path.is_file()]:
        os.utime(path, (0, 0) if path.is_relative_to(book.runs) else (4e9, 4e9))  # inputs look newer than the result
    assert json.loads(book.casebook("list", "--json").stdout)[0]["last_run"] == "fresh"


# One child is an ordinary one; one has left its parent's session, and its parent too; one has dropped its environment.
CHILDREN = """\
import pathlib, re, subprocess
if pathlib.Path("stubborn").exists():
    subprocess.Popen(["sleep", "{0}1"])
    subprocess.run(["sh", "-c", "setsid sleep {0}2 >/dev/null 2>&1 &"])
    subprocess.run(["sh", "-c", "env -i setsid sleep {0}3 >/dev/null 2>&1 &"])
    re.match(r"(a+)+$", "a" * 64 + "b")
"""


def command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@pytest.fixture
def running(book):
    """A `casebook run` whose kernel holds the interpreter lock, and how to find what it started."""
    naptime = f"611.{int(book.mark[:12], 16)}"  # seconds that no other test sleeps
    (book.root / "notebooks" / "stubborn").touch()
    book.write_chapter("tiny", (CHILDREN.format(naptime),))

    def children():
        return [process for process in psutil.process_iter() if command(process).startswith(f"sleep {naptime}")]

    process = book.start("run", "tiny")
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None and len(children()) < 3:
        time.sleep(0.05)
    assert len(children()) == 3, "the chapter never reached its stubborn cell"
    time.sleep(0.3)  # into the regular expression
    yield book, process, children
    for child in children():
        child.kill()


def wait_until_alone(book, children):
    deadline = time.monotonic() + 6
    while time.monotonic() < deadline and (book.survivors() or children()):
        time.sleep(0.05)
    return [command(process) for process in [*book.survivors(), *children()]]


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGKILL"])
def test_nothing_survives_a_signal_to_casebook_and_the_next_run_is_right(running, name):
    book, process, children = running
    number = getattr(signal, name)
    process.send_signal(number)
    status = process.wait(6)
    assert wait_until_alone(book, children) == []
    if name == "SIGKILL":
        assert status == -9
    else:
        assert status == 128 + number
        assert f"stopped by {name}: nothing of an unfinished run is stored" in process.stderr.read()
        assert book.results() == []
    (book.root / "notebooks" / "stubborn").unlink()
    assert book.casebook("run", "tiny").returncode == 0
    assert len(book.results()) == 1


def test_the_death_of_the_process_that_runs_a_chapter_fails_the_run_and_ends_its_kernel(running):
    book, process, _children = running
    (worker,) = [p for p in book.survivors() if "runner.worker" in command(p)]
    worker.kill()
    assert process.wait(6) == 1
    assert "its process ended unexpectedly in code cell 2" in process.stderr.read()
    assert wait_until_alone(book, lambda: []) == []
    assert book.results() == []


def test_what_a_finished_notebook_leaves_behind_is_ended_too(book):
    book.write_chapter("tiny", ('import subprocess\nsubprocess.Popen(["sleep", "613"], start_new_session=True)',))
    assert book.casebook("run", "tiny").returncode == 0
    assert book.survivors() == []
