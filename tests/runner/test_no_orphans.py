"""No run outlives its parent: whatever ends `casebook`, all that it started is gone within five seconds."""

import signal
import time

import psutil
import pytest

GRACE = 5.0
# A regular expression that never ends holds the interpreter lock, so the kernel answers nothing but SIGKILL; one child
# is an ordinary one, the other has left its parent's session, and its parent too.
STUBBORN = """\
import re, subprocess
subprocess.Popen(["sleep", "611"])
subprocess.run(["sh", "-c", "setsid sleep 612 >/dev/null 2>&1 &"])
print("started", flush=True)
re.match(r"(a+)+$", "a" * 64 + "b")
"""


@pytest.fixture
def running(book):
    """A `casebook run` whose kernel is inside the stubborn cell, with both of its children alive."""
    book.write_chapter("tiny", (STUBBORN,))
    process = book.start("run", "tiny")
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None and len(sleepers(book)) < 2:
        time.sleep(0.05)
    assert len(sleepers(book)) == 2, "the chapter never reached its stubborn cell"
    time.sleep(0.3)  # into the regular expression
    return book, process


def sleepers(book):
    return [process for process in book.survivors() if command(process).startswith("sleep 61")]


def command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129), (signal.SIGKILL, -9)]
)
def test_nothing_survives_a_signal_to_casebook(running, number, status):
    book, process = running
    process.send_signal(number)
    assert process.wait(GRACE) == status
    left = book.wait_until_alone(GRACE)
    assert [command(survivor) for survivor in left] == []
    assert [path.name for path in book.runs.rglob(".casebook-*")] == []
    assert not (book.runs / "tiny" / "provenance.json").exists()


def test_nothing_survives_the_death_of_the_worker_and_the_run_fails(running):
    book, process = running
    (worker,) = [p for p in book.survivors() if "runner.worker" in command(p) and "runner.guard" not in command(p)]
    worker.kill()
    assert process.wait(GRACE + 1) == 1
    assert book.wait_until_alone(GRACE) == []
    assert "its process ended unexpectedly in code cell 2" in process.stderr.read()


def test_nothing_survives_the_death_of_the_guard_and_the_run_fails(running):
    book, process = running
    (guard,) = [p for p in book.survivors() if "runner.guard" in command(p) and "runner.worker" in command(p)]
    guard.kill()
    assert process.wait(GRACE + 1) == 1
    assert book.wait_until_alone(GRACE) == []


def test_what_a_finished_notebook_leaves_behind_is_ended_too(book):
    book.write_chapter("tiny", ('import subprocess\nsubprocess.Popen(["sleep", "613"], start_new_session=True)',))
    done = book.casebook("run", "tiny")
    assert done.returncode == 0, done.stderr
    assert book.survivors() == []
