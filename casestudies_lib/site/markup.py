"""Text, numbers, tables and badges as HTML and MyST, so that a text from a file is shown and never obeyed."""

import html
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import date

from casestudies_lib.claims import Verdict
from casestudies_lib.records import SYMBOLS

_CODE = re.compile(r"`([^`]+)`")
_PUNCTUATION = re.compile(r"([!-/:-@\[-`{-~])")
_MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip
_INVISIBLE = ("Cc", "Cf", "Cs", "Co", "Cn")


def visible(text: object) -> str:
    """Return text on one line, with every control, direction or otherwise invisible character named: `⟨U+202E⟩`."""
    one_line = " ".join(str(text).split())
    return "".join(f"⟨U+{ord(c):04X}⟩" if unicodedata.category(c) in _INVISIBLE else c for c in one_line)


def html_text(text: object) -> str:
    """Return text for the inside of an HTML element or attribute value: markup is shown, `code` becomes an element."""
    return html.escape(visible(text))


def html_path(text: object) -> str:
    """Return a path for the inside of an HTML element that a narrow page may break after `/` and `_`."""
    return re.sub(r"([/_])(?=.)", r"\1<wbr>", html_text(text))


def html_prose(text: object) -> str:
    """Return text for the inside of an HTML element, with `code` in backticks set as code."""
    return _CODE.sub(r"<code>\1</code>", html_text(text))


def myst_text(text: object) -> str:
    """Return text for MyST Markdown with no character that Markdown would read as markup."""
    return _PUNCTUATION.sub(r"\\\1", visible(text))


def fenced(code: str) -> str:
    """Return Python code as a Markdown block, within a fence longer than any that the code holds."""
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", code))])
    return f"{fence}python\n{code.strip()}\n{fence}"


def badge(verdict: str) -> str:
    """Return a verdict as symbol and word, so that colour is never the only sign."""
    return f'<span class="verdict {verdict}"><span aria-hidden="true">{SYMBOLS[verdict]}</span> {verdict}</span>'


def number(value: float) -> str:
    """Return a number with three digits and a minus sign."""
    return f"{value:.3g}".replace("-", "−")


def measured(verdict: Verdict) -> str:
    """Return value, 95 % interval and unit as HTML; an em dash where nothing was measured."""
    if verdict.value is None:
        return "—"
    interval = "" if verdict.low == verdict.high else f" <span>[{number(verdict.low)}, {number(verdict.high)}]</span>"
    return f'<span class="measured">{number(verdict.value)}{interval}</span> {html_prose(verdict.unit)}'


def counted(amount: int, noun: str) -> str:
    """Return an amount with its noun: `1 claim`, `2 claims`."""
    return f"{amount} {noun}{'' if amount == 1 else 's'}"


def long_date(day: date) -> str:
    """Return a date as `7 November 2025`, independent of the machine's language."""
    return f"{day.day} {_MONTHS[day.month - 1]} {day.year}"


def table(label: str, columns: Sequence[str], rows: Iterable[Sequence[str]], kind: str) -> str:
    """Return an HTML table in a box that scrolls by itself; cells are HTML already, the first heads its row."""
    head = "".join(f'<th scope="col">{column}</th>' for column in columns)
    body = "".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>\n'
        for first, *rest in rows
    )
    return f"{_box(label, kind)}<table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table>\n</div>\n"


def stacking_table(label: str, columns: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]], kind: str) -> str:
    """Return a table of sentences, which a phone shows as blocks, each cell under its column's name.

    A browser forgets that rows laid out as blocks are a table, so the roles are written out.

    Args:
        label: what the table is called by a screen reader, as text.
        columns: names of the columns, as text.
        rows: attributes of each row, HTML already, and its cells, HTML too; the first cell heads the row.
        kind: class of the table.
    """
    names = "".join(f'<th scope="col" role="columnheader">{html_text(column)}</th>' for column in columns)
    head = f'<thead role="rowgroup"><tr role="row">{names}</tr></thead>'
    body = "".join(_stacking_row(attributes, columns, cells) for attributes, cells in rows)
    box = _box(label, f"{kind} stacking")
    return f'{box}<table role="table">{head}\n<tbody role="rowgroup">\n{body}</tbody></table>\n</div>\n'


def _box(label: str, kind: str) -> str:
    return f'<div class="casebook-table {kind}" tabindex="0" role="region" aria-label="{html_text(label)}">\n'


def _stacking_row(attributes: str, columns: Sequence[str], cells: Sequence[str]) -> str:
    first, *rest = cells
    named = "".join(
        f'<td role="cell" data-label="{html_text(column)}">{cell}</td>' for column, cell in zip(columns[1:], rest)
    )
    return f'<tr role="row"{attributes}><th scope="row" role="rowheader">{first}</th>{named}</tr>\n'


def tally(verdicts: Iterable[Verdict], *, every: bool = False) -> str:
    """Return how many verdicts there are of each kind, as an HTML list; only those there are unless `every`."""
    counts = Counter(verdict.verdict for verdict in verdicts)
    items = "".join(
        f"<li><strong>{counts[name]}</strong> {badge(name)}</li>" for name in SYMBOLS if every or counts[name]
    )
    return f'<ul class="tally">{items}</ul>'
