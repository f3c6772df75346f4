"""What every probe returns: findings, a table, a chart and one answer (`ok`).

One rule joins severities and `ok`, for all probes, and a result that breaks it cannot be made:

- a finding is a `fault` if training does not do what its owner wants, or will break; a `warning` if it wastes or risks
  something that the owner would want to decide about; a `note` if it may well be meant, or is usual;
- `ok` is False if and only if a finding is a fault or a warning;
- otherwise `ok` is None if something that the answer depends on could not be looked at, with the reason, else True.
"""

import html
import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import matplotlib.axes
    import pandas

SEVERITIES = ("note", "warning", "fault")
UNKNOWN = ("warn", "raise", "pass")
ROWS_IN_HTML = 30
_ANSWERS = {True: "✓ nothing found", False: "✗ found", None: "? cannot tell"}
_MARKS = {"fault": "✗ fault", "warning": "! warning", "note": "· note"}
_FAULT_BAR = {"facecolor": "#fdd0a2", "edgecolor": "#d95f02", "hatch": "///", "linestyle": "--", "linewidth": 1.5}
_FIX_BAR = {"facecolor": "#1f77b4", "edgecolor": "#1f77b4", "linestyle": "-", "linewidth": 1.5}


class ProbeInputError(ValueError):
    """A probe was given something it cannot work with; the message says what came and what to give instead."""


class ProbeFault(Exception):
    """A probe found what it looks for, or could not tell where that was asked for; the message says what and where."""


@dataclass(frozen=True)
class Finding:
    """One thing a probe found.

    Attributes:
        severity: `fault`, `warning` or `note`, by the rule at the head of this module.
        where: the part of the reader's model, by its own names.
        measured: the numbers, with units.
        meaning: what they imply for the training.
        what_to_do: the change that removes the finding.
        chapter: the slug of the chapter that tells the incident.
    """

    severity: Literal["fault", "warning", "note"]
    where: str
    measured: str
    meaning: str
    what_to_do: str
    chapter: str

    def __post_init__(self) -> None:
        """Refuse a severity that nobody would look for."""
        if self.severity not in SEVERITIES:
            raise ValueError(f"severity is {self.severity!r}; allowed are {', '.join(SEVERITIES)}")

    def __str__(self) -> str:
        """Return the finding as four short lines."""
        return f"{_MARKS[self.severity]}: {self.where}\n  {self.measured}\n  {self.meaning}\n  → {self.what_to_do}"


@dataclass(frozen=True)
class Bar:
    """One bar of a probe's chart; `faulty` bars are drawn in orange, dashed and hatched, the others in solid blue."""

    label: str
    value: float
    faulty: bool


