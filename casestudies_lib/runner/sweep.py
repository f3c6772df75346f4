"""Runs the rows of a sweep wherever there are workers, and loses none: finished rows are files before they are counted.

A row that a worker takes with it is handed out again by Dask; one that fails is tried three times, then recorded with
its error, and the rest goes on. The same command goes on where an earlier one ended.
"""

import secrets
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from dataclasses import dataclass, field
from pathlib import Path

from casestudies_lib.runner import sweep_table
from casestudies_lib.runner.cache_key import digest
from casestudies_lib.runner.errors import Failure
from casestudies_lib.runner.execute import cores
from casestudies_lib.runner.sweep_cluster import DEATHS, NoCluster, Tls, Workplace, local, remote
from casestudies_lib.runner.sweep_plan import Plan, Row
from casestudies_lib.runner.sweep_rows import RowResult, finished_rows, folder, row_file, run_row

TRIES = 3
SILENCE = 60.0  # seconds without any worker after which the user is told


@dataclass
class Tally:
    """How far a sweep has come: rows found and rows run, and the error of each row that failed for good."""

    total: int
    found: int = 0
    ran: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    tries: Counter = field(default_factory=Counter)

    @property
    def stored(self) -> int:
        """Return how many rows are in the store."""
        return self.found + self.ran


