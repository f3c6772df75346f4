"""A probe's answer in all its forms."""

import json
import math
from html.parser import HTMLParser

import matplotlib
import numpy
import pytest

from casestudies_lib.probes import Finding, ProbeFault, ProbeInputError, ProbeResult
from casestudies_lib.probes.result import ROWS_IN_HTML, Bar

matplotlib.use("Agg")
HOSTILE = "<script>alert('x')</script>&\"$\\frac$"


def finding(severity="fault", where="head", measured="gradient 0"):
    return Finding(severity, where, measured, "it learns nothing", "skip it", "zero_weight_head")


def result(**changes):
    given = {
        "probe": "some_probe",
        "ok": False,
        "headline": "One head is idle.",
        "findings": (finding(), finding("warning", "spare"), finding("note", "norm")),
        "columns": ("part", "size"),
        "rows": (("head", 3), ("body", math.nan)),
        "bars": (Bar("idle", 3.0, True), Bar("learning", 97.0, False)),
        "bar_unit": "share, %",
    }
    return ProbeResult(**{**given, **changes})


class Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.words = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)


def read(page):
    reader = Reader()
    reader.feed(page)
    return reader


def test_hostile_names_are_text_in_html_and_in_the_chart():
    hostile = result(
        probe=HOSTILE,
        headline=HOSTILE,
        findings=(Finding("fault", HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE),),
        columns=(HOSTILE, "size"),
        rows=((HOSTILE, HOSTILE),),
        bars=(Bar(HOSTILE, 1.0, True),),
        bar_unit=HOSTILE,
    )
    page = read(hostile._repr_html_())
    assert "script" not in {tag for tag, _ in page.tags}
    # probe twice, headline, four fields of the finding that are shown, one column, two cells.
    assert "".join(page.words).count(HOSTILE) == 10
    axes = hostile.plot()
    axes.figure.canvas.draw()
    assert axes.get_yticklabels()[0].get_text() == HOSTILE
    unknown = result(ok=None, findings=(), reason=HOSTILE)
    assert "<script" not in unknown._repr_html_()


def test_the_html_table_can_be_read_aloud():
    tags = read(result()._repr_html_()).tags
    assert [tag for tag, _ in tags].count("caption") == 1
    scopes = [attributes.get("scope") for tag, attributes in tags if tag == "th"]
    assert scopes == ["col", "col", "row", "row"]


def test_a_long_table_is_cut_in_html_only_and_says_so():
    rows = tuple((f"part {number}", number) for number in range(ROWS_IN_HTML + 5))
    long = result(rows=rows)
    assert long._repr_html_().count("<tr>") == 1 + ROWS_IN_HTML
    assert f"first {ROWS_IN_HTML} of {len(rows)}" in long._repr_html_()
    assert len(long.table()) == len(rows)


def test_the_table_is_a_frame_with_the_columns():
    assert result().table().columns.tolist() == ["part", "size"]
    assert result().table().loc[0].tolist() == ["head", 3]


def test_json_has_no_nan_and_no_foreign_number():
    measures = {"a": numpy.float32(1.5), "b": math.inf, "c": numpy.int64(3), "d": (1, None), "e": True}
    text = json.dumps(result(measures=measures).to_dict(), allow_nan=False)
    assert json.loads(text)["measures"] == {"a": 1.5, "b": None, "c": 3, "d": [1, None], "e": True}
    assert json.loads(text)["rows"][1] == {"part": "body", "size": None}


def test_raise_names_every_fault_and_warning_wherever_ok_is_false():
    with pytest.raises(ProbeFault) as raised:
        result(
            findings=(finding(where="first"), finding("warning", "second"), finding("note", "third"))
        ).raise_if_found()
    assert [name in str(raised.value) for name in ("first", "second", "third")] == [True, True, False]
    with pytest.raises(ProbeFault, match="spare"):
        result(findings=(finding("warning", "spare"),)).raise_if_found()
    result(ok=True, findings=(finding("note"),)).raise_if_found()


def test_a_keyword_decides_what_a_gate_does_with_an_answer_that_cannot_tell():
    unknown = result(ok=None, findings=(finding("note"),), reason="the loop was too short")
    with pytest.warns(UserWarning, match="some_probe cannot tell: the loop was too short"):
        unknown.raise_if_found()
    with pytest.raises(ProbeFault, match="cannot tell: the loop was too short"):
        unknown.raise_if_found(unknown="raise")
    unknown.raise_if_found(unknown="pass")
    with pytest.raises(ProbeInputError, match="unknown is 'panic'; allowed are warn, raise, pass"):
        unknown.raise_if_found(unknown="panic")


def test_the_chart_does_not_rely_on_colour():
    axes = result().plot()
    faulty, sound = axes.patches
    assert (faulty.get_hatch(), sound.get_hatch()) == ("///", None)
    assert (faulty.get_linestyle(), sound.get_linestyle()) == ("--", "-")
    assert faulty.get_facecolor() != sound.get_facecolor()
    assert [bar.get_width() for bar in axes.patches] == [3.0, 97.0]
    assert axes.get_xlabel() == "share, %"
    assert result().plot(axes) is axes
    assert "idle 3" in result().alt_text()


def test_the_text_says_answer_place_and_remedy():
    text = repr(result())
    for words in ("some_probe", "✗", "head", "gradient 0", "it learns nothing", "skip it", "warning"):
        assert words in text
    assert "cannot tell" in repr(result(ok=None, findings=(), reason="too short"))
    assert "too short" in repr(result(ok=None, findings=(), reason="too short"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ok": None}, "reason"),
        ({"reason": "because"}, "reason"),
        ({"ok": True}, "ok is True.*severities are fault, warning, note"),
        ({"ok": True, "findings": (finding("warning"),)}, "severities are warning"),
        ({"ok": None, "reason": "too short"}, "if and only if one of them is a fault or a warning"),
        ({"findings": ()}, "severities are none"),
        ({"findings": (finding("note"),)}, "ok is False.*severities are note"),
        ({"rows": (("head",),)}, "2 cells"),
    ],
)
def test_an_answer_cannot_contradict_itself(changes, message):
    with pytest.raises(ValueError, match=message):
        result(**changes)


def test_a_severity_is_one_of_three():
    with pytest.raises(ValueError, match="fault"):
        finding("fatal")


def test_three_answers_are_not_squeezed_into_two():
    with pytest.raises(TypeError, match="ok is True"):
        bool(result())


def test_a_cell_without_a_value_is_none_in_the_table_and_not_nan():
    result = ProbeResult("probe", True, "Fine.", columns=("name", "norm", "n"), rows=(("a", 1.0, 1), ("b", None, 2)))
    table = result.table()
    assert table["norm"].tolist() == [1.0, None]
    assert table["n"].dtype == int
    assert ProbeResult("probe", True, "Fine.", columns=("name", "norm")).table().columns.tolist() == ["name", "norm"]
