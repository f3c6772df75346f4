"""A sweep as a table: one row for each point of the grid and each block of seeds, checked before any process starts."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from casestudies_lib.runner.cache_key import canonical, digest, parts
from casestudies_lib.runner.chapters import Chapter, read_notebook
from casestudies_lib.runner.errors import Mistake
from casestudies_lib.runner.jobs import Job, prepare
from casestudies_lib.runner.parameters import Parameter, ParameterError, Value, changed, check, parse_value, resolve
from casestudies_lib.runner.results import run_folder

MOST_ROWS = 100_000
SEED, N_SEEDS = "seed", "n_seeds"
_SEEDS = re.compile(r"([0-9]{1,9}):([0-9]{1,9})")


@dataclass(frozen=True)
class Row:
    """One chapter run of a sweep: its key, and the parameters that are not the chapter's defaults."""

    key: str
    job: Job


@dataclass(frozen=True)
class Plan:
    """All rows of a sweep, and what they were asked for with."""

    chapter: Chapter
    grid: dict[str, list[Value]]
    seeds: tuple[int, int]
    rows: list[Row]
    declared: dict[str, str]

    @property
    def name(self) -> str:
        """Return a name that only a sweep of the same rows has."""
        return digest(canonical([self.chapter.slug, sorted(row.key for row in self.rows)]))[:10]


def plan(
    chapter: Chapter,
    grid: Sequence[str] = (),
    seeds: str | None = None,
    *,
    n_seeds: int | None = None,
    time_limit: float = 900.0,
) -> Plan:
    """Check everything that can be checked without a process, and return the table of rows.

    A row is a chapter run with a block of seeds: `--seeds 0:20` with five seeds a run gives four rows for each point of
    the grid, with `seed` 0, 5, 10 and 15. So a row has as many paired seeds as its verdicts need.

    Args:
        chapter: the chapter to run.
        grid: texts `NAME=VALUE,VALUE`, one for each parameter; every combination becomes a row.
        seeds: `A:B` for the seeds from A up to but not including B; by default the block that the chapter runs with.
        n_seeds: seeds in a block; by default as many as the chapter runs with.
        time_limit: seconds for each row.

    Raises:
        Mistake: chapter, grid, seeds or limits are wrong; says what is allowed.
    """
    first = prepare(chapter, time_limit=time_limit)
    declared = {parameter.name: parameter for parameter in first.parameters}
    points = _grid(grid, declared)
    blocks = _blocks(declared, seeds, n_seeds)
    size = len(blocks)
    for values in points.values():
        size *= len(values)
    if size > MOST_ROWS:
        raise Mistake(f"the grid has {size} rows; at most {MOST_ROWS} are allowed: leave out values, or sweep in parts")
    table = [
        [f"{name}={text}" for name, text in zip(points, texts)] + list(texts[-1])
        for texts in itertools.product(*points.values(), blocks)
    ]
    values = {name: [parse_value(declared[name], text) for text in texts] for name, texts in points.items()}
    return _plan(first, table, values)


def plan_of(chapter: Chapter, table: Sequence[Sequence[str]], *, time_limit: float = 900.0) -> Plan:
    """Return the plan of rows whose parameters are known already, as texts NAME=VALUE.

    Raises:
        Mistake: chapter, parameters or limit are wrong.
    """
    return _plan(prepare(chapter, time_limit=time_limit), table, {})


def _plan(first: Job, table: Sequence[Sequence[str]], grid: dict[str, list[Value]]) -> Plan:
    common = portable(parts(first.chapter.slug, read_notebook(first.chapter.path), first.parameters, first.values))
    rows = [_row(first, assignments, common) for assignments in table]
    starts = [row.job.values[SEED] for row in rows]
    ends = [row.job.values[SEED] + row.job.values[N_SEEDS] for row in rows]
    return Plan(first.chapter, grid, (min(starts), max(ends)), rows, common)


def portable(found: dict[str, str]) -> dict[str, str]:
    """Return the declared inputs that are the same on every machine, parameters aside."""
    return {
        name: state
        for name, state in found.items()
        if name in ("code cells", "tags", "requirements.lock") or name.startswith("data/reports/")
    }