def sweep_chapter(
    plan: Plan,
    *,
    scheduler: str | None = None,
    workers: int | None = None,
    tls: Tls = Tls(),  # noqa: B008 - frozen
    fresh: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[Path, dict, Tally]:
    """Run what is missing of a sweep and write its table.

    Args:
        plan: the sweep.
        scheduler: the address of a Dask scheduler; by default a cluster on this machine.
        workers: rows at once; by default one a core, or a thread of the scheduler's workers.
        tls: files for a tls:// address.
        fresh: whether rows that are stored run again.
        say: receives a line for each row, and warnings.

    Returns:
        The Parquet file, the provenance, and how it went.

    Raises:
        Mistake: no form of address.
        NoCluster: nothing is there to run on, or it went away; finished rows stay.
    """
    tally, found = obtain_rows(plan, scheduler=scheduler, workers=workers, tls=tls, fresh=fresh, say=say)
    parquet = sweep_table.to_parquet(sweep_table.lines_of(plan, found, tally.failures))
    provenance = sweep_table.provenance_of(plan, found, tally.failures, parquet)
    return sweep_table.write(folder(plan.chapter.slug).parent, plan.name, parquet, provenance), provenance, tally


def obtain_rows(
    plan: Plan, *, scheduler: str | None, workers: int | None, tls: Tls, fresh: bool, say: Callable[[str], None]
) -> tuple[Tally, dict[str, RowResult]]:
    """Return every row of a sweep that has a result, running what is missing; the arguments are `sweep_chapter`'s."""
    waiting, begun = missing_rows(plan, fresh), time.monotonic()

    def notify(tally: Tally, row: Row) -> None:
        words = "".join(f", {name}={value}" for name, value in row.job.changed.items())
        failed = f": failed: {tally.failures[row.key]}" if row.key in tally.failures else ""
        done = tally.stored + len(tally.failures)
        say(f"{plan.chapter.slug}: {done}/{tally.total} rows, {time.monotonic() - begun:.1f} s{words}{failed}")

    if not waiting:
        return Tally(len(plan.rows), found=len(plan.rows)), results_of(plan, {})
    place = remote(scheduler, workers, tls, say) if scheduler else local(min(workers or cores(), len(waiting)))
    with place as there:
        tally = run_rows(plan, waiting, there, notify, fresh=fresh)
    return tally, results_of(plan, tally.failures)


def missing_rows(plan: Plan, fresh: bool) -> list[Row]:
    """Return the rows that are not in the store yet, or all of them where the sweep starts afresh."""
    if fresh:
        return list(plan.rows)
    found = finished_rows(plan.chapter.slug, [row.key for row in plan.rows])
    return [row for row in plan.rows if row.key not in found]


def run_rows(
    plan: Plan, waiting: list[Row], place: Workplace, notify: Callable[[Tally, Row], None], *, fresh: bool = False
) -> Tally:
    """Run these rows of a sweep.

    Args:
        plan: the sweep.
        waiting: the rows to run; the others are in the store.
        place: where they run.
        notify: called after each row, with how far the sweep has come.
        fresh: whether rows that others finished before this sweep do not count.

    Returns:
        The tally; its failures name the rows that have no result.

    Raises:
        NoCluster: the scheduler went away; rows that were finished stay.
    """
    tally = Tally(len(plan.rows), found=len(plan.rows) - len(waiting))
    asked = secrets.token_hex(8) if fresh else ""
    queue, running = deque(waiting), {}
    while queue or running:
        _check_alive(place, tally)
        while queue and len(running) < place.capacity:
            row = queue.popleft()
            running[_submit(place, plan, row, asked)] = row
        # A wait without a limit would keep Python from seeing a signal until a row ends.
        finished, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
        for future in finished:
            row = running.pop(future)
            if _settle(row, future, tally, place):
                notify(tally, row)
            else:
                queue.append(row)
    return tally


def _submit(place: Workplace, plan: Plan, row: Row, asked: str) -> Future:
    assignments = [f"{name}={value}" for name, value in row.job.changed.items()]
    return place.executor.submit(run_row, plan.chapter.slug, assignments, row.key, row.job.time_limit, asked)


def _check_alive(place: Workplace, tally: Tally) -> None:
    if not place.alive():
        raise _lost(place, tally)


def _lost(place: Workplace, tally: Tally) -> NoCluster:
    return NoCluster(
        f"the scheduler {place.where} went away; {tally.stored} of {tally.total} rows are stored, and the same command "
        "goes on from there"
    )


def _settle(row: Row, future: Future, tally: Tally, place: Workplace) -> bool:
    """Count a row as run or failed, and return True; or return False where it is to be tried again."""
    if future.cancelled():
        time.sleep(0.5)  # the client learns a moment later than its tasks that the scheduler is gone
        raise _lost(place, tally)
    error, final = _error_of(row, future)
    if not error:
        tally.ran += 1
        return True
    tally.tries[row.key] += 1
    if final or tally.tries[row.key] >= TRIES:
        tally.failures[row.key] = error
        return True
    return False


def _error_of(row: Row, future: Future) -> tuple[str, bool]:
    """Return why a row has no result, empty where it has one, and whether another try is of no use."""
    try:
        answer = future.result(timeout=0)
    except CancelledError:
        return "its task was cancelled", False
    except Exception as error:
        if type(error).__name__ == "KilledWorker":
            return f"{DEATHS} workers died while they ran it (out of memory?)", True
        return f"{type(error).__name__}: {error}".splitlines()[0], False
    if "error" in answer:
        return answer["error"], False
    path = row_file(row.job.chapter.slug, row.key)
    try:
        same = digest(path.read_bytes()) == answer["digest"]
    except OSError:
        same = False
    return ("" if same else f"its worker stored it elsewhere than {path.parent}; share that folder with it"), False


def results_of(plan: Plan, failures: dict[str, str]) -> dict[str, RowResult]:
    """Return the finished rows of a sweep by key.

    Raises:
        Failure: a row that was finished is gone or stale: something it reads was edited meanwhile.
    """
    found = finished_rows(plan.chapter.slug, [row.key for row in plan.rows])
    lost = [row for row in plan.rows if row.key not in found and row.key not in failures]
    if lost:
        raise Failure(
            f"{len(lost)} of {len(plan.rows)} rows are no longer true: something they read was edited while the sweep "
            "ran; run it again, it keeps what is still true"
        )
    return found
