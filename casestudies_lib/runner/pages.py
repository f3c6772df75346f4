"""Generates the parts of the site that no hand may type: board, tallies, symptom index, run table, chapter headers.

Every text from a report file or a verdict record passes through `html_text` or `myst_text`, so that it is shown and
never obeyed.
"""

import ast
import html
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path

from pydantic import ValidationError

from casestudies_lib import paths
from casestudies_lib.claims import SYMBOLS, Report, ReportError, Verdict, load_report
from casestudies_lib.runner.fault_table import FaultRow
from casestudies_lib.runner.results import ResultError, read_result

_PROVENANCE = ("started", "seconds", "torch", "python", "platform")
_CODE = re.compile(r"`([^`]+)`")
_PUNCTUATION = re.compile(r"([!-/:-@\[-`{-~])")
_MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip
_INVISIBLE = ("Cc", "Cf", "Cs", "Co", "Cn")


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


def read_case(slug: str, folder: Path) -> Case:
    """Read the result of a chapter and check that it belongs to the report file as it stands.

    Raises:
        ResultError: the folder holds no sealed result, the report file or the notebook is missing or wrong, or the
            records are not those that the report file asks for.
    """
    result = read_result(folder)
    try:
        report = load_report(slug)
        verdicts = tuple(Verdict.model_validate(record) for record in result.verdicts)
    except (ReportError, ValidationError) as error:
        raise ResultError(f"{slug}: {error}") from error
    _check_records(report, verdicts)
    if absent := [name for name in _PROVENANCE if name not in result.provenance]:
        raise ResultError(f"{slug}: {folder / 'provenance.json'} lacks {', '.join(absent)}; run `casebook run {slug}`")
    return Case(_notebook_name(slug), folder, report, verdicts, result.provenance)


def _notebook_name(slug: str) -> str:
    found = [path.stem for path in paths.notebooks().glob("*.ipynb") if re.fullmatch(rf"[0-9]+_{slug}", path.stem)]
    if len(found) != 1:
        raise ResultError(
            f"{slug}: {len(found)} notebooks are named N_{slug}.ipynb in {paths.notebooks()}; one is needed"
        )
    return found[0]


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


def visible(text: object) -> str:
    """Return text on one line, with every control, direction or otherwise invisible character named: `⟨U+202E⟩`."""
    one_line = " ".join(str(text).split())
    return "".join(f"⟨U+{ord(c):04X}⟩" if unicodedata.category(c) in _INVISIBLE else c for c in one_line)


def html_text(text: object) -> str:
    """Return text for the inside of an HTML element or attribute value: markup is shown, `code` becomes an element."""
    return html.escape(visible(text))


def html_prose(text: object) -> str:
    """Return text for the inside of an HTML element, with `code` in backticks set as code."""
    return _CODE.sub(r"<code>\1</code>", html_text(text))


def myst_text(text: object) -> str:
    """Return text for MyST Markdown with no character that Markdown would read as markup."""
    return _PUNCTUATION.sub(r"\\\1", visible(text))


def badge(verdict: str) -> str:
    """Return a verdict as symbol and word, so that colour is never the only sign."""
    return f'<span class="verdict {verdict}"><span aria-hidden="true">{SYMBOLS[verdict]}</span> {verdict}</span>'


def measured(verdict: Verdict) -> str:
    """Return value, 95 % interval and unit as HTML; an em dash where nothing was measured."""
    if verdict.value is None:
        return "—"
    interval = "" if verdict.low == verdict.high else f" <span>[{_number(verdict.low)}, {_number(verdict.high)}]</span>"
    return f'<span class="measured">{_number(verdict.value)}{interval}</span> {html_prose(verdict.unit)}'


def _number(value: float) -> str:
    return f"{value:.3g}".replace("-", "−")


