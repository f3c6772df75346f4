"""The explorer of a chapter's sweep: a chart that follows native inputs, and its picture for print and no script."""

import json
from pathlib import Path

import altair as alt
import vl_convert

from casestudies_lib.claims import Report
from casestudies_lib.figures import FAULT, FIX, OTHER
from casestudies_lib.runner.site.markup import html_text
from casestudies_lib.runner.site.pictures import FOLDER
from casestudies_lib.runner.site.sweeps import Sweep, thresholds

SCRIPTS = "_scripts"
_INK = {"upheld": FIX["color"], "refuted": FAULT["color"]}
_SHAPES = {
    "upheld": "square", "refuted": "circle", "inconclusive": "triangle-up", "uninformative": "diamond",
    "untested": "cross",
}  # fmt: skip
_WIDTH, _HEIGHT = 520, 280  # pixels


def chart(sweep: Sweep, report: Report, claim: str, across: str) -> alt.LayerChart:
    """Return the chart of one claim over one parameter; every choice in it is a named signal that a script may set."""
    signals = [
        alt.param(name="claim", value=claim),
        alt.param(name="across", value=across),
        alt.param(name="labels", value=sweep.parameters[across]),
        alt.param(name="marked", value=0),
        *(alt.param(name=f"at_{name}", value=0) for name in sweep.parameters),
    ]
    chosen = " && ".join(
        ["datum.claim === claim", *(f"(across === '{n}' || datum.i_{n} === at_{n})" for n in sweep.parameters)]
    )
    place = "".join(f"across === '{name}' ? datum.i_{name} : " for name in sweep.parameters) + "0"
    runs = alt.Chart(alt.Data(values=_spread(sweep.rows))).transform_filter(chosen)
    runs = runs.transform_calculate(place=f"({place}) + datum.shift")
    domain = [alt.ExprRef("-0.5"), alt.ExprRef("length(labels) - 0.5")]
    axis = alt.Axis(labelExpr="labels[datum.value] || ''", tickMinStep=1, title=None, grid=False)
    x = alt.X("place:Q", axis=axis, scale=alt.Scale(domain=domain, nice=False))
    y = alt.Y("value:Q", title="measured, 95 % interval", scale=alt.Scale(zero=False))
    names = list(_SHAPES)
    ink = alt.Color(
        "verdict:N", legend=None, scale=alt.Scale(domain=names, range=[_INK.get(n, OTHER["color"]) for n in names])
    )
    shape = alt.Shape(
        "verdict:N", title="verdict", scale=alt.Scale(domain=names, range=list(_SHAPES.values())),
        legend=alt.Legend(orient="top"),
    )  # fmt: skip
    bars = runs.mark_rule(strokeWidth=1.5).encode(x=x, y=alt.Y("low:Q"), y2="high:Q", color=ink)
    dots = runs.mark_point(filled=True, size=70, opacity=1).encode(x=x, y=y, color=ink, shape=shape)
    ends = alt.Chart(alt.Data(values=thresholds(report))).transform_filter("datum.claim === claim")
    lines = ends.mark_rule(strokeDash=[2, 3], color="black").encode(y=alt.Y("end:Q"))
    mark = alt.Chart(alt.Data(values=[{}])).mark_rule(color="#c9d0d6", strokeWidth=26, opacity=0.5)
    mark = mark.transform_calculate(place="marked").encode(x=x)
    layers = alt.layer(mark, lines, bars, dots).add_params(*signals)
    return layers.properties(width=_WIDTH, height=_HEIGHT).configure(aria=False, background="white")


def _spread(rows: list[dict]) -> list[dict]:
    """Return the rows with a small sideways shift a seed, so that equal settings do not hide each other."""
    seeds = sorted({row["seed"] for row in rows})
    step = 0.5 / max(len(seeds), 1)
    return [row | {"shift": round((seeds.index(row["seed"]) - (len(seeds) - 1) / 2) * step, 4)} for row in rows]


def explorer(sweep: Sweep, report: Report, figures: Path) -> str:
    """Return the explorer as one block of HTML; `explorer.js` brings it to life, without it the picture stands.

    Args:
        sweep: the committed sweep.
        report: the chapter's report.
        figures: the folder that the picture is written to.
    """
    claim, across = sweep.rows[0]["claim"], next(iter(sweep.parameters))
    spec = chart(sweep, report, claim, across).to_dict()
    figures.mkdir(parents=True, exist_ok=True)
    picture = figures / f"explorer-{sweep.slug}.svg"
    picture.write_text(vl_convert.vegalite_to_svg(spec), encoding="utf-8")
    claims = {entry.id: {"says": entry.says, "measure": entry.measure, "unit": entry.unit} for entry in report.claims}
    tried = {row["claim"] for row in sweep.rows}
    content = {
        "spec": spec, "parameters": sweep.parameters, "rows": sweep.rows, "claim": claim, "across": across,
        "claims": {name: text for name, text in claims.items() if name in tried},
    }  # fmt: skip
    data = json.dumps(content, ensure_ascii=True).replace("<", "\\u003c")
    return (
        f'<div class="explorer" data-script="../{SCRIPTS}/vega.js">\n'
        f'<img class="casebook-figure explorer-picture" src="../{FOLDER}/{picture.name}" width="{_WIDTH + 60}" '
        f'height="{_HEIGHT + 80}" loading="lazy" alt="{html_text(_alternative(sweep, report, claim, across))}">\n'
        f'<script type="application/json">{data}</script>\n</div>\n'
    )


def _alternative(sweep: Sweep, report: Report, claim: str, across: str) -> str:
    """Return in words what the picture shows."""
    others = [name for name in sweep.parameters if name != across]
    rows = [row for row in sweep.rows if row["claim"] == claim and not any(row[f"i_{name}"] for name in others)]
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
    (folder / "vega.js").write_text(script, encoding="utf-8")
