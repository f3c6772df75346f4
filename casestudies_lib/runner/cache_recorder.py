"""Records inside a kernel what a chapter really reads, from before its first cell to after its last.

Python reports opened files, listed folders and new processes to audit hooks; existence is asked for without one, so
`os.stat` and `os.access` are wrapped, and so is the reading of the environment. What native code reads is declared,
`sys.audit("casebook.input", path)`. What this file cannot follow becomes a doubt; a run with a doubt is not cached.
"""

import contextlib
import importlib.util
import os
import sys
import sysconfig
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from casestudies_lib.runner.cache_imports import SourceFinder
from casestudies_lib.runner.cache_states import (
    FOLDER,
    Places,
    is_below,
    listing_name,
    modules_name,
    rivals_name,
    state,
    state_of_path,
    variable_name,
)  # fmt: skip
from casestudies_lib.runner.environment import is_declared, variable_digest

DECLARE = "casebook.input"
_SYSTEM = ("/proc", "/sys", "/dev", "/usr", "/etc", "/lib", "/lib64", "/bin", "/sbin", "/run")
_PROCESSES = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "pty.spawn")
_HARMLESS = frozenset({"uname", "ldconfig", "lscpu", "fc-list"})  # what libraries ask the system about itself with
# Set by the runner or by the kernel, to the same for all runs or to what names the run.
_RUN_VARIABLES = frozenset(
    {"CASEBOOK_ROOT", "CASEBOOK_RUN_ID", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR", "PYTHONPATH", "MPLBACKEND", "TERM",
     "PAGER", "GIT_PAGER", "CLICOLOR", "CLICOLOR_FORCE", "FORCE_COLOR", "JPY_PARENT_PID", "JPY_SESSION_NAME",
     "JPY_INTERRUPT_EVENT", "PYDEVD_DISABLE_FILE_VALIDATION"}
)  # fmt: skip
_IMPORTERS = ("importlib._bootstrap_external", "_frozen_importlib_external", "importlib.metadata")
_WALKERS = ("os", "shutil")  # they open folders below one that they hold, and list them next
_DISPLAY = "IPython.core.display"  # asks of every text that is shown whether it names a file
_running: list["Recorder"] = []  # one for a process: an audit hook cannot be taken back


