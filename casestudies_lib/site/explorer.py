"""The explorer of a chapter's sweep: a chart that follows native inputs, and its picture for print and no script."""

import json
from collections.abc import Mapping
from pathlib import Path

import altair as alt
import vl_convert

from casestudies_lib.claims import Report
from casestudies_lib.figures import FAULT, FIX, OTHER
from casestudies_lib.site.markup import html_text
from casestudies_lib.site.pictures import FOLDER
from casestudies_lib.site.sweeps import SweptClaims, thresholds, value_text

SCRIPTS = "_scripts"
_INK = {"upheld": FIX["color"], "refuted": FAULT["color"]}
_SHAPES = {
    "upheld": "square", "refuted": "circle", "inconclusive": "triangle-up", "uninformative": "diamond",
    "untested": "cross",
}  # fmt: skip
_LEGEND = alt.Legend(orient="top", columns=alt.ExprRef("width < 400 ? 2 : 5"))
_WIDTH, _HEIGHT = 520, 280  # pixels


def chart(sweep: SweptClaims, report: Report, claim: str, across: str, at: Mapping[str, int]) -> alt.LayerChart:
    """Return the chart of one claim over one parameter, the others at the places `at` of their grid.

    Every choice in it is a named signal that a script may set.
    """
    place = "".join(f"across === '{name}' ? datum.i_{name} : " for name in sweep.parameters) + "0"
    runs = alt.Chart(alt.Data(values=_spread(sweep.rows))).transform_filter(_chosen(sweep))
    runs = runs.transform_calculate(place=f"({place}) + datum.shift")
    x, ink, shape = _axis(), _ink(), _shape()
    y = alt.Y("value:Q", title="measured, 95 % interval", scale=alt.Scale(zero=False))
    bars = runs.mark_rule(strokeWidth=1.5).encode(x=x, y=alt.Y("low:Q"), y2="high:Q", color=ink)
    dots = runs.mark_point(filled=True, size=70, opacity=1).encode(x=x, y=y, color=ink, shape=shape)
    ends = alt.Chart(alt.Data(values=thresholds(report))).transform_filter("datum.claim === claim")
    lines = ends.mark_rule(strokeDash=[2, 3], color="black").encode(y=alt.Y("end:Q"))
    mark = alt.Chart(alt.Data(values=[{}])).transform_calculate(place="marked")
    mark = mark.mark_rule(color="#c9d0d6", strokeWidth=26, opacity=0.5).encode(x=x)
    layers = alt.layer(mark, lines, bars, dots).add_params(*_signals(sweep, claim, across, at))
    return layers.properties(width=_WIDTH, height=_HEIGHT).configure(aria=False, background="white")


def _signals(sweep: SweptClaims, claim: str, across: str, at: Mapping[str, int]) -> list[alt.Parameter]:
    choices = {"claim": claim, "across": across, "labels": sweep.parameters[across], "marked": at[across]}
    choices |= {f"at_{name}": place for name, place in at.items()}
    return [alt.param(name=name, value=value) for name, value in choices.items()]


def _chosen(sweep: SweptClaims) -> str:
    """Return the expression that keeps the rows of the claim at the chosen values of all other parameters."""
    fixed = (f"(across === '{name}' || datum.i_{name} === at_{name})" for name in sweep.parameters)
    return " && ".join(["datum.claim === claim", *fixed])


def _axis() -> alt.X:
    domain = [alt.ExprRef("-0.5"), alt.ExprRef("length(labels) - 0.5")]
    axis = alt.Axis(labelExpr="labels[datum.value] || ''", tickMinStep=1, title=None, grid=False)
    return alt.X("place:Q", axis=axis, scale=alt.Scale(domain=domain, nice=False))


def _ink() -> alt.Color:
    range_ = [_INK.get(name, OTHER["color"]) for name in _SHAPES]
    return alt.Color("verdict:N", title="verdict", scale=alt.Scale(domain=list(_SHAPES), range=range_), legend=_LEGEND)


def _shape() -> alt.Shape:
    scale = alt.Scale(domain=list(_SHAPES), range=list(_SHAPES.values()))
    return alt.Shape("verdict:N", title="verdict", scale=scale, legend=_LEGEND)


