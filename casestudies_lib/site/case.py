"""A chapter as it goes onto the site: its report, and the result of one complete run of it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pydantic import ValidationError

from casestudies_lib import paths
from casestudies_lib.claims import Report, ReportError, Verdict, parse_report
from casestudies_lib.runner.chapters import read_notebook, source_of
from casestudies_lib.runner.errors import Failure
from casestudies_lib.runner.results import NOTEBOOK, read_result
from casestudies_lib.site.figures import Figure, figures_in

_PROVENANCE = ("started", "seconds", "torch", "python", "platform", "parameters")


class CaseError(Failure):
    """A chapter and its result cannot be shown; the message says what to mend."""


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
    """Read the result of a chapter and check that it belongs to the report file.

    Args:
        name: the notebook's name without its ending.
        folder: the result folder of a complete run.
        reports: the folder of report files; by default that of the repository.

    Raises:
        CasebookError: there is no result, or it is not one of this chapter and report; the message names what to run.
    """
    slug = name.split("_", 1)[1]
    try:
        result = read_result(folder)
        report = parse_report((reports or paths.reports()) / f"{slug}.toml")
        verdicts = tuple(Verdict.model_validate(record) for record in result.verdicts)
    except (ReportError, ValidationError) as error:
        raise CaseError(f"{slug}: {error}") from error
    _check_records(report, verdicts)
    if absent := [field for field in _PROVENANCE if field not in result.provenance]:
        raise CaseError(f"{slug}: its provenance lacks {', '.join(absent)}; run `casebook run {slug}`")
    return Case(name, folder, report, verdicts, result.provenance)


def _check_records(report: Report, records: Sequence[Verdict]) -> None:
    """Refuse records of another chapter, of other claims, or judged by a rule that the report no longer holds."""
    expected = [(report.slug, claim.id, claim.rule) for claim in report.claims]
    came = [(record.chapter, record.id, record.rule) for record in records]
    if sorted(expected) != sorted(came):
        differing = sorted(set(expected) ^ set(came)) or came
        raise CaseError(
            f"{report.slug}: verdicts and report differ in {', '.join(dict.fromkeys(entry[1] for entry in differing))} "
            f"(claim, chapter or rule); run `casebook run {report.slug}` again"
        )
