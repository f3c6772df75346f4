"""Starts and ends the warm process that forks kernels, see `warm_server`; says where that is not possible."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from casestudies_lib.runner.supervise import guarded
from casestudies_lib.runner.warm_files import SOCKET

_LONGEST = 100  # characters of a socket's path; Linux allows 107


def wanted() -> bool:
    """Return whether kernels are to be forked: for local work, not on CI, where each chapter gets a clean process."""
    return not os.environ.get("CI")


def obstacle() -> str:
    """Return why kernels cannot be forked here; empty where they can."""
    if not hasattr(os, "fork"):
        return "this system has no fork"
    if sys.platform != "linux":
        return "only Linux forks a process safely once PyTorch is loaded"
    return ""


@contextlib.contextmanager
def warm_process(folder: Path, root: Path | None = None) -> Iterator[Path | None]:
    """Lend a process that forks kernels.

    Args:
        folder: where it starts, the folder of the kernels to come.
        root: the repository, where what kernels read is to be recorded.

    Yields:
        The address of its socket; it answers once its imports are done. None where its path would be too long.
    """
    with tempfile.TemporaryDirectory(prefix="casebook-warm-", ignore_cleanup_errors=True) as scratch:
        address = Path(scratch) / SOCKET
        if len(str(address)) > _LONGEST:
            yield None
            return
        command = [sys.executable, "-m", "casestudies_lib.runner.warm_server", str(address)]
        command += [] if root is None else [str(root)]
        with guarded(command, Path(scratch), captured=False, folder=folder, as_is=root is None):
            yield address
