"""Chapters are notebooks named `<number>_<slug>.ipynb`; this file finds, names and reads them."""

import difflib
import json
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

from casestudies_lib import paths
from casestudies_lib.runner.errors import Mistake

SLUG = re.compile(r"[a-z][a-z0-9_]*")
_FILE_NAME = re.compile(rf"([0-9]+)_({SLUG.pattern})\.ipynb")
_HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*\s*$", re.MULTILINE)


class ChapterError(Mistake):
    """A chapter does not exist, or its notebook or report cannot be used."""


@dataclass(frozen=True)
class Chapter:
    """One notebook of the book; `slug` is its name on the command line."""

    number: int
    slug: str
    path: Path


def all_chapters() -> list[Chapter]:
    """Return every chapter in the order of the book.

    Raises:
        ChapterError: two notebooks share a number or a slug.
    """
    found = [
        Chapter(int(match[1]), match[2], path)
        for path in paths.notebooks().glob("*.ipynb")
        if (match := _FILE_NAME.fullmatch(path.name))
    ]
    ordered = sorted(found, key=lambda chapter: (chapter.number, chapter.slug))
    for attribute in ("number", "slug"):
        values = [getattr(chapter, attribute) for chapter in ordered]
        for value in values:
            if values.count(value) > 1:
                raise ChapterError(f"two notebooks have the {attribute} {value}; rename one of them")
    return ordered


def find_chapter(name: str) -> Chapter:
    """Return the chapter of this slug.

    Raises:
        ChapterError: there is none; suggests the nearest slug and lists all.
    """
    chapters = {chapter.slug: chapter for chapter in all_chapters()}
    if name in chapters:
        return chapters[name]
    nearest = difflib.get_close_matches(name, chapters, n=1, cutoff=0.4)
    hint = f"did you mean {nearest[0]}? " if nearest else ""
    known = ", ".join(chapters) or f"none yet in {paths.notebooks()}"
    raise ChapterError(f"no chapter {name!r}; {hint}known chapters: {known}")


def read_notebook(path: Path) -> dict:
    """Return a notebook as the dictionary that its JSON holds.

    Raises:
        ChapterError: the file cannot be read, is not JSON, or is not a notebook of format 4.
    """
    try:
        notebook = strict_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ChapterError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise ChapterError(f"{path.name} is not valid JSON: {error}; restore it or mend that place") from error
    if not _is_notebook(notebook):
        raise ChapterError(
            f"{path.name} is JSON but no notebook of format 4 (nbformat 4, metadata and a list of cells)"
        )
    return notebook


def strict_json(text: str) -> object:
    """Return what a JSON text holds; unlike Python's reader, this one takes no NaN, which other programs cannot read.

    Raises:
        ValueError: the text is not JSON, holds NaN or an infinity, or is nested too deeply to be read.
    """
    try:
        return json.loads(text, parse_constant=_no_constant)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _is_notebook(content: object) -> bool:
    if not isinstance(content, dict) or content.get("nbformat") != 4:
        return False
    metadata = content.get("metadata")
    if not isinstance(metadata, dict) or not isinstance(metadata.get("language_info", {}), dict):
        return False
    cells = content.get("cells")
    return isinstance(cells, list) and all(map(_is_cell, cells))


def _is_cell(cell: object) -> bool:
    if not isinstance(cell, dict) or cell.get("cell_type") not in ("code", "markdown", "raw"):
        return False
    metadata, outputs = cell.get("metadata"), cell.get("outputs", [])
    if not isinstance(metadata, dict) or not _are_texts(metadata.get("tags", [])):
        return False
    source = cell.get("source", "")
    return (
        (isinstance(source, str) or _are_texts(source)) and isinstance(outputs, list) and all(map(_is_output, outputs))
    )


def _is_output(output: object) -> bool:
    if not isinstance(output, dict) or not isinstance(output.get("output_type"), str):
        return False
    data = output.get("data", {})
    if not isinstance(data, dict) or not isinstance(output.get("metadata", {}), dict):
        return False
    texts = [output.get("text", "")] + [entry for kind, entry in data.items() if kind.startswith("text/")]
    return all(isinstance(text, str) or _are_texts(text) for text in texts)


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(entry, str) for entry in value)


def source_of(cell: dict) -> str:
    """Return the text of a cell; a notebook file may keep it as one string or as a list of lines."""
    source = cell.get("source", "")
    return source if isinstance(source, str) else "".join(source)


def tags_of(cell: dict) -> list[str]:
    """Return the tags of a cell."""
    return cell.get("metadata", {}).get("tags", [])


def title_of(notebook: dict) -> str:
    """Return the first heading of a notebook, or an empty string where it has none."""
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown" and (match := _HEADING.search(source_of(cell))):
            return match[1]
    return ""


def claim_ids(slug: str) -> list[str]:
    """Return the ids of a chapter's claims in the order of its report file, without validating its other fields.

    Raises:
        ChapterError: the report file is missing, is not TOML, or holds no claims.
    """
    path = paths.reports() / f"{slug}.toml"
    try:
        claims = tomllib.loads(path.read_text(encoding="utf-8"))["claims"]
        return [claim["id"] for claim in claims]
    except OSError as error:
        raise ChapterError(f"chapter {slug} has no report file {path}; write it first") from error
    except ValueError as error:
        raise ChapterError(f"{path.name} is not valid TOML: {error}; mend that line") from error
    except (KeyError, TypeError) as error:
        raise ChapterError(f"{path.name} needs at least one [[claims]] entry, each with an id") from error
