"""The state of a file, a folder's listing or a variable, by a name that holds on every machine.

The kernel records states while a chapter runs and the runner asks for them again before the next run; both use these
functions, so that nothing but a change makes them differ. Only the standard library: a kernel imports this.
"""

import functools
import hashlib
import importlib.machinery
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from casestudies_lib.runner.environment import variable_digest

ABSENT, FOLDER = "absent", "folder"
PACKAGE = "casestudies_lib"
_VARIABLE, _MODULES, _RIVALS = "environment ", "modules in ", "rivals of "


@dataclass(frozen=True)
class Places:
    """The repository's root, the folder that holds the package, and the user's home: what names are relative to."""

    root: Path
    library: Path
    home: Path = field(default_factory=Path.home)

    def name(self, path: str) -> str:
        """Return the name of an absolute path."""
        for folder, prefix in self._folders:
            if path == folder or path.startswith(folder + os.sep):
                return prefix + path[len(folder) :].lstrip(os.sep) if path != folder else prefix.rstrip("/") or "."
        return path

    def path(self, name: str) -> str:
        """Return the absolute path of a name; the inverse of `name`."""
        for folder, prefix in self._folders:
            if prefix and (name == prefix.rstrip("/") or name.startswith(prefix)):
                return os.path.join(folder, name[len(prefix) :]).rstrip(os.sep)
        return os.path.normpath(os.path.join(self.root, name))

    @functools.cached_property
    def _folders(self) -> list[tuple[str, str]]:
        package = (str(self.library / PACKAGE), f"{PACKAGE}/")
        roots = dict.fromkeys((str(self.root), str(self.root.resolve())))
        return [package, *((root, "") for root in roots), (str(self.home), "~/")]

    def is_ours(self, path: str) -> bool:
        """Return whether an absolute path lies in the repository or the package."""
        return any(is_below(path, folder) for folder, _ in self._folders[:-1])


def is_below(path: str, folder: str) -> bool:
    """Return whether a path is a folder or lies in it."""
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def state_of_path(path: str) -> str:
    """Return the SHA-256 of a file's content, or a word for what is no file."""
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            return FOLDER
        if not stat.S_ISREG(mode):
            return "special"
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return ABSENT
    except OSError as error:
        return f"unreadable {error.errno}"


def listing_of(path: str) -> str:
    """Return the SHA-256 of the names in a folder, which a new or a removed file changes."""
    try:
        with os.scandir(path) as entries:
            names = [entry.name + ("/" if entry.is_dir() else "") for entry in entries if entry.name != "__pycache__"]
    except OSError:
        return ABSENT
    return hashlib.sha256("\n".join(sorted(names)).encode(errors="surrogateescape")).hexdigest()


def modules_in(path: str) -> str:
    """Return the SHA-256 of what could be imported from a folder: a new file there may hide another module."""
    names = set()
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name.endswith((".py", *importlib.machinery.EXTENSION_SUFFIXES)):
                    names.add(entry.name)
                elif os.path.exists(os.path.join(entry.path, "__init__.py")):
                    names.add(f"{entry.name}/")
    except OSError:
        return ABSENT
    return hashlib.sha256("\n".join(sorted(names)).encode(errors="surrogateescape")).hexdigest()


def rivals_of(path: str) -> str:
    """Return the SHA-256 of the names that would be imported in the place of this file, or a word if none is there."""
    stem, package = path.removesuffix(".py"), f"{os.sep}__init__.py"
    if path.endswith(package):
        return ABSENT
    rivals = [stem + package, *(stem + suffix for suffix in importlib.machinery.EXTENSION_SUFFIXES)]
    found = [rival for rival in rivals if os.path.exists(rival)]
    return hashlib.sha256("\n".join(found).encode(errors="surrogateescape")).hexdigest() if found else ABSENT


def listing_name(name: str) -> str:
    """Return the name of a folder's listing."""
    return f"{name}/"


def variable_name(name: str) -> str:
    """Return the name of an environment variable among the inputs."""
    return f"{_VARIABLE}{name}"


def modules_name(name: str) -> str:
    """Return the name of what could be imported from a folder."""
    return f"{_MODULES}{name}"


def rivals_name(name: str) -> str:
    """Return the name of what could be imported in the place of a module's file."""
    return f"{_RIVALS}{name}"


def state(name: str, places: Places) -> str:
    """Return the present state of what a name stands for."""
    if name.startswith(_VARIABLE):
        variable = name.removeprefix(_VARIABLE)
        return variable_digest(variable, os.environ.get(variable))
    if name.startswith(_MODULES):
        return modules_in(places.path(name.removeprefix(_MODULES)))
    if name.startswith(_RIVALS):
        return rivals_of(places.path(name.removeprefix(_RIVALS)))
    if name.endswith("/"):
        return listing_of(places.path(name.removesuffix("/")))
    return state_of_path(places.path(name))
