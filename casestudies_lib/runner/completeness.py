"""The casebook's own judgement of a run: every cell ran, in order, without an error, and every claim has its verdict.

Papermill's metadata is not asked: it calls cells completed that never ran.
"""

import math

from casestudies_lib.records import FIELDS, VERDICTS, VERDICTS_MIME
from casestudies_lib.runner.chapters import source_of, tags_of


class Incomplete(Exception):
    """A notebook is not the record of a complete run; the message says where and why."""


def verdicts_of(notebook: dict, slug: str, claim_ids: list[str]) -> list[dict]:
    """Return the verdict records of a completely executed notebook.

    Args:
        notebook: the executed notebook as a dictionary.
        slug: the chapter that every record must name.
        claim_ids: the ids of which each must be judged exactly once.

    Raises:
        Incomplete: a cell did not run in its order or shows an error, or the verdicts are not exactly those.
    """
    _check_executed(notebook)
    outputs = [output for cell in _code_cells(notebook) for output in cell.get("outputs", [])]
    found = [output["data"][VERDICTS_MIME] for output in outputs if VERDICTS_MIME in output.get("data", {})]
    if len(found) != 1:
        raise Incomplete(
            f"{len(found) or 'no'} cell output{'s' if len(found) > 1 else ''} with the verdicts; "
            "show case.evidence() in exactly one cell"
        )
    _check_records(found[0], slug, claim_ids)
    return found[0]


def _code_cells(notebook: dict) -> list[dict]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def cell_name(notebook: dict, index: int) -> str:
    """Return how messages name a cell: its number among the author's code cells, and its first line."""
    cells = notebook["cells"][: index + 1]
    number = sum(cell["cell_type"] == "code" and "injected-parameters" not in tags_of(cell) for cell in cells)
    lines = [line.strip() for line in source_of(cells[-1]).splitlines() if line.strip()] or [""]
    first = lines[0] if len(lines[0]) <= 70 else lines[0][:67] + "..."
    return f"code cell {number} (`{first}`)"


def _check_executed(notebook: dict) -> None:
    expected = 0
    for index, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] != "code" or not source_of(cell).strip():
            continue
        if error := next((o for o in cell.get("outputs", []) if o["output_type"] == "error"), None):
            text = " ".join(str(error.get("evalue", "")).split())[:200]
            raise Incomplete(f"{cell_name(notebook, index)} raised {error.get('ename')}: {text}")
        if cell.get("execution_count") is None:
            raise Incomplete(f"{cell_name(notebook, index)} never ran")
        expected += 1
        if cell["execution_count"] != expected:
            raise Incomplete(
                f"{cell_name(notebook, index)} ran as number {cell['execution_count']} instead of {expected}; "
                "restart and run all cells in order"
            )


def _check_records(records: object, slug: str, claim_ids: list[str]) -> None:
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise Incomplete("the verdict output is not a list of records")
    judged = [record.get("id") for record in records]
    if missing := [name for name in claim_ids if name not in judged]:
        raise Incomplete(f"no verdict for {', '.join(missing)}; judge each claim of {slug}.toml once")
    if unknown := [str(name) for name in judged if name not in claim_ids]:
        raise Incomplete(f"verdict for {', '.join(unknown)}, which {slug}.toml does not hold")
    if doubled := sorted({name for name in judged if judged.count(name) > 1}):
        raise Incomplete(f"more than one verdict for {', '.join(doubled)}")
    for record in records:
        _check_record(record, slug)


def _check_record(record: dict, slug: str) -> None:
    if absent := [name for name in FIELDS if name not in record]:
        raise Incomplete(f"the verdict record of {record['id']} lacks {', '.join(absent)}")
    if record["chapter"] != slug:
        raise Incomplete(f"the verdict of {record['id']} belongs to chapter {record['chapter']!r}, not {slug!r}")
    if record["verdict"] not in VERDICTS:
        raise Incomplete(f"{record['id']} has the verdict {record['verdict']!r}; allowed: {', '.join(VERDICTS)}")
    for name in ("value", "low", "high"):
        if not _is_number_or_none(record[name]):
            raise Incomplete(f"{record['id']} has the {name} {record[name]!r}; allowed: a finite number, or none")


def _is_number_or_none(value: object) -> bool:
    return value is None or (type(value) in (int, float) and math.isfinite(value))
