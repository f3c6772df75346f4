"""What a sweep measured behind the verdicts, as tables: a line a setting, a column for each point of the grid."""

from collections.abc import Iterator

import pandas as pd

from casestudies_lib.site.markup import html_text, number, table

_SETTING, _PARAMETER = "setting_", "param_"
_MISSING = "—"


def measure_tables(frame: pd.DataFrame, swept: list[str]) -> str:
    """Return a table for each measure of each claim as HTML, folded; empty where the sweep kept no measurement.

    A cell holds the mean over all seeds and, in brackets, the smallest and the largest value.

    Args:
        frame: the lines of the evidence, columns as in `data/README.md`.
        swept: names of the parameters that take several values.
    """
    lines = frame[frame["record"] == "measurement"] if "record" in frame else frame.iloc[:0]
    if lines.empty:
        return ""
    parts = lines.groupby(["claim", "measure", "unit"], sort=False)
    tables = "".join(_table(*name, part, swept) for name, part in parts)
    seeds = lines["seed"].nunique()
    return (
        f'<details class="measures">\n<summary>What these runs measured, {seeds} seeds, mean [smallest, largest]'
        f"</summary>\n{tables}</details>\n"
    )


def _table(claim: str, measure: str, unit: str, lines: pd.DataFrame, swept: list[str]) -> str:
    parameters = [_PARAMETER + name for name in swept]
    points = lines[parameters].drop_duplicates().sort_values(parameters)
    heads = [", ".join(f"{name} {_text(value)}" for name, value in zip(swept, point)) for point in points.to_numpy()]
    settings = _telling(lines, parameters)
    rows = [[html_text(name), *cells] for name, cells in _rows(lines, settings, parameters, points)]
    title = f"{claim} · {measure} ({unit})"
    columns = [html_text(title), *(html_text(head) for head in heads)]
    return table(title, columns, rows, "measured-sweep")


def _telling(lines: pd.DataFrame, parameters: list[str]) -> list[str]:
    """Return the columns of settings that tell lines of one point of the grid apart."""
    columns = [column for column in lines if column.startswith(_SETTING) and lines[column].notna().any()]
    return [name for name in columns if lines.groupby(parameters)[name].nunique(dropna=False).gt(1).any()]


def _rows(
    lines: pd.DataFrame, settings: list[str], parameters: list[str], points: pd.DataFrame
) -> Iterator[tuple[str, list[str]]]:
    groups = lines.groupby(settings, sort=False, dropna=False) if settings else [((), lines)]
    for setting, group in groups:
        told = [
            f"{name.removeprefix(_SETTING)} {_text(value)}" for name, value in zip(settings, setting) if value == value
        ]
        values = group.groupby(parameters)["value"]
        found = {key if isinstance(key, tuple) else (key,): part for key, part in values}
        yield ", ".join(told) or "all", [_cell(found.get(tuple(point))) for point in points.to_numpy()]


def _cell(values: pd.Series | None) -> str:
    if values is None:
        return _MISSING
    return f"{number(values.mean())} <span>[{number(values.min())}, {number(values.max())}]</span>"


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
