"""Only a notebook whose cells all ran in order, without an error, with every claim judged once, is a result."""

import copy

import pytest

from casestudies_lib.claims import VERDICTS_MIME as CLAIMS_MIME
from casestudies_lib.claims import Verdict
from casestudies_lib.runner.completeness import FIELDS, VERDICTS_MIME, Incomplete, cell_name, verdicts_of


def code(source, count, *outputs, tags=()):
    return {
        "cell_type": "code", "source": source, "execution_count": count, "outputs": list(outputs),
        "metadata": {"tags": list(tags)},
    }  # fmt: skip


def record(claim):
    return dict.fromkeys(FIELDS, 0) | {"id": claim, "chapter": "tiny", "verdict": "upheld"}


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


def test_the_mime_type_and_the_fields_are_those_of_the_claims_module():
    assert VERDICTS_MIME == CLAIMS_MIME
    assert set(FIELDS) <= set(Verdict.model_fields)


FAULTS = {
    "a cell never ran": (lambda n: n["cells"][2].update(execution_count=None), r"code cell 2 \(`y = 2`\) never ran"),
    "cells ran out of order": (lambda n: n["cells"][2].update(execution_count=5), "ran as number 5 instead of 2"),
    "a cell ran twice": (lambda n: n["cells"][1].update(execution_count=2), "ran as number 2 instead of 1"),
    "an error is stored": (
        lambda n: n["cells"][2]["outputs"].append({"output_type": "error", "ename": "ValueError", "evalue": "a\nb"}),
        r"code cell 2 \(`y = 2`\) raised ValueError: a b",
    ),
    "the evidence is missing": (lambda n: n["cells"][4]["outputs"].clear(), "no cell output with the verdicts"),
    "the evidence is shown twice": (lambda n: n["cells"][1]["outputs"].append(shown()), "2 cell outputs"),
    "a claim is missing": (lambda n: records_of(n).pop(), r"no verdict for T2; judge each claim of tiny\.toml once"),
    "a claim is unknown": (lambda n: records_of(n).append(record("T3")), "verdict for T3, which"),
    "a claim is judged twice": (lambda n: records_of(n).append(record("T2")), "more than one verdict for T2"),
    "a field is missing": (lambda n: records_of(n)[0].pop("rule"), "record of T1 lacks rule"),
    "another chapter's record": (lambda n: records_of(n)[0].update(chapter="x"), "belongs to chapter 'x'"),
    "an unknown verdict": (lambda n: records_of(n)[0].update(verdict="fine"), "T1 has the verdict 'fine'"),
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
