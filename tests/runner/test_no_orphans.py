"""No run outlives its parent: whatever ends `casebook`, all that it started is gone within five seconds."""

import signal
import time

import psutil
import pytest

GRACE = 5.0
fault = pytest.mark.fault
# A regular expression that never ends holds the interpreter lock, so the kernel answers nothing but SIGKILL. One child
# is an ordinary one; one has left its parent's session, and its parent too; one has also dropped its environment.
STUBBORN = """\
import pathlib, re, subprocess
if pathlib.Path("stubborn").exists():
    subprocess.Popen(["sleep", "{0}1"])
    subprocess.run(["sh", "-c", "setsid sleep {0}2 >/dev/null 2>&1 &"])
    subprocess.run(["sh", "-c", "env -i setsid sleep {0}3 >/dev/null 2>&1 &"])
    re.match(r"(a+)+$", "a" * 64 + "b")
"""


@pytest.fixture
def running(book):
    """A `casebook run` whose kernel is inside the stubborn cell, with all of its children alive."""
    (book.root / "notebooks" / "stubborn").write_text("")
    book.write_chapter("tiny", (STUBBORN.format(naptime(book)),))
    process = book.start("run", "tiny")
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None and len(sleepers(book)) < 3:
        time.sleep(0.05)
    assert len(sleepers(book)) == 3, "the chapter never reached its stubborn cell"
    time.sleep(0.3)  # into the regular expression
    yield book, process
    for sleeper in sleepers(book):
        sleeper.kill()


def naptime(book):
    """Return seconds that no other test sleeps, by which a child is known even without its environment."""
    return f"611.{int(book.mark[:12], 16)}"


def sleepers(book):
    return [process for process in psutil.process_iter() if command(process).startswith(f"sleep {naptime(book)}")]


def left_after(book, seconds):
    """Return what still runs after that many seconds, or nothing as soon as nothing does."""
    return [command(survivor) for survivor in book.wait_until_alone(seconds) + sleepers(book)]


def command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def guard_of(book, casebook):
    (guard,) = [p for p in book.survivors() if "runner.guard" in command(p) and p.ppid() == casebook.pid]
    return guard


def no_child_left(book, seconds):
    """Check that nothing of the run is alive after that time; returns the statement for the table of faults."""
    assert left_after(book, seconds) == []
    return f"no kernel and no child of it alive after {seconds:g} s"


def goes_on(book):
    """Check that the same command succeeds once the cell lets it, and clears away all scratch."""
    (book.root / "notebooks" / "stubborn").unlink()
    proof = [book.runs_again("run", "tiny"), book.one_whole_result(book.runs / "tiny")]
    return [*proof, book.all_ended()]


SIGNALS = [
    pytest.param(signal.SIGTERM, 143, marks=fault("casebook is stopped by SIGTERM while a cell runs")),
    pytest.param(signal.SIGINT, 130, marks=fault("casebook is stopped by SIGINT (Ctrl-C) while a cell runs")),
    pytest.param(signal.SIGHUP, 129, marks=fault("casebook is stopped by SIGHUP while a cell runs")),
    pytest.param(signal.SIGKILL, -9, marks=fault("casebook is killed by SIGKILL while a cell runs")),
]


@pytest.mark.parametrize(("number", "status"), SIGNALS)
def test_nothing_survives_a_signal_to_casebook(running, observed, number, status):
    book, process = running
    process.send_signal(number)
    assert process.wait(GRACE) == status
    proof = [no_child_left(book, GRACE), book.nothing_stored(book.runs)]
    if number == signal.SIGKILL:
        proof += goes_on(book)
    observed(book.messages(process.stderr.read()), status, proof, {book.root: "BOOK"})


@fault("casebook and its guard are killed by SIGKILL in the same instant")
def test_nothing_survives_when_casebook_and_its_guard_are_killed_in_the_same_instant(running, observed):
    book, process = running
    guard = guard_of(book, process)
    for victim in (process, guard):  # stopped first, so that neither can act between the two
        victim.send_signal(signal.SIGSTOP)
    process.kill()
    guard.kill()
    assert process.wait(GRACE) == -9
    proof = [book.all_ended(GRACE), book.nothing_stored(book.runs), *goes_on(book)]
    observed(book.messages(process.stderr.read()), -9, proof, {book.root: "BOOK"})


@fault("The process that runs a chapter is killed by SIGKILL")
def test_nothing_survives_the_death_of_the_worker_and_the_run_fails(running, observed):
    book, process = running
    (worker,) = [p for p in book.survivors() if "runner.worker" in command(p) and "runner.guard" not in command(p)]
    worker.kill()
    status = process.wait(GRACE + 1)
    said = book.messages(process.stderr.read())
    assert "its process ended unexpectedly in code cell 2" in said
    observed(said, status, [no_child_left(book, GRACE), book.nothing_stored(book.runs)], {book.root: "BOOK"})


@fault("The guard of a run is killed by SIGKILL")
def test_nothing_survives_the_death_of_the_guard_and_the_run_fails(running, observed):
    book, process = running
    guard_of(book, process).kill()
    status = process.wait(GRACE + 1)
    said = book.messages(process.stderr.read())
    observed(said, status, [book.all_ended(GRACE), book.nothing_stored(book.runs)], {book.root: "BOOK"})


def test_what_a_finished_notebook_leaves_behind_is_ended_too(book):
    book.write_chapter("tiny", ('import subprocess\nsubprocess.Popen(["sleep", "613"], start_new_session=True)',))
    done = book.casebook("run", "tiny")
    assert done.returncode == 0, done.stderr
    assert book.survivors() == []
