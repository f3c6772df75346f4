"""The explorer of a chapter's committed sweep: a chart that follows native inputs, its picture, its measurements."""

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import altair as alt
import pandas as pd
import vl_convert

from casestudies_lib.figures import FAULT, FIX, OTHER
from casestudies_lib.reports import Report
from casestudies_lib.runner.errors import Failure

_INK = {"upheld": FIX["color"], "refuted": FAULT["color"]}
_SHAPES = {
    "upheld": "square", "refuted": "circle", "inconclusive": "triangle-up", "uninformative": "diamond",
    "untested": "cross",
}  # fmt: skip
_LEGEND = alt.Legend(orient="top", columns=alt.ExprRef("width < 400 ? 2 : 5"))
_WIDTH, _HEIGHT = 520, 280  # pixels
_PARAMETER, _SETTING = "param_", "setting_"
_NOT_SWEPT = ("seed", "n_seeds")


class SweepError(Failure):
    """The evidence of a sweep cannot be shown; the message names the chapter and what is wrong."""


@dataclass(frozen=True)
class SweptClaims:
    """What a sweep found: the values of each swept parameter as text, and one row a run and claim.

    A row holds claim, verdict, value, low, high, seed and, as `i_NAME`, the place of each parameter's value.
    """

    parameters: dict[str, list[str]]
    rows: list[dict]


def explorer(lines: pd.DataFrame, report: Report, used: Mapping[str, object]) -> dict:
    """Return what the template `sweep-explorer.html` shows.

    Args:
        lines: the evidence of the chapter, columns as in `data/README.md`.
        report: the chapter's report.
        used: the parameters that the chapter's page was run with; the explorer opens there.

    Raises:
        SweepError: the evidence holds no parameter with two values, or a claim that the report does not.
    """
    sweep = swept_claims(lines, report)
    claim, across = _first_shown(sweep), next(iter(sweep.parameters))
    own = {name: value_text(used.get(name)) for name in sweep.parameters}
    at = {name: values.index(own[name]) if own[name] in values else 0 for name, values in sweep.parameters.items()}
    spec = _chart(sweep, report, claim, across, at).to_dict()
    picture = base64.b64encode(vl_convert.vegalite_to_svg(spec).encode()).decode()
    tried = {row["claim"] for row in sweep.rows}
    content = {
        "spec": spec, "parameters": sweep.parameters, "rows": sweep.rows, "claim": claim, "across": across, "at": at,
        "own": all(own[name] in values for name, values in sweep.parameters.items()),
        "claims": {
            entry.id: {"says": entry.says, "measure": entry.measure, "unit": entry.unit}
            for entry in report.claims if entry.id in tried
        },
    }  # fmt: skip
    measurements = lines[lines["record"] == "measurement"]
    return {
        "content": content, "picture": f"data:image/svg+xml;base64,{picture}", "width": _WIDTH + 60,
        "height": _HEIGHT + 80, "alt": _alternative(sweep, report, claim, across, at),
        "tables": list(_measure_tables(measurements, list(sweep.parameters))),
        "seeds": measurements["seed"].nunique() if len(measurements) else 0,
    }  # fmt: skip


def swept_claims(lines: pd.DataFrame, report: Report) -> SweptClaims:
    """Return the verdicts of a sweep, ordered by claim and seed; raises as `explorer` does."""
    verdicts = lines[lines["verdict"].notna() & lines["value"].notna()]
    known = [claim.id for claim in report.claims]
    if unknown := sorted(set(verdicts["claim"]) - set(known)):
        raise SweepError(f"the evidence of {report.slug} holds {', '.join(unknown)}; its report does not: sweep again")
    names = [name.removeprefix(_PARAMETER) for name in verdicts if name.startswith(_PARAMETER)]
    swept = [name for name in names if name not in _NOT_SWEPT and verdicts[_PARAMETER + name].nunique() > 1]
    if not swept:
        raise SweepError(f"no parameter takes two values in the evidence of {report.slug}; sweep it over a grid")
    values = {name: sorted(verdicts[_PARAMETER + name].unique().tolist()) for name in swept}
    rows = [
        {name: record[name] for name in ("claim", "verdict", "value", "low", "high")}
        | {"seed": int(record[_PARAMETER + "seed"])}
        | {f"i_{name}": values[name].index(record[_PARAMETER + name]) for name in swept}
        for record in verdicts.to_dict("records")
    ]
    rows.sort(key=lambda row: (known.index(row["claim"]), row["seed"]))
    return SweptClaims({name: [value_text(value) for value in found] for name, found in values.items()}, rows)


