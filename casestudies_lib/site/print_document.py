"""Joins pages of the built site into one document for print: one article after another, links turned inwards."""

import html
import posixpath
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from bs4 import BeautifulSoup, Tag

from casestudies_lib.runner.errors import Failure

# A page of paper has no scroll bar: lines wrap, tables shrink, what is folded stands open.
_STYLE = """
@page { size: A4; margin: 18mm 16mm 20mm; }
html, body { background: white !important; color: black; height: auto !important; overflow: visible !important; }
body { font-size: 10.5pt; }
.print-break { break-after: page; } .print-page article { padding-top: 1px; }
.print-page h1 { font-size: 17pt; text-wrap: wrap; }
.print-page h2 { font-size: 14pt; } .print-page h3 { font-size: 12pt; }
h1, h2, h3, h4 { break-after: avoid; }
figure, img, tr, blockquote { break-inside: avoid; }
pre, table, details, .cell, .cell_input, .cell_output, div[class*="highlight"] { break-inside: auto !important; }
body, div[class*="highlight"] { display: block !important; } details { overflow: visible !important; }
pre { orphans: 4; widows: 4; }
.sd-row { margin: 0 !important; }
img { max-width: 100%; max-height: 200mm; }
pre, pre code { font-size: 8pt; overflow: visible !important; }
pre, pre code { overflow-wrap: anywhere; white-space: pre-wrap !important; }
table { font-size: 8.5pt !important; max-width: 100%; overflow-wrap: anywhere; width: 100%; }
.casebook-table, .cell_output, .output, .highlight { max-width: 100% !important; overflow: visible !important; }
.headerlink, .copybtn, .prev-next-area, .bd-header-article, details > summary::after { display: none !important; }
.print-cover { padding-top: 70mm; text-align: center; } .print-cover h1 { font-size: 30pt; }
.print-contents ol { list-style: none; padding: 0; }
.print-contents li { display: flex; gap: 2mm; padding: 1mm 0; }
.print-contents .rule { border-bottom: 1px dotted #777; flex: 1; }
.print-contents .part { font-weight: 600; margin-top: 3mm; }
"""
_BREAK = '<div class="print-break"></div>'
_SCREEN_ONLY = ".headerlink, .copybtn, .prev-next-area, script, noscript > img[hidden], .screen-only"


def pages_in_order(site: Path) -> list[str]:
    """Return the site's pages in the order of its contents, the front page first."""
    soup = _soup(site / "index.html")
    links = [str(link["href"]).partition("#")[0] for link in soup.select("nav.bd-links a.reference.internal")]
    return list(dict.fromkeys(["index.html", *(link for link in links if link and urlsplit(link).scheme == "")]))


def anchor_of(page: str, fragment: str = "") -> str:
    """Return the id that a page, or an anchor on it, has in the joined document."""
    return f"{page.removesuffix('.html').replace('/', '-')}--{fragment or 'top'}"


def joined(site: Path, pages: Sequence[str], numbers: Mapping[str, int]) -> str:
    """Return one HTML document that holds the articles of some pages, with a cover and contents where there are many.

    Args:
        site: the folder of the built site.
        pages: addresses of pages, relative to the site.
        numbers: the sheet on which each page starts, as far as it is known; others show no number.

    Raises:
        Failure: a page is missing or holds no article.
    """
    articles = [(page, _article(site, page, pages)) for page in pages]
    head = _soup(site / "index.html")
    styles = [str(link["href"]) for link in head.select('link[rel="stylesheet"]')]
    links = "".join(f'<link rel="stylesheet" href="{html.escape(_resource(site, "", href))}">' for href in styles)
    front = _cover(head) + _BREAK + _contents(site, articles, numbers) + _BREAK if len(pages) > 1 else ""
    # Breaks stand between the articles, and a pixel of padding stands in each article before its heading: without it
    # Chromium names a heading that opens a sheet twice in the outline.
    body = _BREAK.join(
        f'<section class="print-page" id="{anchor_of(page)}">{article}</section>' for page, article in articles
    )
    title = _title(articles[0][1]) if len(pages) == 1 else _name_of_site(head)
    return (
        f'<!doctype html><html lang="en" data-theme="light" data-mode="light"><head><meta charset="utf-8">'
        f"<title>{html.escape(title)}</title>{links}<style>{_STYLE}</style></head>"
        f'<body><main class="bd-article">{front}{body}</main>{_mathjax(site, body)}</body></html>'
    )


