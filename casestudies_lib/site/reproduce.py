"""What the page for those who run the book themselves is made of: runs, sweeps, faults put back, and probes."""

import ast
from collections.abc import Iterable, Sequence
from pathlib import Path

from casestudies_lib.runner.fault_table import FaultRow
from casestudies_lib.site.case import Case
from casestudies_lib.site.markup import html_prose, html_text, stacking_table, table
from casestudies_lib.site.sweeps import provenance_of


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
    return stacking_table("Runs behind this site", columns, (("", row) for row in rows), "runs")


def sweep_table(cases: Sequence[Case]) -> str:
    """Return an HTML table of the committed sweeps: how each was made, what it holds, and whether it is still true."""
    rows = [
        (case.chapter_link(), *_sweep(*found)) for case in cases if (found := provenance_of(case.report)) is not None
    ]
    if not rows:
        return '<p class="fine">No sweep is committed yet.</p>\n'
    columns = ("Chapter", "Made with", "Rows", "State")
    return stacking_table("Sweeps behind the explorers", columns, (("", row) for row in rows), "sweeps")


def _sweep(provenance: dict, changed: Sequence[str]) -> tuple[str, str, str]:
    made = {name: ", ".join(map(str, values)) for name, values in provenance.get("made_with", {}).items() if values}
    versions = "; ".join(f"{html_text(name)} {html_text(text)}" for name, text in made.items())
    more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
    state = f"older than its code: {html_text(', '.join(changed[:3]))}{more}" if changed else "up to date with its code"
    command = f'<code>{html_text(provenance["command"])}</code><span class="fine">{versions}</span>'
    return command, html_text(provenance["rows"]), state


def fault_table(found: Sequence[FaultRow]) -> str:
    """Return an HTML table of the faults: what a user sees of each, the exit code, and what was checked afterwards."""
    columns = ("What goes wrong", "What you see", "Exit code", "What the test found")
    rows = [(html_text(row.fault), _said(row), str(row.exit_code), _listed(row.proof)) for row in found]
    return stacking_table("Faults put in, and what became of them", columns, (("", row) for row in rows), "faults")


def _listed(texts: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{html_prose(text)}</li>' for text in texts)}</ul>"


def _said(row: FaultRow) -> str:
    if not row.sees:
        return '<span class="fine">nothing: it had no time to say anything</span>'
    return "<br>".join(f"<code>{html_text(line)}</code>" for line in row.sees.splitlines())


def probe_table() -> str:
    """Return an HTML table of the probes that the package offers, read from its source without importing torch."""
    package = Path(__file__).resolve().parents[1]
    tree = ast.parse((package / "probes" / "__init__.py").read_text(encoding="utf-8"))
    assignments = {ast.unparse(node.targets[0]): node.value for node in tree.body if isinstance(node, ast.Assign)}
    offered = ast.literal_eval(assignments["OFFERED"])
    rows = [_probe_row(name, package.parent / f"{module.replace('.', '/')}.py") for name, module in offered.items()]
    return table("Probes", ("Probe", "What it finds"), rows, "probes")


def _probe_row(name: str, path: Path) -> tuple[str, str]:
    """Return the name and the first paragraph of a probe's documentation."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    function = next(node for node in body if isinstance(node, ast.FunctionDef) and node.name == name)
    first_paragraph = (ast.get_docstring(function) or "").split("\n\n")[0]
    return f"<code>{html_text(name)}</code>", html_prose(first_paragraph)
