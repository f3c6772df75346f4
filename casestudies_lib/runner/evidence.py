"""Committed evidence: what sweeps found, in `data/evidence/`, as one Parquet file and its provenance a chapter.

`casebook evidence update` puts a sweep there; `casebook evidence check` runs a random tenth of its rows again and
compares the verdicts. The site's explorers read it with `read_evidence`.
"""

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from casestudies_lib import paths
from casestudies_lib.runner import sweep_table
from casestudies_lib.runner.cache_key import changes, parts, states
from casestudies_lib.runner.chapters import Chapter, read_notebook
from casestudies_lib.runner.errors import Failure, Mistake
from casestudies_lib.runner.parameters import read_parameters
from casestudies_lib.runner.sweep_plan import Plan, plan_of, portable
from casestudies_lib.runner.sweep_table import BadTable, Sweep

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["BadTable", "Sweep", "read_evidence", "slugs", "staleness"]


def folder() -> Path:
    """Return where evidence is committed."""
    return paths.root() / "data" / "evidence"


def slugs() -> list[str]:
    """Return the chapters that have evidence, in alphabetical order."""
    return sorted(path.stem for path in folder().glob("*.parquet"))


def read_evidence(slug: str) -> Sweep:
    """Return the lines (a data frame, columns in `data/README.md`) and the provenance of a chapter's evidence.

    Raises:
        BadTable: there is none, it is cut short, or its provenance belongs to something else.
    """
    sweep = sweep_table.read(folder() / f"{slug}.parquet")
    if sweep.provenance["chapter"] != slug:
        raise BadTable(f"{slug}.parquet holds evidence of {sweep.provenance['chapter']}; restore it")
    return sweep


def staleness(chapter: Chapter, provenance: dict) -> list[str]:
    """Return in words which code, report or data changed since the evidence was made; empty where it is still true.

    The lock is not among them: which versions made a row stands in its lines.
    """
    notebook = read_notebook(chapter.path)
    parameters = read_parameters(notebook, chapter.path.name)
    declared = portable(parts(chapter.slug, notebook, parameters, {each.name: each.default for each in parameters}))
    recorded = provenance["inputs"]
    read = [name for name in recorded if name not in declared]
    current = states(read) | {name: state for name, state in declared.items() if name in recorded}
    return changes(recorded, current)


def sweeps_folder(slug: str) -> Path:
    """Return where finished sweeps of a chapter wait to become evidence."""
    return paths.build() / "sweeps" / slug


def update(chapter: Chapter, names: Sequence[str] = ()) -> tuple[Path, Sweep]:
    """Put one or several sweeps of a chapter into `data/evidence/`.

    Args:
        chapter: the chapter.
        names: which sweeps; where there is only one, it need not be named.

    Returns:
        The Parquet file, and what it holds.

    Raises:
        Mistake: no sweep, several of which none is named, or a name that is none.
        Failure: a sweep is older than the chapter's code, or two do not fit together.
    """
    chosen = [sweep_table.read(sweeps_folder(chapter.slug) / f"{name}.parquet") for name in _names(chapter, names)]
    for sweep in chosen:
        if words := staleness(chapter, sweep.provenance):
            raise Failure(f"{_older(sweep.provenance)}: {_few(words)}; run again: {sweep.provenance['command']}")
    sweep = _together(chosen)
    content = sweep_table.to_parquet(_as_lines(sweep.lines)) if len(chosen) > 1 else None
    source = sweeps_folder(chapter.slug) / f"{_names(chapter, names)[0]}.parquet"
    parquet = source.read_bytes() if content is None else content
    provenance = sweep.provenance | {"sha256": sweep_table.digest(parquet)}
    path = sweep_table.write(folder(), chapter.slug, parquet, provenance)
    return path, read_evidence(chapter.slug)


def _names(chapter: Chapter, names: Sequence[str]) -> list[str]:
    there = sorted(path.stem for path in sweeps_folder(chapter.slug).glob("*.parquet"))
    if not there:
        raise Mistake(f"no finished sweep of {chapter.slug}; run one: casebook sweep {chapter.slug} --grid NAME=V,V")
    if unknown := [name for name in names if name not in there]:
        raise Mistake(f"no sweep {unknown[0]!r} of {chapter.slug}; there are {', '.join(there)}")
    if not names and len(there) > 1:
        commands = [
            f"{name} ({sweep_table.read_provenance(sweeps_folder(chapter.slug) / f'{name}.json')['command']})"
            for name in there
        ]
        raise Mistake(f"several sweeps of {chapter.slug}; name one or more with --sweep: {'; '.join(commands)}")
    return list(dict.fromkeys(names)) or there


def _older(provenance: dict) -> str:
    return f"the sweep of {provenance['chapter']} is older than the chapter's code"


def _few(words: list[str]) -> str:
    return ", ".join(words[:4]) + (f" and {len(words) - 4} more" if len(words) > 4 else "")


