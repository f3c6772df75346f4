"""Executes one notebook with papermill in a process of its own and reports each cell as a line of JSON.

`python -m casestudies_lib.runner.worker FOLDER` reads `job.json` and `source.ipynb` there and leaves `executed.ipynb`.
Papermill's current folder belongs to the whole process and its metadata calls cells completed that never ran: hence a
process for each notebook, and no judgement here. The casebook reads the notebook that this process leaves, and judges.
"""

import ast
import contextlib
import json
import os
import resource
import signal
import sys
import time
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

from casestudies_lib.runner.processes import adopt_orphans, die_with_parent, kill_descendants

JOB, SOURCE, EXECUTED = "job.json", "source.ipynb", "executed.ipynb"
OUTPUT_LIMIT = 16 * 2**20  # characters a run may print or show; a chapter stores at most 1 MB
_LINE = 12  # characters around an entry of a list: a notebook file gives each a line, indented
_SAVE_EVERY = 5.0  # seconds between copies of the unfinished notebook
_ATTEMPTS = 3  # at starting a kernel: another program may take one of its ports before it does
_LIBRARY = "__import__('casestudies_lib.runner.processes', fromlist=['x'])"
_TORCH = "__import__('sys').modules.get('torch')"
_FACTS = f"(lambda t: (t.get_num_threads(), t.backends.cpu.get_cpu_capability()) if t else ())({_TORCH})"


class Stopped(SystemExit):
    """The casebook asked for an end, or time is up. asyncio lets nothing but SystemExit through its callbacks."""


class Session:
    """What the process knows about its one run."""

    def __init__(self, folder: Path, cell_limit: float) -> None:
        """Give the events a descriptor of their own and point standard output at standard error, for the kernel too."""
        self.folder, self.cell_limit = folder, cell_limit
        self.events = os.dup(1)
        os.dup2(2, 1)
        self.begun = False
        self.notebook: nbformat.NotebookNode | None = None
        self.facts: dict = {}
        self.shown = 0
        self.saved = time.monotonic()

    def report(self, **event: object) -> None:
        """Write one event; a casebook that has gone sends a signal."""
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
        self.session.begun = True
        try:
            self.wait_for_reply(self.kc.execute(f"{_LIBRARY}.die_with_parent({signal.SIGKILL})", silent=True))
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
        if time.monotonic() - self.session.saved > _SAVE_EVERY:
            self.session.save()
        self.session.report(event="cell", index=cell_index)
        return super().execute_cell(cell, cell_index, *arguments, **options)

    def process_message(self, message, *arguments, **options):
        self.session.shown += _characters(message["content"])
        if self.session.shown > OUTPUT_LIMIT:
            self._kill_kernel()  # an exception would be lost: nbclient reads messages in a task of its own
            return None
        return super().process_message(message, *arguments, **options)

    def _ask_facts(self) -> None:
        """Ask the kernel for torch's view of the machine, without a trace in the notebook."""
        with contextlib.suppress(Exception):
            request = self.kc.execute("", silent=True, user_expressions={"facts": _FACTS})
            answer = self.wait_for_reply(request)["content"]["user_expressions"]["facts"]
            self.session.facts = dict(
                zip(("threads", "cpu_capability"), ast.literal_eval(answer["data"]["text/plain"]))
            )


def _client(nb_man, kernel_name: str, session: Session) -> _Client:
    # The user's own "python3" kernel may belong to another Python: use the one of this environment.
    manager = AsyncKernelManager(kernel_name=kernel_name, kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))
    client = _Client(
        nb_man, km=manager, timeout=session.cell_limit, startup_timeout=60, iopub_timeout=30,
        kernel_name=kernel_name, log_output=False,
    )  # fmt: skip
    client.session = session
    return client


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
            for attempt in range(_ATTEMPTS):
                try:
                    _client(nb_man, kernel_name, session).execute(cleanup_kc=True)
                    return
                except RuntimeError:
                    if session.begun or attempt == _ATTEMPTS - 1:
                        raise

    return CasebookEngine


def _stop(number: int, _frame: object) -> None:
    signal.setitimer(signal.ITIMER_REAL, 0)
    raise Stopped("time limit" if number == signal.SIGALRM else "stopped")


def _problem(error: BaseException, session: Session) -> dict:
    """Return the kind and text of what ended the run early; errors in cells are left for the casebook to read."""
    if session.shown > OUTPUT_LIMIT:
        return {"kind": "output", "detail": f"more than {OUTPUT_LIMIT // 2**20} MB of output; print less"}
    if isinstance(error, Stopped):
        return {"kind": error.code, "detail": ""}
    kinds = {DeadKernelError: "kernel died", CellTimeoutError: "cell time-out", OSError: "system"}
    kind = next((kind for cls, kind in kinds.items() if isinstance(error, cls)), "unexpected")
    return {"kind": kind, "detail": str(error) or type(error).__name__, "errno": getattr(error, "errno", None)}


def main(folder: Path) -> int:
    """Execute the job and leave the notebook as far as it came; returns the exit status."""
    die_with_parent(signal.SIGTERM)
    adopt_orphans()
    for number in (signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, _stop)
    job = json.loads((folder / JOB).read_text(encoding="utf-8"))
    if os.getppid() != job["parent"]:  # it died while this process was importing
        return 1
    os.chdir(folder)  # papermill takes braces in a path for its own templates, so it gets names only
    session, problem = Session(folder, job["cell_limit"]), None
    papermill_engines.register("casebook", _engine(session))
    try:
        signal.setitimer(signal.ITIMER_REAL, job["time_limit"])
        papermill.execute_notebook(
            SOURCE, None, parameters=job["parameters"], engine_name="casebook", kernel_name="python3",
            language="python", progress_bar=False, request_save_on_cell_execute=False, cwd=job["notebooks"],
        )  # fmt: skip
    except PapermillExecutionError:
        pass  # an error output in a cell: the casebook reads it from the notebook
    except BaseException as error:
        problem = _problem(error, session)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    try:
        session.save()
    except OSError as error:
        problem = problem or _problem(error, session)
    kill_descendants()
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    session.facts["peak_memory_mb"] = round(peak / (2**20 if sys.platform == "darwin" else 2**10))
    session.report(event="end", problem=problem, facts=session.facts)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
