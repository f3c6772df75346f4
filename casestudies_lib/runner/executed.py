"""What an executed notebook shows: that every cell ran, each claim's verdict, the measurements; and its clean copy."""

import copy
import json
import math

from casestudies_lib.records import FIELDS, INJECTED, MEASUREMENTS_MIME, VERDICTS, VERDICTS_MIME
from casestudies_lib.runner.chapters import source_of, tags_of

_MEASUREMENT = {"chapter": str, "claim": str, "measure": str, "unit": str, "setting": dict, "seed": int}
_TRACES = frozenset({INJECTED, "papermill-error-cell-tag"})


class Incomplete(Exception):
    """A notebook is not the record of a complete run; the message says where and why."""


def cell_name(notebook: dict, index: int) -> str:
    """Return how messages name a cell: its number among the author's code cells, and its first line."""
    cells = notebook["cells"][: index + 1]
    number = sum(cell["cell_type"] == "code" and INJECTED not in tags_of(cell) for cell in cells)
    lines = [line.strip() for line in source_of(cells[-1]).splitlines() if line.strip()] or [""]
    first = lines[0] if len(lines[0]) <= 70 else lines[0][:67] + "..."
    return f"code cell {number} (`{first}`)"


def verdicts_of(notebook: dict, slug: str, claims: list[str]) -> list[dict]:
    """Return the verdict records of a completely executed notebook.

    This is the casebook's own judgement of a run: papermill's metadata calls cells completed that never ran.

    Args:
        notebook: the executed notebook as a dictionary.
        slug: the chapter that every record must name.
        claims: the ids of which each must be judged exactly once.

    Raises:
        Incomplete: a cell did not run in its order or shows an error, or the verdicts are not exactly those.
    """
    _check_executed(notebook)
    found = _shown(notebook, VERDICTS_MIME)
    if len(found) != 1:
        raise Incomplete(f"{len(found)} cell outputs with the verdicts; show case.evidence() in exactly one cell")
    _check_records(found[0], slug, claims)
    return found[0]


def measurements_of(notebook: dict, slug: str, claims: list[str]) -> list[dict]:
    """Return the measurement records that an executed notebook shows; there need not be any.

    Raises:
        Incomplete: a record is not of the form that `Case.record` makes.
    """
    records = [record for shown in _shown(notebook, MEASUREMENTS_MIME) for record in shown]
    for number, record in enumerate(records, start=1):
        if fault := _measurement_fault(record, slug, claims):
            raise Incomplete(f"measurement {number} {fault}; make measurements with case.record")
    return records


def _shown(notebook: dict, mime: str) -> list:
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    return [output["data"][mime] for output in outputs if mime in output.get("data", {})]


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


def _check_records(records: object, slug: str, claims: list[str]) -> None:
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise Incomplete("the verdict output is not a list of records")
    judged = [record.get("id") for record in records]
    if missing := [name for name in claims if name not in judged]:
        raise Incomplete(f"no verdict for {', '.join(missing)}; judge each claim of {slug}.toml once")
    if unknown := [str(name) for name in judged if name not in claims]:
        raise Incomplete(f"verdict for {', '.join(unknown)}, which {slug}.toml does not hold")
    if doubled := sorted({name for name in judged if judged.count(name) > 1}):
        raise Incomplete(f"more than one verdict for {', '.join(doubled)}")
    for record in records:
        if absent := [name for name in FIELDS if name not in record]:
            raise Incomplete(f"the verdict record of {record['id']} lacks {', '.join(absent)}")
        if record["chapter"] != slug:
            raise Incomplete(f"the verdict of {record['id']} belongs to chapter {record['chapter']!r}, not {slug!r}")
        if record["verdict"] not in VERDICTS:
            raise Incomplete(f"{record['id']} has the verdict {record['verdict']!r}; allowed: {', '.join(VERDICTS)}")
        for name in ("value", "low", "high"):
            if record[name] is not None and not _is_number(record[name]):
                raise Incomplete(f"{record['id']} has the {name} {record[name]!r}; allowed: a finite number, or none")


def _measurement_fault(record: object, slug: str, claims: list[str]) -> str:
    if not isinstance(record, dict) or record.keys() != {*_MEASUREMENT, "value"}:
        return f"does not have exactly the fields {', '.join([*_MEASUREMENT, 'value'])}"
    for name, kind in _MEASUREMENT.items():
        if type(record[name]) is not kind:
            return f"has a {name} of type {type(record[name]).__name__} instead of {kind.__name__}"
    if not _is_number(record["value"]):
        return "has a value that is not a finite number"
    if record["chapter"] != slug or record["claim"] not in claims:
        return f"speaks of {record['chapter']} {record['claim']}, which is not a claim of {slug}"
    if not all(isinstance(value, str | int | float) for value in record["setting"].values()):
        return "has a setting that holds more than texts and numbers"
    return ""


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def cleaned(notebook: dict) -> dict:
    """Return a copy of a notebook without papermill's metadata, time stamps and injected cells."""
    result = copy.deepcopy(notebook)
    result["metadata"].pop("papermill", None)
    result["metadata"].get("language_info", {}).pop("version", None)
    result["cells"] = [cell for cell in result["cells"] if not _TRACES & set(tags_of(cell))]
    for cell in result["cells"]:
        for key in ("papermill", "execution"):
            cell["metadata"].pop(key, None)
        if cell["metadata"].get("tags") == []:
            del cell["metadata"]["tags"]
        for output in cell.get("outputs", []):
            output.get("metadata", {}).pop("execution", None)
    return result


def notebook_text(notebook: dict) -> str:
    """Return the text of a notebook file, in the layout that nbformat writes."""
    return json.dumps(notebook, ensure_ascii=False, indent=1, sort_keys=True, separators=(",", ": ")) + "\n"
