"""A process that has imported what every chapter imports, and forks once for each kernel: `casebook-warm`'s other half.

`python -m casestudies_lib.runner.warm_server SOCKET [ROOT]`. Each connection to the socket asks for one kernel and
lives as long as the kernel: the answer is its process id, then its exit status. When the other side closes, or dies,
the kernel is killed with all that descends from it. With ROOT, what is read is recorded from here on, for the cache.

pyplot and IPython's backend for it are not imported: they would look for a running IPython once, find none, and every
figure would be lost without an error. pandas is not: it imports pyarrow, which starts a thread, and a fork loses those.
"""

import contextlib
import ctypes
import gc
import importlib
import json
import os
import random
import selectors
import signal
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from casestudies_lib.runner import cache_recorder
from casestudies_lib.runner.environment import is_declared, package_parts
from casestudies_lib.runner.warm_files import READY, UNFIT

PRELOADED = ("numpy", "torch", "matplotlib", "IPython", "ipykernel.kernelapp", "ipykernel.zmqshell")
LATE = ("matplotlib.pyplot", "matplotlib_inline.backend_inline")
MARKER = "CASEBOOK_RUN_ID"
_AT_IMPORT = ("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "PATH", "MPLBACKEND")  # read when a package is imported
_INLINE = "module://matplotlib_inline.backend_inline"
_DEATH_SIGNAL, _SUBREAPER = 1, 36  # PR_SET_PDEATHSIG and PR_SET_CHILD_SUBREAPER of Linux's prctl(2)
_TICK = 0.05


class Unfit(Exception):
    """This process must not fork kernels; the message says why."""


@dataclass
class Kernel:
    """One living kernel and the connection that asked for it."""

    pid: int
    connection: socket.socket


@dataclass(frozen=True)
class Request:
    """What a kernel is started with."""

    arguments: list[str]
    folder: str
    environment: dict[str, str]
    streams: list[int]


def main(arguments: list[str]) -> None:
    """Import, listen, fork; in a forked process, become a kernel."""
    address, root = Path(arguments[0]), arguments[1] if len(arguments) > 1 else None
    given = dict(os.environ)
    _say_nothing()
    marker = _marker_in_memory()
    _leave_start_folder()
    if root is not None:
        cache_recorder.start(root, [str(address.parent)], is_kernel=False)
    try:
        _preload()
    except Exception as error:
        (address.parent / UNFIT).write_text(f"{error}", encoding="utf-8")
        return
    try:
        request = _serve(address, _Conditions(given, package_parts()))
    except Exception as error:  # whoever asks next is told, instead of finding nobody
        (address.parent / UNFIT).write_text(f"the warm process failed: {error!r}", encoding="utf-8")
        raise
    if request is not None:
        added = {name: value for name, value in os.environ.items() if name not in given}
        _become_kernel(request, marker, added)


def _say_nothing() -> None:
    """Keep warnings of imported packages out of the output of whoever started this process."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    os.close(nowhere)


def _leave_start_folder() -> None:
    """Take the current folder off the module path, as a kernel's own launcher does before IPython appends it."""
    if sys.path[0] == "" or Path(sys.path[0]) == Path.cwd():
        del sys.path[0]


def _preload() -> None:
    """Import the packages that chapters share.

    Raises:
        Unfit: something here runs in threads, which a fork would leave behind with their locks held, or would keep
            figures from IPython.
    """
    os.environ.setdefault("MPLBACKEND", _INLINE)  # matplotlib reads it when imported; a cold kernel has set it by then
    for name in PRELOADED:
        importlib.import_module(name)
    threads = len(list(Path("/proc/self/task").iterdir()))
    if threads > 1:
        raise Unfit(f"imported packages run {threads} threads; set OMP_NUM_THREADS=1 and OPENBLAS_NUM_THREADS=1")
    if early := [name for name in LATE if name in sys.modules]:
        raise Unfit(f"an imported package brings {', '.join(early)}, and figures would be lost")
    gc.collect()
    gc.freeze()


@dataclass(frozen=True)
class _Conditions:
    """What must still hold for a fork to equal a kernel that starts anew."""

    environment: dict[str, str]
    packages: dict[str, str]

    def broken_by(self, request: Request) -> str:
        """Return why a kernel must start anew; empty where it need not."""
        for name in {*self.environment, *request.environment}:
            differs = self.environment.get(name) != request.environment.get(name)
            if differs and (is_declared(name) or name in _AT_IMPORT):
                return f"{name} is not as it was when the warm process started"
        if package_parts() != self.packages:
            return "installed packages have changed since the warm process started"
        if request.folder != str(Path.cwd()) and any(Path(f, "matplotlibrc").exists() for f in (".", request.folder)):
            return "a matplotlibrc lies where the kernel starts"
        return next(iter(cache_recorder.changed()), "")


def _serve(address: Path, conditions: _Conditions) -> Request | None:
    """Answer requests until told to end; returns the request in a process forked for it, None at the end."""
    kernels: dict[socket.socket, Kernel] = {}
    ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)
    signal.signal(signal.SIGTERM, _end)
    with socket.socket(socket.AF_UNIX) as listener, selectors.DefaultSelector() as selector:
        listener.bind(str(address))
        listener.listen()
        selector.register(listener, selectors.EVENT_READ)
        (address.parent / READY).touch()
        try:
            while True:
                for key, _ in selector.select(_TICK):
                    if key.fileobj is listener:
                        selector.register(listener.accept()[0], selectors.EVENT_READ)
                    elif key.fileobj in kernels:
                        _kill(kernels[key.fileobj].pid)  # the other side has gone
                    elif (request := _answer(key.fileobj, selector, kernels, conditions)) is not None:
                        kernels.clear()
                        return request
                _reap(selector, kernels)
        except SystemExit:
            return None
        finally:
            for kernel in kernels.values():
                _kill(kernel.pid)


