"""What may stand in a stored notebook or on a page: known outputs, HTML that runs and fetches nothing, no secrets.

An output is made by code, and code shows what data hold: a dataset's name, a model's answer, the text of an error. So
outputs are compared with lists of what is allowed, by element and by attribute; nothing is repaired. Messages say where
a secret comes from, never what it is.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlsplit

from markdown_it import MarkdownIt

from casestudies_lib import paths
from casestudies_lib.records import MEASUREMENTS_MIME, VERDICTS_MIME
from casestudies_lib.runner.executed import cell_name

RECORDS = frozenset({VERDICTS_MIME, MEASUREMENTS_MIME})
SHOWN = frozenset({"text/plain", "text/html", "text/markdown", "image/png", "image/jpeg"})
_ELEMENTS = frozenset(re.findall(r"\w+", """
    a abbr b blockquote br caption cite code col colgroup dd del details div dl dt em figcaption figure h1 h2 h3 h4 h5
    h6 hr i img ins kbd li mark ol p pre q s samp small span strong style sub summary sup table tbody td tfoot th
    thead tr u ul var wbr
"""))  # fmt: skip
_VOID = frozenset({"br", "col", "hr", "img", "wbr"})
_ATTRIBUTES = frozenset(re.findall(r"\w+", """
    align alt border class colspan dir height href id lang open role rowspan scope scoped src start style tabindex title
    valign width
"""))  # fmt: skip
_CELL_SETTINGS = frozenset({"image", "figure"})
_PICTURE = re.compile(r"data:image/(?:png|jpeg|gif|svg\+xml)[;,]")
_CONTROL = re.compile(r"[\x00-\x20\x7f]")
_STYLE_FETCHES = re.compile(r"url\s*\(|@import|expression\s*\(|image-set|\\|<", re.IGNORECASE)
_HOME = re.compile(
    r"""(?<![\w./-])(?:/home/|/Users/|/var/folders/|[A-Za-z]:(?:\\+|/)Users(?:\\+|/))[^\s/\\"'<>]+"""
    r"""|(?<![\w./-])/(?:root|tmp|mnt|private)/[^\s/\\"'<>]+"""
)
_SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY", re.IGNORECASE)
_SHORTEST = 8  # characters; a shorter value of such a variable is a word or a number that stands anywhere
_SECRETS = {
    "a private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
    "a token of a code host": re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{36}|github_pat_\w{22,}|glpat-[\w-]{20})"),
    "a Hugging Face token": re.compile(r"\bhf_[A-Za-z0-9]{30,}"),
    "an AWS access key": re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"),
    "an API key": re.compile(r"\b(?:sk-[\w-]{20,}|xox[abprs]-[A-Za-z0-9-]{10,})"),
    "a signed web token": re.compile(r"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\."),
    "a password in an address": re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s/:@\"'<>]+:[^\s/@\"'<>]+@"),
}


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
                yield from (f"shows {problem}" for problem in unsafe_html(_as_html(text, kind)))


def _as_html(text: str, kind: str) -> str:
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

    def _declaration(self, data: str) -> None:
        self.found.append("an HTML declaration")

    handle_decl = unknown_decl = handle_pi = _declaration


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


def private_traces(text: str, environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return in words what in a text belongs to a machine or a person; empty where nothing does.

    Args:
        text: the text of a file.
        environment: the variables whose values count as secrets where their names say so.
    """
    return list(dict.fromkeys([*_folders(text), *_secrets(text, environment)]))


def private_traces_in(value: object) -> list[str]:
    """Return in words what in the texts of a notebook or of other JSON belongs to a machine or a person."""
    return private_traces("\n".join(_texts(value)))


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for entry in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _texts(entry)
    if isinstance(value, dict):
        yield from value


def _folders(text: str) -> Iterator[str]:
    for name, folder in (("this casebook", paths.root().absolute()), ("your home", Path.home())):
        # A folder right below the root, such as /root, may be a word of a sentence: then only what lies in it counts.
        end = r"(?![\w-])" if len(folder.parts) > 2 else r"(?=[/\\]\w)"
        if len(folder.parts) > 1 and re.search(rf"(?<![\w.-]){re.escape(str(folder))}{end}", text):
            yield f"the folder of {name}"
    if match := _HOME.search(text):
        yield f"a folder of one machine ({match[0][:60]})"


def _secrets(text: str, environment: Mapping[str, str]) -> Iterator[str]:
    for name, value in environment.items():
        if _SECRET_NAME.search(name) and len(value) >= _SHORTEST and value in text:
            yield f"the value of the environment variable {name}"
    for name, pattern in _SECRETS.items():
        if pattern.search(text):
            yield name