def table(label: str, columns: Sequence[str], rows: Iterable[Sequence[str]], kind: str) -> str:
    """Return an HTML table in a box that scrolls by itself; cells are HTML already, the first heads its row."""
    head = "".join(f'<th scope="col">{column}</th>' for column in columns)
    body = "".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>\n'
        for first, *rest in rows
    )
    return (
        f'<div class="casebook-table {kind}" tabindex="0" role="region" aria-label="{html_text(label)}">\n'
        f"<table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table>\n</div>\n"
    )


def verdict_board(cases: Sequence[Case]) -> str:
    """Return the board as MyST: one section an incident, one row a claim, each linked to its trial."""
    return "\n".join(_board_section(case) for case in cases)


def _board_section(case: Case) -> str:
    rows = [(_claim_link(case, v.id), badge(v.verdict), _claim_cell(v), _evidence_cell(v)) for v in case.verdicts]
    board = table(f"Verdicts: {case.report.title}", ("Claim", "Verdict", "The report says", "Measured"), rows, "board")
    return f"## {myst_text(case.report.title)}\n\n{_source(case.report, 'p')}\n\n{board}"


def _claim_link(case: Case, claim_id: str) -> str:
    return f'<a href="{case.page}#{claim_id.lower()}">{html_text(claim_id)}</a>'


def _claim_cell(verdict: Verdict) -> str:
    return (
        f'{html_prose(verdict.says)}<span class="fine">{html_text(verdict.kind)} · {html_prose(verdict.measure)}</span>'
        f'<span class="fine">{html_text(verdict.rule)}</span>'
    )


def _evidence_cell(verdict: Verdict) -> str:
    count = f"n = {verdict.n}" if verdict.n else "not measured"
    control = "" if verdict.control is None else f" · control {_number(verdict.control)}"
    return f'{measured(verdict)}<span class="fine">{count}{control}</span>'


def _source(report: Report, element: str) -> str:
    repository, document, day = report.source.repository, report.source.document, report.source.date
    source = f"{html_text(repository)}, <cite>{html_text(document)}</cite>, {html_text(day)}"
    return f'<{element} class="source">Report: {source}</{element}>'


def long_date(day: date) -> str:
    """Return a date as `7 November 2025`, independent of the machine's language."""
    return f"{day.day} {_MONTHS[day.month - 1]} {day.year}"


def tally(verdicts: Iterable[Verdict], *, every: bool = False) -> str:
    """Return how many verdicts there are of each kind, as an HTML list; only those there are unless `every`."""
    counts = Counter(verdict.verdict for verdict in verdicts)
    items = "".join(
        f"<li><strong>{counts[name]}</strong> {badge(name)}</li>" for name in SYMBOLS if every or counts[name]
    )
    return f'<ul class="tally">{items}</ul>'


def landing_board(cases: Sequence[Case], waiting: Sequence[Report]) -> str:
    """Return the summary on the front page: all verdicts counted, then each incident with its own count."""
    verdicts = [verdict for case in cases for verdict in case.verdicts]
    total = f'<p class="total">{_count(len(verdicts), "claim")} on trial in {_count(len(cases), "incident")}</p>'
    incidents = "".join(
        f'<li><a href="{case.page}">{html_prose(case.report.title)}</a>\n{tally(case.verdicts)}</li>\n'
        for case in cases
    )
    score = f'<div class="scoreboard">\n{total}\n{tally(verdicts, every=True)}\n</div>\n'
    return f'{score}<ul class="incidents">\n{incidents}</ul>\n\n{_in_preparation(waiting)}'


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _in_preparation(waiting: Sequence[Report]) -> str:
    if not waiting:
        return ""
    titles = "; ".join(html_prose(report.title) for report in waiting)
    return f'<p class="fine">In preparation: {titles}.</p>\n'


def symptom_index(cases: Sequence[Case]) -> str:
    """Return the symptom index as an HTML table: what a log shows, the claim that explains it, probe and chapter."""
    rows = [row for case in cases for row in _symptom_rows(case)]
    if not rows:
        return '<p class="fine">No report file lists a symptom yet.</p>\n'
    return table("Symptom index", ("What you see", "Explained by", "Find it with", "Chapter"), rows, "symptoms")


