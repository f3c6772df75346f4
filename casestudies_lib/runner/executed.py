"""What an executed notebook shows: that every cell ran, each claim's verdict, the measurements; and its clean copy."""

import copy
import json

from casestudies_lib.records import INJECTED, MEASUREMENTS_MIME, VERDICTS_MIME
from casestudies_lib.runner.chapters import source_of, tags_of

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
    from casestudies_lib.claims import Measurement

    records = [record for shown in _shown(notebook, MEASUREMENTS_MIME) for record in shown]
    for number, record in enumerate(records, start=1):
        _check_form(record, Measurement, f"measurement {number}")
        if record["chapter"] != slug or record["claim"] not in claims:
            raise Incomplete(f"measurement {number} is of {record['chapter']} {record['claim']}, not a claim of {slug}")
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
    from casestudies_lib.claims import Verdict  # pydantic: not for every command

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
        _check_form(record, Verdict, f"the verdict record of {record['id']}")
        if record["chapter"] != slug:
            raise Incomplete(f"the verdict of {record['id']} belongs to chapter {record['chapter']!r}, not {slug!r}")


def _check_form(record: object, model: type, name: str) -> None:
    try:
        model.model_validate(record, strict=True)
    except ValueError as error:  # pydantic's
        first = error.errors()[0]
        raise Incomplete(f"{name}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error


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
