"""A chapter's notebook as jupyter-book reads it: header and explorer added, figures in files, verdicts with numbers."""

import re

from casestudies_lib.records import MEASUREMENTS_MIME, VERDICTS_MIME
from casestudies_lib.runner.chapters import source_of
from casestudies_lib.runner.errors import Failure
from casestudies_lib.runner.publishable import private_traces_in, unpublishable
from casestudies_lib.site.case import Case
from casestudies_lib.site.figures import linked
from casestudies_lib.site.templates import render

_RECORDS = (VERDICTS_MIME, MEASUREMENTS_MIME)
_TARGET = re.compile(r"^\(([^()\s]+)\)=\s*$", re.MULTILINE)
_AFTER_VERDICTS = re.compile(r"^## (?:Limits|Exercises|Sources)", re.MULTILINE)
VERDICT_LINE = re.compile(r'<p class="casebook-verdict[^>]*>\s*(?:<[^>]*>)*\s*(?P<claim>\w+).*?</p>', re.DOTALL)


class PageError(Failure):
    """A chapter's notebook lacks what its page needs, or holds what no page may; the message says what to mend."""


def page_notebook(case: Case, *, swept: bool) -> dict:
    """Return the notebook that jupyter-book reads; `swept` tells whether the chapter has an explorer.

    Raises:
        PageError: an output may not be shown, a trial has no target to link to, or the title is missing.
    """
    _check(case)
    first, *rest = [_shown(case, cell) for cell in case.notebook["cells"]]
    title, _, text = source_of(first).partition("\n")
    header = f"```{{chapter-header}} {case.slug}\n```"
    cells = [first | {"source": f"{title}\n\n{header}\n{text}"}, *rest]
    if swept:
        ends = [i for i, c in enumerate(cells) if c["cell_type"] == "markdown" and _AFTER_VERDICTS.search(source_of(c))]
        source = f"## Explore the sweep\n\n```{{sweep-explorer}} {case.slug}\n```"
        cell = {"cell_type": "markdown", "id": "explorer", "metadata": {}, "source": source}
        cells.insert(ends[0] if ends else len(cells), cell)
    return case.notebook | {"cells": cells}


def _check(case: Case) -> None:
    cells = case.notebook["cells"]
    problems = [*unpublishable(case.notebook), *(f"it holds {trace}" for trace in private_traces_in(case.notebook))]
    if problems:
        raise PageError(f"{case.name}.ipynb may not be published: {'; '.join(problems)}")
    if not cells or cells[0]["cell_type"] != "markdown" or not source_of(cells[0]).startswith("# "):
        raise PageError(f"{case.name}.ipynb must start with a Markdown cell whose first line is its title, `# ...`")
    targets = _TARGET.findall("\n".join(source_of(cell) for cell in cells if cell["cell_type"] == "markdown"))
    if missing := [verdict.id for verdict in case.verdicts if verdict.id.lower() not in targets]:
        raise PageError(f"{case.name}.ipynb has no target for {', '.join(missing)}; write `({missing[0].lower()})=` "
                        "on the line before the heading of its trial")  # fmt: skip


def _shown(case: Case, cell: dict) -> dict:
    """Return a cell with figures in files and measurements in verdict lines, without the records for the runner."""
    outputs = [dict(output) for output in cell.get("outputs", [])]
    for output in outputs:
        if "data" in output:
            output["data"] = {kind: data for kind, data in output["data"].items() if kind not in _RECORDS}
        if text := "".join(output.get("data", {}).get("text/html", "")):
            # pandas heads the column of row names with an empty header, which a screen reader announces.
            shown = linked(with_measurements(case, text), "../").replace("<th></th>", "<td></td>")
            output["data"]["text/html"] = shown
    return cell | {"outputs": outputs} if outputs else cell


def with_measurements(case: Case, text: str) -> str:
    """Return an output's HTML in which each verdict line is followed by value, interval and unit from the records.

    A claim that this book adds is called the book's own.
    """

    def completed(line: re.Match[str]) -> str:
        said = line[0].replace("the report says that (not in the report) ", "this book adds that ")
        verdict = case.verdict(line["claim"])
        if verdict is None or verdict.value is None:
            return said
        return said.removesuffix("</p>") + render("measured.html", verdict=verdict).strip() + "</p>"

    return VERDICT_LINE.sub(completed, text)
