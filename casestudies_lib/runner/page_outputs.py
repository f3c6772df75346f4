"""What of a notebook's outputs may reach a page: known kinds of data, and HTML that runs nothing and fetches nothing.

An output is made by code, and code shows what data hold: a dataset's name, a model's answer, the text of an error. So
outputs are checked against lists of what is allowed, by element and by attribute; nothing is repaired.
"""

import re
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from urllib.parse import urlsplit

from markdown_it import MarkdownIt

from casestudies_lib.records import MEASUREMENTS_MIME, VERDICTS_MIME
from casestudies_lib.runner.completeness import cell_name

RECORDS = frozenset({VERDICTS_MIME, MEASUREMENTS_MIME})
SHOWN = frozenset({"text/plain", "text/html", "text/markdown", "image/png", "image/jpeg"})
_WORD = re.compile(r"\w+")
_ELEMENTS = frozenset(_WORD.findall("""
        a abbr b blockquote br caption cite code col colgroup dd del details div dl dt em figcaption figure h1 h2
    h3 h4 h5 h6     hr i img ins kbd li mark ol p pre q s samp small span strong style sub summary sup table tbody
    td tfoot th thead tr u     ul var wbr
"""))  # fmt: skip
_VOID = frozenset({"br", "col", "hr", "img", "wbr"})
_ATTRIBUTES = frozenset(_WORD.findall("""
    align alt border class colspan dir height href id lang open role rowspan scope scoped src start style tabindex title
    valign width
"""))  # fmt: skip
_PICTURE = re.compile(r"data:image/(?:png|jpeg|gif|svg\+xml)[;,]")
_CONTROL = re.compile(r"[\x00-\x20\x7f]")
_STYLE_FETCHES = re.compile(r"url\s*\(|@import|expression\s*\(|image-set|\\|<", re.IGNORECASE)
_CELL_SETTINGS = frozenset({"image", "figure"})


def unpublishable(notebook: dict) -> list[str]:
    """Return one line for each thing in a notebook that may not reach a page; empty where all may."""
    found = []
    for index, cell in enumerate(notebook["cells"]):
        found += [f"{cell_name(notebook, index)} {problem}" for problem in _problems(cell)]
    return found


def _problems(cell: dict) -> Iterator[str]:
    if cell["cell_type"] not in ("code", "markdown"):
        yield f"is a {cell['cell_type']} cell; use code and Markdown cells"
    settings = cell.get("metadata", {}).get("mystnb", {})
    if not isinstance(settings, dict) or set(settings) - _CELL_SETTINGS:
        yield f"has metadata mystnb {str(settings)[:60]!r}; allowed: {', '.join(sorted(_CELL_SETTINGS))}"
    for output in cell.get("outputs", []):
        for kind, data in output.get("data", {}).items():
            if kind not in SHOWN | RECORDS:
                yield f"shows {kind}; allowed: {', '.join(sorted(SHOWN))}"
            elif kind in ("text/html", "text/markdown"):
                text = data if isinstance(data, str) else "".join(data)
                yield from (f"shows {problem}" for problem in unsafe_html(as_html(text, kind)))


def as_html(text: str, kind: str) -> str:
    """Return what a page makes of an output: Markdown may hold HTML of its own."""
    return MarkdownIt("commonmark").render(text) if kind == "text/markdown" else text


def unsafe_html(text: str) -> list[str]:
    """Return in words what in a piece of HTML no output may hold: scripts, frames, forms, fetches, comments."""
    reader = _Reader()
    reader.feed(text)
    if "<" in reader.rawdata:
        reader.found.append("a tag that does not end")
    return list(dict.fromkeys(reader.found))


class _Reader(HTMLParser):
    """Notes every element, attribute and address that is not on a list."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=False)
        self.found: list[str] = []
        self._open: Counter[str] = Counter()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in _ELEMENTS:
            self.found.append(f"the HTML element {tag[:40]!r}")
        self._open[tag] += tag not in _VOID
        for name, value in attributes:
            if problem := _attribute_problem(tag, name, value or ""):
                self.found.append(f"{problem} in the HTML element {tag[:40]!r}")

    def handle_endtag(self, tag: str) -> None:
        if not self._open[tag]:
            self.found.append(f"the end of an HTML element {tag[:40]!r} that it did not begin")
        self._open[tag] -= 1

    def handle_data(self, data: str) -> None:
        if self._open["style"] > 0 and _STYLE_FETCHES.search(data):
            self.found.append("a style that may fetch something")
        if re.search(r"<[a-zA-Z/!?]", data):
            self.found.append("a tag that does not end")

    def handle_comment(self, data: str) -> None:
        self.found.append("an HTML comment")

    def handle_decl(self, decl: str) -> None:
        self.found.append("an HTML declaration")

    def unknown_decl(self, data: str) -> None:
        self.found.append("an HTML declaration")

    def handle_pi(self, data: str) -> None:
        self.found.append("an HTML processing instruction")


def _attribute_problem(tag: str, name: str, value: str) -> str | None:
    if name not in _ATTRIBUTES and not re.fullmatch(r"aria-[a-z]+", name):
        return f"the attribute {name[:40]!r}"
    if name == "style" and _STYLE_FETCHES.search(value):
        return "a style that may fetch something"
    if name == "src" and not (tag == "img" and _PICTURE.match(value)):
        return f"the address {value[:40]!r}, not that of a picture inside the page,"
    if name == "href" and not _is_link(value):
        return f"the address {value[:40]!r}"
    return None


def _is_link(address: str) -> bool:
    if _CONTROL.search(address):  # browsers drop some of them, and read what is left
        return False
    try:
        return urlsplit(address).scheme in ("", "http", "https", "mailto")
    except ValueError:
        return False
