"""Result folders: what a run leaves, written so that it is whole or absent, and read back only while it is still true.

A folder holds `notebook.ipynb`, `verdicts.json` and, written last, `provenance.json`: the seal, with the digests of the
other two and of every input. Nothing here reads the environment, so that no secret of it can reach a file.
"""

import contextlib
import errno
import fcntl
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import casestudies_lib
from casestudies_lib import paths
from casestudies_lib.runner.cache_key import canonical, changes, digest, everything, parts, states
from casestudies_lib.runner.chapters import Chapter, read_notebook
from casestudies_lib.runner.errors import Failure
from casestudies_lib.runner.parameters import Parameter, Value

NOTEBOOK, VERDICTS, SEAL, FAILED = "notebook.ipynb", "verdicts.json", "provenance.json", "notebook.failed.ipynb"
_SCRATCH = ".casebook-"


class ResultError(Failure):
    """A result folder is missing, incomplete, damaged, or cannot be written."""


@dataclass(frozen=True)
class Result:
    """A complete result: its folder, its verdict records and its provenance."""

    folder: Path
    verdicts: list[dict]
    provenance: dict


def run_folder(chapter: Chapter, changed: dict[str, Value]) -> Path:
    """Return where a run's result goes by default; other parameters never share the default run's folder."""
    suffix = f"--{digest(canonical(changed))[:10]}" if changed else ""
    return paths.build() / "runs" / f"{chapter.slug}{suffix}"


@contextlib.contextmanager
def scratch_folder(destination: Path) -> Iterator[Path]:
    """Lend a private folder inside the destination, hence on its filesystem, and remove it afterwards.

    What a run left there that was killed with everything around it, or whose machine went down, is removed too.

    Raises:
        ResultError: the destination cannot be created or written, or its disk is full.
    """
    with writing(destination):
        scratch, in_use = _new_scratch(destination)
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        os.close(in_use)
        with contextlib.suppress(OSError), locked(destination):  # not empty: it holds a result
            destination.rmdir()


def _new_scratch(destination: Path) -> tuple[Path, int]:
    """Return a new folder and the descriptor that marks it as in use."""
    destination.mkdir(parents=True, exist_ok=True)
    with locked(destination):
        if not destination.exists():  # a run that ended just now took the empty folder away
            return _new_scratch(destination)
        _remove_abandoned(destination)
        scratch = Path(tempfile.mkdtemp(prefix=_SCRATCH, dir=destination))
        return scratch, _lock_without_waiting(scratch)


def _remove_abandoned(destination: Path) -> None:
    for folder in destination.glob(f"{_SCRATCH}*"):
        with contextlib.suppress(OSError):  # in use by another run, or no folder
            descriptor = _lock_without_waiting(folder)
            shutil.rmtree(folder, ignore_errors=True)
            os.close(descriptor)


def _lock_without_waiting(folder: Path) -> int:
    """Return a descriptor that locks a folder for as long as it is open and this process lives.

    Raises:
        OSError: another process holds the lock.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


@contextlib.contextmanager
def writing(destination: Path) -> Iterator[None]:
    """Turn errors of the operating system while writing a result into one clear line.

    Raises:
        ResultError: in place of any OSError.
    """
    try:
        yield
    except OSError as error:
        raise ResultError(unwritable(destination, error)) from error


def unwritable(destination: Path, error: OSError) -> str:
    """Return the message for an output folder that does not take what is written to it."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk of {destination} is full; nothing was stored: make room, or choose another folder with --out"
    reason = error.strerror or str(error)
    return f"cannot write to {destination} ({reason}); nothing was stored: choose a writable folder with --out"


def write_result(destination: Path, scratch: Path, notebook: bytes, verdicts: list[dict], provenance: dict) -> Path:
    """Put a complete result into its folder, the seal last; a reader sees the old result, none, or the new one.

    Args:
        destination: the result folder.
        scratch: a folder on the same filesystem, see `scratch_folder`.
        notebook: the executed notebook file.
        verdicts: its verdict records.
        provenance: what the seal says beside the digests of both files.

    Raises:
        ResultError: the folder cannot be written; an earlier result is then untouched unless its disk itself fails.
    """
    contents = {NOTEBOOK: notebook, VERDICTS: _pretty(verdicts)}
    contents[SEAL] = _pretty(provenance | {"files": {name: digest(content) for name, content in contents.items()}})
    with writing(destination):
        for name, content in contents.items():
            _write_through(scratch / name, content)
        with locked(destination):
            (destination / SEAL).unlink(missing_ok=True)
            for name in contents:  # the seal is the last of them
                (scratch / name).replace(destination / name)
            (destination / FAILED).unlink(missing_ok=True)
    return destination


def _pretty(value: object) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _write_through(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, content: bytes) -> None:
    """Replace a file by new content as a whole; a failure leaves the old file as it was."""
    handle, temporary = tempfile.mkstemp(prefix=_SCRATCH, dir=path.parent)
    os.close(handle)
    try:
        Path(temporary).chmod(path.stat().st_mode & 0o777 if path.exists() else 0o644)
        _write_through(Path(temporary), content)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other casebooks out of the same folder meanwhile; the lock dies with its process."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def keep_partial(destination: Path, executed: Path) -> Path | None:
    """Keep the notebook of a failed run beside an earlier result; returns its path, or None where there is nothing."""
    with contextlib.suppress(OSError):
        executed.replace(destination / FAILED)
        return destination / FAILED
    return None


def read_result(folder: Path) -> Result:
    """Return the result in a folder after checking its seal.

    Raises:
        ResultError: there is no result, or a file does not match the seal.
    """
    try:
        provenance = json.loads((folder / SEAL).read_text(encoding="utf-8"))
        contents = {name: (folder / name).read_bytes() for name in (NOTEBOOK, VERDICTS)}
    except FileNotFoundError as error:
        raise ResultError(f"no complete result in {folder}: {Path(error.filename).name} is missing") from error
    except (OSError, ValueError) as error:
        raise ResultError(f"the result in {folder} cannot be read: {error}") from error
    for name, content in contents.items():
        if not isinstance(provenance, dict) or provenance.get("files", {}).get(name) != digest(content):
            raise ResultError(f"{name} in {folder} does not match its seal {SEAL}; run the chapter again")
    return Result(folder, json.loads(contents[VERDICTS]), provenance)


def staleness(result: Result, chapter: Chapter, parameters: list[Parameter]) -> list[str]:
    """Return in words what changed since the result was made; empty where it is still true."""
    values = {p.name: result.provenance["parameters"].get(p.name, p.default) for p in parameters}
    recorded = result.provenance["inputs"]
    declared = parts(chapter.slug, read_notebook(chapter.path), parameters, values)
    # What could not be followed may hang on any module and any data file, new ones included.
    read = everything() if result.provenance.get("not_cached") else {}
    other = [name for name in recorded if name not in declared and name not in read]
    return changes(recorded, states(other) | read | declared)


def machine() -> dict:
    """Return what a result says about the machine and the versions behind it; torch is not imported for it."""
    try:
        torch = metadata.version("torch")
    except metadata.PackageNotFoundError:
        torch = None
    return {
        "casebook": casestudies_lib.__version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "torch": torch,
    }
