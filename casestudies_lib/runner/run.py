"""Runs chapters with papermill, each in a process of its own, side by side, unless a result is still fresh."""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from casestudies_lib import paths
from casestudies_lib.records import INJECTED, PARAMETERS
from casestudies_lib.runner import results
from casestudies_lib.runner.chapters import claim_ids, read_notebook, strict_json, tags_of
from casestudies_lib.runner.errors import Failure
from casestudies_lib.runner.executed import Incomplete, cell_name, verdicts_of
from casestudies_lib.runner.files import scratch_folder, unwritable, writing
from casestudies_lib.runner.inputs import THREADS, differences, key_of
from casestudies_lib.runner.jobs import Job
from casestudies_lib.runner.processes import cores, end, environment, supervised
from casestudies_lib.runner.results import Result

JOB, SOURCE, EXECUTED = "job.json", "source.ipynb", "executed.ipynb"  # as in worker.py, which imports papermill
FAILED = "failed.ipynb"


class RunFailed(Failure):
    """A chapter did not run to its verdicts; the message names the cell and how to rerun."""


@dataclass(frozen=True)
class Progress:
    """How far a run has come: `done` of `total` code cells; `cell` is the one that starts, empty once all are done."""

    chapter: str
    done: int
    total: int
    cell: str


Notify = Callable[[Progress], None]
Say = Callable[[str, list[str]], None]


@dataclass
class Running:
    """The workers that run now, and whether they are to stop."""

    workers: set[subprocess.Popen] = field(default_factory=set)
    stopped: threading.Event = field(default_factory=threading.Event)

    def stop(self) -> None:
        """End all workers, and keep others from starting."""
        self.stopped.set()
        for worker in list(self.workers):
            worker.terminate()
        for worker in list(self.workers):
            end(worker)


@dataclass
class Outcome:
    """What a worker said: why it ended early, if it did, the cell (by index) that ran last, and facts of its kernel."""

    ended: bool = False
    problem: dict | None = None
    facts: dict = field(default_factory=dict)
    running: int | None = None
    errors: str = ""


def run_chapter(
    job: Job, notify: Notify = lambda _: None, running: Running | None = None, *, fresh: bool = False
) -> Result:
    """Execute one chapter and store its result; where another casebook is at it, wait and take that one's.

    Args:
        job: what to run.
        notify: receives the progress, cell by cell.
        running: ends the run early from another thread.
        fresh: execute, whatever is there.

    Raises:
        RunFailed: the run did not reach all its verdicts, or what it depends on was edited meanwhile.
        ResultError: the result folder cannot be written.
    """
    running = running or Running()
    started, clock = datetime.now(UTC), time.monotonic()
    notebook = read_notebook(job.chapter.path)
    inputs = job.inputs(notebook)
    destination = results.folder_of(job.chapter.slug) / key_of(inputs)
    with scratch_folder(destination, lambda: not running.stopped.is_set()) as scratch:
        if not fresh and (found := results.find(job.chapter.slug, inputs)):
            return found
        with writing(destination):
            outcome = _work(job, notebook, inputs, scratch, notify, running)
            executed, verdicts = _judged(job, notebook, destination, scratch, outcome)
            if changes := differences(inputs, job.inputs(read_notebook(job.chapter.path))):
                raise RunFailed(f"{job.chapter.slug} was edited while it ran ({changes[0]}); rerun with: {job.command}")
            provenance = {
                "chapter": job.chapter.slug,
                "parameters": job.values,
                **results.machine(),
                "threads": THREADS,
                **outcome.facts,
                "started": started.isoformat(timespec="seconds"),
                "seconds": round(time.monotonic() - clock, 1),
                "cells": _count_cells(notebook),
                "inputs": inputs,
            }
            result = results.write_result(destination, scratch, executed, verdicts, provenance)
            for failed in destination.parent.glob(f"*.{FAILED}"):
                failed.unlink(missing_ok=True)
            return result


def _failed_notebook(destination: Path) -> Path:
    return destination.with_name(f"{destination.name}.{FAILED}")


def _count_cells(notebook: dict) -> int:
    return sum(cell["cell_type"] == "code" for cell in notebook["cells"])


def _with_injection(job: Job, notebook: dict) -> dict:
    """Return the notebook that the worker's cell indices refer to: papermill puts changed parameters in a cell."""
    if not job.changed:
        return notebook
    cells = list(notebook["cells"])
    position = next(index for index, cell in enumerate(cells) if PARAMETERS in tags_of(cell))
    injected = {"cell_type": "code", "source": "# Parameters", "metadata": {"tags": [INJECTED]}}
    return notebook | {"cells": [*cells[: position + 1], injected, *cells[position + 1 :]]}


def _work(job: Job, notebook: dict, inputs: dict[str, str], scratch: Path, notify: Notify, running: Running) -> Outcome:
    """Run the worker to its end, following what it says."""
    task = {
        "parameters": job.changed, "notebooks": str(paths.notebooks().absolute()), "parent": os.getpid(),
        "cell_limit": job.cell_limit, "time_limit": job.time_limit,
    }  # fmt: skip
    (scratch / SOURCE).write_text(json.dumps(notebook), encoding="utf-8")
    (scratch / JOB).write_text(json.dumps(task), encoding="utf-8")
    declared = [name for name in inputs if name.startswith("data/")]
    shown, outcome = _with_injection(job, notebook), Outcome()
    total, errors = _count_cells(shown), scratch / "errors.txt"
    command = [sys.executable, "-m", "casestudies_lib.runner.worker", str(scratch)]
    with errors.open("wb") as said, _started(command, environment(scratch, declared), said, running) as process:
        for line in process.stdout:
            event = json.loads(line)
            if event["event"] == "end":
                outcome.ended, outcome.problem, outcome.facts = True, event["problem"], event["facts"]
                break
            outcome.running = event["index"]
            done = _count_cells({"cells": shown["cells"][: event["index"]]})
            notify(Progress(job.chapter.slug, done, total, cell_name(shown, event["index"])))
    if outcome.ended and not outcome.problem:
        notify(Progress(job.chapter.slug, total, total, ""))
    outcome.errors = errors.read_text(encoding="utf-8", errors="replace")[-4000:]
    return outcome


