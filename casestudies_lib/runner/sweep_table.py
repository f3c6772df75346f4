"""The result of a sweep: one tidy Parquet file, a line for each verdict, measurement and failure, and its provenance.

`data/README.md` lists the columns. Nothing here says where or when a row ran: no host, no path, no clock but the
seconds that a row took.
"""

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from casestudies_lib.runner.cache_key import digest
from casestudies_lib.runner.errors import Failure
from casestudies_lib.runner.results import replace_file
from casestudies_lib.runner.sweep_plan import Plan, public
from casestudies_lib.runner.sweep_rows import RowResult

if TYPE_CHECKING:
    import pandas as pd

FORMAT = 1
RECORDS = ("verdict", "measurement", "failure")
TEXTS = ("record", "chapter", "claim", "kind", "verdict", "measure", "unit", "rule", "error")
NUMBERS = ("value", "low", "high", "control", "seconds")
WHOLE = ("n", "seed", "threads", "peak_memory_mb")
ABOUT = ("key", "lock", "casebook", "python", "torch", "platform", "cpu")


class BadTable(Failure):
    """A Parquet file or its provenance is missing, cut short, or one does not belong to the other."""


@dataclass(frozen=True)
class Sweep:
    """What a sweep left: its lines, and its provenance."""

    lines: "pd.DataFrame"
    provenance: dict


def lines_of(plan: Plan, found: dict[str, RowResult], failures: dict[str, str]) -> list[dict]:
    """Return the lines of a sweep, in the order of its grid."""
    lines = []
    for row in plan.rows:
        parameters = {f"param_{name}": value for name, value in public(row.job.parameters, row.job.values).items()}
        if row.key in found:
            lines += _lines_of_row(found[row.key], parameters)
        elif row.key in failures:
            failure = {"record": "failure", "chapter": plan.chapter.slug, "error": failures[row.key], "key": row.key}
            lines.append(failure | parameters)
    return lines


def _lines_of_row(row: RowResult, parameters: dict) -> list[dict]:
    known = row.provenance
    about = {name: known[name] for name in ("lock", "casebook", "python", "torch", "platform")}
    about |= {"threads": known["threads"], "peak_memory_mb": known["peak_memory_mb"], "seconds": known["seconds"]}
    about |= {"key": row.key, "cpu": known["cpu_capability"], "chapter": row.slug} | parameters
    lines = []
    for record in row.verdicts:
        fields = ("kind", "verdict", "measure", "unit", "rule", "value", "low", "high", "n")
        line = {name: record[name] for name in fields} | {"control": record.get("control"), "claim": record["id"]}
        lines.append({"record": "verdict"} | line | about)
    for record in row.measurements:
        line = {name: record[name] for name in ("claim", "measure", "unit", "value", "seed")}
        settings = {f"setting_{name}": value for name, value in record["setting"].items()}
        lines.append({"record": "measurement"} | line | settings | about)
    return lines


def to_parquet(lines: list[dict]) -> bytes:
    """Return the lines as a Parquet file; columns of parameters and settings follow the fixed ones."""
    import pyarrow as pa
    from pyarrow import parquet

    fixed = {name: pa.string() for name in (*TEXTS, *ABOUT)}
    fixed |= dict.fromkeys(NUMBERS, pa.float64()) | dict.fromkeys(WHOLE, pa.int64())
    free = sorted({name for line in lines for name in line} - fixed.keys())
    types = fixed | {name: _type_of([line[name] for line in lines if line.get(name) is not None]) for name in free}
    columns = {name: [_as(types[name], line.get(name)) for line in lines] for name in types}
    table = pa.table(columns, schema=pa.schema(types))
    out = io.BytesIO()
    parquet.write_table(table, out, compression="zstd")
    return out.getvalue()


