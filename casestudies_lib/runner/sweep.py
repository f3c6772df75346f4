"""Runs the rows of a sweep wherever there are workers, and writes them as one table.

A row is an ordinary run with an ordinary result folder: a sweep that is started again finds what is fresh and runs the
rest. Dask hands a row out again when its worker dies, and tries one that fails twice more; what still fails is recorded
with its error, and the rest goes on.
"""

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path

from casestudies_lib import paths
from casestudies_lib.runner import results, table
from casestudies_lib.runner.chapters import claim_ids, find_chapter
from casestudies_lib.runner.cluster import NoCluster, cluster
from casestudies_lib.runner.executed import measurements_of
from casestudies_lib.runner.jobs import prepare
from casestudies_lib.runner.plan import Plan, Row, plan_of
from casestudies_lib.runner.processes import cores
from casestudies_lib.runner.results import Result
from casestudies_lib.runner.run import RunFailed, run_chapter

RETRIES = 2
_ABOUT = ("casebook", "python", "platform", "torch", "threads", "cpu_capability", "peak_memory_mb", "seconds")


def folder_of(slug: str) -> Path:
    """Return where finished sweeps of a chapter lie."""
    return paths.build() / "sweeps" / slug


def sweep(
    plan: Plan,
    *,
    scheduler: str | None = None,
    workers: int | None = None,
    fresh: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[Path, dict, Counter]:
    """Run what is missing of a sweep and write its table.

    Args:
        plan: the sweep.
        scheduler: the address of a Dask scheduler; by default a cluster on this machine.
        workers: processes on this machine; by default one a core.
        fresh: whether rows that are there run again.
        say: receives a line for each row, and warnings.

    Returns:
        The Parquet file, the provenance, and how many rows `ran`, were `found` and `failed`.

    Raises:
        Mistake: the address has no known form.
        NoCluster: nothing is there to run on, or it went away; finished rows stay.
    """
    rows, failures, tally = run_rows(plan, scheduler=scheduler, workers=workers, fresh=fresh, say=say)
    sweep = table.Sweep(table.lines_of(plan, rows, failures), table.provenance_of(plan, rows, failures))
    path = table.write(folder_of(plan.chapter.slug) / f"{plan.name}.parquet", sweep)
    return path, table.read_provenance(path.with_suffix(".json")), tally


def run_rows(
    plan: Plan, *, scheduler: str | None, workers: int | None, fresh: bool, say: Callable[[str], None]
) -> tuple[dict[str, dict], dict[str, str], Counter]:
    """Return the rows of a sweep by key as `row_of` gives them, the errors of those that failed, and how many of each.

    The arguments are those of `sweep`.
    """
    slug = plan.chapter.slug
    kept = {} if fresh else {row.key: results.find(slug, row.inputs) for row in plan.rows}
    rows = {key: row_of(result) for key, result in kept.items() if result}
    failures: dict[str, str] = {}
    waiting = [row for row in plan.rows if row.key not in rows]
    tally = Counter(found=len(rows))
    if not waiting:
        return rows, failures, tally
    begun = time.monotonic()
    with cluster(scheduler, min(workers or cores(), len(waiting)), say) as client:
        for row, answer, error in _answers(client, waiting, fresh):
            if error:
                failures[row.key] = error
            else:
                rows[row.key] = answer
            tally["failed" if error else "ran"] += 1
            words = "".join(f", {name}={value}" for name, value in row.job.changed.items())
            done = f"{len(rows) + len(failures)}/{len(plan.rows)} rows, {time.monotonic() - begun:.1f} s{words}"
            say(f"{slug}: {done}{f': failed: {error}' if error else ''}")
    return rows, failures, tally


def _answers(client, waiting: list[Row], fresh: bool) -> Iterator[tuple[Row, dict | None, str]]:
    """Yield each row with its answer or its error, in the order in which they end."""
    from distributed import wait

    tasks = [
        (row.job.chapter.slug, [f"{name}={value}" for name, value in row.job.changed.items()], row.key,
         row.job.time_limit, fresh)
        for row in waiting
    ]  # fmt: skip
    rows = dict(zip(client.map(run_row, tasks, pure=False, retries=RETRIES), waiting))
    pending, lost = set(rows), False
    while pending:
        done: set = set()
        try:
            done, pending = wait(pending, timeout=0.5, return_when="FIRST_COMPLETED")
        except TimeoutError:
            pass  # without a limit Python would not see a signal until a row ends
        except CancelledError:
            lost = True  # the client learns a moment later than its futures that the scheduler is gone
        if lost or client.status != "running":
            raise NoCluster("the scheduler went away; what ended is kept, the same command goes on from there")
        for future in done:
            error = _error_of(future)
            yield rows[future], None if error else future.result(), error


def _error_of(future) -> str:
    if future.status == "finished":
        return ""
    if future.status == "cancelled":
        return "its task was cancelled"
    error = future.exception()
    if type(error).__name__ == "KilledWorker":
        return f"{error.allowed_failures + 1} workers died while they ran it (out of memory?)"
    return f"{error}".splitlines()[0] if str(error) else type(error).__name__


def run_row(task: tuple[str, list[str], str, float, bool]) -> dict:
    """Do the work of one row on a worker, and return what the table needs of it.

    Dask may run a task more than once, and two sweeps may ask for the same row: who comes second waits and finds it.

    Args:
        task: chapter, parameters as texts NAME=VALUE, the key that the sweep gave the row, seconds, whether to run it
            in any case.

    Raises:
        RuntimeError: the run failed, or this worker has another state of the chapter than the sweep.
    """
    slug, assignments, key, time_limit, fresh = task
    try:
        job = prepare(find_chapter(slug), assignments, time_limit=time_limit)
        if plan_of(job, [assignments], {}).rows[0].key != key:
            raise RuntimeError("the worker has another state of the chapter, its report or data than you; update it")
        return row_of(run_chapter(job, fresh=fresh))
    except Exception as error:  # one of another version of this package might not unpickle there
        raise RuntimeError(_without_places(error)) from None


def _without_places(error: Exception) -> str:
    """Return what a run's failure says of the chapter, for a table that names no folder of a machine."""
    text = str(error.__cause__ if isinstance(error, RunFailed) else error)
    return text.replace(f"{paths.root()}{os.sep}", "").replace(str(Path.home()), "~")


def row_of(result: Result) -> dict:
    """Return what the table needs of a result: verdicts, measurements, and what the run ran on."""
    slug = result.provenance["chapter"]
    notebook = json.loads((result.folder / results.NOTEBOOK).read_text(encoding="utf-8"))
    return {
        "verdicts": result.verdicts,
        "measurements": measurements_of(notebook, slug, claim_ids(slug)),
        "about": {name: result.provenance.get(name) for name in _ABOUT}
        | {"lock": result.provenance["inputs"]["requirements.lock"]},
    }
