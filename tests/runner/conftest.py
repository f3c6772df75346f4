"""A small book in a folder whose path contains a space, with chapters that need no torch."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
import psutil
import pytest

from casestudies_lib.runner.results import NOTEBOOK, PROVENANCE, VERDICT_FILE, read_result

RESULT_FILES = {NOTEBOOK, VERDICT_FILE, PROVENANCE}
PARAMETERS = """\
seed = 0  # first seed [seed: 0 to 1000]
n_seeds = 6  # paired seeds for every effect [seeds: 5 to 64]
rate = 0.5  # learning rate [1: 0.1 to 1.0]
optimiser = "adam"  # update rule [name: one of adam, adamw, sgd]
shuffled = True  # whether batches are shuffled [flag: any]
note = ""  # free text [text: any]
records = ""  # folder or file of records; empty for none [path: any]
"""
CLAIM = """
[[claims]]
id = "{id}"
kind = "identity"
says = "it holds"
measure = "largest difference"
unit = "1"
upheld_if = "<= 0.01"
refuted_if = ">= 0.1"
min_seeds = 0
why = "hand-made"
"""


def record(chapter: str, claim: str) -> dict:
    """Return a complete verdict record."""
    return {
        "id": claim, "chapter": chapter, "kind": "identity", "verdict": "upheld", "says": "it holds",
        "measure": "largest difference", "unit": "1", "value": 0.0, "low": 0.0, "high": 0.0, "n": 1, "seeds": [],
        "control": None, "rule": "upheld if <= 0.01; refuted if >= 0.1", "reason": "hand-made",
    }  # fmt: skip


def evidence(chapter: str, *claims: str) -> str:
    """Return the source of a cell that shows these verdicts the way `case.evidence()` does."""
    return (
        "from IPython.display import display\n"
        f"records = {[record(chapter, claim) for claim in claims]!r}\n"
        "display({'application/vnd.casebook.verdicts+json': records, 'text/plain': 'verdicts'}, raw=True)"
    )


@dataclass
class Book:
    """A book to test on, and the `casebook` command in it."""

    root: Path
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    secret: str = "s3cret-value"
    completed: subprocess.CompletedProcess | None = None
    started: list[subprocess.Popen] = field(default_factory=list)

    @property
    def runs(self) -> Path:
        return self.root / "_build" / "runs"

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "CASEBOOK_ROOT": str(self.root), "CASEBOOK_TEST_MARK": self.mark}

    def write_report(self, slug: str, claims: tuple[str, ...] = ("T1", "T2")) -> Path:
        path = self.root / "data" / "reports" / f"{slug}.toml"
        source = '[source]\nrepository = "r"\ndocument = "d"\ndate = "2020"\n'
        path.write_text(
            f'slug = "{slug}"\ntitle = "Tiny"\nsummary = "s"\n{source}'
            + "".join(CLAIM.format(id=claim) for claim in claims)
        )
        return path

    def write_chapter(
        self, slug: str = "tiny", cells: tuple[str, ...] = (), *, number: int = 1,
        parameters: str | None = PARAMETERS, last: str | None = None,
    ) -> Path:  # fmt: skip
        """Write a chapter of a heading, a parameters cell, these code cells, and a cell with verdicts T1 and T2."""
        v4 = nbformat.v4
        notebook = v4.new_notebook(cells=[v4.new_markdown_cell(f"# The {slug} incident\n\nProse.")])
        if parameters is not None:
            notebook.cells.append(v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}))
        sources = [*cells, evidence(slug, "T1", "T2") if last is None else last]
        notebook.cells += [v4.new_code_cell(source) for source in sources]
        self.write_report(slug)
        path = self.root / "notebooks" / f"{number}_{slug}.ipynb"
        nbformat.write(notebook, path)
        return path

    def casebook(self, *arguments: str, **options) -> subprocess.CompletedProcess:
        """Run `casebook` to its end."""
        options = {"env": self.environment, "cwd": self.root, "timeout": 240} | options
        command = [sys.executable, "-m", "casestudies_lib.cli", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, **options)

    def start(self, *arguments: str) -> subprocess.Popen:
        """Start `casebook` and return at once; `end` ends it."""
        command = [sys.executable, "-m", "casestudies_lib.cli", *map(str, arguments)]
        process = subprocess.Popen(
            command, env=self.environment, cwd=self.root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.started.append(process)
        return process

    def end(self) -> None:
        """Kill what was started and is still alive, and close its pipes."""
        for process in self.started:
            process.kill()
        for survivor in self.survivors():
            survivor.kill()
        for process in self.started:
            process.communicate()

    def said(self, done: subprocess.CompletedProcess) -> str:
        """Return what standard error says beside progress."""
        lines = [line for line in done.stderr.splitlines() if not re.match(r"\w+: \d+/\d+ cells, ", line)]
        assert "Traceback" not in done.stderr
        return "\n".join(lines)

    def result(self, slug: str = "tiny") -> Path:
        """Return the one result folder of a chapter."""
        (folder,) = self.results(slug)
        return folder

    def results(self, slug: str = "tiny") -> list[Path]:
        """Return the result folders of a chapter, after checking that nothing half-written lies beside them."""
        entries = list((self.runs / slug).iterdir()) if (self.runs / slug).exists() else []
        folders = [path for path in entries if not path.name.endswith("failed.ipynb")]
        for folder in folders:
            assert {path.name for path in folder.iterdir()} == RESULT_FILES
            read_result(folder)
        return folders

    def survivors(self) -> list[psutil.Process]:
        """Return the living processes that descend from a `casebook` of this book."""
        return [process for process in psutil.process_iter() if self._is_ours(process)]

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            ours = process.environ().get("CASEBOOK_TEST_MARK") == self.mark
            return ours and process.status() != psutil.STATUS_ZOMBIE
        except (psutil.Error, OSError):
            return False

    def wait_until_alone(self, seconds: float) -> list[psutil.Process]:
        """Return the processes that are still alive after that many seconds, or none as soon as all are gone."""
        return wait_for(lambda: not self.survivors(), seconds) or self.survivors()


def wait_for(condition, seconds: float) -> list:
    """Return as soon as the condition holds, or after that many seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not condition():
        time.sleep(0.05)
    return []