def _type_of(values: list):
    """Return the type of a free column: its values' own, or text where they are of several kinds."""
    import pyarrow as pa

    kinds = {type(value) for value in values}
    if kinds <= {int, float}:
        return pa.int64() if kinds == {int} else pa.float64()
    return pa.bool_() if kinds == {bool} else pa.string()


def _as(kind: object, value: object) -> object:
    return value if value is None or isinstance(value, str) or str(kind) != "string" else str(value)


def provenance_of(plan: Plan, found: dict[str, RowResult], failures: dict[str, str], parquet: bytes) -> dict:
    """Return what is to be known of a sweep beside its lines.

    Raises:
        Failure: its rows read different states of one file, so that they are no one sweep.
    """
    seconds = [row.provenance["seconds"] for row in found.values()]
    return {
        "format": FORMAT,
        "chapter": plan.chapter.slug,
        "command": command_of(plan),
        "grid": plan.grid,
        "seeds": list(plan.seeds),
        "rows": len(plan.rows),
        "failures": len(failures),
        "seconds": round(sum(seconds), 1),
        "lock": plan.declared["requirements.lock"],
        "made_with": {
            name: sorted({str(row.provenance[name]) for row in found.values() if row.provenance[name]})
            for name in ("casebook", "python", "torch", "platform", "cpu_capability")
        },
        "inputs": read_by(plan, found),
        "sha256": digest(parquet),
    }


def command_of(plan: Plan) -> str:
    """Return the command line that makes the sweep again."""
    words = ["casebook", "sweep", plan.chapter.slug]
    for name, values in plan.grid.items():
        words += ["--grid", f"{name}={','.join(map(str, values))}"]
    words += ["--seeds", f"{plan.seeds[0]}:{plan.seeds[1]}", "--n-seeds", str(plan.rows[0].job.values["n_seeds"])]
    return " ".join(words)


def read_by(plan: Plan, found: dict[str, RowResult]) -> dict[str, str]:
    """Return the code, the report and the data files of the repository that the rows read, with their SHA-256."""
    inputs = {name: state for name, state in plan.declared.items() if name != "requirements.lock"}
    for row in found.values():
        for name, state in row.reads.items():
            if not _is_content(name):
                continue
            if inputs.setdefault(name, state) != state:
                raise Failure(f"rows of this sweep read different states of {name}; run the sweep again")
    return dict(sorted(inputs.items()))


def _is_content(name: str) -> bool:
    """Return whether a name is a file of code or data; how the runner executes a chapter decides no verdict."""
    ours = name.startswith(("casestudies_lib/", "data/")) and not name.startswith("casestudies_lib/runner/")
    return ours and bool(Path(name).suffix) and not name.endswith("/")


def write(folder: Path, name: str, parquet: bytes, provenance: dict) -> Path:
    """Write a sweep's two files, the provenance last; returns the path of the Parquet file."""
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / f"{name}.parquet", parquet)
    text = json.dumps(provenance, indent=1, ensure_ascii=False, allow_nan=False, sort_keys=True) + "\n"
    replace_file(folder / f"{name}.json", text.encode())
    return folder / f"{name}.parquet"


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
        raise BadTable(f"{path.name} is no Parquet file: {error}; {_MEND}") from error
    if missing := {"record", "chapter", "claim", "key", "value"} - set(lines.columns):
        raise BadTable(f"{path.name} has no column {', '.join(sorted(missing))}; {_MEND}")
    if set(lines["chapter"]) - {provenance["chapter"]}:
        raise BadTable(f"{path.name} holds lines of other chapters than {provenance['chapter']}; {_MEND}")
    if lines["key"].nunique() != provenance["rows"]:
        raise BadTable(
            f"{path.name} holds {lines['key'].nunique()} rows, its provenance says {provenance['rows']}; {_MEND}"
        )
    return Sweep(lines, provenance)


_MEND = "restore both files, or make them again with casebook sweep and casebook evidence update"
_FIELDS = {"format": int, "chapter": str, "command": str, "grid": dict, "rows": int, "inputs": dict, "sha256": str}


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
