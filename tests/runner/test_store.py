"""What is written back to `notebooks/` is the same for every run that shows the same."""

import json

import nbformat
import pytest

from casestudies_lib.runner.cleaning import cleaned, notebook_text
from casestudies_lib.runner.store import STORED_LIMIT, storing_objections


def executed(stamp):
    v4 = nbformat.v4
    parameters = v4.new_code_cell("seed = 0", execution_count=1, metadata={"tags": ["parameters"]})
    injected = v4.new_code_cell("seed = 1", execution_count=2, metadata={"tags": ["injected-parameters"]})
    shows = v4.new_code_cell("seed", execution_count=3, id="shows", outputs=[v4.new_output("stream", text="1\n")])
    for cell in (parameters, injected, shows):
        cell.metadata["papermill"] = {"start_time": stamp}
        cell.metadata["execution"] = {"iopub.execute_input": stamp}
    shows.metadata["tags"] = []
    parameters.id, injected.id = "parameters", "injected"
    return v4.new_notebook(cells=[parameters, injected, shows], metadata={"papermill": {"end_time": stamp}})


def test_time_stamps_and_injected_cells_go_but_outputs_and_counts_stay():
    found = cleaned(executed("2026-01-01T00:00:00"))
    assert "2026-01-01" not in json.dumps(found)
    assert [cell["source"] for cell in found["cells"]] == ["seed = 0", "seed"]
    assert found["cells"][0]["metadata"] == {"tags": ["parameters"]}
    assert found["cells"][1]["metadata"] == {}
    assert found["cells"][1]["execution_count"] == 3
    assert found["cells"][1]["outputs"][0]["text"] == "1\n"


def test_two_runs_that_show_the_same_store_the_same_text():
    first, second = executed("2026-01-01T00:00:00"), executed("2027-07-07T07:07:07")
    assert notebook_text(first) != notebook_text(second)
    assert notebook_text(cleaned(first)) == notebook_text(cleaned(second))


def test_cleaning_leaves_its_argument_alone():
    notebook = executed("2026-01-01T00:00:00")
    cleaned(notebook)
    assert notebook == executed("2026-01-01T00:00:00")


def test_the_text_is_what_nbformat_writes():
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("é one\ntwo", id="a")])
    on_disk = nbformat.writes(notebook)
    assert notebook_text(json.loads(on_disk)) == on_disk + "\n"


def test_store_writes_the_executed_notebook_back_and_it_serves_verdicts(book):
    path = book.root / "notebooks" / "1_tiny.ipynb"
    before = nbformat.read(path, 4)
    done = book.casebook("run", "tiny", "--store")
    assert done.returncode == 0, done.stderr
    after = nbformat.read(path, 4)
    assert [cell.source for cell in after.cells] == [cell.source for cell in before.cells]
    assert [cell.execution_count for cell in after.cells if cell.cell_type == "code"] == [1, 2]
    assert not any({"papermill", "execution"} & set(cell.metadata) for cell in after.cells)
    assert "papermill" not in after.metadata
    nbformat.validate(after)
    for result in book.runs.rglob("*.*"):
        result.unlink()
    served = json.loads(book.casebook("verdicts", "--json").stdout)
    assert [(entry["id"], entry["from"]) for entry in served] == [("T1", "stored"), ("T2", "stored")]


def test_store_refuses_other_than_default_parameters_before_a_kernel_starts(book):
    before = (book.root / "notebooks" / "1_tiny.ipynb").read_bytes()
    done = book.casebook("run", "tiny", "-p", "seed=1", "--store")
    assert done.returncode == 2
    assert done.stderr.splitlines() == ["error: --store needs the default parameters; leave out -p seed"]
    assert (book.root / "notebooks" / "1_tiny.ipynb").read_bytes() == before
    assert not book.runs.exists()


EDIT = """
import json, pathlib
path = pathlib.Path("1_tiny.ipynb")
notebook = json.loads(path.read_text())
notebook["cells"][0]["source"] = "# Edited meanwhile"
path.write_text(json.dumps(notebook))
"""


def test_store_never_overwrites_what_the_author_saved_during_the_run(book):
    path = book.write_chapter("tiny", (EDIT,))
    done = book.casebook("run", "tiny", "--store")
    assert done.returncode == 1
    assert "was edited while it ran; not stored" in done.stderr
    assert "# Edited meanwhile" in path.read_text()


def test_store_warns_when_another_input_changed_during_the_run(book):
    book.write_chapter("tiny", ("import pathlib; pathlib.Path('../requirements.lock').write_text('x==2')",))
    done = book.casebook("run", "tiny", "--store")
    assert done.returncode == 0
    assert "this changed while it ran: requirements.lock changed" in done.stderr


def test_store_refuses_what_is_too_large_or_tells_of_the_machine_and_names_it_by_cell(book):
    cells = ("print('x' * 1_000_001)", "import os; print(os.environ['API_TOKEN'])", "!true")
    path = book.write_chapter("tiny", cells)
    before = path.read_bytes()
    done = book.casebook("run", "tiny", "--store", env=book.environment | {"API_TOKEN": book.secret})
    assert done.returncode == 1
    (line,) = book.messages(done.stderr).splitlines()
    assert line.startswith("error: 1_tiny.ipynb is not stored: code cell 4 (`!true`) holds a line that is no Python")
    assert "it holds the value of the environment variable API_TOKEN" in line
    assert "at most 1,000,000 are stored; show fewer or smaller outputs" in line
    assert book.secret not in done.stderr
    assert path.read_bytes() == before


@pytest.mark.parametrize(("size", "objects"), [(STORED_LIMIT, False), (STORED_LIMIT + 1, True)])
def test_the_limit_of_a_stored_notebook_is_one_million_bytes(size, objects):
    assert bool(storing_objections({"cells": []}, size)) is objects
