"""The guard of a run: starts one command and sees to it that nothing of it outlives the casebook.

`python -m casestudies_lib.runner.guard PARENT SCRATCH COMMAND...` with the run's marker in the environment. Standard
input is the life line: the parent holds its other end, and the kernel closes that end however the parent dies, SIGKILL
included. The guard imports nothing heavy and has one thread, so that nothing can keep it from its duty.
"""

import os
import select
import shutil
import signal
import subprocess
import sys
import time

from casestudies_lib.runner.processes import MARKER, kill_run

GRACE = 1.5  # seconds for the command to save what it has, once the life line is cut


def main(arguments: list[str]) -> int:
    """Run the command, end with its exit status, and leave none of its processes behind."""
    parent, scratch, command = int(arguments[0]), arguments[1], arguments[2:]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=_restore_signals)
    try:
        _watch(child)
    finally:
        kill_run(os.environ[MARKER], os.getpid(), spare=frozenset({os.getpid()}))
        if os.getppid() != parent:  # nobody is left to tidy up
            shutil.rmtree(scratch, ignore_errors=True)
    status = child.wait()
    return status if status >= 0 else 128 - status  # the shell's convention for a signal


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