class Recorder:
    """The states of everything read so far, by name, and the reasons to doubt that they are all."""

    def __init__(self, places: Places, ignored: list[str]) -> None:
        """Record what lies in these places; leave out these folders and what belongs to the system."""
        self.places = places
        self.states: dict[str, str] = {}
        self.stamps: dict[str, tuple | None] = {}
        self.doubts: dict[str, None] = {}
        self.declared = 0
        self.suspended = False
        self.is_kernel = True
        self.environ = dict(os.environ)
        self._made: set[str] = set()
        paths = sysconfig.get_paths()
        self._installed = tuple({sys.prefix, sys.base_prefix, paths["stdlib"], paths["purelib"], paths["platlib"]})
        self.ignored = tuple(ignored)
        self._temporary = tempfile.gettempdir()
        self._busy = threading.local()

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Let what the recorder itself reads pass unrecorded."""
        before = getattr(self._busy, "yes", False)
        self._busy.yes = True
        try:
            yield
        finally:
            self._busy.yes = before

    def attend(self, action: Callable, *arguments: object) -> None:
        """Run one handler; an error in it must not reach the chapter, but is a doubt."""
        if self.suspended or getattr(self._busy, "yes", False):
            return
        with self.aside():
            try:
                action(*arguments)
            except Exception as error:
                self.doubts[f"recording failed: {type(error).__name__}: {error}"] = None

    def note(self, path: str) -> None:
        """Record the state of a path, at its first use."""
        name = self.places.name(path)
        if name in self.states or self.is_left_out(path):
            return
        stamp, found = _stamp(path), state_of_path(path)
        if found == FOLDER and not self.places.is_ours(path):
            return
        self.stamps[name], self.states[name] = stamp, found

    def is_left_out(self, path: str) -> bool:
        """Return whether a path belongs to the system, to installed packages, or to this run itself."""
        folders = (*self.ignored, *self._made)
        if self.places.is_ours(path):
            folders += tuple(folder for folder in self._installed if self.places.is_ours(folder))
        else:
            cells = os.path.join(self._temporary, f"ipykernel_{os.getpid()}")
            folders += (*self._installed, *_SYSTEM, cells)
        return any(is_below(path, folder) for folder in folders)

    def opened(self, path: object, mode: object, flags: int) -> None:
        """Handle `open`."""
        if isinstance(path, int) or path is None:
            return
        full = absolute(path)
        if full.endswith(".pyc"):  # ours are compiled from source, see SourceFinder; installed ones belong to the lock
            full = importlib.util.source_from_cache(full) if "__pycache__" in full else full
        if flags & (os.O_WRONLY | os.O_RDWR):
            self._write(full, flags)
        elif mode is None and not os.path.isabs(os.fsdecode(path)) and not os.path.lexists(full):
            if _asker() not in _WALKERS:
                self.doubts[f"{os.fsdecode(path)} was opened relative to a folder's descriptor"] = None
        else:
            self.note(full)

    def _write(self, full: str, flags: int) -> None:
        replaces = flags & (os.O_TRUNC | os.O_EXCL)
        if not replaces:
            self.note(full)
        if self.is_left_out(full) or "__pycache__" in full:
            return
        if self.places.is_ours(full):
            self.doubts[f"it writes {self.places.name(full)}"] = None
        elif replaces and self.places.name(full) not in self.states:
            self._made.add(full)

    def made(self, path: object, *_rest: object) -> None:
        """Handle `os.mkdir`: what lies in a folder that the run made is no input."""
        full = absolute(path)
        if not os.path.exists(full) and not self.places.is_ours(full):
            self._made.add(full)

    def moved(self, old: object, new: object, old_folder: int = -1, new_folder: int = -1) -> None:
        """Handle `os.rename`."""
        self.removed(old, old_folder)
        self.removed(new, new_folder)

    def removed(self, path: object, folder: int = -1) -> None:
        """Handle `os.remove` and `os.rmdir`."""
        self._write(absolute(path, folder), os.O_WRONLY | os.O_TRUNC)

    def listed(self, path: object) -> None:
        """Handle `os.listdir` and `os.scandir`."""
        if _asker() in _IMPORTERS:
            return  # what an import may find there is recorded more narrowly
        full = absolute("", path) if isinstance(path, int) else absolute(path if path is not None else ".")
        name = listing_name(self.places.name(full))
        if name not in self.states and not self.is_left_out(full):
            self.states[name] = state(name, self.places)

    def asked(self, path: object) -> None:
        """Handle a question whether a path exists, and of what kind it is."""
        if not isinstance(path, int) and _asker() != _DISPLAY:
            self.note(absolute(path))

    def declare(self, path: object) -> None:
        """Handle the declaration of something that native code reads."""
        self.declared += 1
        full = absolute(path)
        self.note(full)
        if os.path.isdir(full):
            self.listed(full)

    def process(self, *arguments: object) -> None:
        """Handle the start of another process, whose reading is not seen here."""
        command = arguments[0] if arguments else ""
        name = os.path.basename(os.fsdecode(command)) if isinstance(command, (str, bytes)) else ""
        if name not in _HARMLESS:
            self.doubts[f"it starts another process ({name or 'a copy of itself'})"] = None

    def connected(self, _socket: object, address: object) -> None:
        """Handle a connection to elsewhere."""
        self.doubts[f"it uses the network ({address})"] = None

    def linked(self, name: object) -> None:
        """Handle `ctypes.dlopen`; a name without a folder is a library of the system."""
        if isinstance(name, (str, bytes)) and os.sep in os.fsdecode(name):
            self.note(absolute(name))

    def variable(self, name: str) -> None:
        """Record a variable that our code asks for, as it was before any cell; declared ones are in every key."""
        if self.is_kernel and name not in _RUN_VARIABLES and not is_declared(name):
            self.states.setdefault(variable_name(name), variable_digest(name, self.environ.get(name)))

    def imported(self, stem: str, origin: str | None) -> None:
        """Record what is, or could be, imported by the name of a file without its ending."""
        file = origin if origin in (f"{stem}.py", os.path.join(stem, "__init__.py")) else f"{stem}.py"
        self.note(file)
        name = rivals_name(self.places.name(file))
        if file == f"{stem}.py" and name not in self.states:
            self.states[name] = state(name, self.places)

    def importable(self, folder: str) -> None:
        """Record what could be imported from a folder of ours that is searched for modules."""
        name = modules_name(self.places.name(folder))
        if name not in self.states:
            self.states[name] = state(name, self.places)

    def finish(self) -> dict:
        """Return states and doubts, after a check that nothing read has changed meanwhile."""
        with self.aside():
            for module in list(sys.modules.values()):
                if isinstance(file := getattr(module, "__file__", None), str):
                    self._check_seen(absolute(file))
            for name in self.changed():
                self.doubts[f"{name} changed while it ran"] = None
            return {"reads": dict(self.states), "doubts": list(self.doubts), "declared": self.declared}

    def changed(self) -> list[str]:
        """Return the names of what is not as it was when it was read first, or was written since."""
        with self.aside():  # to look is not to read
            # A chapter may set its own variables; what counts is what it was given.
            return [name for name in list(self.states) if not name.startswith("environment ") and self._differs(name)]

    def _differs(self, name: str) -> bool:
        stamp = _stamp(self.places.path(name)) if name in self.stamps else None
        return state(name, self.places) != self.states[name] or stamp != self.stamps.get(name)

    def _check_seen(self, file: str) -> None:
        if self.places.is_ours(file) and not self.is_left_out(file):
            if self.places.name(file) not in self.states:
                self.doubts[f"{self.places.name(file)} was imported unseen"] = None
            self.note(file)


def _asker() -> str:
    """Return the name of the module that asks the operating system, past this one and those that ask for others."""
    frame = sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__") in (__name__, "genericpath", "pathlib", "pathlib._local"):
        frame = frame.f_back
    return frame.f_globals.get("__name__", "")


def absolute(path: object, folder: int = -1) -> str:
    """Return a path as the absolute text that names are made from; links stay as they are written.

    Args:
        path: what Python was given.
        folder: the descriptor of the folder where a relative path starts; negative for the current one.
    """
    start = os.readlink(f"/proc/self/fd/{folder}") if folder >= 0 else ""
    return os.path.abspath(os.path.join(start, os.fsdecode(path)))


def _stamp(path: str) -> tuple | None:
    """Return what any write to a file changes, also one that restores its content; None for what is no file."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    is_folder = found.st_mode & 0o170000 == 0o040000
    return None if is_folder else (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def start(root: str, ignored: list[str], *, is_kernel: bool = True) -> None:
    """Record from now on; called again, go on with other folders and variables.

    Args:
        root: the repository.
        ignored: folders that belong to the run itself.
        is_kernel: whether this process runs cells, rather than making kernels that do.
    """
    if _running:
        recorder = _running[0]
        recorder.ignored, recorder.environ, recorder.suspended = tuple(ignored), dict(os.environ), False
        recorder.is_kernel = is_kernel
        return
    library = Path(__file__).resolve().parent.parent.parent
    recorder = Recorder(Places(Path(root), library), ignored)
    recorder.is_kernel = is_kernel
    _running.append(recorder)
    for module in list(sys.modules.values()):
        if isinstance(file := getattr(module, "__file__", None), str) and recorder.places.is_ours(absolute(file)):
            recorder.attend(recorder.note, absolute(file))
    sys.meta_path.insert(0, SourceFinder(recorder))
    _wrap_questions(recorder)
    _wrap_environment(recorder)
    sys.addaudithook(_hook(recorder))


def suspend() -> None:
    """Record nothing until `start` is called again."""
    for recorder in _running:
        recorder.suspended = True


def paused() -> contextlib.AbstractContextManager:
    """Return a context in which this thread is not recorded."""
    return _running[0].aside() if _running else contextlib.nullcontext()


def changed() -> list[str]:
    """Return in words what has changed since it was read."""
    return [f"{name} has changed since it was read" for name in _running[0].changed()] if _running else []


def finish() -> dict | None:
    """Return what was recorded, or None where nothing was."""
    return _running[0].finish() if _running else None


def _hook(recorder: Recorder) -> Callable[[str, tuple], None]:
    handlers = dict.fromkeys(_PROCESSES, recorder.process) | {
        "open": recorder.opened, "os.listdir": recorder.listed, "os.scandir": recorder.listed,
        "os.mkdir": recorder.made, "os.rename": recorder.moved, "os.remove": recorder.removed,
        "os.rmdir": recorder.removed, "subprocess.Popen": recorder.process, "socket.connect": recorder.connected,
        "sqlite3.connect": recorder.asked, "ctypes.dlopen": recorder.linked, DECLARE: recorder.declare,
    }  # fmt: skip

    def hook(event: str, arguments: tuple) -> None:
        if (handler := handlers.get(event)) is not None:
            recorder.attend(handler, *arguments)

    return hook


def _wrap_questions(recorder: Recorder) -> None:
    """Have `os.stat`, `os.lstat` and `os.access` reported; `exists`, `is_file` and their kin rest on them."""
    for name in ("stat", "lstat", "access"):
        original = getattr(os, name)
        wrapper = _reporting(original, recorder)
        setattr(os, name, wrapper)
        for group in (os.supports_dir_fd, os.supports_fd, os.supports_follow_symlinks, os.supports_effective_ids):
            if original in group:
                group.add(wrapper)


def _reporting(original: Callable, recorder: Recorder) -> Callable:
    def ask(path, *arguments, **options):
        if options.get("dir_fd") is None:
            recorder.attend(recorder.asked, path)
        return original(path, *arguments, **options)

    ask.__name__, ask.__doc__ = original.__name__, original.__doc__
    return ask


def _wrap_environment(recorder: Recorder) -> None:
    """Have it reported when code of ours asks for an environment variable."""
    kind = type(os.environ)
    original = kind.__getitem__

    def ask(self, key):
        frame = sys._getframe(1)
        while frame.f_back and frame.f_globals.get("__name__") in ("os", "collections.abc", "_collections_abc"):
            frame = frame.f_back
        if isinstance(key, (str, bytes)) and _is_ours(frame, recorder.places):
            recorder.attend(recorder.variable, os.fsdecode(key))
        return original(self, key)

    kind.__getitem__ = ask


def _is_ours(frame, places: Places) -> bool:
    """Return whether a frame is a cell's or our package's; installed packages inside the repository are not ours."""
    file = frame.f_code.co_filename
    return frame.f_globals.get("__name__") == "__main__" or (places.is_ours(file) and not is_below(file, sys.prefix))
