"""Files written as a whole or not at all, and folders that one casebook has to itself."""

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from casestudies_lib.runner.errors import Failure

_HELD = ".lock"


class ResultError(Failure):
    """A result folder is missing, incomplete, damaged, or cannot be written."""


def move_into_place(new: Path, destination: Path, aside: Path) -> None:
    """Swap a new folder for an old one by renames on one filesystem; on failure the old one stays."""
    if destination.exists():
        destination.rename(aside)
    try:
        new.rename(destination)
    except OSError:
        if aside.exists():
            aside.rename(destination)
        raise


@contextlib.contextmanager
def scratch_folder(destination: Path, keep_waiting: Callable[[], bool] = lambda: True) -> Iterator[Path]:
    """Lend the folder `DESTINATION.tmp` to this casebook alone, and remove it afterwards.

    Whoever wants the same result meanwhile waits. What a killed run left there, or beside it, is removed.

    Args:
        destination: the result folder.
        keep_waiting: asked now and then; where it answers False, waiting ends.

    Raises:
        ResultError: the folder cannot be created or locked, its disk is full, or waiting ended.
    """
    scratch = destination.with_name(f"{destination.name}.tmp")
    with writing(destination):
        held = _lock(scratch)
        while held is None:
            if not keep_waiting():
                raise ResultError(f"stopped while another casebook was making {destination}")
            time.sleep(0.1)
            held = _lock(scratch)
        for left in destination.parent.glob("*.tmp"):
            if left != scratch and (descriptor := _lock(left)) is not None:
                _remove(left, descriptor)
        for left in scratch.iterdir():
            if left.name != _HELD:
                shutil.rmtree(left) if left.is_dir() else left.unlink()
    try:
        yield scratch
    finally:
        _remove(scratch, held)


def _lock(folder: Path) -> int | None:
    """Return a descriptor of the locked file in a folder; None while another process holds it. It dies with ours."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(folder / _HELD, os.O_RDWR | os.O_CREAT, 0o644)
    except FileNotFoundError:  # its holder removed the folder just now
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if (folder / _HELD).exists() and os.fstat(descriptor).st_ino == (folder / _HELD).stat().st_ino:
            return descriptor
    except BlockingIOError:
        pass
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _remove(folder: Path, descriptor: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    os.close(descriptor)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other casebooks out of the same folder meanwhile; the lock dies with its process."""
    descriptor = os.open(folder / _HELD, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def writing(destination: Path) -> Iterator[None]:
    """Turn errors of the operating system while writing into one clear line.

    Raises:
        ResultError: in place of any OSError.
    """
    try:
        yield
    except OSError as error:
        raise ResultError(unwritable(destination, error)) from error


def unwritable(destination: Path, error: OSError) -> str:
    """Return the message for a folder that does not take what is written to it."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk of {destination} is full; nothing was stored: make room, or choose another folder with --out"
    reason = error.strerror or str(error)
    return f"cannot write to {destination} ({reason}); nothing was stored: choose a writable folder with --out"


def write_through(path: Path, content: bytes) -> None:
    """Write a file and wait until the disk has it."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, content: bytes) -> None:
    """Replace a file by new content as a whole; a failure leaves the old file as it was."""
    handle, temporary = tempfile.mkstemp(prefix=".casebook-", dir=path.parent)
    os.close(handle)
    try:
        Path(temporary).chmod(path.stat().st_mode & 0o777 if path.exists() else 0o644)
        write_through(Path(temporary), content)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
