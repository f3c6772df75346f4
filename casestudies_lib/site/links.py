"""Checks a folder of pages: every link inside it ends somewhere, and nothing is fetched from outside it."""

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

_FETCHING = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "audio": "src"}
_FETCHING_RELATIONS = {"stylesheet", "icon", "preload", "modulepreload", "prefetch", "manifest"}


class _Page(HTMLParser):
    """Collects the anchors of a page, what it links to, and what it fetches."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.fetches: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attributes}
        self.anchors.update(values[name] for name in ("id", "name") if name in values)
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if tag in _FETCHING and _FETCHING[tag] in values:
            self.fetches.append(values[_FETCHING[tag]])
        if tag == "link" and _FETCHING_RELATIONS & set(values.get("rel", "").split()):
            self.fetches.append(values.get("href", ""))


def broken_links(site: Path) -> list[str]:
    """Return one line for each link of a site that ends nowhere and each thing that a page fetches from elsewhere.

    Args:
        site: a folder of HTML pages that link to each other by relative addresses.
    """
    pages = {path.relative_to(site).as_posix(): _read(path) for path in sorted(site.rglob("*.html"))}
    found = []
    for name, page in pages.items():
        found += [f"{name}: fetches {address} from outside the site" for address in page.fetches if _outside(address)]
        inside = [address for address in page.links + page.fetches if not _outside(address)]
        found += [f"{name}: {problem}" for address in inside if (problem := _problem(site, pages, name, address))]
    return list(dict.fromkeys(found))


def _read(path: Path) -> _Page:
    page = _Page()
    page.feed(path.read_text(encoding="utf-8"))
    return page


def _outside(address: str) -> bool:
    parts = urlsplit(address)
    return bool(parts.netloc) or parts.scheme not in ("", "data")


def _problem(site: Path, pages: dict[str, _Page], name: str, address: str) -> str | None:
    """Return what is wrong with a link inside the site, or None where it ends at a file and at an anchor of it."""
    parts = urlsplit(address)
    if parts.scheme == "data":
        return None
    target = (site / name).parent / unquote(parts.path) if parts.path else site / name
    target = (target / "index.html" if target.is_dir() else target).resolve()
    if not target.is_file() or not target.is_relative_to(site.resolve()):
        return f"{address} is no file of the site"
    page = pages.get(target.relative_to(site.resolve()).as_posix())
    fragment = unquote(parts.fragment)
    if page is not None and fragment and fragment not in page.anchors:
        return f"{address} names no anchor of that page"
    return None
