"""The processes of a run: how a worker starts, and how nothing of it outlives the casebook.

A worker leads a session of its own, its kernel another. All carry the run's mark in their environment, so that one that
left its parents is still found. Should the casebook be killed, Linux sends the worker a SIGTERM, on which it ends its
kernel, and the kernel of a worker that is killed too a SIGKILL. Elsewhere than on Linux a kernel that computes without
letting go of the interpreter can outlive a casebook that was killed.
"""

import contextlib
import ctypes
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

import casestudies_lib
from casestudies_lib import paths
from casestudies_lib.runner.inputs import THREADS

MARK = "CASEBOOK_RUN_ID"
ONE_THREAD = (
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "VECLIB_MAXIMUM_THREADS",
    "BLIS_NUM_THREADS",
)  # fmt: skip
_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux's prctl(2)
_CHILD_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER
_PATIENCE = 2.5  # seconds for a worker to save what it has


def die_with_parent(number: int) -> None:
    """Ask Linux to send this process a signal when the thread that started it ends; does nothing elsewhere."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, number, 0, 0, 0)


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ends, so that they are still found; Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_CHILD_SUBREAPER, 1, 0, 0, 0)


def environment(scratch: Path, declared: list[str]) -> dict[str, str]:
    """Return the environment of a worker and its kernel.

    Figures are drawn inline whatever the user's backend; Jupyter's and IPython's own files lie in the scratch folder,
    so that neither settings of the user nor a read-only home matter.

    Args:
        scratch: a folder of the run.
        declared: the data files that the chapter may read.
    """
    library = str(Path(casestudies_lib.__file__).resolve().parent.parent)
    inherited = {name: value for name, value in os.environ.items() if name not in ("MPLBACKEND", "PYTHONSTARTUP")}
    return {
        **inherited,
        **dict.fromkeys(ONE_THREAD, str(THREADS)),
        MARK: secrets.token_hex(16),
        "PYTHONPATH": os.pathsep.join(filter(None, [library, inherited.get("PYTHONPATH")])),
        "CASEBOOK_ROOT": str(paths.root().absolute()),
        paths.DECLARED: os.pathsep.join(declared),
        "JUPYTER_RUNTIME_DIR": str(scratch / "jupyter"),
        "IPYTHONDIR": str(scratch / "ipython"),
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }


def command_environment() -> dict[str, str]:
    """Return the environment of a command that runs kernels on a user's behalf: theirs, with our threads and a mark."""
    return {**os.environ, **dict.fromkeys(ONE_THREAD, str(THREADS)), MARK: secrets.token_hex(16)}


@contextlib.contextmanager
def supervised(command: list[str], environment: dict[str, str], **options: object) -> Iterator[subprocess.Popen]:
    """Start a command as the leader of a session, and on leaving end it with all that it started.

    Args:
        command: the program and its arguments.
        environment: its environment, with a mark of its own.
        options: for `subprocess.Popen`.
    """
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True, **options
    )  # fmt: skip
    try:
        yield process
    finally:
        end(process)
        _kill_until_gone(lambda: marked(environment[MARK]))
        if process.stdout:
            process.stdout.close()


def end(process: subprocess.Popen) -> None:
    """Ask a process to end; where it does not in time, kill it with all that descends from it."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_PATIENCE)
    if process.poll() is None:
        kill_descendants(process.pid)
        process.kill()
    process.wait()


def kill_descendants(root: int | None = None) -> None:
    """Kill what descends from a process, by default from this one, and everything with the mark of this environment."""
    mark = os.environ.get(MARK) if root is None else None
    _kill_until_gone(lambda: [*_children(root or os.getpid()), *(marked(mark) if mark else [])])


def _children(pid: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        return [child for child in psutil.Process(pid).children(recursive=True) if _is_alive(child)]
    return []


def marked(mark: str) -> list[psutil.Process]:
    """Return the living processes with this mark, but for the calling one."""
    return [process for process in psutil.process_iter() if process.pid != os.getpid() and _carries(process, mark)]


def _kill_until_gone(search: Callable[[], list[psutil.Process]], patience: float = 2.0) -> None:
    """Kill (SIGKILL) what a search finds until it finds nothing: one may fork while it is being looked for."""
    deadline = time.monotonic() + patience
    while (victims := search()) and time.monotonic() < deadline:
        for process in victims:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(victims, timeout=0.2)


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _carries(process: psutil.Process, mark: str) -> bool:
    try:
        return _is_alive(process) and process.environ().get(MARK) == mark
    except (psutil.Error, OSError):
        return False


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
