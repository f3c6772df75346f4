"""Ends every process of a run, also those that left their parents: a run's marker is inherited in the environment."""

import contextlib
import time

import psutil

MARKER = "CASEBOOK_RUN_ID"


def marked(run_id: str, spare: frozenset[int] = frozenset()) -> list[psutil.Process]:
    """Return the living processes whose environment carries this run's marker.

    Args:
        run_id: the marker's value.
        spare: process ids to leave out.
    """
    return [process for process in psutil.process_iter() if process.pid not in spare and _carries(process, run_id)]


def _carries(process: psutil.Process, run_id: str) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARKER) == run_id
    except (psutil.Error, OSError):
        return False


def _descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []


def kill_run(run_id: str, root: int, *, spare: frozenset[int] = frozenset(), patience: float = 3.0) -> None:
    """Kill (SIGKILL) every process of a run: the descendants of `root` and all that carry the marker.

    A kernel that holds the interpreter lock answers no gentler signal. The search is repeated until it finds nothing,
    because a process may fork while it is being looked for.

    Args:
        run_id: the marker's value.
        root: the process whose descendants belong to the run; it is killed too unless spared.
        spare: process ids to leave alone.
        patience: seconds after which a process that cannot be killed is given up.
    """
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        found = {process.pid: process for process in (*_descendants(root), *marked(run_id))}
        victims = [process for pid, process in found.items() if pid not in spare and alive(process)]
        if not victims:
            return
        for process in victims:
            _kill(process)
        psutil.wait_procs(victims, timeout=0.2)


def alive(process: psutil.Process) -> bool:
    """Return whether a process still runs; a zombie does not."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _kill(process: psutil.Process) -> None:
    with contextlib.suppress(psutil.Error):
        process.kill()
