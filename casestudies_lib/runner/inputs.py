"""What a run depends on, as one dictionary. A result is fresh while the dictionary is the same now.

The modules come from the notebook's own imports, followed through syntax trees; nothing is imported for it. The data
files are those that these modules declare in `DATA_FILES`. Not covered: what a cell reads without a loader of ours.
"""

import ast
import functools
import hashlib
import json
import platform
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import casestudies_lib
from casestudies_lib import paths
from casestudies_lib.records import PARAMETERS
from casestudies_lib.runner.chapters import source_of, tags_of
from casestudies_lib.runner.errors import Mistake
from casestudies_lib.runner.parameters import Parameter, Value

PACKAGE = casestudies_lib.__name__
LOCK = "requirements.lock"
THREADS = 1  # of a kernel: chapters run side by side, and oversubscribed threads cost a factor of three
_PIN = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==([^\s;#]+)", re.MULTILINE)
_OF_THE_MACHINE = ("Python", "platform", "threads", "package ", "parameter ", LOCK)


def inputs_of(slug: str, notebook: dict, parameters: Iterable[Parameter], values: dict[str, Value]) -> dict[str, str]:
    """Return everything that a run depends on, by the name that messages use.

    Args:
        slug: the chapter's.
        notebook: its notebook as a dictionary; prose and outputs do not count.
        parameters: what its parameters cell declares.
        values: a value for each of them; where one names a file or folder, its content counts, not its place.

    Raises:
        Mistake: a module that the notebook reaches is not Python.
    """
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    modules = reached(source_of(cell) for cell in cells if PARAMETERS not in tags_of(cell))
    files = [_name(path) for path in modules] + data_files(modules) + [f"data/reports/{slug}.toml", LOCK]
    found = {"code cells": digest(json.dumps([source_of(cell) for cell in cells]).encode())}
    found |= {name: _state(_path(name)) for name in sorted(files)} | parameter_inputs(parameters, values)
    found |= {f"package {name}": version for name, version in locked_and_installed().items()}
    return found | {
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "platform": f"{platform.system()} {platform.machine()}",
        "threads": str(THREADS),
    }


def parameter_inputs(parameters: Iterable[Parameter], values: dict[str, Value]) -> dict[str, str]:
    """Return the inputs that differ between the rows of a sweep."""
    paths_given = [parameter.name for parameter in parameters if parameter.unit == "path" and values[parameter.name]]
    return {
        f"parameter {name}": tree_digest(Path(str(value))) if name in paths_given else json.dumps(value)
        for name, value in values.items()
    }


def portable(inputs: dict[str, str]) -> dict[str, str]:
    """Return the part of the inputs that is the same on every machine and for every row of a sweep."""
    return {name: state for name, state in inputs.items() if not name.startswith(_OF_THE_MACHINE)}


def key_of(inputs: dict[str, str]) -> str:
    """Return the name of the folder that a result with these inputs lies in."""
    return digest(json.dumps(inputs, sort_keys=True).encode())[:20]


def digest(content: bytes) -> str:
    """Return the SHA-256 of some bytes, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def differences(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """Return in words what differs between two sets of inputs; empty where nothing does."""
    words = []
    for name in sorted(before.keys() | now.keys()):
        if name not in now or name not in before:
            words.append(f"{name} is {'gone' if name in before else 'new'}")
        elif before[name] != now[name]:
            digests = any(re.fullmatch(r"[0-9a-f]{64}", state) for state in (before[name], now[name]))
            words.append(f"{name} changed" if digests else f"{name}: {before[name]} became {now[name]}")
    return words


def few(words: list[str], most: int = 4) -> str:
    """Return the first of several words, and how many more there are."""
    return ", ".join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "")


def reached(sources: Iterable[str]) -> list[Path]:
    """Return the files of our package that these pieces of code import, directly or through one another."""
    waiting = [name for source in sources if PACKAGE in source for name in _imported(_tree(source, "a code cell"), "")]
    found: set[Path] = set()
    while waiting:
        for path in _files_of(waiting.pop()):
            if path not in found:
                found.add(path)
                waiting += _read(path, path.stat().st_mtime_ns).imports
    return sorted(found)


def data_files(modules: Iterable[Path]) -> list[str]:
    """Return the data files that these modules declare, as `data/FOLDER/FILE`."""
    return sorted({name for path in modules for name in _read(path, path.stat().st_mtime_ns).data_files})


@functools.cache
def _library() -> Path:
    return Path(casestudies_lib.__file__).resolve().parent


def _name(path: Path) -> str:
    return f"{PACKAGE}/{path.relative_to(_library()).as_posix()}"


def _path(name: str) -> Path:
    return _library().parent / name if name.startswith(f"{PACKAGE}/") else paths.root() / name


def _files_of(module: str) -> list[Path]:
    """Return the file of a module and those of the packages around it; of a name in a module, that module's."""
    parts = module.split(".")
    folders = [_library().joinpath(*parts[1:end]) for end in range(1, len(parts) + 1)]
    packages = [folder / "__init__.py" for folder in folders if (folder / "__init__.py").is_file()]
    return packages + [folder.with_suffix(".py") for folder in folders[1:] if folder.with_suffix(".py").is_file()]


@dataclass(frozen=True)
class _Module:
    """What is to be known of a module's file: the names of ours that it imports, the data that it reads."""

    imports: tuple[str, ...]
    data_files: tuple[str, ...]
    offered: dict[str, str]


@functools.cache
def _read(path: Path, _changed: int) -> _Module:
    tree = _tree(path.read_text(encoding="utf-8"), str(path))
    package = ".".join([PACKAGE, *path.relative_to(_library()).parts[:-1]])
    return _Module(
        tuple(_imported(tree, package)), _literal(tree, "DATA_FILES") or (), _literal(tree, "OFFERED") or {}
    )  # fmt: skip


def _tree(source: str, name: str) -> ast.Module:
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError) as error:
        raise Mistake(f"{name} is not Python: {error}; mend that line") from error


def _imported(tree: ast.AST, package: str) -> Iterator[str]:
    """Yield the dotted names of ours that code imports, wherever in it; what only type checkers see does not count."""
    for node in _statements(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == PACKAGE:
                    yield from (alias.name, *_offers(alias.name).values())
        elif isinstance(node, ast.ImportFrom):
            parent = ".".join(package.split(".")[: len(package.split(".")) + 1 - node.level]) if node.level else ""
            module = ".".join(filter(None, [parent, node.module]))
            if module.split(".")[0] == PACKAGE:
                for alias in node.names:
                    name, offers = f"{module}.{alias.name}", _offers(module)
                    # A package that is imported whole gives all that it offers.
                    whole = offers.values() if alias.name == "*" else _offers(name).values()
                    yield from (offers.get(alias.name, name), *whole)


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """Yield all statements below a node; expressions hold no import, and looking into them takes ten times as long."""
    for field in ("body", "orelse", "finalbody", "handlers", "cases"):
        for statement in getattr(node, field, ()):
            yield statement
            if not (isinstance(statement, ast.If) and getattr(statement.test, "id", None) == "TYPE_CHECKING"):
                yield from _statements(statement)


def _offers(module: str) -> dict[str, str]:
    """Return what a package offers from elsewhere, by a literal dictionary `OFFERED` of names and their modules."""
    file = _library().joinpath(*module.split(".")[1:], "__init__.py")
    return _read(file, file.stat().st_mtime_ns).offered if file.is_file() else {}


def _literal(tree: ast.Module, name: str) -> object:
    """Return the literal that a module assigns to a name at its top level, or None."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and [getattr(target, "id", None) for target in node.targets] == [name]:
            return ast.literal_eval(node.value)
    return None


def _state(path: Path) -> str:
    return digest(path.read_bytes()) if path.is_file() else "absent"


def tree_digest(path: Path) -> str:
    """Return a digest of a file, or of all files below a folder with their names."""
    if path.is_file():
        return _state(path)
    files = sorted(entry for entry in path.rglob("*") if entry.is_file())
    return digest(json.dumps([(entry.relative_to(path).as_posix(), _state(entry)) for entry in files]).encode())


@functools.cache
def pins() -> dict[str, str]:
    """Return the versions that the lock names, by package."""
    lock = paths.root() / LOCK
    return dict(_PIN.findall(lock.read_text(encoding="utf-8"))) if lock.is_file() else {}


@functools.cache
def locked_and_installed() -> dict[str, str]:
    """Return the versions that are really installed of the packages in the lock, read off their metadata folders."""
    installed = {}
    for folder in reversed([Path(entry) for entry in sys.path if entry.endswith("-packages")]):
        for metadata in folder.glob("*.dist-info"):
            name, _, version = metadata.name.removesuffix(".dist-info").partition("-")
            installed[_normalised(name)] = version
    return {name: installed[_normalised(name)] for name in pins() if _normalised(name) in installed}


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
