"""One style for the book's figures: fault orange and dashed, fix blue and solid, theory black and dotted."""

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

FAULT = {"color": "#d55e00", "linestyle": "--", "marker": "o"}
FIX = {"color": "#0072b2", "linestyle": "-", "marker": "s"}
OTHER = {"color": "#6b6b6b", "linestyle": "-.", "marker": "^"}
THEORY = {"color": "black", "linestyle": ":", "marker": ""}

# Small pages and large type: at 360 px the text still measures about 9 px.
_STYLE = {
    "font.size": 12,
    "axes.titlesize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "legend.frameon": False,
    "legend.fontsize": 11,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


@dataclass(frozen=True)
class Shown:
    """A figure as a web page needs it: the picture and a text alternative that states its message."""

    alt: str
    png: bytes

    def __repr__(self) -> str:
        """Return the text alternative."""
        return self.alt

    def _repr_html_(self) -> str:
        data = base64.b64encode(self.png).decode()
        alt = html.escape(self.alt)
        return f'<img class="casebook-figure" style="max-width:100%" alt="{alt}" src="data:image/png;base64,{data}">'


def axes(claim: str, message: str, x: str, y: str, height: float = 3.4) -> Axes:
    """Return empty axes in the book's style.

    Args:
        claim: the id of the claim on trial, or "" for a figure outside any trial.
        message: what the figure is about, a few words.
        x, y: axis labels with units.
        height: in inches; the width is fixed.
    """
    with rc_context(_STYLE):
        area = Figure(figsize=(5.4, height), layout="constrained").add_subplot()
        area.set(xlabel=x, ylabel=y)
        area.set_title(f"{claim} · {message}" if claim else message, loc="left")
        area.tick_params(labelsize=11)
    return area


def pairs(area: Axes, names: Sequence[str], arms: Sequence[Sequence[float]], styles: Sequence[dict]) -> None:
    """Draw one line a seed across the arms, and each arm's mean as a bar of ink, so that pairing can be seen.

    Raises:
        ValueError: names, arms and styles differ in number, or the arms in length.
    """
    if len({len(names), len(arms), len(styles)}) > 1 or len({len(arm) for arm in arms}) > 1:
        raise ValueError(
            f"{len(names)} names, {len(arms)} arms, {len(styles)} styles, {[len(arm) for arm in arms]} values"
        )
    for values in zip(*arms):
        area.plot(range(len(arms)), values, color="#b5b5b5", linewidth=1)
    for place, (values, style) in enumerate(zip(arms, styles)):
        area.scatter([place] * len(values), values, color=style["color"], marker=style["marker"], zorder=3)
        area.hlines(np.mean(values), place - 0.2, place + 0.2, color=style["color"], linestyle=style["linestyle"])
    area.set_xticks(range(len(names)), names)
    area.set_xlim(-0.5, len(names) - 0.5)


def bands(area: Axes, x: Sequence[float], curves: Sequence[Sequence[float]], style: dict, label: str) -> None:
    """Draw the mean of several seeds' curves and shade their range."""
    stacked = np.asarray(curves, dtype=float)
    area.plot(x, stacked.mean(axis=0), label=label, **style)
    area.fill_between(x, stacked.min(axis=0), stacked.max(axis=0), color=style["color"], alpha=0.15, linewidth=0)


def _put_legend_below(area: Axes) -> None:
    """Write the legend under the axes, where neither hides the other, and make the figure taller by its rows."""
    labels = area.get_legend_handles_labels()[1]
    if not labels:
        return
    columns = 2 if max(map(len, labels)) <= 28 else 1
    area.figure.set_figheight(area.figure.get_figheight() + 0.24 * -(-len(labels) // columns))
    area.figure.legend(loc="outside lower center", ncols=columns)


def show(area: Axes, alt: str) -> Shown:
    """Return the finished figure with its text alternative.

    Raises:
        ValueError: the text alternative is shorter than a sentence.
    """
    if len(alt.split()) < 5:
        raise ValueError(f"alt text {alt!r} states no message; say in a sentence what the figure shows")
    with rc_context(_STYLE):
        _put_legend_below(area)
        target = io.BytesIO()
        area.figure.savefig(target, format="png", dpi=150, metadata={"Software": None})
    return Shown(alt, target.getvalue())