def _soup(path: Path) -> BeautifulSoup:
    try:
        return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
    except OSError as error:
        raise Failure(
            f"no page {path.name} in {path.parent} ({error.strerror}); build the site first: casebook build"
        ) from error


def _article(site: Path, page: str, pages: Sequence[str]) -> Tag:
    article = _soup(site / page).select_one("article.bd-article")
    if article is None:
        raise Failure(f"{site / page} holds no article; was the site built by another theme? casebook build")
    for element in article.select(_SCREEN_ONLY):
        element.decompose()
    for folded in article.select("details"):
        folded["open"] = ""
    for element in article.select("[id]"):
        element["id"] = anchor_of(page, str(element["id"]))
    for picture in article.select("img[src]"):
        picture["src"] = _resource(site, page, str(picture["src"]))
        picture["loading"] = "eager"
    for link in article.select("a[href]"):
        _turn_inwards(link, page, pages)
    return article


def _resource(site: Path, page: str, address: str) -> str:
    """Return where a style or a picture of a page lies, as an address that a document elsewhere can use."""
    if urlsplit(address).scheme:
        return address
    path = posixpath.normpath(posixpath.join(posixpath.dirname(page), unquote(urlsplit(address).path)))
    return (site / path).absolute().as_uri()


def _turn_inwards(link: Tag, page: str, pages: Sequence[str]) -> None:
    """Point a link to a page that is in the document at its place there; keep only the words of other local links."""
    parts = urlsplit(str(link["href"]))
    if parts.scheme:
        return
    target = (
        page if not parts.path else posixpath.normpath(posixpath.join(posixpath.dirname(page), unquote(parts.path)))
    )
    if target in pages:
        link["href"] = f"#{anchor_of(target, unquote(parts.fragment))}"
    else:
        link.unwrap()


def _title(article: Tag) -> str:
    heading = article.find("h1")
    return " ".join(heading.get_text().split()) if heading else ""


def _name_of_site(head: BeautifulSoup) -> str:
    return " ".join(head.title.get_text().split("—")[-1].split()) if head.title else "The book"


def _cover(head: BeautifulSoup) -> str:
    return f'<section class="print-cover"><h1>{html.escape(_name_of_site(head))}</h1></section>'


def _contents(site: Path, articles: Sequence[tuple[str, Tag]], numbers: Mapping[str, int]) -> str:
    parts = _parts(site)
    lines = []
    for page, article in articles:
        if page in parts:
            lines.append(f'<li class="part">{html.escape(parts[page])}</li>')
        number = numbers.get(page, "")
        title = html.escape(_title(article))
        lines.append(
            f'<li><a href="#{anchor_of(page)}">{title}</a><span class="rule"></span>'
            f'<a href="#{anchor_of(page)}" aria-hidden="true">{number}</a></li>'
        )
    return f'<section class="print-contents"><h1>Contents</h1><ol>{"".join(lines)}</ol></section>'


def _parts(site: Path) -> dict[str, str]:
    """Return the captions of the contents, by the first page under each."""
    captions = {}
    for caption in _soup(site / "index.html").select("nav.bd-links p.caption"):
        following = caption.find_next("a", class_="reference")
        if following is not None:
            captions[str(following["href"])] = " ".join(caption.get_text().split())
    return captions


def _mathjax(site: Path, body: str) -> str:
    script = site / "_static" / "mathjax" / "tex-chtml.js"
    if 'class="math' not in body or not script.is_file():
        return ""
    setting = 'window.MathJax={options:{enableMenu:false,processHtmlClass:"math",ignoreHtmlClass:".*"}}'
    return f'<script>{setting}</script><script src="{script.absolute().as_uri()}"></script>'
