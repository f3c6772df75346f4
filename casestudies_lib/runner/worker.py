"""Executes one notebook with papermill in a process of its own and reports each cell as a line of JSON.

`python -m casestudies_lib.runner.worker JOB` reads the job file that `execute` wrote. Papermill's current folder
belongs to the whole process and its metadata calls cells completed that never ran: hence a process for each notebook,
and no judgement here. The parent reads the notebook that this process leaves, and judges.
"""

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
import papermill
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import Engine, papermill_engines
from papermill.exceptions import PapermillExecutionError
from papermill.execute import remove_error_markers

from casestudies_lib.runner.worker_files import EXECUTED, SOURCE

OUTPUT_LIMIT = 16 * 2**20  # characters a run may print or show; a chapter stores at most 1 MB
_LINE = 12  # characters around an entry of a list: a notebook file gives each a line, indented
SAVE_EVERY = 5.0  # seconds between copies of the unfinished notebook
_RECORD = "__import__('casestudies_lib.runner.cache_recorder', fromlist=['start']).start({})"
_FACTS = "__import__('casestudies_lib.runner.facts', fromlist=['facts']).facts()"


class Stopped(BaseException):
    """The guard asked for an end; not an Exception, so that no library on the way swallows it."""


@dataclass
class Session:
    """What the process knows about its one run."""

    events: int
    folder: Path
    cell_limit: float
    root: str
    notebook: nbformat.NotebookNode | None = None
    facts: dict = field(default_factory=dict)
    shown: int = 0
    saved: float = field(default_factory=time.monotonic)

    def report(self, **event: object) -> None:
        """Write one event; a parent that has gone is the guard's business."""
        with contextlib.suppress(BrokenPipeError):
            os.write(self.events, (json.dumps(event) + "\n").encode())

    def save(self) -> None:
        """Write the notebook as far as it has come, under a temporary name first."""
        if self.notebook is None:
            return
        unfinished = self.folder / f".{EXECUTED}"
        unfinished.write_text(nbformat.writes(remove_error_markers(self.notebook)) + "\n", encoding="utf-8")
        unfinished.replace(self.folder / EXECUTED)
        self.saved = time.monotonic()


class _Client(PapermillNotebookClient):
    """Papermill's client with reports, a cap on output, and a kernel that is killed rather than asked on failure."""

    session: Session

    def papermill_execute_cells(self) -> None:
        try:
            self._start_recording()
            super().papermill_execute_cells()
            self._ask_facts()
        except BaseException:
            self._kill_kernel()
            raise

    def _kill_kernel(self) -> None:
        process = getattr(self.km.provisioner, "process", None)
        if process is not None and process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # a kernel leads its own process group

    def execute_cell(self, cell, cell_index, *arguments, **options):
        if cell.cell_type != "code":
            return super().execute_cell(cell, cell_index, *arguments, **options)
        if time.monotonic() - self.session.saved > SAVE_EVERY:
            self.session.save()
        self.session.report(event="cell", index=cell_index, state="start")
        result = super().execute_cell(cell, cell_index, *arguments, **options)
        self.session.report(event="cell", index=cell_index, state="end")
        return result

    def process_message(self, message, *arguments, **options):
        self.session.shown += _characters(message["content"])
        if self.session.shown > OUTPUT_LIMIT:
            self._kill_kernel()  # an exception would be lost: nbclient reads messages in a task of its own
            return None
        return super().process_message(message, *arguments, **options)

    def _start_recording(self) -> None:
        """Have the kernel record what it reads, without a trace in the notebook; without a record nothing is cached."""
        with contextlib.suppress(Exception):
            arguments = f"{self.session.root!r}, {[str(self.session.folder)]!r}"
            self.wait_for_reply(self.kc.execute(_RECORD.format(arguments), silent=True, store_history=False))

    def _ask_facts(self) -> None:
        """Ask the kernel what only it knows (torch's view of the CPU), without a trace in the notebook."""
        with contextlib.suppress(Exception):
            request = self.kc.execute("", silent=True, user_expressions={"facts": _FACTS})
            answer = self.wait_for_reply(request)["content"]["user_expressions"]["facts"]
            self.session.facts = json.loads(answer["data"]["application/json"])


def _characters(value: object) -> int:
    """Return about how many characters a message adds to the notebook file, whatever its kind: errors and JSON too."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(len(key) + _characters(entry) for key, entry in value.items())
    if isinstance(value, list):
        return sum(_LINE + _characters(entry) for entry in value)
    return 4


def _engine(session: Session) -> type[Engine]:
    class CasebookEngine(Engine):
        @classmethod
        def execute_managed_notebook(cls, nb_man, kernel_name, **_options) -> None:
            session.notebook = nb_man.nb
            # The user's own "python3" kernel may belong to another Python: use the one of this environment.
            manager = AsyncKernelManager(kernel_name=kernel_name, kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))
            client = _Client(
                nb_man, km=manager, timeout=session.cell_limit, startup_timeout=60, iopub_timeout=30,
                kernel_name=kernel_name, log_output=False,
            )  # fmt: skip
            client.session = session
            client.execute(cleanup_kc=True)

    return CasebookEngine


def _run(job: dict, session: Session) -> None:
    papermill_engines.register("casebook", _engine(session))
    papermill.execute_notebook(
        SOURCE, None, parameters=job["parameters"], engine_name="casebook", kernel_name="python3",
        language="python", progress_bar=False, request_save_on_cell_execute=False, cwd=job["folder"],
    )  # fmt: skip


@contextlib.contextmanager
def _private_events() -> Iterator[int]:
    """Give the events a descriptor of their own and point standard output at standard error, for the kernel too."""
    events = os.dup(1)
    os.dup2(2, 1)
    try:
        yield events
    finally:
        os.close(events)


def _stop(*_signal: object) -> None:
    raise Stopped


def _problem(error: BaseException, session: Session) -> dict:
    """Return the kind and text of what ended the run early; errors in cells are left for the parent to read."""
    if session.shown > OUTPUT_LIMIT:
        return {"kind": "output", "detail": f"more than {OUTPUT_LIMIT // 2**20} MB of output; print less"}
    kinds = {
        DeadKernelError: "kernel died",
        CellTimeoutError: "cell time-out",
        OSError: "system",
        Stopped: "stopped",
    }
    kind = next((kind for cls, kind in kinds.items() if isinstance(error, cls)), "unexpected")
    return {"kind": kind, "detail": str(error) or type(error).__name__, "errno": getattr(error, "errno", None)}


def main(job_file: str) -> int:
    """Execute the job and leave the notebook as far as it came; returns the exit status."""
    job = json.loads(Path(job_file).read_text(encoding="utf-8"))
    signal.signal(signal.SIGTERM, _stop)
    folder = Path(job_file).parent
    os.chdir(folder)  # papermill takes braces in a path for its own templates, so it gets names only
    problem = None
    with _private_events() as events:
        session = Session(events, folder, job["cell_limit"], job["root"])
        try:
            _run(job, session)
        except PapermillExecutionError:
            pass  # an error output in a cell: the parent reads it from the notebook
        except BaseException as error:
            problem = _problem(error, session)
        try:
            session.save()
        except OSError as error:
            problem = problem or _problem(error, session)
        session.report(event="end", problem=problem, facts=session.facts)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