@contextlib.contextmanager
def _started(command: list[str], variables: dict, errors: object, running: Running) -> Iterator[subprocess.Popen]:
    with supervised(command, variables, stdout=subprocess.PIPE, stderr=errors) as process:
        running.workers.add(process)
        try:
            if running.stopped.is_set():
                process.terminate()
            yield process
        finally:
            running.workers.discard(process)


def _judged(job: Job, notebook: dict, destination: Path, scratch: Path, outcome: Outcome) -> tuple[bytes, list[dict]]:
    """Return the executed notebook and its verdicts, or fail with the reason and the partial notebook kept."""
    executed = scratch / EXECUTED
    try:
        if outcome.problem or not outcome.ended:
            raise Incomplete(_early_end(job, notebook, destination, outcome))
        content = executed.read_bytes()
        return content, verdicts_of(strict_json(content.decode()), job.chapter.slug, claim_ids(job.chapter.slug))
    except (Incomplete, OSError, ValueError) as error:
        kept = ""
        if not outcome.problem or outcome.problem["kind"] != "stopped":
            with contextlib.suppress(OSError):
                executed.replace(_failed_notebook(destination))
                kept = f"; partial notebook: {_failed_notebook(destination)}"
        raise RunFailed(f"{job.chapter.slug}: {error}{kept}; rerun with: {job.command}") from error


def _early_end(job: Job, notebook: dict, destination: Path, outcome: Outcome) -> str:
    where = "before its first cell"
    if outcome.running is not None:
        where = f"in {cell_name(_with_injection(job, notebook), outcome.running)}"
    if outcome.problem is None:
        last = [line for line in outcome.errors.strip().splitlines() if "WARNING" not in line][-1:]
        return f"its process ended unexpectedly {where}: {''.join(last) or 'it was killed'}"
    kind, detail = outcome.problem["kind"], outcome.problem["detail"]
    if kind == "system":
        return unwritable(destination, OSError(outcome.problem["errno"], detail))
    return {
        "time limit": f"time limit of {job.time_limit:g} s reached {where}; raise it with --time-limit",
        "cell time-out": f"cell limit of {job.cell_limit:g} s reached {where}; raise it with --cell-limit",
        "kernel died": f"the kernel died {where} (killed, out of memory, or ended by the cell itself)",
        "output": f"too much output {where}: {detail}",
        "stopped": f"stopped {where}: another chapter failed, or you asked for an end",
    }.get(kind, f"{kind} {where}: {detail}")


def obtain(
    jobs: list[Job],
    notify: Notify = lambda _: None,
    *,
    fresh: bool = False,
    say: Say = lambda slug, reasons: None,
) -> dict[str, Result]:
    """Return a result for every job: the one that is there where its inputs are the same now, else that of a run.

    Chapters run side by side on as many cores as there are, those that took longest last time first.

    Args:
        jobs: one for each chapter.
        notify: receives the progress of the runs, from several threads.
        fresh: run all of them, whatever is there.
        say: receives for each chapter why it runs; no reason where it does not.

    Returns:
        The result of each chapter, by slug.

    Raises:
        CasebookError: the first failure; the other runs are ended.
    """
    found: dict[str, Result] = {}
    waiting: list[tuple[float, Job]] = []
    for job in jobs:
        slug, inputs = job.chapter.slug, job.inputs(read_notebook(job.chapter.path))
        result, last = results.find(slug, inputs), results.newest(slug, job.values)
        if result and not fresh:
            found[slug] = result
        else:
            waiting.append((usual_seconds(slug, last), job))
        changes = differences(last.provenance["inputs"], inputs) if last else ["it never ran"]
        say(slug, [] if slug in found else ["a fresh run was asked for"] if result else changes)
    ordered = [job for _, job in sorted(waiting, key=lambda entry: -entry[0])]
    return found | (_side_by_side(ordered, notify, fresh) if ordered else {})


def usual_seconds(slug: str, last: Result | None) -> float:
    """Return what the last run took, else a row of the committed evidence, so that the longest chapter starts first."""
    if last:
        return last.provenance["seconds"]
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError, ZeroDivisionError):
        sweep = json.loads((paths.root() / "data" / "evidence" / f"{slug}.json").read_text(encoding="utf-8"))
        return sweep["seconds"] / sweep["rows"]
    return 0.0


def _side_by_side(jobs: list[Job], notify: Notify, fresh: bool) -> dict[str, Result]:
    running = Running()
    with ThreadPoolExecutor(max_workers=min(len(jobs), cores())) as pool:
        try:
            runs = {pool.submit(run_chapter, job, notify, running, fresh=fresh): job.chapter.slug for job in jobs}
            return _first_failure_or_all(runs)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            running.stop()
            raise


def _first_failure_or_all(runs: dict[Future, str]) -> dict[str, Result]:
    waiting = set(runs)
    while waiting:
        # A wait without a limit would keep Python from seeing a signal until a run ends.
        finished, waiting = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
        for run in finished:
            run.result()
    return {slug: run.result() for run, slug in runs.items()}
