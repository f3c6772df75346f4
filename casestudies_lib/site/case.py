"""A chapter as it goes onto the site: its report, and the result of one complete run of it."""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from casestudies_lib import paths
from casestudies_lib.claims import Verdict
from casestudies_lib.reports import Report, parse_report
from casestudies_lib.runner.chapters import read_notebook, source_of
from casestudies_lib.runner.results import NOTEBOOK, read_result
from casestudies_lib.site.figures import Figure, figures_in


@dataclass(frozen=True)
class Case:
    """One chapter; `name` is that of its notebook, `1_zero_weight_head`."""

    name: str
    folder: Path
    report: Report
    verdicts: tuple[Verdict, ...]
    provenance: dict

    @property
    def slug(self) -> str:
        """Return the chapter's name on the command line."""
        return self.report.slug

    @property
    def number(self) -> int:
        """Return the chapter's place in the book."""
        return int(self.name.split("_")[0])

    @property
    def page(self) -> str:
        """Return the chapter's address, relative to the site's front page."""
        return f"notebooks/{self.name}.html"

    @property
    def slides(self) -> str:
        """Return the address of the chapter's slides, relative to the site's front page."""
        return f"slides/{self.name}.html"

    @property
    def line(self) -> str:
        """Return the case in one sentence: the first of the report's summary."""
        return re.split(r"(?<=[.?!])\s", self.report.summary.strip())[0]

    @cached_property
    def notebook(self) -> dict:
        """Return the executed notebook."""
        return read_notebook(self.folder / NOTEBOOK)

    @property
    def picture(self) -> Figure | None:
        """Return the figure that represents the chapter: the first after its heading "symptom", else its first."""
        found = list(figures_in(self.notebook))
        headings = [
            index
            for index, cell in enumerate(self.notebook["cells"])
            if cell["cell_type"] == "markdown" and re.search(r"^#+ .*symptom", source_of(cell), re.MULTILINE | re.I)
        ]
        later = [figure for index, figure in found if headings and index > headings[0]]
        return next(iter([*later, *(figure for _, figure in found)]), None)

    def verdict(self, claim_id: str) -> Verdict | None:
        """Return the verdict on a claim, or None where the report holds no such claim."""
        return next((verdict for verdict in self.verdicts if verdict.id == claim_id), None)


def read_case(name: str, folder: Path, reports: Path | None = None) -> Case:
    """Read the result of a chapter and its report.

    Args:
        name: the notebook's name without its ending.
        folder: the result folder of a complete run, made with the report as it is now.
        reports: the folder of report files; by default that of the repository.

    Raises:
        ResultError: there is no complete result in the folder.
        ReportError: the report file is missing or wrong.
    """
    result = read_result(folder)
    report = parse_report((reports or paths.reports()) / f"{name.split('_', 1)[1]}.toml")
    verdicts = tuple(Verdict.model_validate(record) for record in result.verdicts)
    return Case(name, folder, report, verdicts, result.provenance)