def _symptom_rows(case: Case) -> list[tuple[str, ...]]:
    verdicts = {verdict.id: verdict for verdict in case.verdicts}
    return [
        (
            html_prose(symptom.shows),
            f"{_claim_link(case, symptom.claim)} {badge(verdicts[symptom.claim].verdict)}"
            f'<span class="fine">{html_prose(verdicts[symptom.claim].says)}</span>',
            _probe_link(symptom.probe),
            f'<a href="{case.page}">{html_prose(case.report.title)}</a>',
        )
        for symptom in case.report.symptoms
    ]


def _probe_link(probe: str | None) -> str:
    if probe is None:
        return '<span class="fine">no probe: repeat the trial on your own model</span>'
    return f'<a href="probes.html"><code>{html_text(probe)}</code></a>'


def run_table(cases: Sequence[Case]) -> str:
    """Return an HTML table of the runs behind the site: when, how long, and with which versions."""
    columns = ("Chapter", "Last verified", "Seconds", "torch", "Python", "Platform")
    rows = [
        (
            f'<a href="{case.page}">{html_prose(case.report.title)}</a>',
            _verified(case),
            f"{float(case.provenance['seconds']):.0f}",
            *(html_text(case.provenance[name] or "—") for name in ("torch", "python", "platform")),
        )
        for case in cases
    ]
    return table("Runs behind this site", columns, rows, "runs")


def _verified(case: Case) -> str:
    started = str(case.provenance["started"])
    try:
        return long_date(datetime.fromisoformat(started).date())
    except ValueError as error:
        raise ResultError(f"{case.report.slug}: provenance.json says it started {started!r}; a UTC time in ISO form "
                          "is needed") from error  # fmt: skip


def chapter_header(case: Case) -> str:
    """Return the block under a chapter's title: source, verdict counts, run, download."""
    seconds, torch = float(case.provenance["seconds"]), case.provenance["torch"]
    version = f" on torch {html_text(torch)}" if torch else ""
    return (
        f'<div class="case-header">\n{_source(case.report, "p")}\n{tally(case.verdicts)}\n'
        f"<p>Last verified{version}, {_verified(case)}, in {seconds:.0f} s. "
        f'<a href="../downloads/{case.name}.ipynb" download>Notebook</a> · '
        f'<a href="../downloads/{case.name}.verdicts.json" download>verdicts</a></p>\n</div>\n'
    )


def fault_table(rows: Sequence[FaultRow]) -> str:
    """Return an HTML table of the faults: what a user sees of each, the exit code, and what was checked afterwards."""
    columns = ("What goes wrong", "What you see", "Exit code", "What the test found")
    cells = [(html_text(row.fault), _said(row), str(row.exit_code), _listed(row.proof)) for row in rows]
    return table("Faults put in, and what became of them", columns, cells, "faults")


def _listed(texts: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{html_prose(text)}</li>' for text in texts)}</ul>"


def _said(row: FaultRow) -> str:
    if not row.sees:
        return '<span class="fine">nothing: it had no time to say anything</span>'
    return "<br>".join(f"<code>{html_text(line)}</code>" for line in row.sees.splitlines())


def probe_table() -> str:
    """Return an HTML table of the probes that the package holds, read from their source without importing them."""
    rows = [row for path in sorted(_probe_folder().glob("[a-z]*.py")) if (row := _probe_row(path))]
    return table("Probes", ("Probe", "What it finds"), rows, "probes")


def _probe_folder() -> Path:
    return Path(__file__).resolve().parent.parent / "probes"


def _probe_row(path: Path) -> tuple[str, str] | None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body:
        returned = ast.unparse(node.returns) if isinstance(node, ast.FunctionDef) and node.returns else ""
        if returned == "ProbeResult" and node.name == path.stem:
            first_line = (ast.get_docstring(node) or "").split("\n\n")[0]
            return f"<code>{html_text(node.name)}</code>", html_prose(first_line)
    return None
