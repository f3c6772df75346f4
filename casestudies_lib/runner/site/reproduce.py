"""What the page for those who run the book themselves is made of: runs, sweeps, faults put back, and probes."""

import ast
from collections.abc import Iterable, Sequence
from pathlib import Path

from casestudies_lib.runner.fault_table import FaultRow
from casestudies_lib.runner.site.case import Case
from casestudies_lib.runner.site.markup import html_prose, html_text, table
from casestudies_lib.runner.site.sweeps import provenance_rows

_SCALARS = (str, int, float, bool)


def run_table(cases: Sequence[Case]) -> str:
    """Return an HTML table of the runs behind the site: when, how long, and with which versions."""
    columns = ("Chapter", "Last verified", "Seconds", "torch", "Python", "Platform")
    rows = [
        (
            case.chapter_link(),
            case.verified,
            f"{float(case.provenance['seconds']):.0f}",
            *(html_text(case.provenance[name] or "—") for name in ("torch", "python", "platform")),
        )
        for case in cases
    ]
    return table("Runs behind this site", columns, rows, "runs")


def sweep_table(cases: Sequence[Case]) -> str:
    """Return an HTML table of the committed sweeps: chapter, file, and every plain value of their provenance."""
    found = provenance_rows([case.report for case in cases])
    if not found:
        return '<p class="fine">No sweep is committed yet.</p>\n'
    chapters = {case.report.slug: case.chapter_link() for case in cases}
    rows = [
        (chapters[report.slug], f"<code>data/evidence/{report.slug}.parquet</code>", _provenance(provenance))
        for report, provenance in found
    ]
    return table("Sweeps behind the explorers", ("Chapter", "Evidence", "Provenance"), rows, "sweeps")


def _provenance(provenance: dict) -> str:
    shown = {name: value for name, value in provenance.items() if isinstance(value, _SCALARS)}
    return "; ".join(f"{html_text(name)}: {html_text(value)}" for name, value in shown.items())


def fault_table(found: Sequence[FaultRow]) -> str:
    """Return an HTML table of the faults: what a user sees of each, the exit code, and what was checked afterwards."""
    columns = ("What goes wrong", "What you see", "Exit code", "What the test found")
    rows = [(html_text(row.fault), _said(row), str(row.exit_code), _listed(row.proof)) for row in found]
    return table("Faults put in, and what became of them", columns, rows, "faults")


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
    return Path(__file__).resolve().parents[2] / "probes"


def _probe_row(path: Path) -> tuple[str, str] | None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body:
        returned = ast.unparse(node.returns) if isinstance(node, ast.FunctionDef) and node.returns else ""
        if returned == "ProbeResult" and node.name == path.stem:
            first_line = (ast.get_docstring(node) or "").split("\n\n")[0]
            return f"<code>{html_text(node.name)}</code>", html_prose(first_line)
    return None
