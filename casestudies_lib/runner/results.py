"""Result folders: how they are written, found again and read.

The result of a run lies at `_build/runs/SLUG/KEY`, where the key is that of its inputs: an edit that is taken back
finds its result again. It is made in `KEY.tmp` beside it and renamed when it is complete; where `--fresh` made one with
the same key, the earlier one is put aside first.
"""

import contextlib
import json
import platform
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import casestudies_lib
from casestudies_lib import paths
from casestudies_lib.runner.chapters import Chapter, claim_ids, read_notebook, title_of
from casestudies_lib.runner.errors import CasebookError, Failure
from casestudies_lib.runner.executed import Incomplete, verdicts_of
from casestudies_lib.runner.files import ResultError, move_into_place, replace_file, write_through, writing
from casestudies_lib.runner.inputs import differences, digest, few, inputs_of, key_of
from casestudies_lib.runner.parameters import Value, read_parameters

NOTEBOOK, VERDICT_FILE, PROVENANCE = "notebook.ipynb", "verdicts.json", "provenance.json"


@dataclass(frozen=True)
class Result:
    """A complete result: its folder, its verdict records and its provenance."""

    folder: Path
    verdicts: list[dict]
    provenance: dict


def folder_of(slug: str) -> Path:
    """Return where the results of a chapter lie."""
    return paths.build() / "runs" / slug


def own_values(chapter: Chapter) -> dict[str, Value]:
    """Return the chapter's own parameters."""
    parameters = read_parameters(read_notebook(chapter.path), chapter.path.name)
    return {parameter.name: parameter.default for parameter in parameters}


def current_inputs(chapter: Chapter) -> dict[str, str]:
    """Return what a run of the chapter with its own parameters would depend on now."""
    notebook = read_notebook(chapter.path)
    return inputs_of(chapter.slug, notebook, read_parameters(notebook, chapter.path.name), own_values(chapter))


def find(slug: str, inputs: dict[str, str]) -> Result | None:
    """Return the result of a run with exactly these inputs, or None where there is none that is whole."""
    with contextlib.suppress(ResultError):
        result = read_result(folder_of(slug) / key_of(inputs))
        return result if result.provenance.get("inputs") == inputs else None


def newest(slug: str, values: dict[str, Value]) -> Result | None:
    """Return the result of a chapter with these parameters that was written last, whatever else it depended on."""
    folders = [path.parent for path in folder_of(slug).glob(f"*/{PROVENANCE}")]
    for folder in sorted(folders, key=lambda path: path.stat().st_mtime, reverse=True):
        with contextlib.suppress(ResultError):
            result = read_result(folder)
            if result.provenance.get("parameters") == values:
                return result
    return None


def read_result(folder: Path) -> Result:
    """Return the result in a folder after comparing its files with the digests in its provenance.

    Raises:
        ResultError: there is no result, or a file is not the one that the run wrote.
    """
    try:
        provenance = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))
        contents = {name: (folder / name).read_bytes() for name in (NOTEBOOK, VERDICT_FILE)}
    except FileNotFoundError as error:
        raise ResultError(f"no complete result in {folder}: {Path(error.filename).name} is missing") from error
    except (OSError, ValueError) as error:
        raise ResultError(f"the result in {folder} cannot be read: {error}") from error
    for name, content in contents.items():
        if not isinstance(provenance, dict) or provenance.get("files", {}).get(name) != digest(content):
            raise ResultError(f"{name} in {folder} is not what its run wrote; run the chapter again")
    return Result(folder, json.loads(contents[VERDICT_FILE]), provenance)


def write_result(destination: Path, scratch: Path, notebook: bytes, verdicts: list[dict], provenance: dict) -> Result:
    """Put a complete result in the place of an earlier one.

    Args:
        destination: the result folder.
        scratch: a folder on the same filesystem, see `scratch_folder`.
        notebook: the executed notebook file.
        verdicts: its verdict records.
        provenance: what is known of the run; the digests of both files are added.
    """
    complete = scratch / "result"
    complete.mkdir()
    contents = {NOTEBOOK: notebook, VERDICT_FILE: _pretty(verdicts)}
    provenance = provenance | {"files": {name: digest(content) for name, content in contents.items()}}
    for name, content in (contents | {PROVENANCE: _pretty(provenance)}).items():
        write_through(complete / name, content)
    move_into_place(complete, destination, scratch / "old")
    return read_result(destination)


def check_copyable(destination: Path) -> None:
    """Refuse a folder that a result cannot be copied to, before anything runs.

    Raises:
        ResultError: it holds something else than a result, or cannot be written.
    """
    held = {path.name for path in destination.iterdir()} if destination.is_dir() else set()
    if other := sorted(held - {NOTEBOOK, VERDICT_FILE, PROVENANCE}):
        raise ResultError(f"{destination} holds other files ({few(other, 2)}); name an empty or a new folder")
    with writing(destination):
        destination.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=destination).close()


def copy_result(result: Result, destination: Path) -> Result:
    """Copy a result to a folder of the user's choice, the provenance last: until then a reader finds no whole result.

    Raises:
        ResultError: the folder cannot be written.
    """
    with writing(destination):
        for name in (NOTEBOOK, VERDICT_FILE, PROVENANCE):
            replace_file(destination / name, (result.folder / name).read_bytes())
    return read_result(destination)


def _pretty(value: object) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


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


def current_verdicts(chapter: Chapter, warn: Callable[[str], None]) -> list[dict]:
    """Return a chapter's verdict records, each with `from`: "run" (a result that is fresh) or "stored" (its notebook).

    Args:
        chapter: the chapter.
        warn: receives a line where there is a run, but a stale one.

    Raises:
        Failure: neither a fresh run nor stored outputs hold the verdicts.
    """
    inputs = current_inputs(chapter)
    if result := find(chapter.slug, inputs):
        return [{"from": "run", **record} for record in result.verdicts]
    if last := newest(chapter.slug, own_values(chapter)):
        changes = few(differences(last.provenance["inputs"], inputs))
        warn(f"{chapter.slug}: the last run is stale, not shown: {changes}; run: casebook run {chapter.slug}")
    try:
        records = verdicts_of(read_notebook(chapter.path), chapter.slug, claim_ids(chapter.slug))
    except Incomplete as error:
        raise Failure(
            f"{chapter.slug}: no complete verdicts stored in its notebook ({error}); run: casebook run {chapter.slug}"
        ) from error
    return [{"from": "stored", **record} for record in records]


def overview(chapter: Chapter) -> dict:
    """Return number, slug, title, number of claims, and the state of the run with the chapter's own parameters.

    The state is fresh, stale, none, or broken: then the title says what is wrong with the chapter's files.
    """
    row = {"number": chapter.number, "slug": chapter.slug}
    try:
        about = {"title": title_of(read_notebook(chapter.path)), "claims": len(claim_ids(chapter.slug))}
        inputs = current_inputs(chapter)
    except CasebookError as error:
        return row | {"title": str(error), "claims": None, "last_run": "broken"}
    state = "fresh" if find(chapter.slug, inputs) else "stale" if newest(chapter.slug, own_values(chapter)) else "none"
    return row | about | {"last_run": state}
