"""The table of faults says what the tests observed: one row for each test of a fault, and none that no test fills."""

import ast
from pathlib import Path

import pytest

from casestudies_lib.runner.errors import Failure
from casestudies_lib.runner.fault_table import FaultRow, read_table, table_text
from casestudies_lib.site.reproduce import fault_table

TESTS = Path(__file__).resolve().parent
COMMITTED = read_table(TESTS.parent / "data" / "faults.json")
ROW = FaultRow("A cell <ends> it all", "error: `x` & y\nerror: z", 137, ("no process left",))


def declared_in(text: str) -> list[str]:
    """Return the titles in calls of `fault(...)`, wherever a file makes them."""
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call) and node.args]
    named = [call for call in calls if getattr(call.func, "attr", getattr(call.func, "id", "")) == "fault"]
    return [call.args[0].value for call in named if isinstance(call.args[0], ast.Constant)]


def test_the_table_holds_a_row_for_each_test_of_a_fault_and_no_other():
    declared = [title for path in TESTS.rglob("*.py") for title in declared_in(path.read_text(encoding="utf-8"))]
    assert len(declared) > 15
    assert sorted(declared) == [row.fault for row in COMMITTED]


def test_every_row_has_proof_and_no_path_of_the_machine_it_was_recorded_on():
    assert [row.fault for row in COMMITTED if not row.proof] == []
    assert [
        row.fault for row in COMMITTED if any(place in row.sees for place in ("/tmp/", str(Path.home()) + "/"))
    ] == []


@pytest.mark.fault(COMMITTED[0].fault)
@pytest.mark.parametrize("change", ["sees", "exit code", "proof", "nothing"])
def test_an_observation_that_differs_from_its_row_is_red(request, observed, change):
    if request.config.getoption("--record-faults"):
        pytest.skip("nothing is compared while the table is recorded")
    row = COMMITTED[0]
    sees, code, proof = row.sees, row.exit_code, list(row.proof)
    if change == "nothing":
        observed(sees, code, proof, {})
        return
    seen = {"sees": (sees + "!", code, proof), "exit code": (sees, code + 1, proof), "proof": (sees, code, proof[1:])}
    with pytest.raises(AssertionError, match="the table of faults says otherwise"):
        observed(*seen[change], {})


def test_a_table_is_read_back_as_it_was_written(tmp_path):
    (tmp_path / "faults.json").write_text(table_text([ROW]), "utf-8")
    assert read_table(tmp_path / "faults.json") == [ROW]


@pytest.mark.parametrize("text", ["[", '[{"fault": "x"}]', "[1]", None])
def test_a_file_that_is_no_such_table_is_refused_with_the_way_to_make_it(tmp_path, text):
    if text is not None:
        (tmp_path / "faults.json").write_text(text)
    with pytest.raises(Failure, match="with: make faults"):
        read_table(tmp_path / "faults.json")


def test_the_page_shows_every_part_of_a_row_as_text():
    shown = fault_table([ROW, FaultRow("Killed", "", 137, ("gone",))])
    assert '<th scope="row" role="rowheader">A cell &lt;ends&gt; it all</th>' in shown
    assert "<code>error: `x` &amp; y</code><br><code>error: z</code>" in shown
    assert '<td role="cell" data-label="Exit code">137</td>' in shown
    assert "<ul><li>no process left</li></ul>" in shown
    assert "nothing: it had no time to say anything" in shown
