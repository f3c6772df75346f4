"""The first stage of the cache, what is known before a run; and the second, what a run read, asked for again."""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import casestudies_lib
from casestudies_lib import paths
from casestudies_lib.runner.cache_states import ABSENT, Places, state, state_of_path
from casestudies_lib.runner.chapters import source_of, tags_of
from casestudies_lib.runner.environment import environment_parts, machine_parts, package_parts
from casestudies_lib.runner.parameters import Parameter, Value

_RUN_BY = ("worker.py", "supervise.py")  # the runner's own modules that a result depends on and no kernel imports
_OBEYED = ("parameters", "raises-exception", "skip-execution")  # the tags that change what is executed


@dataclass(frozen=True)
class Key:
    """The declared inputs of a run, by the name that messages use, and the SHA-256 of them all."""

    digest: str
    parts: dict[str, str]


def canonical(value: object) -> bytes:
    """Return JSON that is the same for the same value: sorted keys, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"), allow_nan=False).encode()


def digest(content: bytes) -> str:
    """Return the SHA-256 of some bytes, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def places() -> Places:
    """Return where the names of files start."""
    return Places(Path(os.path.abspath(paths.root())), Path(casestudies_lib.__file__).resolve().parent.parent)  # noqa: PTH100


def parts(slug: str, notebook: dict, parameters: list[Parameter], values: dict[str, Value]) -> dict[str, str]:
    """Return everything declared that a run follows from, by the name that messages use.

    These are the code cells (not the prose) and the tags that the execution obeys, the resolved parameters with the
    content of the files they name, the chapter's report, the lock and the installed versions, Python, platform,
    processor, the declared environment with its thread counts, and the folder that the kernel starts in.
    """
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    tags = [[tag for tag in _OBEYED if tag in tags_of(cell)] for cell in cells]
    folder = os.path.relpath(paths.notebooks(), paths.root())
    found = {
        "code cells": digest(canonical([source_of(cell) for cell in cells])),
        "tags": digest(canonical(tags)),
        "parameters": digest(canonical(values)),
        "working directory": Path(folder).as_posix(),
        **machine_parts(),
        **environment_parts(os.environ),
        **package_parts(),
    }
    for parameter in parameters:
        if parameter.unit == "path" and values[parameter.name]:
            found[f"files of parameter {parameter.name}"] = _tree_digest(Path(str(values[parameter.name])))
    for name in (f"data/reports/{slug}.toml", "requirements.lock"):
        found[name] = state_of_path(str(paths.root() / name))
    library = Path(casestudies_lib.__file__).parent
    return found | {f"casestudies_lib/runner/{name}": state_of_path(str(library / "runner" / name)) for name in _RUN_BY}


def key_of(slug: str, notebook: dict, parameters: list[Parameter], values: dict[str, Value]) -> Key:
    """Return the key of a run; the arguments are those of `parts`."""
    found = parts(slug, notebook, parameters, values)
    return Key(digest(canonical([slug, found])), found)


def _tree_digest(path: Path) -> str:
    if path.is_file():
        return state_of_path(str(path))
    files = sorted(entry for entry in path.rglob("*") if entry.is_file())
    return digest(canonical([(entry.relative_to(path).as_posix(), state_of_path(str(entry))) for entry in files]))


def everything() -> dict[str, str]:
    """Return the state of all modules and all data: the inputs of a run that could not be followed."""
    library, data = Path(casestudies_lib.__file__).parent, paths.root() / "data"
    files = [path for path in library.rglob("*.py") if "__pycache__" not in path.parts]
    files += [path for path in data.rglob("*") if path.is_file() and path.parent != paths.reports()]
    where = places()
    return {where.name(str(path)): state_of_path(str(path)) for path in sorted(files)}


def states(names: list[str]) -> dict[str, str]:
    """Return the present states of what a run read, by name."""
    where = places()
    return {name: state(name, where) for name in names}


def changes(recorded: dict[str, str], current: dict[str, str]) -> list[str]:
    """Return in words what differs between the inputs of a run and those of now; empty where nothing does."""
    words = []
    for name in sorted(recorded.keys() | current.keys()):
        before, now = recorded.get(name, ABSENT), current.get(name, ABSENT)
        if before == now:
            continue
        shown = f"new in {name}" if name.endswith("/") else name.removeprefix("package ")
        if name.startswith("package ") and ABSENT not in (before, now):
            words.append(f"{shown} {before} became {now}")
        else:
            words.append(
                f"{shown} is gone" if now == ABSENT else f"{shown} is new" if before == ABSENT else f"{shown} changed"
            )
    return words
