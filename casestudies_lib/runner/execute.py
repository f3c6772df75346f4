"""Runs chapters with papermill, each in a guarded process of its own, side by side, and judges each run itself."""

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from casestudies_lib import paths
from casestudies_lib.runner import cache, cache_bound, results
from casestudies_lib.runner.cache_key import Key, changes, everything, key_of, parts
from casestudies_lib.runner.cache_native import native_readers
from casestudies_lib.runner.chapters import claim_ids, read_notebook, strict_json, tags_of
from casestudies_lib.runner.completeness import Incomplete, cell_name, verdicts_of
from casestudies_lib.runner.errors import Failure
from casestudies_lib.runner.jobs import Job
from casestudies_lib.runner.supervise import Outcome, follow, guarded
from casestudies_lib.runner.warm_process import obstacle, wanted, warm_process
from casestudies_lib.runner.worker_files import EXECUTED, JOB, SOURCE


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
Warn = Callable[[str], None]


def run_chapter(
    job: Job, notify: Notify = lambda _: None, stop: threading.Event | None = None, *, enter: bool = True,
    warm: Path | None = None, warn: Warn = lambda _: None,
) -> Path:  # fmt: skip
    """Execute one chapter and store its result.

    Args:
        job: what to run.
        notify: receives the progress, cell by cell.
        stop: set from another thread, it ends the run early.
        enter: whether the cache takes the run; the rows of a sweep, which can be thousands, have a store of their own.
        warm: the socket of a process to fork the kernel from, see `warm_process`.
        warn: receives a line where the kernel could not be forked.

    Returns:
        The result folder.

    Raises:
        RunFailed: the run did not reach all its verdicts; an earlier result stays as it was.
        ResultError: the result folder cannot be written.
    """
    started, clock = datetime.now(UTC), time.monotonic()
    with results.scratch_folder(job.destination) as scratch:
        source = _snapshot(job, scratch, warm)
        key = key_of(job.chapter.slug, source, job.parameters, job.values)
        outcome = _supervised(job, source, scratch, notify, stop or threading.Event())
        notebook, verdicts = _judged(job, source, scratch, outcome)
        if cold := outcome.facts.pop("kernel_cold_because", ""):
            warn(f"{job.chapter.slug}: its kernel started cold: {cold}")
        reads, doubts = _reads(job, source, key, outcome.facts.pop("recorded", None))
        provenance = {
            "chapter": job.chapter.slug,
            "parameters": job.values,
            **results.machine(),
            "threads": outcome.facts.pop("torch_threads", 1),
            **outcome.facts,
            "started": started.isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - clock, 1),
            "cells": _count_cells(source),
            "inputs": key.parts | reads,
            "not_cached": doubts,
        }
        folder = results.write_result(job.destination, scratch, notebook, verdicts, provenance)
    if enter and not doubts:
        with contextlib.suppress(OSError):  # the result stands; without room for the cache it is only not found again
            cache.enter(job, key, reads, notebook, verdicts, provenance)
    return folder


def _reads(job: Job, source: dict, key: Key, recorded: dict | None) -> tuple[dict[str, str], list[str]]:
    """Return the state of everything that a run read, and why it may not be all; then it is of all there is."""
    if recorded is None:
        return everything(), ["what it read was not recorded"]
    doubts = list(recorded["doubts"])
    now = parts(job.chapter.slug, source, job.parameters, job.values)
    doubts += [f"{words} while it ran" for words in changes(key.parts, now)]
    if not recorded["declared"]:
        doubts += [
            f"{name} reads through native code and declares nothing" for name in native_readers(source, recorded)
        ]
    return (everything() | recorded["reads"] if doubts else recorded["reads"]), doubts


def _snapshot(job: Job, scratch: Path, warm: Path | None) -> dict:
    """Copy the notebook aside, so that what runs is what the key says, whatever its author saves meanwhile."""
    task = {
        "parameters": job.changed, "folder": str(paths.notebooks().absolute()), "cell_limit": job.cell_limit,
        "root": str(paths.root().absolute()), "warm": str(warm or ""),
    }  # fmt: skip
    with results.writing(job.destination):
        (scratch / SOURCE).write_bytes(job.chapter.path.read_bytes())
        (scratch / JOB).write_text(json.dumps(task), encoding="utf-8")
    return read_notebook(scratch / SOURCE)


def _count_cells(notebook: dict) -> int:
    return sum(cell["cell_type"] == "code" for cell in notebook["cells"])


def _with_injection(job: Job, source: dict) -> dict:
    """Return the notebook that the worker's cell indices refer to: papermill puts changed parameters in a cell."""
    if not job.changed:
        return source
    cells = list(source["cells"])
    position = next(index for index, cell in enumerate(cells) if "parameters" in tags_of(cell))
    injected = {"cell_type": "code", "source": "# Parameters", "metadata": {"tags": ["injected-parameters"]}}
    return source | {"cells": [*cells[: position + 1], injected, *cells[position + 1 :]]}


def _supervised(job: Job, source: dict, scratch: Path, notify: Notify, stop: threading.Event) -> Outcome:
    running = _with_injection(job, source)
    total = _count_cells(running)

    def heard(event: dict) -> None:
        if event["event"] != "cell":
            return
        done = sum(cell["cell_type"] == "code" for cell in running["cells"][: event["index"]])
        starts = event["state"] == "start"
        cell = cell_name(running, event["index"]) if starts else ""
        notify(Progress(job.chapter.slug, done if starts else done + 1, total, cell))

    command = [sys.executable, "-m", "casestudies_lib.runner.worker", str(scratch / JOB)]
    with guarded(command, scratch) as process:
        return follow(process, job.time_limit, stop, heard)


