"""A sweep as a table: one row for each point of the grid and each block of seeds, checked before any process starts."""

import itertools
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from casestudies_lib.runner.chapters import Chapter, read_notebook
from casestudies_lib.runner.errors import Mistake
from casestudies_lib.runner.inputs import digest, parameter_inputs, portable
from casestudies_lib.runner.jobs import TIME_LIMIT, Job, prepare
from casestudies_lib.runner.parameters import Parameter, ParameterError, Value, check, parse_value, resolve, short

MOST_ROWS = 100_000
SEED, N_SEEDS = "seed", "n_seeds"
_SEEDS = re.compile(r"([0-9]{1,9}):([0-9]{1,9})")


@dataclass(frozen=True)
class Row:
    """One chapter run of a sweep: a key that all machines share, the job, and what its run depends on here."""

    key: str
    job: Job
    inputs: dict[str, str]


@dataclass(frozen=True)
class Plan:
    """All rows of a sweep, what they were asked for with, and what they depend on beside parameters and machine."""

    chapter: Chapter
    grid: dict[str, list[Value]]
    rows: list[Row]
    inputs: dict[str, str]

    @property
    def name(self) -> str:
        """Return a name that only a sweep of the same rows has."""
        return digest("".join(sorted(row.key for row in self.rows)).encode())[:10]

    @property
    def seeds(self) -> list[int]:
        """Return the first seed, and one past the last."""
        values = [row.job.values for row in self.rows]
        return [min(each[SEED] for each in values), max(each[SEED] + each[N_SEEDS] for each in values)]

    @property
    def command(self) -> str:
        """Return the command line that makes the sweep again."""
        words = ["casebook", "sweep", self.chapter.slug]
        for name, values in self.grid.items():
            words += ["--grid", f"{name}={','.join(map(str, values))}"]
        first, end = self.seeds
        words += ["--seeds", f"{first}:{end}", "--n-seeds", str(self.rows[0].job.values[N_SEEDS])]
        return shlex.join(words)


def plan(
    chapter: Chapter,
    grid: Sequence[str] = (),
    seeds: str | None = None,
    *,
    n_seeds: int | None = None,
    time_limit: float = TIME_LIMIT,
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
    points, blocks = _grid(grid, declared), _blocks(declared, seeds, n_seeds)
    size = len(blocks)
    for texts in points.values():
        size *= len(texts)
    if size > MOST_ROWS:
        raise Mistake(f"the grid has {size} rows; at most {MOST_ROWS} are allowed: leave out values, or sweep in parts")
    table = [
        [f"{name}={text}" for name, text in zip(points, texts)] + list(texts[-1])
        for texts in itertools.product(*points.values(), blocks)
    ]
    values = {name: [parse_value(declared[name], text) for text in texts] for name, texts in points.items()}
    return plan_of(first, table, values)


def plan_of(first: Job, table: Sequence[Sequence[str]], grid: dict[str, list[Value]]) -> Plan:
    """Return the plan of rows whose parameters are given as texts `NAME=VALUE`.

    Args:
        first: a job of the same chapter, with the limits that all rows get.
        table: the parameters of each row.
        grid: the values of each parameter that the sweep varies.
    """
    notebook = read_notebook(first.chapter.path)
    inputs = first.inputs(notebook)
    common, rows = portable(inputs), []
    for assignments in table:
        job = replace(first, values=resolve(first.parameters, assignments, Path.cwd()))
        parameters = parameter_inputs(job.parameters, job.values)
        key = digest(repr([first.chapter.slug, common, parameters]).encode())
        rows.append(Row(key, job, inputs | parameters))
    return Plan(first.chapter, grid, rows, common)


def public(parameters: list[Parameter], values: dict[str, Value]) -> dict[str, Value]:
    """Return the values with paths cut to their last part: where a file lies on a machine is nobody's business."""
    paths = {parameter.name for parameter in parameters if parameter.unit == "path"}
    return {name: Path(str(value)).name if name in paths else value for name, value in values.items()}


def _grid(texts: Sequence[str], declared: dict[str, Parameter]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for text in texts:
        name, equals, listed = text.partition("=")
        if not equals:
            raise ParameterError(f"--grid {short(text)} is not of the form NAME=VALUE,VALUE")
        if name in (SEED, N_SEEDS):
            raise ParameterError(f"--grid cannot set {name}: use --seeds A:B, and --n-seeds for the size of a block")
        resolve(declared.values(), [f"{name}={listed.split(',')[0]}"], Path.cwd())
        if declared[name].unit == "path":  # where a file lies on a machine is nobody's business
            raise ParameterError(f"--grid cannot set the path {name}; sweep over other parameters")
        if name in found:
            raise ParameterError(f"--grid sets {name} twice; give all its values at once: {name}=VALUE,VALUE")
        found[name] = _values(declared[name], listed)
    return found


def _values(parameter: Parameter, listed: str) -> list[str]:
    texts = [text.strip() for text in listed.split(",")]
    if not all(texts):
        raise ParameterError(f"--grid {parameter.name}={short(listed)} holds an empty value; give VALUE,VALUE")
    values = [check(parameter, parse_value(parameter, text)) for text in texts]
    for text, value in zip(texts, values):
        if values.count(value) > 1:
            raise ParameterError(f"--grid {parameter.name} holds {short(text)} twice; give each value once")
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
    for seed in starts:
        check(declared[SEED], seed)
    return [(f"{SEED}={seed}", f"{N_SEEDS}={size}") for seed in starts]


def _range(text: str) -> tuple[int, int]:
    match = _SEEDS.fullmatch(text)
    if not match or int(match[1]) >= int(match[2]):
        raise Mistake(f"--seeds {short(text)} is not of the form A:B with A below B, such as 0:20 for seeds 0 to 19")
    return int(match[1]), int(match[2])