def make_book(root: Path) -> Book:
    for folder in ("notebooks", "data/reports"):
        (root / folder).mkdir(parents=True)
    (root / "requirements.lock").write_text("psutil==0\n")
    return Book(root)


@pytest.fixture(scope="session")
def new_book():
    """Return the function that makes an empty book in a folder, for fixtures that share one among many tests."""
    return make_book


@pytest.fixture
def book(tmp_path, monkeypatch):
    """A book with one chapter, `tiny`; this process and the commands it starts see it as their root."""
    book = make_book(tmp_path / "a book")
    monkeypatch.setenv("CASEBOOK_ROOT", str(book.root))
    book.write_chapter("tiny")
    yield book
    book.end()


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A book whose chapter has run once; tests copy it before they change anything."""
    book = make_book(tmp_path_factory.mktemp("runs") / "a book")
    shows = ("OMP_NUM_THREADS", "MPLBACKEND")
    omp, backend = (f"print(__import__('os').environ['{name}'])" for name in shows)
    book.write_chapter("tiny", (omp, "import os; os.getcwd()", backend))
    settings = foreign_settings(tmp_path_factory.mktemp("home")) | {"API_TOKEN": book.secret}
    book.completed = book.casebook("run", "tiny", "--json", env=book.environment | settings)
    return book


def foreign_settings(home: Path) -> dict[str, str]:
    """Return an environment in which a kernel named python3 does not start, plots go nowhere, threads abound."""
    kernel = home / "kernels" / "python3"
    kernel.mkdir(parents=True)
    specification = {"argv": ["/bin/false"], "display_name": "x", "language": "python"}
    (kernel / "kernel.json").write_text(json.dumps(specification))
    return {"JUPYTER_DATA_DIR": str(home), "JUPYTER_PREFER_ENV_PATH": "0", "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "7"}


@pytest.fixture
def ran(finished, tmp_path, monkeypatch):
    """A private copy of the book whose chapter has run once."""
    shutil.copytree(finished.root, tmp_path / "a copy")
    copied = Book(tmp_path / "a copy")
    monkeypatch.setenv("CASEBOOK_ROOT", str(copied.root))
    yield copied
    copied.end()


def read_json(path: Path):
    return json.loads(path.read_text())