def _judged(job: Job, source: dict, scratch: Path, outcome: Outcome) -> tuple[bytes, list[dict]]:
    """Return the executed notebook and its verdicts, or fail with the reason and the partial notebook kept."""
    executed = scratch / EXECUTED
    try:
        if outcome.problem or not outcome.ended:
            raise Incomplete(_early_end(job, source, outcome))
        content = executed.read_bytes()
        return content, verdicts_of(strict_json(content.decode()), job.chapter.slug, claim_ids(job.chapter.slug))
    except (Incomplete, OSError, ValueError) as error:
        partial = results.keep_partial(job.destination, executed)
        kept = f"; partial notebook: {partial}" if partial else ""
        raise RunFailed(f"{job.chapter.slug}: {error}{kept}; rerun with: {job.command}") from error


def _early_end(job: Job, source: dict, outcome: Outcome) -> str:
    where = "before its first cell" if outcome.running is None else ""
    if outcome.running is not None:
        where = f"in {cell_name(_with_injection(job, source), outcome.running)}"
    if outcome.problem is None:
        said = outcome.errors.decode(errors="replace").strip().splitlines()
        last = [line for line in said if "WARNING" not in line][-1:]  # every kernel warns that it speaks TCP
        return f"its process ended unexpectedly {where}: {''.join(last) or 'killed without a word'}"
    kind, detail = outcome.problem["kind"], outcome.problem["detail"]
    if kind == "system":
        return results.unwritable(job.destination, OSError(outcome.problem["errno"], detail))
    return {
        "time limit": f"time limit of {detail} reached {where}; raise it with --time-limit",
        "cell time-out": f"cell limit of {job.cell_limit:g} s reached {where}; raise it with --cell-limit",
        "kernel died": f"the kernel died {where} (killed, out of memory, or ended by the cell itself)",
        "output": f"too much output {where}: {detail}",
        "stopped": f"stopped {where}: {detail}",
    }.get(kind, f"{kind} {where}: {detail}")


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Make SIGTERM and SIGHUP end this process the way Ctrl-C does, so that runs are ended and scratch is removed."""

    def leave(number: int, _frame: object) -> None:
        for each in signals:
            signal.signal(each, signal.SIG_IGN)  # tidying up is under way and takes a few seconds at most
        raise SystemExit(128 + number)

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, leave) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def obtain(
    jobs: list[Job],
    notify: Notify = lambda _: None,
    *,
    fresh: bool = False,
    say: Say = lambda slug, reasons: None,
    warn: Warn = lambda _: None,
) -> dict[str, Path]:
    """Return a true result for every job: from the cache where every input is unchanged, else from a run.

    Args:
        jobs: one for each chapter.
        notify: receives the progress of the runs, from several threads.
        fresh: run all of them, whatever the cache holds.
        say: receives for each chapter why it runs; no reason where it does not.
        warn: receives a line where kernels start more slowly than they could.

    Returns:
        The result folder of each chapter, by slug.

    Raises:
        CasebookError: the first failure; the other runs are ended.
    """
    found, waiting = {}, []
    for job in jobs:
        answer = cache.Miss(["a fresh run was asked for"]) if fresh else cache.lookup(job)
        say(job.chapter.slug, answer.reasons if isinstance(answer, cache.Miss) else [])
        if isinstance(answer, cache.Hit):
            found[job.chapter.slug] = cache.serve(job, answer)
        else:
            waiting.append(job)
    if waiting:
        found |= run_side_by_side(waiting, notify, warn)
        with contextlib.suppress(OSError):  # the results stand; room is made another time
            cache_bound.keep_within()
    return found


def run_side_by_side(jobs: list[Job], notify: Notify = lambda _: None, warn: Warn = lambda _: None) -> dict[str, Path]:
    """Run chapters on as many cores as there are, those that took longest last time first.

    Args:
        jobs: one for each chapter.
        notify: receives the progress of all of them, from several threads.
        warn: receives a line where kernels start more slowly than they could.

    Returns:
        The result folder of each chapter, by slug.

    Raises:
        CasebookError: the first failure; the other runs are ended.
    """
    stop = threading.Event()
    workers = min(len(jobs), cores()) or 1
    with interruptible(), _warm(warn) as warm, ThreadPoolExecutor(max_workers=workers) as pool:
        try:
            runs = {
                pool.submit(run_chapter, job, notify, stop, warm=warm, warn=warn): job.chapter.slug
                for job in sorted(jobs, key=cache.last_seconds, reverse=True)
            }
            return _first_failure_or_all(runs)
        except BaseException:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise


@contextlib.contextmanager
def _warm(warn: Warn) -> Iterator[Path | None]:
    """Lend the process that kernels are forked from, which imports PyTorch while papermill is imported elsewhere."""
    reason = obstacle() if wanted() else ""
    if reason:
        warn(f"kernels start cold: {reason}")
    if reason or not wanted():
        yield None
        return
    with warm_process(paths.notebooks(), paths.root().absolute()) as address:
        yield address


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _first_failure_or_all(runs: dict[Future, str]) -> dict[str, Path]:
    waiting = set(runs)
    while waiting:
        # A wait without a limit would keep Python from seeing a signal until a run ends.
        finished, waiting = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
        for run in finished:
            run.result()
    return {slug: run.result() for run, slug in runs.items()}
