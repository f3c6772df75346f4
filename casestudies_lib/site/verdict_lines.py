"""Verdict lines as readers see them: with what was measured, and honest about claims that the report does not make."""

import re

from casestudies_lib.site.case import Case
from casestudies_lib.site.markup import measured

_LINE = re.compile(r'<p class="casebook-verdict[^>]*>\s*(?:<[^>]*>)*\s*(?P<claim>\w+).*?</p>', re.DOTALL)
_OURS = "the report says that (not in the report) "


def judged_in(html: str) -> list[str]:
    """Return the ids of the claims whose verdict lines stand in the outputs of a chapter."""
    return [line["claim"] for line in _LINE.finditer(html)]


def lines_of(case: Case, html: str) -> str:
    """Return the verdict lines that stand in the outputs of a chapter, and nothing else."""
    return "".join(line[0] for line in _LINE.finditer(with_measurements(case, html)))


def with_measurements(case: Case, html: str) -> str:
    """Return outputs whose verdict lines end with value, interval and unit, taken from the records of the run."""
    values = {verdict.id: measured(verdict) for verdict in case.verdicts if verdict.value is not None}

    def completed(line: re.Match) -> str:
        said = line[0].replace(_OURS, "this book adds that ")
        value = values.get(line["claim"])
        return f'{said.removesuffix("</p>")}<span class="fine">Measured: {value}</span></p>' if value else said

    return _LINE.sub(completed, html)
