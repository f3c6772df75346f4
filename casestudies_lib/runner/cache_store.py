"""The cache on disk: entries of JSON with a seal of their own, and the notebooks they name by their SHA-256.

A notebook is written first and the entry that names it last, each under a temporary name and moved into place, so that
whatever interrupts it leaves a whole entry or none. An entry that does not match its seal is no entry.
"""

import contextlib
import fcntl
import json
import math
import os
import tempfile
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from casestudies_lib import paths
from casestudies_lib.runner.cache_key import canonical, digest

_TEMPORARY = ".new-"


class Damaged(Exception):
    """An entry or its notebook is not what its seal says."""


@dataclass(frozen=True)
class Entry:
    """One complete run: its file, the order in which it was stored, key, parts, what it read, and its result."""

    path: Path
    number: int
    slug: str
    key: str
    parts: dict[str, str]
    reads: dict[str, str]
    verdicts: list[dict]
    provenance: dict
    notebook: str

    @property
    def seconds(self) -> float:
        """Return how long the run took."""
        return float(self.provenance["seconds"])


def folder() -> Path:
    """Return the folder of the cache; like everything below `_build` it may be deleted at any time."""
    return paths.build() / "cache"


def _entries(slug: str) -> Path:
    return folder() / "entries" / slug


def _blob(name: str) -> Path:
    return folder() / "notebooks" / name


def _use(path: Path) -> Path:
    """Return the file that says when an entry was last served: a number of the same counter, for clocks go back."""
    return folder() / "uses" / path.parent.name / path.name


def entry_files(slug: str | None = None) -> list[Path]:
    """Return the files of a chapter's entries, or of all."""
    return sorted((folder() / "entries").glob(f"{slug or '*'}/[!.]*.json"))


def read_entry(path: Path) -> Entry:
    """Return one entry.

    Raises:
        Damaged: it cannot be read, or does not match its seal.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        body = content["body"]
        if digest(canonical(body)) != content["seal"]:
            raise Damaged(f"{path.name} does not match its seal")
        return Entry(path=path, **body)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Damaged(f"{path.name} cannot be read: {error}") from error


def read_notebook_of(entry: Entry) -> bytes:
    """Return the executed notebook of an entry.

    Raises:
        Damaged: it is gone, or is not the one that the entry names.
    """
    try:
        content = _blob(entry.notebook).read_bytes()
    except OSError as error:
        raise Damaged(f"the notebook of {entry.path.name} cannot be read: {error.strerror}") from error
    if digest(content) != entry.notebook:
        raise Damaged(f"the notebook of {entry.path.name} is damaged")
    return content


def write_entry(
    slug: str, key: str, parts: dict[str, str], reads: dict[str, str], verdicts: list[dict], provenance: dict,
    notebook: bytes,
) -> Path:  # fmt: skip
    """Store one complete run: notebook first, entry last.

    Returns:
        The entry's file.

    Raises:
        OSError: the folder cannot be written; no half entry is left.
    """
    with locked():
        blob = digest(notebook)
        _place(_blob(blob), notebook)
        body = {
            "number": _next_number(), "slug": slug, "key": key, "parts": parts, "reads": reads, "verdicts": verdicts,
            "provenance": provenance, "notebook": blob,
        }  # fmt: skip
        path = _entries(slug) / f"{key[:16]}-{digest(canonical(reads))[:16]}.json"
        _place(path, json.dumps({"seal": digest(canonical(body)), "body": body}).encode())
        return path


def _next_number() -> int:
    """Return a number above all others; unlike a time it never goes back."""
    counter = folder() / "counter"
    try:
        number = int(counter.read_text(encoding="ascii")) + 1
    except (OSError, ValueError):
        number = 1 + max((entry.number for entry in _readable()), default=0)
    _place(counter, str(number).encode())
    return number


def _readable() -> Iterator[Entry]:
    for path in entry_files():
        with contextlib.suppress(Damaged):
            yield read_entry(path)


def _place(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=_TEMPORARY, dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
        _sync_folder(path.parent)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _sync_folder(path: Path) -> None:
    """Have the new name on disk too, so that no entry survives a power cut without its notebook."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked() -> Iterator[None]:
    """Keep other casebooks from changing the cache meanwhile; the lock dies with its process."""
    folder().mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder() / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def remove(entry: Entry) -> None:
    """Take an entry out."""
    entry.path.unlink(missing_ok=True)


def mark_used(entry: Entry) -> None:
    """Note that an entry was served just now.

    Raises:
        OSError: the folder cannot be written.
    """
    with locked():
        _place(_use(entry.path), str(_next_number()).encode())


def _last_use(entry: Entry) -> int:
    try:
        return max(entry.number, int(_use(entry.path).read_text(encoding="ascii")))
    except (OSError, ValueError):
        return entry.number


def size_bytes() -> int:
    """Return what the files of the cache take; one that another casebook removes meanwhile counts as nothing."""
    total = 0
    for path in folder().rglob("*"):
        with contextlib.suppress(OSError):
            total += path.stat().st_size if path.is_file() else 0
    return total


@dataclass(frozen=True)
class Swept:
    """What a collection removed, and what it kept."""

    removed: int
    kept: int
    freed_bytes: int


def collect(keep: int, limit: float = math.inf, spared: Collection[Path] = ()) -> Swept:
    """Remove damaged entries, all but the newest few of each chapter, and the notebooks that no entry names.

    Args:
        keep: entries to keep for each chapter; results of other parameters count too.
        limit: bytes that entries and notebooks may take after that; those whose last use is longest ago go first.
        spared: entries that the limit does not touch.
    """
    with locked():
        doomed, kept = [], []
        for files in _by_chapter():
            whole = []
            for path in files:
                try:
                    whole.append(_whole(path))
                except Damaged:
                    doomed.append(path)
            whole.sort(key=lambda entry: entry.number, reverse=True)
            kept += whole[:keep]
            doomed += [entry.path for entry in whole[keep:]]
        beyond = _beyond(kept, limit, spared)
        doomed += [entry.path for entry in beyond]
        kept = [entry for entry in kept if entry not in beyond]
        named = {entry.notebook for entry in kept}
        blobs = [path for path in (folder() / "notebooks").glob("*") if path.name not in named]
        leftovers = [path for path in folder().rglob(f"{_TEMPORARY}*") if path not in blobs]
        uses = [_use(path) for path in doomed if _use(path).exists()]
        freed = sum(_remove(path) for path in (*doomed, *blobs, *leftovers, *uses))
        return Swept(len(doomed), len(kept), freed)


def _beyond(entries: list[Entry], limit: float, spared: Collection[Path]) -> list[Entry]:
    """Return the entries that have to go so that the others, with their notebooks, fit."""
    named = Counter(entry.notebook for entry in entries)
    size = sum(entry.path.stat().st_size for entry in entries) + sum(_blob(name).stat().st_size for name in named)
    beyond = []
    for entry in sorted(entries, key=_last_use):
        if size <= limit:
            break
        if entry.path in spared:
            continue
        named[entry.notebook] -= 1
        size -= entry.path.stat().st_size + (0 if named[entry.notebook] else _blob(entry.notebook).stat().st_size)
        beyond.append(entry)
    return beyond


def _by_chapter() -> list[list[Path]]:
    return [entry_files(chapter.name) for chapter in sorted((folder() / "entries").glob("*"))]


def _whole(path: Path) -> Entry:
    entry = read_entry(path)
    read_notebook_of(entry)
    return entry


def _remove(path: Path) -> int:
    size = path.stat().st_size
    path.unlink()
    return size
