"""The verdict board: one row a claim, linked to its trial, with what a filter needs to know of it."""

from collections.abc import Sequence

from casestudies_lib.claims import Verdict, typeset
from casestudies_lib.site.case import Case
from casestudies_lib.site.markup import (
    badge,
    html_prose,
    html_text,
    measured,
    myst_text,
    number,
    stacking_table,
)

_COLUMNS = ("Claim", "Verdict", "The report says", "Measured")


def verdict_board(cases: Sequence[Case]) -> str:
    """Return the board as MyST: one section an incident, one row a claim; `board.js` adds the filter to it."""
    return "\n".join(_section(case) for case in cases)


def _section(case: Case) -> str:
    rows = [(_attributes(v), (case.trial_link(v.id), badge(v.verdict), _claim(v), _evidence(v))) for v in case.verdicts]
    board = stacking_table(f"Verdicts: {case.report.title}", _COLUMNS, rows, "board")
    return f'## {myst_text(case.report.title)}\n\n<p class="source">Report: {case.source}</p>\n\n{board}'


def _attributes(verdict: Verdict) -> str:
    return f' data-kind="{html_text(verdict.kind)}" data-verdict="{html_text(verdict.verdict)}"'


def _claim(verdict: Verdict) -> str:
    return (
        f'{html_prose(verdict.says)}<span class="fine">{html_text(verdict.kind)} · {html_prose(verdict.measure)}</span>'
        f'<span class="fine">{html_text(typeset(verdict.rule))}</span>'
    )


def _evidence(verdict: Verdict) -> str:
    count = f"n = {verdict.n}" if verdict.n else "not measured"
    control = "" if verdict.control is None else f" · control {number(verdict.control)}"
    return f'{measured(verdict)}<span class="fine">{count}{control}</span>'
