"""Figures: a picture that is not blank and fits a page, a text alternative, and no trace left behind."""

import base64
import re
import struct
import subprocess
import sys
from io import BytesIO

import matplotlib
import numpy as np
import pytest
from matplotlib.image import imread

from casestudies_lib import figures

ALT = "Both lines rise, and the fix stays above the fault."


def drawn(claim="A1"):
    area = figures.axes(claim, "a short message", "step", "loss (nats per token)")
    figures.bands(area, [1, 2, 3], [[1, 2, 3], [2, 3, 4]], figures.FAULT, "fault")
    return area


def pixels(shown):
    return imread(BytesIO(shown.png), format="png")


def test_the_text_alternative_is_the_text_form_and_is_escaped_in_html():
    alt = 'Loss < 1 & "flat"> <script>alert(1)</script> from step two on.'
    shown = figures.show(drawn(), alt)
    assert repr(shown) == alt
    page = shown._repr_html_()
    assert "<script" not in page
    assert 'alt="Loss &lt; 1 &amp; &quot;flat&quot;&gt; &lt;script&gt;' in page
    assert page.count("<") == page.count(">") == 1
    encoded = re.search(r"base64,([^\"]+)\"", page)[1]
    assert base64.b64decode(encoded) == shown.png


@pytest.mark.parametrize("names", [["fix", "fault"], ["hard, published attention pass, router still", "b", "c", "d"]])
def test_a_legend_stands_below_the_axes_and_hides_no_data(names):
    area = figures.axes("", "a short message", "step", "loss")
    for name in names:
        area.plot([0, 1], [0, 1], label=name)
    figures.show(area, ALT)
    [legend] = area.figure.legends
    box = legend.get_window_extent()
    assert box.y1 <= area.get_tightbbox().y0 + 1
    assert 0 <= box.x0 <= box.x1 <= area.figure.bbox.x1
    assert box.y0 >= -1


def test_the_picture_is_not_blank_and_no_wider_than_a_page_column():
    shown = figures.show(drawn(), ALT)
    assert shown.png.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", shown.png[16:24])
    assert 360 <= width <= 900
    assert 200 <= height <= width
    without_ink = drawn()
    for line in without_ink.lines:
        line.set_linewidth(0)
    empty = pixels(figures.show(without_ink, ALT))
    picture = pixels(shown)
    assert picture.shape == empty.shape
    ink = (picture[..., :3] < 0.9).any(axis=-1).mean()
    assert 0.01 < ink < 0.5
    assert np.abs(picture - empty).max() > 0.5  # the lines show, not only the frame


def test_the_title_holds_the_claim_and_the_axes_their_labels():
    area = drawn("Z3")
    assert area.get_title(loc="left") == "Z3 · a short message"
    assert figures.axes("", "a short message", "x", "y").get_title(loc="left") == "a short message"
    assert (area.get_xlabel(), area.get_ylabel()) == ("step", "loss (nats per token)")


def test_styles_differ_in_more_than_colour():
    styles = (figures.FAULT, figures.FIX, figures.OTHER, figures.THEORY)
    for key in ("color", "linestyle", "marker"):
        assert len({style[key] for style in styles}) == 4
    assert (figures.FAULT["linestyle"], figures.FIX["linestyle"], figures.THEORY["linestyle"]) == ("--", "-", ":")


def test_bands_draw_the_mean_and_shade_the_whole_range():
    area = figures.axes("", "m", "x", "y")
    figures.bands(area, [0, 1], [[0, 2], [1, 2], [5, 5]], figures.FIX, "fix")
    [line] = area.get_lines()
    assert line.get_ydata().tolist() == [2, 3]
    assert line.get_label() == "fix"
    corners = area.collections[0].get_paths()[0].vertices
    for x, low, high in ((0, 0, 5), (1, 2, 5)):
        at = corners[corners[:, 0] == x][:, 1]
        assert (at.min(), at.max()) == (low, high)


def test_pairs_draw_a_line_a_seed_and_each_arm_s_mean():
    area = figures.axes("", "m", "x", "y")
    figures.pairs(area, ["before", "after"], [[1, 2, 6], [2, 4, 9]], [figures.FAULT, figures.FIX])
    assert [line.get_ydata().tolist() for line in area.get_lines()] == [[1, 2], [2, 4], [6, 9]]
    bars = [c.get_segments()[0] for c in area.collections if hasattr(c, "get_segments")]
    assert [bar[0, 1] for bar in bars] == [3, 5]
    assert [label.get_text() for label in area.get_xticklabels()] == ["before", "after"]


def test_drawing_changes_no_global_setting():
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever an earlier test left behind
        before = dict(matplotlib.rcParams)
        area = drawn()
        figures.pairs(area, ["a", "b"], [[1, 2], [3, 4]], [figures.FAULT, figures.FIX])
        figures.show(area, ALT)
        assert dict(matplotlib.rcParams) == before


def test_drawing_needs_no_pyplot_and_so_no_display():
    code = (
        "import sys; from casestudies_lib import figures as f; a = f.axes('', 'm', 'x', 'y');"
        "a.plot([1, 2], [3, 4], label='one', **f.FIX); f.show(a, 'A line that rises from left to right.');"
        "print('matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "False"
