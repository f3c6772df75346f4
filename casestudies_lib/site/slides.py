"""Slides of a chapter, made from its last run: one file without a script that snaps from slide to slide and prints."""

import re
from collections.abc import Iterator
from pathlib import Path

from markdown_it import MarkdownIt
from markupsafe import Markup

from casestudies_lib.runner.chapters import Chapter, source_of
from casestudies_lib.runner.errors import Failure
from casestudies_lib.runner.files import replace_file, writing
from casestudies_lib.runner.results import current_inputs, find
from casestudies_lib.site.case import Case, read_case
from casestudies_lib.site.chapter import VERDICT_LINE, with_measurements
from casestudies_lib.site.templates import render

_HEADING = re.compile(r"^## +(.+)$", re.MULTILINE)
_TARGET_LINE = re.compile(r"^\([^()\s]+\)=\s*\n", re.MULTILINE)
_FIGURE = re.compile(r'<img class="casebook-figure"[^>]*>')
_LEFT_OUT = re.compile(r"\s*\{cite[:a-z]*\}`[^`]*`|\$")
_WORDS_ONLY = re.compile(r"\{[a-z:]+\}`([^`]*)`|!?\[([^\]]*)\]\([^)]*\)")
_SKIPPED = ("Place your bets", "Verdicts", "Sources", "Exercises")
_MARKDOWN = MarkdownIt("commonmark", {"html": False})


def slide_file(case: Case) -> str:
    """Return the slides of a chapter as one HTML file that needs nothing beside it.

    Each section gives a slide with its heading and first paragraph. A trial's figures and verdicts follow on a slide of
    their own, so that a class bets before it sees them. The section about what the report missed keeps its paragraphs
    that open in bold, a slide each.
    """
    return render("slides.html", case=case, slides=list(_slides(case)))


def _slides(case: Case) -> Iterator[dict]:
    for title, cells in _sections(case.notebook):
        outputs = "".join(
            "".join(output.get("data", {}).get("text/html", "")) for cell in cells for output in cell.get("outputs", [])
        )
        figures = [Markup(figure) for figure in _FIGURE.findall(outputs)[:2]]
        verdicts = [Markup(line[0]) for line in VERDICT_LINE.finditer(with_measurements(case, outputs))]
        paragraphs = [part for cell in cells if cell["cell_type"] == "markdown" for part in _paragraphs(cell)]
        answer = {"title": _inline(title), "text": "", "figures": figures, "verdicts": verdicts}
        lead = {**answer, "text": _block(_lead(paragraphs))}
        yield from [lead | {"figures": [], "verdicts": []}, answer] if verdicts else [lead]
        if title == "What the report missed":
            yield from ({**answer, "text": _block(text)} for text in paragraphs if text.startswith("**"))


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


def _paragraphs(cell: dict) -> list[str]:
    return [part.strip() for part in _TARGET_LINE.sub("", source_of(cell)).split("\n\n") if part.strip()]


def _lead(paragraphs: list[str]) -> str:
    """Return the first paragraph, with what its colon announces, where it is prose."""
    shown = paragraphs[: 2 if paragraphs and paragraphs[0].endswith(":") else 1]
    return "\n\n".join(part for part in shown if not part.startswith(("```", ":::", "$$", "|", "#", "<", "**")))


def _block(text: str) -> Markup:
    return Markup(_MARKDOWN.render(_plain(text)))


def _inline(text: str) -> Markup:
    return Markup(_MARKDOWN.renderInline(_plain(text)))


def _plain(text: str) -> str:
    """Return Markdown without citations and dollars; other roles and links keep their words."""
    return _WORDS_ONLY.sub(lambda match: match[1] or match[2] or "", _LEFT_OUT.sub("", text))


def write_slides(chapter: Chapter, folder: Path) -> Path:
    """Write the slides of a chapter's last run into a folder, as one file; returns its path.

    Raises:
        Failure: the chapter has no run that is fresh.
    """
    result = find(chapter.slug, current_inputs(chapter))
    if result is None:
        raise Failure(f"{chapter.slug} has no run that is fresh; run it first: casebook run {chapter.slug}")
    target = folder / f"{chapter.path.stem}.slides.html"
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(target, slide_file(read_case(chapter.path.stem, result.folder)).encode())
    return target
