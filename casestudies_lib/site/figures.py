"""Takes the figures out of a notebook's outputs, so that a page can link to them as files."""

import base64
import hashlib
import html
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

FOLDER = "_figures"
# As `casestudies_lib.figures.Shown` writes it.
_EMBEDDED = re.compile(r'(<img class="casebook-figure"[^>]*\balt="([^"]*)"[^>]*src=")data:image/png;base64,([^"]+)"')


@dataclass(frozen=True)
class Figure:
    """A figure of a chapter: its bytes as PNG, and its text alternative."""

    png: bytes
    alt: str

    @property
    def file(self) -> str:
        """Return the name of its file on the site, which follows from its content."""
        return f"{hashlib.sha256(self.png).hexdigest()[:16]}.png"

    @property
    def size(self) -> tuple[int, int]:
        """Return width and height in pixels, from the PNG's header."""
        return struct.unpack(">II", self.png[16:24])


def _figure(match: re.Match[str]) -> Figure:
    return Figure(base64.b64decode(match[3]), html.unescape(match[2]))


def figures_in(notebook: dict) -> Iterator[tuple[int, Figure]]:
    """Yield every figure of a notebook with the index of the cell that shows it."""
    for index, cell in enumerate(notebook["cells"]):
        for output in cell.get("outputs", []):
            for match in _EMBEDDED.finditer("".join(output.get("data", {}).get("text/html", ""))):
                yield index, _figure(match)


def linked(text: str, root: str) -> str:
    """Return an output's HTML with each embedded figure replaced by a link to its file.

    Args:
        text: the HTML.
        root: leads from the page to the site's front page, such as `../`.
    """

    def address(match: re.Match[str]) -> str:
        figure = _figure(match)
        width, height = figure.size
        size = f'width="{width}" height="{height}" loading="lazy" decoding="async"'
        return f'{match[1]}{root}{FOLDER}/{figure.file}" {size}'

    return _EMBEDDED.sub(address, text)