def _spread(rows: list[dict]) -> list[dict]:
    """Return the rows with a small sideways shift a seed, so that equal settings do not hide each other."""
    seeds = sorted({row["seed"] for row in rows})
    step = 0.5 / max(len(seeds), 1)
    return [row | {"shift": round((seeds.index(row["seed"]) - (len(seeds) - 1) / 2) * step, 4)} for row in rows]


def explorer(sweep: SweptClaims, report: Report, figures: Path, used: Mapping[str, object]) -> str:
    """Return the explorer as one block of HTML; `explorer.js` brings it to life, without it the picture stands.

    Args:
        sweep: the committed sweep.
        report: the chapter's report.
        figures: the folder that the picture is written to.
        used: the parameters that the chapter's page was run with; the explorer opens there.
    """
    claim, across = _first_shown(sweep), next(iter(sweep.parameters))
    at, own = _places(sweep, used)
    spec = chart(sweep, report, claim, across, at).to_dict()
    figures.mkdir(parents=True, exist_ok=True)
    picture = figures / f"explorer-{sweep.slug}.svg"
    picture.write_text(vl_convert.vegalite_to_svg(spec), encoding="utf-8")
    claims = {entry.id: {"says": entry.says, "measure": entry.measure, "unit": entry.unit} for entry in report.claims}
    tried = {row["claim"] for row in sweep.rows}
    content = {
        "spec": spec, "parameters": sweep.parameters, "rows": sweep.rows, "claim": claim, "across": across,
        "at": at, "own": own,
        "claims": {name: text for name, text in claims.items() if name in tried},
    }  # fmt: skip
    data = json.dumps(content, ensure_ascii=True).replace("<", "\\u003c")
    return (
        f'<div class="explorer" data-script="../{SCRIPTS}/vega.js">\n'
        f'<img class="casebook-figure explorer-picture" src="../{FOLDER}/{picture.name}" width="{_WIDTH + 60}" '
        f'height="{_HEIGHT + 80}" loading="lazy" alt="{html_text(_alternative(sweep, report, claim, across, at))}">\n'
        f'<script type="application/json">{data}</script>\n</div>\n{sweep.measures}'
    )


def _first_shown(sweep: SweptClaims) -> str:
    """Return the first claim whose verdict depends on the parameters; the first of all where none does."""
    verdicts: dict[str, set[str]] = {}
    for row in sweep.rows:
        verdicts.setdefault(row["claim"], set()).add(row["verdict"])
    return next((claim for claim, found in verdicts.items() if len(found) > 1), next(iter(verdicts)))


def _places(sweep: SweptClaims, used: Mapping[str, object]) -> tuple[dict[str, int], bool]:
    """Return for each parameter the place of the page's own value in the grid, and whether all of them have one."""
    named = {name: value_text(used.get(name)) for name in sweep.parameters}
    at = {name: values.index(named[name]) if named[name] in values else 0 for name, values in sweep.parameters.items()}
    return at, all(named[name] in values for name, values in sweep.parameters.items())


def _alternative(sweep: SweptClaims, report: Report, claim: str, across: str, at: Mapping[str, int]) -> str:
    """Return in words what the picture shows."""
    others = [name for name in sweep.parameters if name != across]
    rows = [row for row in sweep.rows if row["claim"] == claim and all(row[f"i_{name}"] == at[name] for name in others)]
    measure = next(entry.measure for entry in report.claims if entry.id == claim)
    verdicts = ", ".join(dict.fromkeys(row["verdict"] for row in rows))
    values = [row["value"] for row in rows]
    return (
        f"{claim}, {measure}: over {across} from {sweep.parameters[across][0]} to {sweep.parameters[across][-1]} "
        f"the values lie between {min(values):.3g} and {max(values):.3g}; verdicts: {verdicts}."
    )


def write_scripts(folder: Path) -> None:
    """Write the one copy of the chart library that all explorers share, from the installed package."""
    folder.mkdir(parents=True, exist_ok=True)
    script = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    # The bundle is a module. As a plain script, which also loads from a folder, its names must not meet the page's.
    (folder / "vega.js").write_text(f"(() => {{\n{script}\n}})();\n", encoding="utf-8")