def _together(sweeps: list[Sweep]) -> Sweep:
    """Return several sweeps as one; a row that is in two of them counts once."""
    import pandas as pd

    if len(sweeps) == 1:
        return sweeps[0]
    lines, seen = [], set()
    for sweep in sweeps:
        lines.append(sweep.lines[~sweep.lines["key"].isin(seen)])
        seen |= set(sweep.lines["key"])
    all_lines = pd.concat(lines, ignore_index=True)
    first, inputs = sweeps[0].provenance, {}
    for sweep in sweeps:
        for name, state in sweep.provenance["inputs"].items():
            if inputs.setdefault(name, state) != state:
                raise Failure(f"these sweeps read different states of {name}; run the older one again")
    rows = all_lines.drop_duplicates("key")
    return Sweep(all_lines, first | {
        "command": " && ".join(sweep.provenance["command"] for sweep in sweeps),
        "grid": _union([sweep.provenance["grid"] for sweep in sweeps]),
        "seeds": [min(s.provenance["seeds"][0] for s in sweeps), max(s.provenance["seeds"][1] for s in sweeps)],
        "rows": len(rows),
        "failures": int((rows["record"] == "failure").sum()),
        "seconds": round(float(rows["seconds"].sum()), 1),
        "made_with": _union([sweep.provenance["made_with"] for sweep in sweeps]),
        "inputs": dict(sorted(inputs.items())),
    })  # fmt: skip


def _union(each: list[dict]) -> dict:
    merged: dict[str, list] = {}
    for one in each:
        for name, values in one.items():
            merged[name] = merged.get(name, []) + [value for value in values if value not in merged.get(name, [])]
    return merged


def _as_lines(lines: "pd.DataFrame") -> list[dict]:
    """Return a data frame as lines without empty fields, in the types that they had."""
    whole = {name for name in lines.columns if name in sweep_table.WHOLE}
    lines = lines.astype(object)
    return [
        {name: int(value) if name in whole else value for name, value in record.items() if present[name]}
        for record, present in zip(lines.to_dict("records"), lines.notna().to_dict("records"))
    ]


def sample(lines: "pd.DataFrame", share: float, seed: int) -> list[str]:
    """Return the keys of a random share of the rows, at least one; the same for the same seed."""
    keys = sorted(set(lines.loc[lines["record"] == "verdict", "key"]))
    if not keys:
        raise Failure("the evidence holds no verdict to compare; make it again")
    return sorted(random.Random(seed).sample(keys, math.ceil(share * len(keys))))


def plan_check(chapter: Chapter, share: float, seed: int, time_limit: float) -> tuple[Plan, dict[str, str]]:
    """Return the plan that runs a random share of the evidence again, and the evidence's key of each row of the plan.

    Raises:
        BadTable: the evidence is cut short, or its provenance belongs to something else.
        Failure: the evidence is older than its chapter's code, or cannot run again here.
    """
    evidence = read_evidence(chapter.slug)
    if words := staleness(chapter, evidence.provenance):
        raise Failure(
            f"the evidence of {chapter.slug} is older than its chapter's code: {_few(words)}; make it again: "
            f"{evidence.provenance['command']} && casebook evidence update {chapter.slug}"
        )
    keys = sample(evidence.lines, share, seed)
    again = plan_of(chapter, [assignments_of(chapter, evidence.lines, key) for key in keys], time_limit=time_limit)
    return again, {row.key: key for row, key in zip(again.rows, keys)}


def assignments_of(chapter: Chapter, lines: "pd.DataFrame", key: str) -> list[str]:
    """Return the parameters of a row as texts NAME=VALUE.

    Raises:
        Failure: the row names a file of another machine, or a parameter that the chapter no longer has.
    """
    first = lines[lines["key"] == key].iloc[0]
    found = []
    for parameter in read_parameters(read_notebook(chapter.path), chapter.path.name):
        value = first.get(f"param_{parameter.name}")
        if value is None or value != value:
            raise Failure(f"row {key[:10]} has no parameter {parameter.name}; make the evidence again")
        if parameter.unit == "path" and value:
            raise Failure(f"row {key[:10]} read {value!r}, a file that is not committed; it cannot run again here")
        found.append(f"{parameter.name}={type(parameter.default)(value)}")
    return found


def differences(lines: "pd.DataFrame", key: str, verdicts: list[dict]) -> list[str]:
    """Return in words where a row's new verdicts differ from those in the evidence."""
    before = lines[(lines["key"] == key) & (lines["record"] == "verdict")].set_index("claim")["verdict"].to_dict()
    now = {record["id"]: record["verdict"] for record in verdicts}
    return [
        f"{claim} was {before.get(claim, 'not judged')} and is {now.get(claim, 'not judged')}"
        for claim in sorted(before.keys() | now.keys())
        if before.get(claim) != now.get(claim)
    ]