def _end(*_signal: object) -> None:
    raise SystemExit


def _answer(connection: socket.socket, selector, kernels: dict, conditions: _Conditions) -> Request | None:
    """Read one request and fork, or refuse; returns the request in the forked process only."""
    request = _receive(connection)
    reason = "the request was cut short" if request is None else conditions.broken_by(request)
    if reason:
        selector.unregister(connection)
        _say(connection, {"refused": reason})
        connection.close()
        return None
    pid = _fork(selector)
    if pid == 0:
        return request
    for stream in request.streams:
        os.close(stream)
    kernels[connection] = Kernel(pid, connection)
    _say(connection, {"pid": pid})
    return None


def _fork(selector) -> int:
    """Fork, and return once the new process leads its own group: a signal sent earlier would reach this one."""
    reading, writing = os.pipe()
    with cache_recorder.paused():  # this fork is no child process of a chapter
        pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.setsid()
        os.write(writing, b".")
        for other in list(selector.get_map().values()):
            other.fileobj.close()
    os.close(writing)
    if pid:
        os.read(reading, 1)
    os.close(reading)
    return pid


def _receive(connection: socket.socket) -> Request | None:
    connection.settimeout(5)
    content, streams, _, _ = socket.recv_fds(connection, 65536, 2)
    while content and not content.endswith(b"\n"):
        more = connection.recv(65536)
        if not more:
            return None
        content += more
    connection.settimeout(None)
    if not content:
        return None
    message = json.loads(content)
    return Request(message["arguments"], message["folder"], message["environment"], list(streams))


def _say(connection: socket.socket, message: dict) -> None:
    with contextlib.suppress(OSError):
        connection.sendall(json.dumps(message).encode() + b"\n")


def _reap(selector, kernels: dict) -> None:
    """Pass on the ends of kernels, and end what any of them left behind: orphans become children of this process."""
    for connection, kernel in list(kernels.items()):
        pid, status = os.waitpid(kernel.pid, os.WNOHANG)
        if not pid:
            continue
        del kernels[connection]
        selector.unregister(connection)
        _end_orphans({other.pid for other in kernels.values()})
        _say(connection, {"status": os.waitstatus_to_exitcode(status)})
        connection.close()


def _children(pid: int) -> list[int]:
    """Return the children of a process, whichever of its threads started them."""
    found = []
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            found += [int(child) for child in (thread / "children").read_text(encoding="ascii").split()]
    return found


def _end_orphans(kernels: set[int]) -> None:
    deadline = time.monotonic() + 2.0
    while time.monotonic() < deadline and (orphans := [c for c in _children(os.getpid()) if c not in kernels]):
        for orphan in orphans:
            _kill(orphan)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(orphan, os.WNOHANG)


def _kill(pid: int) -> None:
    """Kill a kernel and all that descends from it; what leaves it meanwhile comes to this process as an orphan."""
    for child in _children(pid):
        _kill(child)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _marker_in_memory() -> int | None:
    """Return where the run's marker lies among the variables that this process was started with.

    A forked process shows those of its parent to whoever looks for the processes of a run, whatever it sets later; the
    kernel's own marker is therefore written over this one.
    """
    libc = ctypes.CDLL(None)
    libc.getenv.restype = ctypes.c_void_p
    return libc.getenv(MARKER.encode())


def _become_kernel(request: Request, marker: int | None, added: dict[str, str]) -> None:
    """Take on what the request says, and run the kernel to its end.

    Args:
        request: what the kernel is started with.
        marker: where the run's marker lies in memory.
        added: the variables that imported packages have set, as they would have in the kernel.
    """
    server = os.getppid()
    libc = ctypes.CDLL(None)
    libc.prctl(_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    libc.prctl(_SUBREAPER, 1, 0, 0, 0)
    _rewrite_marker(request.environment.get(MARKER, ""), marker)
    for target, stream in enumerate(request.streams, start=1):
        os.dup2(stream, target)
        os.close(stream)
    cache_recorder.suspend()
    os.environ.clear()
    os.environ.update(added | request.environment | {"JPY_PARENT_PID": str(server)})
    os.chdir(request.folder)
    _reseed()
    sys.argv = [importlib.util.find_spec("ipykernel_launcher").origin, *request.arguments]
    from ipykernel.kernelapp import IPKernelApp

    IPKernelApp.launch_instance(request.arguments, parent_handle=server)


def _rewrite_marker(run_id: str, marker: int | None) -> None:
    if marker and len(run_id) == len(os.environ.get(MARKER, "")):
        ctypes.memmove(marker, run_id.encode(), len(run_id))


def _reseed() -> None:
    """Give this fork random states of its own where a new process would draw them from the system."""
    random.seed()
    sys.modules["numpy"].random.seed()
    sys.modules["torch"].seed()


if __name__ == "__main__":
    main(sys.argv[1:])
