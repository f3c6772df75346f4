"""The generated part of the front page: all verdicts counted, and each incident with its figure and its own count."""

from collections.abc import Sequence
from pathlib import Path

from casestudies_lib.claims import Report
from casestudies_lib.site.case import Case
from casestudies_lib.site.markup import counted, html_prose, html_text, tally
from casestudies_lib.site.pictures import symptom_picture


def landing_board(cases: Sequence[Case], waiting: Sequence[Report], figures: Path) -> str:
    """Return the summary as HTML.

    Args:
        cases: the chapters on the site.
        waiting: reports that have no chapter yet.
        figures: the folder that figures are written to.
    """
    verdicts = [verdict for case in cases for verdict in case.verdicts]
    total = f"{counted(len(verdicts), 'claim')} on trial in {counted(len(cases), 'incident')}"
    cards = "".join(_card(case, figures) for case in cases)
    score = f'<div class="scoreboard">\n<p class="total">{total}</p>\n{tally(verdicts, every=True)}\n</div>\n'
    return f'{score}<ul class="incidents">\n{cards}</ul>\n\n{_in_preparation(waiting)}'


def _card(case: Case, figures: Path) -> str:
    """Return one incident; the whole card is one target for the mouse, the title the only one for the keyboard."""
    picture = symptom_picture(case.notebook, figures)
    shown = picture.markup("", lazy=False) if picture else ""
    number = html_text(case.name.split("_")[0])
    return (
        f'<li>{shown}\n<p class="incident-title"><span class="fine">Case {number}</span> {case.chapter_link()}</p>\n'
        f"{tally(case.verdicts)}</li>\n"
    )


def _in_preparation(waiting: Sequence[Report]) -> str:
    if not waiting:
        return ""
    titles = "; ".join(html_prose(report.title) for report in waiting)
    return f'<p class="fine">In preparation: {titles}.</p>\n'
