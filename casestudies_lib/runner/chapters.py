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
        notebook = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ChapterError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise ChapterError(f"{path.name} is not valid JSON: {error}; restore it or mend that place") from error
    if not _is_notebook(notebook):
        raise ChapterError(f"{path.name} is JSON but no notebook of format 4 (nbformat 4 and a list of cells)")
    return notebook


def _is_notebook(content: object) -> bool:
    if not isinstance(content, dict) or content.get("nbformat") != 4:
        return False
    cells = content.get("cells")
    return isinstance(cells, list) and all(isinstance(cell, dict) and "cell_type" in cell for cell in cells)


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