@dataclass(frozen=True, repr=False)
class ProbeResult:
    """The answer of a probe, in the forms a notebook, a log and a test want it.

    Attributes:
        probe: the probe's name.
        ok: False if a finding is a fault or a warning; else True, or None if the probe cannot tell.
        headline: the answer in one sentence.
        findings: the worst first.
        columns, rows: the table behind the findings; every row has one cell a column.
        bars, bar_unit: the chart behind the headline.
        measures: totals by name, for programs.
        reason: why the probe cannot tell; empty unless `ok` is None.
    """

    probe: str
    ok: bool | None
    headline: str
    findings: tuple[Finding, ...] = ()
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[Any, ...], ...] = ()
    bars: tuple[Bar, ...] = ()
    bar_unit: str = ""
    measures: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""

    def __post_init__(self) -> None:
        """Refuse results that contradict themselves."""
        if (self.ok is None) != bool(self.reason):
            raise ValueError(
                f"ok is {self.ok} and reason is {self.reason!r}; a reason belongs to ok=None, and only there"
            )
        if (self.ok is False) != any(finding.severity != "note" for finding in self.findings):
            raise ValueError(
                f"ok is {self.ok}, and the findings' severities are "
                f"{', '.join(finding.severity for finding in self.findings) or 'none'}; ok is False if and only if one "
                "of them is a fault or a warning"
            )
        if any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError(f"every row needs {len(self.columns)} cells, one a column: {', '.join(self.columns)}")

    def __bool__(self) -> bool:
        """Refuse to be a condition: `ok` has three values and an `if` only two."""
        raise TypeError("a ProbeResult is not true or false; ask `result.ok is True`, or call result.raise_if_found()")

    def table(self) -> "pandas.DataFrame":
        """Return the rows as a DataFrame; a cell without a value stays None, where pandas would make it NaN."""
        import pandas

        cells = [list(column) for column in zip(*self.rows)] if self.rows else [[] for _ in self.columns]
        columns = [pandas.Series(column, dtype=object if None in column else None) for column in cells]
        return pandas.DataFrame(dict(enumerate(columns))).set_axis(list(self.columns), axis=1)

    def plot(self, axes: "matplotlib.axes.Axes | None" = None) -> "matplotlib.axes.Axes":
        """Draw the bars, faulty ones orange, dashed and hatched, the others solid blue, and return the axes."""
        if axes is None:
            from matplotlib import pyplot

            _, axes = pyplot.subplots(figsize=(6, 1 + 0.4 * max(len(self.bars), 1)), layout="constrained")
        for position, bar in enumerate(self.bars):
            axes.barh(position, bar.value, **(_FAULT_BAR if bar.faulty else _FIX_BAR))
            axes.annotate(f" {shown(bar.value)}", (bar.value, position), va="center")
        # A "$" in a parameter's name must not be read as mathematics.
        axes.set_yticks(range(len(self.bars)), [bar.label for bar in self.bars], parse_math=False)
        axes.invert_yaxis()
        axes.margins(x=0.15)
        axes.set_xlabel(self.bar_unit, parse_math=False)
        axes.set_title(f"{self.probe}: {_ANSWERS[self.ok]}", parse_math=False)
        return axes

    def alt_text(self) -> str:
        """Return what the chart shows, for readers who cannot see it."""
        bars = "; ".join(f"{bar.label} {shown(bar.value)}" for bar in self.bars)
        return f"Bar chart ({self.bar_unit}): {bars}. {self.headline}" if bars else self.headline

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON values; NaN and infinity become None."""
        return _plain(
            {
                "probe": self.probe,
                "ok": self.ok,
                "headline": self.headline,
                "reason": self.reason,
                "findings": [asdict(finding) for finding in self.findings],
                "rows": [dict(zip(self.columns, row)) for row in self.rows],
                "measures": dict(self.measures),
            }
        )

    def raise_if_found(self, *, unknown: Literal["warn", "raise", "pass"] = "warn") -> None:
        """Raise if `ok` is False; for tests and training scripts.

        Args:
            unknown: what to do where `ok` is None: issue a UserWarning, raise as well, or nothing.

        Raises:
            ProbeFault: names every fault and warning, or the reason why the probe cannot tell.
        """
        if unknown not in UNKNOWN:
            raise ProbeInputError(f"unknown is {unknown!r}; allowed are {', '.join(UNKNOWN)}")
        if self.ok is False:
            found = [str(finding) for finding in self.findings if finding.severity != "note"]
            raise ProbeFault("\n".join([f"{self.probe}: {self.headline}", *found]))
        if self.ok is None and unknown != "pass":
            message = f"{self.probe} cannot tell: {self.reason}"
            if unknown == "raise":
                raise ProbeFault(message)
            warnings.warn(message, stacklevel=2)

    def __repr__(self) -> str:
        """Return answer, findings and how to see more, as text."""
        lines = [f"{self.probe}: {_ANSWERS[self.ok]}. {self.headline}"]
        lines += [f"reason: {self.reason}"] if self.reason else []
        return "\n".join(lines + [str(finding) for finding in self.findings])

    def _repr_html_(self) -> str:
        parts = [f"<p><strong>{_text(self.probe)}: {_text(_ANSWERS[self.ok])}.</strong> {_text(self.headline)}</p>"]
        if self.reason:
            parts.append(f"<p>Reason: {_text(self.reason)}</p>")
        if self.findings:
            parts.append(f"<ul>{''.join(map(_finding_html, self.findings))}</ul>")
        if self.rows:
            parts.append(self._table_html())
        return "\n".join(parts)

    def _table_html(self) -> str:
        first = self.rows[:ROWS_IN_HTML]
        left = len(self.rows) - len(first)
        more = f" (first {len(first)} of {len(self.rows)} rows; table() has all)" if left else ""
        head = "".join(f'<th scope="col">{_text(column)}</th>' for column in self.columns)
        body = "".join(f"<tr>{_row_html(row)}</tr>" for row in first)
        caption = f"<caption>{_text(self.probe)}: what was measured{more}</caption>"
        return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _finding_html(finding: Finding) -> str:
    lines = [finding.measured, finding.meaning, f"→ {finding.what_to_do}"]
    mark = f"<strong>{_text(_MARKS[finding.severity])}</strong>: <code>{_text(finding.where)}</code>"
    return f"<li>{'<br>'.join([mark, *map(_text, lines)])}</li>"


def _row_html(row: tuple[Any, ...]) -> str:
    first, *rest = (_text(shown(cell)) for cell in row)
    return f'<th scope="row">{first}</th>' + "".join(f"<td>{cell}</td>" for cell in rest)


def _text(value: object) -> str:
    return html.escape(str(value), quote=True)


def listed(names: Iterable[str], most: int = 4) -> str:
    """Return the first names with commas between them, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def percent(part: float, whole: float) -> str:
    """Return a share as text, three digits; nothing of nothing is 0 %."""
    return f"{100 * part / whole:.3g} %" if whole else "0 %"


def shown(value: object) -> str:
    """Return a value as a reader wants it: three digits, thousands apart, words for the rest."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}".replace(",", " ")
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _plain(value: Any) -> Any:
    """Return the value in JSON's own types; arrays' and tensors' single numbers become numbers."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return _plain(value.item()) if hasattr(value, "item") else str(value)
