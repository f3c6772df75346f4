"""The guard of a run: starts one command and sees to it that nothing of it outlives the casebook.

`python -m casestudies_lib.runner.guard PARENT SCRATCH COMMAND...` with the run's marker in the environment. Standard
input is the life line: the parent holds its other end, and the kernel closes that end however the parent dies, SIGKILL
included. The guard imports nothing heavy and has one thread, so that nothing can keep it from its duty. Should the
guard itself be killed, with its parent or without, its deputy does the rest: a fork that waits for nothing else.
"""

import contextlib
import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil

from casestudies_lib.runner.processes import MARKER, alive, kill_run

GRACE = 1.5  # seconds for the command to save what it has, once the life line is cut
_CHILD_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of Linux's prctl(2)


def main(arguments: list[str]) -> int:
    """Run the command, end with its exit status, and leave none of its processes behind."""
    parent, scratch, command = int(arguments[0]), arguments[1], arguments[2:]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    _adopt_orphans()
    with _deputy(parent, scratch) as deputy:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=_restore_signals)
        try:
            _watch(child)
        finally:
            kill_run(os.environ[MARKER], os.getpid(), spare=frozenset({os.getpid(), deputy}))
            if os.getppid() != parent:  # nobody is left to tidy up
                shutil.rmtree(scratch, ignore_errors=True)
    status = child.wait()
    return status if status >= 0 else 128 - status  # the shell's convention for a signal


def _adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ends: one that also dropped its environment is still found."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_CHILD_SUBREAPER, 1, 0, 0, 0)


@contextlib.contextmanager
def _deputy(parent: int, scratch: str) -> Iterator[int]:
    """Keep a process by our side that ends the run if we are killed; the kernel closes our end of its pipe then."""
    waiting, held = os.pipe()
    deputy = os.fork()
    if deputy == 0:
        os.close(held)
        _stand_in(waiting, parent, scratch)
    os.close(waiting)
    try:
        yield deputy
    finally:
        os.kill(deputy, signal.SIGKILL)
        os.waitpid(deputy, 0)
        os.close(held)


def _stand_in(waiting: int, parent: int, scratch: str) -> None:
    """Wait for the guard's death, then end the run; never returns."""
    try:
        os.setsid()
        casebook = psutil.Process(parent) if psutil.pid_exists(parent) else None
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):  # else the parent would wait for the end of what we never say
            os.dup2(nowhere, stream)
        os.read(waiting, 1)
        kill_run(os.environ[MARKER], os.getpid(), spare=frozenset({os.getpid()}))
        if casebook is None or not (casebook.is_running() and alive(casebook)):
            shutil.rmtree(scratch, ignore_errors=True)
    finally:
        os._exit(0)


def _restore_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def _watch(child: subprocess.Popen) -> None:
    """Return when the command has ended, or some time after the life line was cut."""
    while child.poll() is None:
        readable, _, _ = select.select([0], [], [], 0.05)
        if readable and not os.read(0, 4096):
            break
    if child.poll() is None:
        child.terminate()
        deadline = time.monotonic() + GRACE
        while child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
