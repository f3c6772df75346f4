"""Kernels for jupyter_client that are forked from a warm process: the provisioner `casebook-warm`.

`JUPYTER_DEFAULT_PROVISIONER_NAME=casebook-warm` makes papermill, nbval and JupyterLab use it. Where no warm process is
there for all, the first kernel starts cold while one warms up for those that follow. A kernel that cannot be forked
starts cold, and that is said.
"""

import atexit
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.provisioning import LocalProvisioner

from casestudies_lib.runner.warm_files import ADDRESS, READY, UNFIT
from casestudies_lib.runner.warm_process import obstacle, warm_process

PATIENCE = 60.0  # seconds for a shared warm process to finish its imports
_LAUNCHER = ["-m", "ipykernel_launcher"]
_own: list[Path | None] = []  # the socket of this process's own warm process; a guard ends it when this one ends


class Refused(Exception):
    """No kernel was forked; the message says why."""


class ForkedKernel:
    """A kernel that a warm process forked, with the methods of `subprocess.Popen` that provisioners use."""

    stdin = stdout = stderr = None

    def __init__(self, connection: socket.socket, pid: int, unread: bytes) -> None:
        """Follow the kernel over the connection that asked for it."""
        self.pid, self.returncode = pid, None
        self._connection, self._unread = connection, unread
        connection.setblocking(False)

    def poll(self) -> int | None:
        """Return the exit status, negative for a signal; None while the kernel lives."""
        if self.returncode is not None:
            return self.returncode
        with contextlib.suppress(BlockingIOError):
            while chunk := self._connection.recv(4096):
                self._unread += chunk
            status = json.loads(self._unread)["status"] if self._unread.strip() else -signal.SIGKILL
            self.returncode = status  # a warm process that dies takes its kernels with it
            self._connection.close()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end of the kernel.

        Raises:
            subprocess.TimeoutExpired: it lives longer.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while self.poll() is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("kernel", timeout)
            time.sleep(0.02)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal to the kernel itself."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)


class WarmProvisioner(LocalProvisioner):
    """Forks Python kernels of this environment from a warm process, and launches any other as ever."""

    cold_because = ""  # why the kernel was not forked

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        """Start a kernel; `cmd` and the options are those of a launch."""
        if not _is_ours(cmd):
            return await super().launch_kernel(cmd, **kwargs)
        try:
            address = _address(kwargs.get("cwd"))
            if address is None:
                return await super().launch_kernel(cmd, **kwargs)
            self.process = _fork(address, cmd[cmd.index("ipykernel_launcher") + 1 :], kwargs)
        except Refused as error:
            self.cold_because = str(error)
            self.log.warning("this kernel starts cold: %s", error)
            return await super().launch_kernel(cmd, **kwargs)
        self.pid = self.pgid = self.process.pid
        self.cwd = kwargs.get("cwd", Path.cwd())
        return self.connection_info


def _is_ours(cmd: list[str]) -> bool:
    return Path(cmd[0]).name.startswith("python") and _same_python(cmd[0]) and cmd[1:3] == _LAUNCHER


def _same_python(path: str) -> bool:
    return path in ("python", "python3", sys.executable) or os.path.realpath(path) == os.path.realpath(sys.executable)


def _address(folder: str | Path | None) -> Path | None:
    """Return the socket to ask; None where this process's own warm process is not ready yet.

    Raises:
        Refused: there is none, or it says that it must not fork.
    """
    if shared := os.environ.get(ADDRESS):
        return _when_ready(Path(shared))
    if not _own:
        if reason := obstacle():
            raise Refused(reason)
        stack = ExitStack()
        _own.append(stack.enter_context(warm_process(Path(folder or ".").absolute())))
        atexit.register(stack.close)
    address = _own[0]
    if address is None:
        raise Refused("the path of its socket would be too long")
    return address if _ready(address) else None


def _ready(address: Path) -> bool:
    unfit = address.parent / UNFIT
    if unfit.exists():
        raise Refused(unfit.read_text(encoding="utf-8"))
    return (address.parent / READY).exists()


def _when_ready(address: Path) -> Path:
    deadline = time.monotonic() + PATIENCE
    while not _ready(address):
        if not address.parent.exists() or time.monotonic() > deadline:
            raise Refused("the warm process does not answer")
        time.sleep(0.02)
    return address


def _fork(address: Path, arguments: list[str], options: dict[str, Any]) -> ForkedKernel:
    """Ask for one kernel.

    Raises:
        Refused: the warm process is gone or refuses.
    """
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.settimeout(10)
        connection.connect(str(address))
        environment = dict(options.get("env") or os.environ)
        environment.pop(ADDRESS, None)
        message = {
            "arguments": arguments, "folder": str(Path(options.get("cwd") or ".").absolute()),
            "environment": environment,
        }  # fmt: skip
        content = json.dumps(message).encode() + b"\n"
        with ExitStack() as opened:
            sent = socket.send_fds(connection, [content[:1]], _streams(options, opened))
        connection.sendall(content[sent:])
        line, _, unread = _first_line(connection).partition(b"\n")
        answer = json.loads(line or b"{}")
        if "pid" not in answer:
            raise Refused(answer.get("refused", "the warm process is gone"))
        return ForkedKernel(connection, answer["pid"], unread)
    except OSError as error:
        connection.close()
        raise Refused(f"the warm process cannot be asked ({error})") from error
    except Refused:
        connection.close()
        raise


def _streams(options: dict[str, Any], opened: ExitStack) -> list[int]:
    """Return where the kernel's standard output and error go: where the launch says, else where this process's go."""
    return [_descriptor(options.get(name), own, opened) for name, own in (("stdout", 1), ("stderr", 2))]


def _descriptor(stream: object, own: int, opened: ExitStack) -> int:
    if stream is None or stream == subprocess.PIPE:
        return own
    if stream == subprocess.DEVNULL:
        return opened.enter_context(Path(os.devnull).open("wb")).fileno()
    return stream if isinstance(stream, int) else stream.fileno()


def _first_line(connection: socket.socket) -> bytes:
    content = b""
    while b"\n" not in content:
        chunk = connection.recv(4096)
        if not chunk:
            break
        content += chunk
    return content
