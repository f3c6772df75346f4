"""What a large sweep would cost, on paper, from what the rows of a small one did cost."""

import time
from dataclasses import dataclass

from casestudies_lib.runner.errors import Mistake
from casestudies_lib.runner.sweep_cluster import local
from casestudies_lib.runner.sweep_table import Sweep


@dataclass(frozen=True)
class Measured:
    """Measured of one row: seconds on one core (mean and longest), bytes of its lines; and seconds to hand one out."""

    row_seconds: float
    longest_seconds: float
    table_bytes: float
    task_seconds: float


@dataclass(frozen=True)
class Cost:
    """What a sweep would take.

    `hours` on the clock, `core_hours` of work without retries, `retry_core_hours` for rows lost with their workers;
    `scheduler_share` of the scheduler's time, above 1 it is the bottleneck; `table_megabytes` of the Parquet file.
    """

    hours: float
    core_hours: float
    retry_core_hours: float
    scheduler_share: float
    table_megabytes: float


def measure(sweep: Sweep, parquet_bytes: int, task_seconds: float) -> Measured:
    """Return what the rows of a sweep did cost.

    Args:
        sweep: a finished sweep, or evidence.
        parquet_bytes: the size of its Parquet file.
        task_seconds: see `seconds_per_task`.
    """
    seconds = sweep.lines.drop_duplicates("key")["seconds"].dropna()
    if seconds.empty:
        raise Mistake("no row of this sweep has a result; sweep again")
    return Measured(float(seconds.mean()), float(seconds.max()), parquet_bytes / sweep.provenance["rows"], task_seconds)


def cost(measured: Measured, rows: int, workers: int, lost_per_hour: float) -> Cost:
    """Return what a sweep of so many rows on so many workers would take.

    A worker that is lost takes half a row with it on average. The clock ends with the last row, so that the longest one
    counts in full; more workers than rows are of no use.

    Args:
        measured: of one row.
        rows: how many.
        workers: each with a core of its own.
        lost_per_hour: the chance that a worker is lost within an hour.

    Raises:
        Mistake: no row, no worker, or a chance outside 0 to 1.
    """
    if rows < 1 or workers < 1 or not 0 <= lost_per_hour <= 1:
        raise Mistake(f"{rows} rows, {workers} workers, {lost_per_hour} lost an hour; give 1 or more, and 0 to 1")
    busy = min(workers, rows)
    core_hours = rows * measured.row_seconds / 3600
    retry = core_hours * lost_per_hour * measured.row_seconds / 3600 / 2
    by_workers = (core_hours + retry) / busy + measured.longest_seconds / 3600
    by_scheduler = rows * measured.task_seconds / 3600
    share = busy * measured.task_seconds / measured.row_seconds
    return Cost(max(by_workers, by_scheduler), core_hours, retry, share, rows * measured.table_bytes / 1e6)


def seconds_per_task(tasks: int = 200) -> float:
    """Return what it costs to hand out one row and take its answer, measured with empty tasks on a local worker."""
    with local(1) as place:
        place.executor.submit(abs, -1).result(60)
        begin = time.perf_counter()
        for future in [place.executor.submit(abs, -number) for number in range(tasks)]:
            future.result(60)
        return (time.perf_counter() - begin) / tasks
