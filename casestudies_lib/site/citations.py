"""Citations outside the book's pages: where no bibliography resolves a role, author and year stand in its place."""

import functools
import re

from pybtex.database import Entry, parse_file

from casestudies_lib import paths

_ROLE = re.compile(r"\s*\{cite(?P<kind>:\w+)?\}`(?P<keys>[^`]+)`")


def with_citations(text: str) -> str:
    """Return MyST text with each citation as author and year; a key that `references.bib` lacks leaves nothing."""
    return _ROLE.sub(_cited, text)


def _cited(match: re.Match) -> str:
    entries = [entry for key in match["keys"].split(",") if (entry := _entries().get(key.strip()))]
    if match["kind"] == ":t":
        words = ", ".join(f"{_authors(entry)} ({entry.fields.get('year', 'undated')})" for entry in entries)
    else:
        words = "; ".join(f"{_authors(entry)}, {entry.fields.get('year', 'undated')}" for entry in entries)
        words = words and f"({words})"
    return f" {words}" if words and match.start() else words


def _authors(entry: Entry) -> str:
    names = [" ".join(person.last_names).strip("{}") for person in entry.persons.get("author", [])]
    if len(names) > 2:
        return f"{names[0]} et al."
    return " and ".join(names) or entry.fields.get("title", "unsigned").strip("{}")


@functools.cache
def _entries() -> dict[str, Entry]:
    return dict(parse_file(str(paths.book() / "references.bib"), bib_format="bibtex").entries)
