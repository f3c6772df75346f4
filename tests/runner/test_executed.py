"""Only a notebook whose cells all ran in order, without an error, with every claim judged once, is a result."""

import copy
import json

import nbformat
import pytest

from casestudies_lib.records import MEASUREMENTS_MIME, VERDICTS_MIME
from casestudies_lib.runner.executed import Incomplete, cell_name, cleaned, measurements_of, notebook_text, verdicts_of


def code(source, count, *outputs, tags=()):
    return {
        "cell_type": "code", "source": source, "execution_count": count, "outputs": list(outputs),
        "metadata": {"tags": list(tags)},
    }  # fmt: skip


def record(claim):
    texts = dict.fromkeys(("says", "measure", "unit", "rule", "reason"), "x")
    numbers = {"value": 0.5, "low": 0, "high": None, "n": 1, "seeds": [1], "control": None}
    return texts | numbers | {"id": claim, "chapter": "tiny", "verdict": "upheld", "kind": "effect"}


def shown(*records):
    return {"output_type": "display_data", "data": {VERDICTS_MIME: list(records)}}


@pytest.fixture
def notebook():
    return {
        "cells": [
            {"cell_type": "markdown", "source": "# Tiny", "metadata": {}},
            code("x = 1", 1),
            code(["\n", "y = 2\n", "z = 3"], 2),
            code("  \n", None),
            code("case.evidence()", 3, shown(record("T1"), record("T2"))),
        ]
    }


def judged(notebook):
    return verdicts_of(notebook, "tiny", ["T1", "T2"])


def test_a_complete_notebook_gives_its_records(notebook):
    assert [entry["id"] for entry in judged(notebook)] == ["T1", "T2"]


FAULTS = {
    "a cell never ran": (lambda n: n["cells"][2].update(execution_count=None), r"code cell 2 \(`y = 2`\) never ran"),
    "cells ran out of order": (lambda n: n["cells"][2].update(execution_count=5), "ran as number 5 instead of 2"),
    "a cell ran twice": (lambda n: n["cells"][1].update(execution_count=2), "ran as number 2 instead of 1"),
    "an error is stored": (
        lambda n: n["cells"][2]["outputs"].append({"output_type": "error", "ename": "ValueError", "evalue": "a\nb"}),
        r"code cell 2 \(`y = 2`\) raised ValueError: a b",
    ),
    "the evidence is missing": (lambda n: n["cells"][4]["outputs"].clear(), "0 cell outputs with the verdicts"),
    "the evidence is shown twice": (lambda n: n["cells"][1]["outputs"].append(shown()), "2 cell outputs"),
    "a claim is missing": (lambda n: records_of(n).pop(), r"no verdict for T2; judge each claim of tiny\.toml once"),
    "a claim is unknown": (lambda n: records_of(n).append(record("T3")), "verdict for T3, which"),
    "a claim is judged twice": (lambda n: records_of(n).append(record("T2")), "more than one verdict for T2"),
    "a field is missing": (lambda n: records_of(n)[0].pop("rule"), "record of T1: rule: Field required"),
    "another chapter's record": (lambda n: records_of(n)[0].update(chapter="x"), "belongs to chapter 'x'"),
    "a number that is none": (
        lambda n: records_of(n)[0].update(low=float("nan")),
        "T1: low: Input should be a finite number",
    ),
    "an unknown verdict": (
        lambda n: records_of(n)[0].update(verdict="fine"),
        "T1: verdict: Input should be 'upheld'",
    ),
    "records are no list": (lambda n: n["cells"][4]["outputs"][0]["data"].update({VERDICTS_MIME: {}}), "not a list"),
}


def records_of(notebook):
    return notebook["cells"][4]["outputs"][0]["data"][VERDICTS_MIME]


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_refused_and_named(notebook, fault):
    damage, says = FAULTS[fault]
    damaged = copy.deepcopy(notebook)
    damage(damaged)
    with pytest.raises(Incomplete, match=says):
        judged(damaged)
    judged(notebook)


def test_a_cell_is_counted_among_the_authors_code_cells(notebook):
    notebook["cells"].insert(2, code("# Parameters", 2, tags=["injected-parameters"]))
    assert cell_name(notebook, 3) == "code cell 2 (`y = 2`)"


def test_a_long_first_line_is_cut():
    name = cell_name({"cells": [code("a" * 500, 1)]}, 0)
    assert len(name) < 100


MEASURED = {"chapter": "tiny", "claim": "T1", "measure": "m", "unit": "1", "setting": {"a": 1}, "seed": 0, "value": 1.0}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"value": 3}, None),
        ({"value": float("nan")}, "value: Input should be a"),
        ({"value": True}, "value: Input should be a"),
        ({"seed": "0"}, "seed: Input should be a valid integer"),
        ({"claim": "T9"}, "is of tiny T9, not a claim of tiny"),
        ({"setting": {"a": [1]}}, "setting.a"),
        ({"extra": 1}, "extra: Extra inputs are not permitted"),
    ],
)
def test_only_measurements_of_the_known_form_are_taken(change, says):
    shown = {"output_type": "display_data", "data": {MEASUREMENTS_MIME: [MEASURED | change]}}
    notebook = {"cells": [{"cell_type": "markdown"}, {"cell_type": "code", "outputs": [shown]}]}
    if says is None:
        assert measurements_of(notebook, "tiny", ["T1"]) == [MEASURED | change]
    else:
        with pytest.raises(Incomplete, match=says):
            measurements_of(notebook, "tiny", ["T1"])


def executed(stamp):
    v4 = nbformat.v4
    parameters = v4.new_code_cell("seed = 0", execution_count=1, metadata={"tags": ["parameters"]}, id="a")
    injected = v4.new_code_cell("seed = 1", execution_count=2, metadata={"tags": ["injected-parameters"]}, id="b")
    shows = v4.new_code_cell("seed", execution_count=3, id="shows", outputs=[v4.new_output("stream", text="1\n")])
    for cell in (parameters, injected, shows):
        cell.metadata["papermill"] = {"start_time": stamp}
        cell.metadata["execution"] = {"iopub.execute_input": stamp}
    return v4.new_notebook(cells=[parameters, injected, shows], metadata={"papermill": {"end_time": stamp}})


def test_a_clean_copy_is_the_same_for_runs_that_show_the_same_in_the_layout_of_nbformat():
    first, second = executed("2026-01-01T00:00:00"), executed("2027-07-07T07:07:07")
    text = notebook_text(cleaned(first))
    assert text == notebook_text(cleaned(second))
    on_disk = nbformat.writes(first)
    assert notebook_text(json.loads(on_disk)) == on_disk + "\n"
    found = cleaned(first)
    assert [(cell["source"], cell["execution_count"]) for cell in found["cells"]] == [("seed = 0", 1), ("seed", 3)]
    assert [cell["metadata"] for cell in found["cells"]] == [{"tags": ["parameters"]}, {}]
    assert found["cells"][1]["outputs"][0]["text"] == "1\n"
    assert first == executed("2026-01-01T00:00:00")
