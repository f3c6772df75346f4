"""Slides of a chapter, made from its notebook: one page without a script that snaps from slide to slide and prints."""

import re
from pathlib import Path

from markdown_it import MarkdownIt

from casestudies_lib.runner.chapters import source_of
from casestudies_lib.site.case import Case
from casestudies_lib.site.citations import with_citations
from casestudies_lib.site.markup import badge, html_prose, html_text, tally
from casestudies_lib.site.pictures import extracted
from casestudies_lib.site.verdict_lines import judged_in, lines_of

_TARGET_LINE = re.compile(r"^\([^()\s]+\)=\s*\n", re.MULTILINE)
_HEADING = re.compile(r"^## +(.+)$", re.MULTILINE)
_ROLE = re.compile(r"\{[a-z:]+\}`([^`]*)`")
_LINK = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")
_FIGURE = re.compile(r"<img class=\"casebook-figure\"[^>]*>")
_MISSED = "What the report missed"
_SKIPPED = ("Place your bets", "Verdicts", "Sources", "Exercises")
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<link rel="icon" href="data:,">
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
    sections = _trials(case, figures)
    title = f'{_title(case)}<p><a href="../{case.page}">The whole chapter</a></p>'
    verdicts = _verdicts(case, [case.trial_link(verdict.id, "../") for verdict in case.verdicts])
    return _page(case, '<link rel="stylesheet" href="slides.css">', [title, _bets(case), *sections, verdicts])


def slide_file(case: Case, style: str) -> str:
    """Return the slides as one file that needs nothing beside it; `style` is the text of the style sheet."""
    sections = _trials(case, None)
    verdicts = _verdicts(case, [html_text(verdict.id) for verdict in case.verdicts])
    return _page(case, f"<style>\n{style}</style>", [_title(case), _bets(case), *sections, verdicts])


def _trials(case: Case, figures: Path | None) -> list[str]:
    return [slide for title, cells in _sections(case.notebook) for slide in _section(case, title, cells, figures)]


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


def _section(case: Case, title: str, cells: list[dict], figures: Path | None) -> list[str]:
    """Return a section's slides: the question; figures and verdict after it, so that a class bets before it sees them.

    A section that shows nothing has no slide. The one about what the report missed keeps its bold conclusions too.
    """
    shown = "\n".join(text for cell in cells for text in _outputs(cell))
    pictures = [extracted(each, figures, "../") if figures else each for each in _FIGURE.findall(shown)]
    tried = judged_in(shown)
    answer = "".join(f"<figure>{picture}</figure>" for picture in pictures[:2]) + lines_of(case, shown)
    heading = f"<h2>{_inline(title)}</h2>\n"
    question = _lead(cells) or "".join(_asked(case, claim_id) for claim_id in tried)
    missed = _conclusions(cells) if title == _MISSED else []
    bodies = [question, answer] if tried else [question + answer, *missed]
    return [heading + body for body in bodies if body]


def _outputs(cell: dict) -> list[str]:
    return ["".join(output.get("data", {}).get("text/html", "")) for output in cell.get("outputs", [])]


def _asked(case: Case, claim_id: str) -> str:
    """Return the claim and what is measured, for a trial whose section opens with code."""
    verdicts = [verdict for verdict in case.verdicts if verdict.id == claim_id]
    return "".join(
        f'<p>The claim: {html_prose(v.says)}.</p>\n<p class="fine">Measured is: {html_prose(v.measure)}.</p>'
        for v in verdicts
    )


def _lead(cells: list[dict]) -> str:
    """Return the first paragraph of a section as HTML, where it is prose, with what its colon announces."""
    paragraphs = _paragraphs(cells[0])
    first = paragraphs[0] if paragraphs else ""
    if not first or first.startswith(("```", ":::", "- ", "|", "$$", "#", "<")):
        return ""
    announced = ""
    if first.endswith(":"):
        announced = _block(paragraphs[1]) if len(paragraphs) > 1 else _printed(cells[1:])
        first = first if announced else _without_last_sentence(first)
    return f"<p>{_inline(first)}</p>\n{announced}" if first else ""


def _conclusions(cells: list[dict]) -> list[str]:
    """Return the later paragraphs that open in bold, a slide each, with what their end asks for."""
    parts = [(kind, text) for cell in cells[1:] for kind, text in _parts(cell)]
    return [_carried_on(parts[place:]) for place, (kind, text) in enumerate(parts) if text.startswith("**")]


def _parts(cell: dict) -> list[tuple[str, str]]:
    if cell["cell_type"] == "markdown":
        return [("text", paragraph) for paragraph in _paragraphs(cell)]
    return [("printed", printed)] if (printed := _printed([cell])) else []


def _carried_on(parts: list[tuple[str, str]]) -> str:
    """Return the first part and those that it leads to, as HTML; a colon before nothing goes, with its sentence."""
    (_, last), *rest = parts
    html = []
    while last.endswith((":", "?")) and rest:
        html.append(f"<p>{_inline(last)}</p>")
        while rest and rest[0][0] == "printed":
            html.append(rest.pop(0)[1])
        last = rest.pop(0)[1] if rest and (last.endswith("?") or html[-1].startswith("<p>")) else ""
    if last.endswith(":"):
        last = _without_last_sentence(last)
    return "".join([*html, f"<p>{_inline(last)}</p>" if last else ""])


def _without_last_sentence(text: str) -> str:
    return " ".join(re.split(r"(?<=[.?!])\s+", text)[:-1])


def _paragraphs(cell: dict) -> list[str]:
    return [part.strip() for part in _TARGET_LINE.sub("", source_of(cell)).split("\n\n") if part.strip()]


def _printed(cells: list[dict]) -> str:
    """Return what the cell after the text prints, if that is code: at most eight lines."""
    if not cells or cells[0]["cell_type"] != "code":
        return ""
    texts = ["".join(output.get("text", "")) for output in cells[0].get("outputs", [])]
    lines = "".join(texts).strip().splitlines()[:8]
    return f"<pre>{html_text(chr(10).join(lines))}</pre>\n" if lines else ""


def _block(text: str) -> str:
    return MarkdownIt("commonmark", {"html": False}).render(_plain(text))


def _inline(text: str) -> str:
    """Return Markdown as HTML; roles and links keep their text alone, raw HTML is shown and not obeyed."""
    return MarkdownIt("commonmark", {"html": False}).renderInline(_plain(text))


def _plain(text: str) -> str:
    return _LINK.sub(r"\1", _ROLE.sub(r"\1", with_citations(text))).replace("$", "")
