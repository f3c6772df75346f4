"""How runs show their progress: a bar for each chapter on a terminal, plain lines elsewhere."""

import contextlib
import sys
import threading
import time
from collections.abc import Iterator

from casestudies_lib.runner.run import Notify, Progress


@contextlib.contextmanager
def shown() -> Iterator[Notify]:
    """Show on standard error what runs report; standard output is left to programs."""
    with _bars() if sys.stderr.isatty() else _lines() as notify:
        yield notify


@contextlib.contextmanager
def _lines() -> Iterator[Notify]:
    begun, lock = time.monotonic(), threading.Lock()

    def notify(progress: Progress) -> None:
        if progress.cell:
            seconds = time.monotonic() - begun
            with lock:
                sys.stderr.write(
                    f"{progress.chapter}: {progress.done}/{progress.total} cells, {seconds:.1f} s, {progress.cell}\n"
                )
                sys.stderr.flush()

    yield notify


@contextlib.contextmanager
def _bars() -> Iterator[Notify]:
    from rich import progress as bars
    from rich.console import Console

    columns = (
        bars.TextColumn("{task.description}"), bars.BarColumn(), bars.MofNCompleteColumn(), bars.TimeElapsedColumn(),
        bars.TextColumn("{task.fields[cell]}", markup=False),
    )  # fmt: skip
    with bars.Progress(*columns, console=Console(stderr=True)) as display:
        tasks: dict[str, int] = {}  # of chapters that run

        def notify(progress: Progress) -> None:
            task = tasks.setdefault(progress.chapter, len(tasks))
            if task not in display.task_ids:
                display.add_task(progress.chapter, cell="")
            display.update(task, completed=progress.done, total=progress.total, cell=progress.cell)

        yield notify