def value_text(value: object) -> str:
    """Return the value of a parameter as the explorer names it."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _first_shown(sweep: SweptClaims) -> str:
    """Return the first claim whose verdict depends on the parameters; the first of all where none does."""
    verdicts: dict[str, set[str]] = {}
    for row in sweep.rows:
        verdicts.setdefault(row["claim"], set()).add(row["verdict"])
    return next((claim for claim, found in verdicts.items() if len(found) > 1), next(iter(verdicts)))


def _chart(sweep: SweptClaims, report: Report, claim: str, across: str, at: Mapping[str, int]) -> alt.LayerChart:
    """Return the chart of one claim over one parameter, the others at the places `at` of their grid.

    Every choice in it is a named signal that a script may set.
    """
    place = "".join(f"across === '{name}' ? datum.i_{name} : " for name in sweep.parameters) + "0"
    fixed = (f"(across === '{name}' || datum.i_{name} === at_{name})" for name in sweep.parameters)
    runs = alt.Chart(alt.Data(values=_spread(sweep.rows)))
    runs = runs.transform_filter(" && ".join(["datum.claim === claim", *fixed]))
    runs = runs.transform_calculate(place=f"({place}) + datum.shift")
    domain = [alt.ExprRef("-0.5"), alt.ExprRef("length(labels) - 0.5")]
    axis = alt.Axis(labelExpr="labels[datum.value] || ''", tickMinStep=1, title=None, grid=False)
    x = alt.X("place:Q", axis=axis, scale=alt.Scale(domain=domain, nice=False))
    y = alt.Y("value:Q", title="measured, 95 % interval", scale=alt.Scale(zero=False))
    colors = [_INK.get(name, OTHER["color"]) for name in _SHAPES]
    ink = alt.Color("verdict:N", scale=alt.Scale(domain=list(_SHAPES), range=colors), legend=_LEGEND)
    shapes = alt.Scale(domain=list(_SHAPES), range=list(_SHAPES.values()))
    shape = alt.Shape("verdict:N", scale=shapes, legend=_LEGEND)
    bars = runs.mark_rule(strokeWidth=1.5).encode(x=x, y=alt.Y("low:Q"), y2="high:Q", color=ink)
    dots = runs.mark_point(filled=True, size=70, opacity=1).encode(x=x, y=y, color=ink, shape=shape)
    ends = alt.Chart(alt.Data(values=_thresholds(report))).transform_filter("datum.claim === claim")
    lines = ends.mark_rule(strokeDash=[2, 3], color="black").encode(y=alt.Y("end:Q"))
    mark = alt.Chart(alt.Data(values=[{}])).transform_calculate(place="marked")
    mark = mark.mark_rule(color="#c9d0d6", strokeWidth=26, opacity=0.5).encode(x=x)
    choices = {"claim": claim, "across": across, "labels": sweep.parameters[across], "marked": at[across]}
    choices |= {f"at_{name}": place for name, place in at.items()}
    signals = [alt.param(name=name, value=value) for name, value in choices.items()]
    layers = alt.layer(mark, lines, bars, dots).add_params(*signals)
    return layers.properties(width=_WIDTH, height=_HEIGHT).configure(aria=False, background="white")


def _spread(rows: Sequence[dict]) -> list[dict]:
    """Return the rows with a small sideways shift a seed, so that equal settings do not hide each other."""
    seeds = sorted({row["seed"] for row in rows})
    step = 0.5 / len(seeds)
    return [row | {"shift": round((seeds.index(row["seed"]) - (len(seeds) - 1) / 2) * step, 4)} for row in rows]


def _thresholds(report: Report) -> list[dict]:
    """Return the finite ends of every claim's regions, which the chart draws dotted."""
    found = []
    for claim in report.claims:
        parts = (*claim.upheld_if.parts, *claim.refuted_if.parts)
        ends = {end for low, high, _ in parts for end in (low, high) if abs(end) != float("inf")}
        found += [{"claim": claim.id, "end": end} for end in sorted(ends)]
    return found


def _alternative(sweep: SweptClaims, report: Report, claim: str, across: str, at: Mapping[str, int]) -> str:
    """Return in words what the picture shows."""
    others = [name for name in sweep.parameters if name != across]
    rows = [row for row in sweep.rows if row["claim"] == claim and all(row[f"i_{name}"] == at[name] for name in others)]
    measure = next(entry.measure for entry in report.claims if entry.id == claim)
    verdicts = ", ".join(dict.fromkeys(row["verdict"] for row in rows))
    values = [row["value"] for row in rows]
    names = sweep.parameters[across]
    return (
        f"{claim}, {measure}: over {across} from {names[0]} to {names[-1]} the values lie between "
        f"{min(values):.3g} and {max(values):.3g}; verdicts: {verdicts}."
    )


def _measure_tables(lines: pd.DataFrame, swept: list[str]) -> Iterator[dict]:
    """Yield a table for each measure of each claim: a row for each setting, a column for each point of the grid.

    A cell holds mean, smallest and largest value over all seeds, or nothing where that point was not run.
    """
    parameters = [_PARAMETER + name for name in swept]
    for (claim, measure, unit), part in lines.groupby(["claim", "measure", "unit"], sort=False):
        points = [tuple(point) for point in part[parameters].drop_duplicates().sort_values(parameters).to_numpy()]
        heads = [", ".join(f"{name} {value_text(value)}" for name, value in zip(swept, point)) for point in points]
        settings = [
            name
            for name in part
            if name.startswith(_SETTING) and part.groupby(parameters)[name].nunique(dropna=False).gt(1).any()
        ]
        rows = []
        for setting, group in part.groupby(settings, sort=False, dropna=False) if settings else [((), part)]:
            told = [
                f"{name.removeprefix(_SETTING)} {value_text(value)}"
                for name, value in zip(settings, setting) if pd.notna(value)
            ]  # fmt: skip
            found = group.groupby(parameters)["value"].agg(["mean", "min", "max"]).to_dict("index")
            found = {key if isinstance(key, tuple) else (key,): cell for key, cell in found.items()}
            rows.append((", ".join(told) or "all", [found.get(point) for point in points]))
        yield {"columns": [f"{claim} · {measure} ({unit})", *heads], "rows": rows}
