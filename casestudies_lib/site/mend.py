"""Mends what the theme and Sphinx write and assistive technology or a search engine stumbles over."""

import html
import re
from pathlib import Path

# Each pair was found by axe-core on a built page; tests/site looks for it again.
_MENDED = (
    # The logo stands outside every landmark.
    (
        r'<div class="sidebar-primary-item">(?=\s*<a class="navbar-brand)',
        '<div class="sidebar-primary-item" role="navigation" aria-label="Home">',
    ),
    # Roles that ARIA has withdrawn, or that lists may not hold.
    (r' role="doc-(?:biblioentry|backlink)"', ""),
    (r'<div role="list" class="citation-list">', '<div class="citation-list">'),
    # pandas heads the column of row names with an empty header.
    (r"<th></th>", "<td></td>"),
    # The theme says its viewport three times.
    (r'(<meta name="viewport" content="width=device-width, initial-scale=1\.0" />)<meta name="viewport"[^>]*>', r"\1"),
    (r'  <meta name="viewport" content="width=device-width, initial-scale=1"/>\n', ""),
)  # fmt: skip
_ARTICLE = re.compile(r"<article\b.*?</article>", re.DOTALL)
_PARAGRAPH = re.compile(r'<p(?: class="lead")?>(.*?)</p>', re.DOTALL)
_TAG = re.compile(r"<[^>]*>")
_DESCRIPTION = 155  # characters, as many as search engines show


def mend(site: Path) -> None:
    """Rewrite every page: mended markup, and a description taken from its first paragraph."""
    for page in site.rglob("*.html"):
        page.write_text(mended(page.read_text(encoding="utf-8")), encoding="utf-8")


def mended(text: str) -> str:
    """Return a page with its markup mended and with a description, where it has a paragraph and none yet."""
    for pattern, replacement in _MENDED:
        text = re.sub(pattern, replacement, text)
    if found := description(text):
        tag = f'<meta name="description" content="{html.escape(found)}">'
        text = text.replace("<title>", f"{tag}\n    <title>", 1)
    return text


def description(text: str) -> str:
    """Return the first paragraph of a page's article, cut at a word; empty where there is none, or one is given."""
    article = _ARTICLE.search(text)
    paragraph = _PARAGRAPH.search(article[0]) if article else None
    if paragraph is None or '<meta name="description"' in text:
        return ""
    words = " ".join(html.unescape(_TAG.sub("", paragraph[1])).split())
    return words if len(words) <= _DESCRIPTION else words[: _DESCRIPTION - 1].rsplit(" ", 1)[0] + "…"
