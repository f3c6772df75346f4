"""What every committed notebook promises, because nbval passes a notebook without outputs and says nothing."""

import json
import math
import re
import statistics
from pathlib import Path

import pytest

from casestudies_lib import paths
from casestudies_lib.claims import load_report, report_slugs, typeset
from casestudies_lib.runner.chapters import all_chapters, source_of, tags_of
from casestudies_lib.runner.cleaning import cleaned
from casestudies_lib.runner.completeness import Incomplete, verdicts_of
from casestudies_lib.runner.exercises import exercises_of
from casestudies_lib.runner.parameters import read_parameters
from casestudies_lib.runner.store import storing_objections

COMPARED = "nbval-check-output"
NOTEBOOKS = sorted(paths.notebooks().glob("*.ipynb"))
CHAPTERS = [path for path in NOTEBOOKS if not path.name.startswith("_")]
MARGIN = 2.0
EXACT = "sum([0.1] * 10)"  # a sum of doubles, the same on every machine
RAW_FLOAT = re.compile(r"\d\.\d{4,}")


def slug_of(path: Path) -> str:
    return path.stem if path.stem.startswith("_") else path.stem.split("_", 1)[1]


def notebook_of(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def code_cells(notebook: dict) -> list[dict]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def compared_cells(notebook: dict) -> list[dict]:
    return [cell for cell in code_cells(notebook) if COMPARED in tags_of(cell)]


def text_of(output: dict) -> str:
    data = output.get("data", {}).get("text/plain", output.get("text", ""))
    return data if isinstance(data, str) else "".join(data)


def stored_verdicts(notebook: dict, slug: str) -> list[dict]:
    return verdicts_of(notebook, slug, [claim.id for claim in load_report(slug).claims])


def every(paths_: list[Path]):
    return pytest.mark.parametrize("path", paths_, ids=[slug_of(path) for path in paths_])


def test_there_is_a_chapter_to_keep_the_contract():
    assert CHAPTERS
    assert {chapter.slug for chapter in all_chapters()} == set(report_slugs())


@every(NOTEBOOKS)
def test_it_was_executed_in_order_without_error_and_judges_every_claim_once(path):
    assert stored_verdicts(notebook_of(path), slug_of(path))


@every(NOTEBOOKS)
def test_stored_verdicts_follow_the_rules_that_the_report_file_holds_now(path):
    claims = {claim.id: claim for claim in load_report(slug_of(path)).claims}
    for record in stored_verdicts(notebook_of(path), slug_of(path)):
        claim = claims[record["id"]]
        assert (record["rule"], record["kind"], record["says"]) == (claim.rule, claim.kind, claim.says)
        if record["verdict"] in ("upheld", "refuted"):
            region = claim.upheld_if if record["verdict"] == "upheld" else claim.refuted_if
            assert region.holds(record["low"], record["high"]), record["id"]


@every(CHAPTERS)
def test_decided_verdicts_clear_their_threshold_by_a_factor_of_two(path):
    claims = {claim.id: claim for claim in load_report(slug_of(path)).claims}
    for record in stored_verdicts(notebook_of(path), slug_of(path)):
        if record["verdict"] in ("upheld", "refuted") and record["kind"] in ("effect", "diagnostic"):
            claim = claims[record["id"]]
            region = claim.upheld_if if record["verdict"] == "upheld" else claim.refuted_if
            assert region.margin(record["low"], record["high"]) >= MARGIN, record["id"]
            assert math.isfinite(record["value"])


@every(NOTEBOOKS)
def test_it_has_a_parameters_cell_with_seed_and_n_seeds_and_was_run_with_its_defaults(path):
    notebook = notebook_of(path)
    assert {"seed", "n_seeds"} <= {parameter.name for parameter in read_parameters(notebook, path.name)}
    assert not any("injected-parameters" in tags_of(cell) for cell in code_cells(notebook))


@every(CHAPTERS)
def test_at_least_ten_cells_are_compared_and_each_has_something_to_compare(path):
    cells = compared_cells(notebook_of(path))
    assert len(cells) >= 10
    assert all(any(text_of(output).strip() for output in cell["outputs"]) for cell in cells)


@every(NOTEBOOKS)
def test_verdict_table_and_every_judgement_are_compared(path):
    judging = [cell for cell in code_cells(notebook_of(path)) if "case.judge(" in source_of(cell)]
    assert judging
    assert all(COMPARED in tags_of(cell) for cell in judging)
    assert any(source_of(cell).strip() == "case.table()" for cell in compared_cells(notebook_of(path)))


@every(NOTEBOOKS)
def test_compared_outputs_hold_no_raw_floats(path):
    rules = [typeset(claim.rule) for claim in load_report(slug_of(path)).claims]
    for cell in compared_cells(notebook_of(path)):
        shown = "\n".join(text_of(output) for output in cell["outputs"])
        for rule in rules:
            shown = shown.replace(rule, "")
        assert EXACT in source_of(cell) or not RAW_FLOAT.search(shown), source_of(cell)[:80]


@every(NOTEBOOKS)
def test_it_shows_no_warning_and_keeps_no_trace_of_the_run(path):
    notebook = notebook_of(path)
    outputs = [output for cell in code_cells(notebook) for output in cell["outputs"]]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert cleaned(notebook) == notebook


@every(NOTEBOOKS)
def test_it_runs_no_shell_shows_what_a_page_may_show_and_tells_of_no_machine_within_its_size(path):
    assert storing_objections(notebook_of(path), path.stat().st_size) == []


@every(CHAPTERS)
def test_it_keeps_to_its_size(path):
    notebook = notebook_of(path)
    lengths = [len(source_of(cell).splitlines()) for cell in code_cells(notebook)]
    words = sum(len(source_of(cell).split()) for cell in notebook["cells"] if cell["cell_type"] == "markdown")
    assert len(lengths) >= 20
    assert max(lengths) <= 40
    assert statistics.median(lengths) <= 12
    assert 1500 <= words <= 3000


@every(CHAPTERS)
def test_every_figure_says_in_words_what_it_shows(path):
    outputs = [output for cell in code_cells(notebook_of(path)) for output in cell["outputs"]]
    pictures = re.findall(r"<img [^>]*>", "".join("".join(o.get("data", {}).get("text/html", "")) for o in outputs))
    assert pictures
    assert all(len(re.search(r'alt="([^"]*)"', picture)[1].split()) >= 5 for picture in pictures)
    assert not [output for output in outputs if "image/png" in output.get("data", {})]


@every(CHAPTERS)
def test_every_claim_has_a_section_to_link_to(path):
    text = "\n".join(source_of(cell) for cell in notebook_of(path)["cells"] if cell["cell_type"] == "markdown")
    assert all(f"({claim.id.lower()})=" in text for claim in load_report(slug_of(path)).claims)


@every(CHAPTERS)
def test_every_exercise_fails_on_its_stub_and_passes_on_its_solution(path):
    exercises = exercises_of(notebook_of(path), path.name)
    assert [exercise.number for exercise in exercises] == list(range(1, len(exercises) + 1))
    assert len(exercises) >= 3
    for exercise in exercises:
        calls = f"check_{exercise.number}(answer_{exercise.number})"
        assert f"def check_{exercise.number}(answer" in source_of(exercise.check)
        for cell, said in ((exercise.stub, "False"), (exercise.solution, "True")):
            assert source_of(cell).strip().splitlines()[-1] == calls
            assert text_of(cell["outputs"][-1]) == said, exercise.number
            assert COMPARED in tags_of(cell)
        assert "hide-cell" in tags_of(exercise.solution)
        assert len(exercise.wrong.split()) >= 8, exercise.number


def stripped(notebook: dict) -> dict:
    for cell in code_cells(notebook):
        cell["outputs"], cell["execution_count"] = [], None
    return notebook


def without_one_judgement(notebook: dict) -> dict:
    for cell in code_cells(notebook):
        for output in cell["outputs"]:
            for records in [output.get("data", {}).get("application/vnd.casebook.verdicts+json", [])]:
                del records[:1]
    return notebook


def out_of_order(notebook: dict) -> dict:
    code_cells(notebook)[2]["execution_count"] = 1
    return notebook


OBJECTIONABLE = {
    "a shell line": (lambda cell, output: cell.update(source="!ls"), "no Python"),
    "a script": (lambda cell, output: output["data"].update({"text/html": "<script>1</script>"}), "'script'"),
    "a kind of data": (lambda cell, output: output["data"].update({"application/javascript": "1"}), "javascript"),
    "a folder": (lambda cell, output: output["data"].update({"text/plain": str(paths.root() / "x")}), "the folder of"),
}


@pytest.mark.parametrize("fault", OBJECTIONABLE)
def test_the_contract_bites_on_what_no_page_may_hold(fault):
    damage, says = OBJECTIONABLE[fault]
    notebook = notebook_of(CHAPTERS[0])
    cell = next(cell for cell in code_cells(notebook) if any("data" in output for output in cell["outputs"]))
    damage(cell, next(output for output in cell["outputs"] if "data" in output))
    (objection, *_) = storing_objections(notebook, 1)
    assert says in objection


@pytest.mark.parametrize("damage", [stripped, without_one_judgement, out_of_order])
def test_the_contract_bites(damage):
    notebook = damage(notebook_of(CHAPTERS[0]))
    with pytest.raises(Incomplete):
        stored_verdicts(notebook, slug_of(CHAPTERS[0]))
