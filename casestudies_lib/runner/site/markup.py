"""Text, numbers, tables and badges as HTML and MyST, so that a text from a file is shown and never obeyed."""

import html
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import date

from casestudies_lib.claims import SYMBOLS, Verdict

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
    return framed_table(label, columns, (("", cells) for cells in rows), kind)


def framed_table(label: str, columns: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]], kind: str) -> str:
    """Return a table as `table` does, each row with attributes of its own, which are HTML already."""
    head = "".join(f'<th scope="col">{column}</th>' for column in columns)
    body = "".join(
        f'<tr{attributes}><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>\n'
        for attributes, (first, *rest) in rows
    )
    return (
        f'<div class="casebook-table {kind}" tabindex="0" role="region" aria-label="{html_text(label)}">\n'
        f"<table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table>\n</div>\n"
    )


def tally(verdicts: Iterable[Verdict], *, every: bool = False) -> str:
    """Return how many verdicts there are of each kind, as an HTML list; only those there are unless `every`."""
    counts = Counter(verdict.verdict for verdict in verdicts)
    items = "".join(
        f"<li><strong>{counts[name]}</strong> {badge(name)}</li>" for name in SYMBOLS if every or counts[name]
    )
    return f'<ul class="tally">{items}</ul>'
