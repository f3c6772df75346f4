"""The parent's side of one worker: starts it under guard, follows its events, ends it in time, leaves no process."""

import contextlib
import json
import os
import secrets
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import casestudies_lib
from casestudies_lib import paths
from casestudies_lib.runner.environment import kernel_threads
from casestudies_lib.runner.processes import MARKER, kill_run

_END_PATIENCE = 3.5  # seconds for guard, worker and kernel to end; nothing of a run may live 5 s longer than its parent
_TICK = 0.2


@dataclass
class Outcome:
    """What the parent learns of a run: why it ended early, if it did, and which cell (by index) was running then."""

    problem: dict | None = None
    facts: dict = field(default_factory=dict)
    ended: bool = False
    running: int | None = None
    errors: bytes = b""


def environment(run_id: str, scratch: Path) -> dict[str, str]:
    """Return the environment of a worker and its kernel.

    One thread each, because chapters run side by side; figures drawn inline whatever the user's backend; Jupyter's and
    IPython's own files in the scratch folder, so that neither settings of the user nor a read-only home matter.
    """
    library = str(Path(casestudies_lib.__file__).resolve().parent.parent)
    inherited = {name: value for name, value in os.environ.items() if name not in ("MPLBACKEND", "PYTHONSTARTUP")}
    path = os.pathsep.join(filter(None, [library, inherited.get("PYTHONPATH")]))
    return {
        **inherited,
        **kernel_threads(),
        MARKER: run_id,
        "PYTHONPATH": path,
        "CASEBOOK_ROOT": str(paths.root().absolute()),
        "JUPYTER_RUNTIME_DIR": str(scratch / "jupyter"),
        "IPYTHONDIR": str(scratch / "ipython"),
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }


@contextlib.contextmanager
def guarded(
    command: list[str], scratch: Path, *, captured: bool = True, folder: Path | None = None
) -> Iterator[subprocess.Popen]:
    """Start a command under guard, and end all of it on leaving.

    Args:
        command: the program and its arguments.
        scratch: a folder that the guard removes should this process die.
        captured: whether standard output and error are pipes to read from, or those of this process.
        folder: where the command starts; by default the current folder.
    """
    run_id = secrets.token_hex(16)
    guard = [sys.executable, "-m", "casestudies_lib.runner.guard", str(os.getpid()), str(scratch), *command]
    output = subprocess.PIPE if captured else None
    process = subprocess.Popen(
        guard, stdin=subprocess.PIPE, stdout=output, stderr=output, env=environment(run_id, scratch), cwd=folder,
        start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        _end(process, run_id)


def _end(process: subprocess.Popen, run_id: str) -> None:
    process.stdin.close()  # the life line
    try:
        process.wait(_END_PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
    finally:
        kill_run(run_id, process.pid)
        process.wait()
        for stream in filter(None, (process.stdout, process.stderr)):
            stream.close()


def follow(
    process: subprocess.Popen, time_limit: float, stop: threading.Event, heard: Callable[[dict], None]
) -> Outcome:
    """Read a worker's events until it has ended, runs out of time, or is to stop.

    Args:
        process: a guarded worker.
        time_limit: seconds from now.
        stop: set from another thread, it ends the run.
        heard: called after each event.

    Returns:
        The outcome; its `problem` says what ended the run early. Errors in cells are not known here.
    """
    outcome, deadline, unread = Outcome(), time.monotonic() + time_limit, b""
    with selectors.DefaultSelector() as selector:
        for stream in (process.stdout, process.stderr):
            selector.register(stream, selectors.EVENT_READ)
        while selector.get_map() and not outcome.ended:
            outcome.problem = _reason_to_end(time_limit, deadline, stop)
            if outcome.problem:
                break
            guard_is_gone = process.poll() is not None  # asked first, so that what it said last is still read below
            ready = list(_ready(selector))
            if guard_is_gone and not ready:
                break
            said = {process.stdout: b"", process.stderr: b"", **dict(ready)}
            outcome.errors = (outcome.errors + said[process.stderr])[-4000:]
            *lines, unread = (unread + said[process.stdout]).split(b"\n")
            for event in map(json.loads, lines):
                _hear(event, outcome)
                heard(event)
    return outcome


def _reason_to_end(time_limit: float, deadline: float, stop: threading.Event) -> dict | None:
    if time.monotonic() > deadline:
        return {"kind": "time limit", "detail": f"{time_limit:g} s"}
    if stop.is_set():
        return {"kind": "stopped", "detail": "another chapter failed, or you asked for an end"}
    return None


def _ready(selector: selectors.BaseSelector) -> Iterator[tuple[object, bytes]]:
    for key, _ in selector.select(_TICK):
        chunk = os.read(key.fd, 65536)
        if not chunk:
            selector.unregister(key.fileobj)
        yield key.fileobj, chunk


def _hear(event: dict, outcome: Outcome) -> None:
    if event["event"] == "end":
        outcome.ended = True
        outcome.problem, outcome.facts = event["problem"], event["facts"]
    else:
        outcome.running = event["index"] if event["state"] == "start" else None
