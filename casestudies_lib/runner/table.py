"""The result of a sweep: one tidy Parquet file, a line for each verdict, measurement and failure, and its provenance.

`data/README.md` lists the columns. Nothing here says where or when a row ran: no host, no path, no clock but the
seconds that a row took.
"""

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from casestudies_lib.runner.errors import Failure
from casestudies_lib.runner.files import replace_file, writing
from casestudies_lib.runner.inputs import digest
from casestudies_lib.runner.plan import Plan, public

if TYPE_CHECKING:
    import pandas as pd

FORMAT = 2
_TEXTS = (
    "record", "chapter", "claim", "kind", "verdict", "measure", "unit", "rule", "error", "key", "lock", "casebook",
    "python", "torch", "platform", "cpu",
)  # fmt: skip
_NUMBERS = ("value", "low", "high", "control", "seconds")
_WHOLE = ("n", "seed", "threads", "peak_memory_mb")
_COLUMNS = dict.fromkeys(_TEXTS, "string") | dict.fromkeys(_NUMBERS, "float64") | dict.fromkeys(_WHOLE, "Int64")
_FIELDS = {"format": int, "chapter": str, "command": str, "grid": dict, "rows": int, "inputs": dict, "sha256": str}
_MEND = "restore both files, or make them again with casebook sweep and casebook evidence update"


class BadTable(Failure):
    """A Parquet file or its provenance is missing, cut short, or one does not belong to the other."""


@dataclass(frozen=True)
class Sweep:
    """What a sweep left: its lines, and its provenance."""

    lines: "pd.DataFrame"
    provenance: dict


def lines_of(plan: Plan, rows: dict[str, dict], failures: dict[str, str]) -> "pd.DataFrame":
    """Return the lines of a sweep, in the order of its grid.

    Args:
        plan: the sweep.
        rows: what is known of each row that ran, by key: verdicts, measurements, and what it ran on.
        failures: the error of each row that did not.
    """
    import pandas as pd

    lines: list[dict] = []
    for row in plan.rows:
        common = {f"param_{name}": value for name, value in public(row.job.parameters, row.job.values).items()}
        common |= {"key": row.key, "chapter": plan.chapter.slug}
        if row.key in rows:
            lines += _lines_of_row(rows[row.key], common)
        elif row.key in failures:
            lines.append({"record": "failure", "error": failures[row.key]} | common)
    free = sorted({name for line in lines for name in line} - _COLUMNS.keys())
    frame = pd.DataFrame(lines, columns=[*_COLUMNS, *free]).astype(_COLUMNS)
    mixed = [name for name in free if frame[name].dropna().map(type).nunique() > 1 and not _numeric(frame[name])]
    return frame.astype(dict.fromkeys(mixed, "string"))


def _numeric(column: "pd.Series") -> bool:
    return column.dropna().map(lambda value: isinstance(value, int | float) and not isinstance(value, bool)).all()


def _lines_of_row(row: dict, common: dict) -> list[dict]:
    about = {name: state for name, state in row["about"].items() if name != "cpu_capability"}
    common = common | about | {"cpu": row["about"]["cpu_capability"]}
    lines = []
    for record in row["verdicts"]:
        fields = ("kind", "verdict", "measure", "unit", "rule", "value", "low", "high", "n")
        line = {name: record[name] for name in fields} | {"control": record.get("control"), "claim": record["id"]}
        lines.append({"record": "verdict"} | line | common)
    for record in row["measurements"]:
        line = {name: record[name] for name in ("claim", "measure", "unit", "value", "seed")}
        settings = {f"setting_{name}": value for name, value in record["setting"].items()}
        lines.append({"record": "measurement"} | line | settings | common)
    return lines


def provenance_of(plan: Plan, rows: dict[str, dict], failures: dict[str, str]) -> dict:
    """Return what is to be known of a sweep beside its lines."""
    about = [row["about"] for row in rows.values()]
    return {
        "format": FORMAT,
        "chapter": plan.chapter.slug,
        "command": plan.command,
        "grid": plan.grid,
        "seeds": plan.seeds,
        "rows": len(plan.rows),
        "failures": len(failures),
        "seconds": round(sum(each["seconds"] for each in about), 1),
        "lock": next((each["lock"] for each in about), ""),
        "made_with": {
            name: sorted({str(each[name]) for each in about if each[name]})
            for name in ("casebook", "python", "torch", "platform", "cpu_capability")
        },
        "inputs": plan.inputs,
    }


def write(path: Path, sweep: Sweep) -> Path:
    """Write a sweep as a Parquet file with its provenance beside it, the provenance last; returns the path."""
    buffer = io.BytesIO()
    sweep.lines.to_parquet(buffer, engine="pyarrow", compression="zstd", index=False)
    provenance = sweep.provenance | {"sha256": digest(buffer.getvalue())}
    text = json.dumps(provenance, indent=1, ensure_ascii=False, allow_nan=False, sort_keys=True) + "\n"
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, buffer.getvalue())
        replace_file(path.with_suffix(".json"), text.encode())
    return path


def read(path: Path) -> Sweep:
    """Return a sweep from its Parquet file and the provenance beside it.

    Raises:
        BadTable: one of them is missing, cut short or damaged, or they do not belong together.
    """
    import pyarrow as pa
    from pyarrow import parquet

    provenance, content = read_provenance(path.with_suffix(".json")), _bytes(path)
    if digest(content) != provenance["sha256"]:
        raise BadTable(f"{path.name} does not match its provenance {path.stem}.json (cut short or edited?); {_MEND}")
    try:
        # No thread but this one: `read_table` scans on Arrow's pool even with `use_threads=False`, and a thread of it
        # that still holds a Python file when the process ends can abort it (apache/arrow issue 34314).
        file = parquet.ParquetFile(pa.BufferReader(content), pre_buffer=False)
        lines = file.read(use_threads=False).to_pandas(use_threads=False)
    except Exception as error:  # pyarrow's errors share no base class
        raise BadTable(f"{path.name} is not a Parquet file: {error}; {_MEND}") from error
    if missing := {"record", "chapter", "claim", "key", "value"} - set(lines.columns):
        raise BadTable(f"{path.name} has no column {', '.join(sorted(missing))}; {_MEND}")
    if set(lines["chapter"]) - {provenance["chapter"]}:
        raise BadTable(f"{path.name} holds lines of other chapters than {provenance['chapter']}; {_MEND}")
    if lines["key"].nunique() != provenance["rows"]:
        raise BadTable(
            f"{path.name} holds {lines['key'].nunique()} rows, its provenance says {provenance['rows']}; {_MEND}"
        )
    return Sweep(lines, provenance)


def read_provenance(path: Path) -> dict:
    """Return the provenance of a sweep.

    Raises:
        BadTable: it is missing, is not JSON, or lacks a field.
    """
    try:
        provenance = json.loads(_bytes(path))
    except ValueError as error:
        raise BadTable(f"{path.name} is not valid JSON: {error}; {_MEND}") from error
    if not isinstance(provenance, dict):
        raise BadTable(f"{path.name} holds no fields; {_MEND}")
    for name, kind in _FIELDS.items():
        if type(provenance.get(name)) is not kind:
            raise BadTable(f"{path.name} has no {name}; {_MEND}")
    if provenance["format"] != FORMAT:
        raise BadTable(f"{path.name} is of format {provenance['format']}; this casebook reads {FORMAT}")
    return provenance


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadTable(f"cannot read {path}: {error.strerror}; {_MEND}") from error
