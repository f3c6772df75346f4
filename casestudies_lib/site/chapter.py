"""A chapter's notebook as the site shows it: header, symptoms and explorer added, figures in files."""

import re
from collections.abc import Sequence
from pathlib import Path

from casestudies_lib.records import MEASUREMENTS_MIME, VERDICTS_MIME
from casestudies_lib.runner.chapters import source_of
from casestudies_lib.runner.errors import Failure
from casestudies_lib.runner.page_outputs import unpublishable
from casestudies_lib.runner.private import private_traces_in
from casestudies_lib.site.case import Case
from casestudies_lib.site.markup import html_text, tally
from casestudies_lib.site.pictures import extracted
from casestudies_lib.site.symptoms import chapter_symptoms
from casestudies_lib.site.verdict_lines import with_measurements

_RECORDS = (VERDICTS_MIME, MEASUREMENTS_MIME)
_TARGET = re.compile(r"^\(([^()\s]+)\)=\s*$", re.MULTILINE)
_AFTER_VERDICTS = re.compile(r"^## (?:Limits|Exercises|Sources)", re.MULTILINE)


class ChapterPageError(Failure):
    """A chapter's notebook lacks what its page needs; the message says what to write where."""


def chapter_notebook(case: Case, figures: Path, explorer: str) -> dict:
    """Return the notebook that jupyter-book reads.

    Args:
        case: the chapter.
        figures: the folder that figures are written to.
        explorer: the explorer of the chapter's sweep as HTML; empty where there is none.

    Raises:
        ChapterPageError: a trial has no target to link to, an output may not be shown, or the title is missing.
    """
    notebook = case.notebook
    _check_targets(case, notebook)
    _check_outputs(case, notebook)
    cells = [_shown(case, cell, figures) for cell in notebook["cells"]]
    return notebook | {"cells": _with_explorer(_with_header(case, cells), explorer)}


def _check_targets(case: Case, notebook: dict) -> None:
    text = "\n".join(source_of(cell) for cell in notebook["cells"] if cell["cell_type"] == "markdown")
    targets = set(_TARGET.findall(text))
    if missing := [verdict.id for verdict in case.verdicts if verdict.id.lower() not in targets]:
        raise ChapterPageError(f"{case.name}.ipynb has no target for {', '.join(missing)}; write "
                               f"`({missing[0].lower()})=` on the line before the heading of its trial")  # fmt: skip


def _check_outputs(case: Case, notebook: dict) -> None:
    if problems := [*unpublishable(notebook), *(f"it holds {trace}" for trace in private_traces_in(notebook))]:
        raise ChapterPageError(f"{case.name}.ipynb may not be published: {'; '.join(problems)}")


def _shown(case: Case, cell: dict, figures: Path) -> dict:
    """Return a cell with figures in files and values in verdict lines, without the records for the runner."""
    if not cell.get("outputs"):
        return cell
    outputs = [dict(output) for output in cell["outputs"]]
    for output in outputs:
        if "data" in output:
            output["data"] = {kind: data for kind, data in output["data"].items() if kind not in _RECORDS}
            if html := output["data"].get("text/html"):
                output["data"]["text/html"] = extracted(with_measurements(case, "".join(html)), figures, "../")
    return cell | {"outputs": outputs}


def _with_header(case: Case, cells: Sequence[dict]) -> list[dict]:
    """Return the cells with header and symptoms right under the title, which must open the first cell."""
    title, _, rest = source_of(cells[0]).partition("\n") if cells else ("", "", "")
    if not title.startswith("# ") or cells[0]["cell_type"] != "markdown":
        raise ChapterPageError(
            f"{case.name}.ipynb must start with a Markdown cell whose first line is its title, `# ...`"
        )
    first = cells[0] | {"source": f"{title}\n\n{chapter_header(case)}\n{chapter_symptoms(case)}\n{rest}"}
    return [first, *cells[1:]]


def _with_explorer(cells: list[dict], explorer: str) -> list[dict]:
    """Return the cells with the explorer as a section of its own behind the verdicts."""
    if not explorer:
        return cells
    places = [
        index
        for index, cell in enumerate(cells)
        if cell["cell_type"] == "markdown" and _AFTER_VERDICTS.search(source_of(cell))
    ]
    place = places[0] if places else len(cells)
    source = f"## Explore the sweep\n\n{explorer}"
    return [
        *cells[:place],
        {"cell_type": "markdown", "id": "explorer", "metadata": {}, "source": source},
        *cells[place:],
    ]


def chapter_header(case: Case) -> str:
    """Return the block under a chapter's title: source, verdict counts, run, downloads, slides."""
    seconds, torch = float(case.provenance["seconds"]), case.provenance["torch"]
    version = f" on torch {html_text(torch)}" if torch else ""
    return (
        f'<div class="case-header">\n<p class="source">Report: {case.source}</p>\n{tally(case.verdicts)}\n'
        f"<p>Last verified{version}, {case.verified}, in {seconds:.0f} s. "
        f'<a href="../downloads/{case.name}.ipynb" download>Notebook</a> · '
        f'<a href="../downloads/{case.name}.verdicts.json" download>verdicts</a> · '
        f'<a href="../{case.slides}">slides</a></p>\n</div>\n'
    )
