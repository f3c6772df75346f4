"""A chapter as it goes onto the site, read from its result folder; a result that is not true any more is refused."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from pydantic import ValidationError

from casestudies_lib import paths
from casestudies_lib.claims import Report, ReportError, Verdict, load_report
from casestudies_lib.runner.chapters import find_chapter, read_notebook
from casestudies_lib.runner.parameters import read_parameters
from casestudies_lib.runner.results import FAILED, NOTEBOOK, Result, ResultError, read_result, staleness
from casestudies_lib.site.markup import html_path, html_prose, html_text, long_date

_PROVENANCE = ("started", "seconds", "torch", "python", "platform")


@dataclass(frozen=True)
class Case:
    """One chapter as it goes onto the site: its report, and the result of one complete run."""

    name: str
    folder: Path
    report: Report
    verdicts: tuple[Verdict, ...]
    provenance: dict

    @property
    def page(self) -> str:
        """Return the chapter's address, relative to the site's front page."""
        return f"notebooks/{self.name}.html"

    @property
    def slides(self) -> str:
        """Return the address of the chapter's slides, relative to the site's front page."""
        return f"slides/{self.name}.html"

    @property
    def notebook(self) -> dict:
        """Return the executed notebook."""
        return read_notebook(self.folder / NOTEBOOK)

    @property
    def verified(self) -> str:
        """Return the day of the run, in words.

        Raises:
            ResultError: the provenance holds no such time.
        """
        started = str(self.provenance["started"])
        try:
            return long_date(datetime.fromisoformat(started).date())
        except ValueError as error:
            raise ResultError(f"{self.report.slug}: provenance.json says it started {started!r}; a UTC time in ISO "
                              "form is needed") from error  # fmt: skip

    @property
    def source(self) -> str:
        """Return where the report was published, as HTML."""
        source = self.report.source
        return f"{html_path(source.repository)}, <cite>{html_path(source.document)}</cite>, {html_text(source.date)}"

    def trial_link(self, claim_id: str, root: str = "") -> str:
        """Return an HTML link to the trial of a claim, its id as text; `root` leads to the site's front page."""
        return f'<a href="{root}{self.page}#{claim_id.lower()}">{html_text(claim_id)}</a>'

    def chapter_link(self, root: str = "") -> str:
        """Return an HTML link to the chapter, its title as text."""
        return f'<a href="{root}{self.page}">{html_prose(self.report.title)}</a>'


def read_case(slug: str, folder: Path) -> Case:
    """Read the result of a chapter and check that it belongs to the report file and the code as they stand.

    Raises:
        ResultError: the folder holds no sealed result, the report file or the notebook is missing or wrong, the records
            are not those that the report file asks for, or something that they follow from has changed since. A failed
            run that stands in the way is named; one that was cut off beside a result which is still true is not.
    """
    result = _result(slug, folder)
    try:
        report = load_report(slug)
        verdicts = tuple(Verdict.model_validate(record) for record in result.verdicts)
    except (ReportError, ValidationError) as error:
        raise ResultError(f"{slug}: {error}") from error
    _check_records(report, verdicts)
    if absent := [name for name in _PROVENANCE if name not in result.provenance]:
        raise ResultError(f"{slug}: {folder / 'provenance.json'} lacks {', '.join(absent)}; run `casebook run {slug}`")
    name = _notebook_name(slug)
    _check_age(slug, result)
    return Case(name, folder, report, verdicts, result.provenance)


def _result(slug: str, folder: Path) -> Result:
    try:
        return read_result(folder)
    except ResultError as error:
        raise ResultError(f"{slug}: {_failure(folder)}{error}; run `casebook run {slug}`") from error


def _failure(folder: Path) -> str:
    return f"its last run failed, see {folder / FAILED}; " if (folder / FAILED).exists() else ""


def _notebook_name(slug: str) -> str:
    found = [path.stem for path in paths.notebooks().glob("*.ipynb") if re.fullmatch(rf"[0-9]+_{slug}", path.stem)]
    if len(found) != 1:
        raise ResultError(
            f"{slug}: {len(found)} notebooks are named N_{slug}.ipynb in {paths.notebooks()}; one is needed"
        )
    return found[0]


def _check_age(slug: str, result: Result) -> None:
    """Refuse verdicts that are older than what they follow from."""
    chapter = find_chapter(slug)
    changed = staleness(result, chapter, read_parameters(read_notebook(chapter.path), chapter.path.name))
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise ResultError(
            f"{slug}: {_failure(result.folder)}its verdicts are older than what they follow from "
            f"({', '.join(changed[:3])}{more}); run `casebook run {slug}`"
        )


def _check_records(report: Report, records: Sequence[Verdict]) -> None:
    """Refuse records of another chapter, of other claims, or judged by a rule that the report no longer holds."""
    again = f"run `casebook run {report.slug}` again"
    expected, came = [claim.id for claim in report.claims], [record.id for record in records]
    if sorted(expected) != sorted(came):
        raise ResultError(f"{report.slug}: verdicts for {', '.join(came) or 'nothing'}; the report holds "
                          f"{', '.join(expected)}; {again}")  # fmt: skip
    claims = {claim.id: claim for claim in report.claims}
    for record in records:
        if record.chapter != report.slug:
            raise ResultError(f"{report.slug}: the verdict of {record.id} belongs to chapter {record.chapter}; {again}")
        if record.rule != claims[record.id].rule:
            raise ResultError(
                f"{report.slug}: {record.id} was judged by another rule than the report holds now; {again}"
            )
