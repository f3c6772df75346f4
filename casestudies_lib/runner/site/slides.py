"""Slides of a chapter, made from its notebook: one page without a script that snaps from slide to slide and prints."""

import re
from pathlib import Path

from markdown_it import MarkdownIt

from casestudies_lib.runner.chapters import source_of
from casestudies_lib.runner.site.case import Case
from casestudies_lib.runner.site.markup import badge, html_prose, html_text, tally
from casestudies_lib.runner.site.pictures import extracted

_TARGET_LINE = re.compile(r"^\([^()\s]+\)=\s*\n", re.MULTILINE)
_HEADING = re.compile(r"^## +(.+)$", re.MULTILINE)
_ROLE = re.compile(r"\{[a-z:]+\}`([^`]*)`")
_LINK = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")
_FIGURE = re.compile(r"<img class=\"casebook-figure\"[^>]*>")
_VERDICT = re.compile(r'<p class="casebook-verdict.*?</p>', re.DOTALL)
_SKIPPED = ("Place your bets", "Verdicts", "Sources", "Exercises")
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="description" content="Slides: {title}">
<title>Slides: {title}</title>
{style}
</head>
<body>
<main>
{slides}
</main>
</body>
</html>
"""


def slide_page(case: Case, figures: Path) -> str:
    """Return the slides as a page of the site, in its folder `slides`; `figures` is the folder of figures."""
    sections = [_section(title, cells, figures) for title, cells in _sections(case.notebook)]
    title = f'{_title(case)}<p><a href="../{case.page}">The whole chapter</a></p>'
    verdicts = _verdicts(case, [case.trial_link(verdict.id, "../") for verdict in case.verdicts])
    return _page(case, '<link rel="stylesheet" href="slides.css">', [title, _bets(case), *sections, verdicts])


def slide_file(case: Case, style: str) -> str:
    """Return the slides as one file that needs nothing beside it; `style` is the text of the style sheet."""
    sections = [_section(title, cells, None) for title, cells in _sections(case.notebook)]
    verdicts = _verdicts(case, [html_text(verdict.id) for verdict in case.verdicts])
    return _page(case, f"<style>\n{style}</style>", [_title(case), _bets(case), *sections, verdicts])


def _page(case: Case, style: str, slides: list[str]) -> str:
    numbered = "\n".join(
        f'<section class="slide" id="slide-{number}">\n{slide}\n</section>'
        for number, slide in enumerate(filter(None, slides), 1)
    )
    return _PAGE.format(title=html_text(case.report.title), style=style, slides=numbered)


def _title(case: Case) -> str:
    return (
        f"<h1>{html_prose(case.report.title)}</h1>\n<p>{html_prose(case.report.summary)}</p>\n"
        f'<p class="source">Report: {case.source}.</p>'
    )


def _bets(case: Case) -> str:
    items = "".join(f"<li><strong>{html_text(v.id)}</strong> {html_prose(v.says)}</li>" for v in case.verdicts)
    return f'<h2>Place your bets</h2>\n<ol class="claims">{items}</ol>'


def _verdicts(case: Case, names: list[str]) -> str:
    items = "".join(
        f"<li>{name} {badge(v.verdict)} {html_prose(v.says)}</li>" for name, v in zip(names, case.verdicts, strict=True)
    )
    return f'<h2>Verdicts</h2>\n{tally(case.verdicts)}\n<ol class="claims">{items}</ol>'


def _sections(notebook: dict) -> list[tuple[str, list[dict]]]:
    """Return each second-level heading of a notebook with the cells under it."""
    found: list[tuple[str, list[dict]]] = []
    for cell in notebook["cells"]:
        text = source_of(cell)
        heading = _HEADING.search(text) if cell["cell_type"] == "markdown" else None
        if heading:
            found.append((heading[1].strip(), [cell | {"source": text[heading.end() :]}]))
        elif found:
            found[-1][1].append(cell)
    return [(title, cells) for title, cells in found if title not in _SKIPPED]


def _section(title: str, cells: list[dict], figures: Path | None) -> str:
    """Return one slide: heading, lead sentence, figures, verdict; empty where a section shows nothing."""
    shown = "\n".join(text for cell in cells for text in _outputs(cell))
    pictures = [extracted(each, figures, "../") if figures else each for each in _FIGURE.findall(shown)]
    verdicts = _VERDICT.findall(shown)
    lead = _lead(source_of(cells[0]))
    if not (lead or pictures or verdicts):
        return ""
    rows = "".join(f"<figure>{picture}</figure>" for picture in pictures[:2])
    return f"<h2>{_inline(title)}</h2>\n{lead}{rows}{''.join(verdicts)}"


def _outputs(cell: dict) -> list[str]:
    return ["".join(output.get("data", {}).get("text/html", "")) for output in cell.get("outputs", [])]


def _lead(text: str) -> str:
    """Return the first paragraph of a section as HTML, where it is prose."""
    first = _TARGET_LINE.sub("", text).strip().split("\n\n")[0]
    if not first or first.startswith(("```", ":::", "- ", "|", "$$", "#", "<")):
        return ""
    return f"<p>{_inline(first)}</p>\n"


def _inline(text: str) -> str:
    """Return Markdown as HTML; roles and links keep their text alone, raw HTML is shown and not obeyed."""
    plain = _LINK.sub(r"\1", _ROLE.sub(r"\1", text)).replace("$", "")
    return MarkdownIt("commonmark", {"html": False}).renderInline(plain)