def _row(first: Job, assignments: Sequence[str], common: dict[str, str]) -> Row:
    values = resolve(first.parameters, assignments, Path.cwd())
    destination = run_folder(first.chapter, changed(first.parameters, values))  # so that its command is plain
    job = replace(first, values=values, destination=destination)
    return Row(row_key(job, common), job)


def row_key(job: Job, common: dict[str, str] | None = None) -> str:
    """Return the SHA-256 of what a row follows from, as far as it is the same on every machine.

    Args:
        job: the row's job.
        common: the declared inputs that all rows share, where they are known already.
    """
    files: dict[str, str] = {}
    if common is None or _names_files(job):
        found = parts(job.chapter.slug, read_notebook(job.chapter.path), job.parameters, job.values)
        common = portable(found)
        files = {name: state for name, state in found.items() if name.startswith("files of parameter")}
    shown = public(job.parameters, job.values)
    return digest(canonical([job.chapter.slug, common, files, shown]))


def _names_files(job: Job) -> bool:
    return any(parameter.unit == "path" and job.values[parameter.name] for parameter in job.parameters)


def public(parameters: list[Parameter], values: dict[str, Value]) -> dict[str, Value]:
    """Return the values with paths cut to their last part: where a file lies on a machine is nobody's business."""
    paths = {parameter.name for parameter in parameters if parameter.unit == "path"}
    return {name: Path(str(value)).name if name in paths else value for name, value in values.items()}


def _grid(texts: Sequence[str], declared: dict[str, Parameter]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for text in texts:
        name, equals, listed = text.partition("=")
        if not equals:
            raise ParameterError(f"--grid {_short(text)} is not of the form NAME=VALUE,VALUE")
        if name in (SEED, N_SEEDS):
            raise ParameterError(f"--grid cannot set {name}: use --seeds A:B, and --n-seeds for the size of a block")
        resolve(declared.values(), [f"{name}={listed.split(',')[0]}"], Path.cwd())
        if name in found:
            raise ParameterError(f"--grid sets {name} twice; give all its values at once: {name}=VALUE,VALUE")
        found[name] = _values(declared[name], listed)
    return found


def _values(parameter: Parameter, listed: str) -> list[str]:
    texts = [text.strip() for text in listed.split(",")]
    if not all(texts):
        raise ParameterError(f"--grid {parameter.name}={_short(listed)} holds an empty value; give VALUE,VALUE")
    values = [check(parameter, parse_value(parameter, text)) for text in texts]
    for text, value in zip(texts, values):
        if values.count(value) > 1:
            raise ParameterError(f"--grid {parameter.name} holds {_short(text)} twice; give each value once")
    return texts


def _blocks(declared: dict[str, Parameter], seeds: str | None, n_seeds: int | None) -> list[tuple[str, str]]:
    for name in (SEED, N_SEEDS):
        if name not in declared:
            raise Mistake(f"the chapter has no parameter {name}, without which no sweep can choose its seeds")
    size = declared[N_SEEDS].default if n_seeds is None else n_seeds
    check(declared[N_SEEDS], size)
    if seeds is None:
        start = int(declared[SEED].default)
        end = start + int(size)
    else:
        start, end = _range(seeds)
    if (end - start) % size:
        raise Mistake(
            f"--seeds {start}:{end} are {end - start} seeds, and a row takes {size} (--n-seeds): give a multiple, such "
            f"as {start}:{start + max((end - start) // size, 1) * size}; {N_SEEDS} may be {declared[N_SEEDS].allowed}"
        )
    starts = range(start, end, size)
    for each in starts:
        check(declared[SEED], each)
    return [(f"{SEED}={each}", f"{N_SEEDS}={size}") for each in starts]


def _range(text: str) -> tuple[int, int]:
    match = _SEEDS.fullmatch(text)
    if not match or int(match[1]) >= int(match[2]):
        raise Mistake(f"--seeds {_short(text)} is not of the form A:B with A below B, such as 0:20 for seeds 0 to 19")
    return int(match[1]), int(match[2])


def _short(text: str, limit: int = 60) -> str:
    shown = repr(text)
    return shown if len(shown) <= limit else shown[: limit - 3] + "..."
