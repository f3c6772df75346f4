"""What a build costs, each time against the least that it could cost, measured in the same run; part of `make bench`.

Everything runs in a copy of the repository, so that the edits that measurements are about stay there.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil

from casestudies_lib import paths
from casestudies_lib.runner.chapters import Chapter, all_chapters, read_notebook, source_of
from casestudies_lib.runner.processes import cores
from casestudies_lib.runner.run import usual_seconds

Row = tuple[str, str, str]
CASEBOOK = [sys.executable, "-m", "casestudies_lib.cli"]
_LEFT = (".venv", ".git", "_build", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis", "node_modules")
RUN = """
import sys
from casestudies_lib.runner.chapters import find_chapter
from casestudies_lib.runner.run import obtain
from casestudies_lib.runner.jobs import prepare
obtain([prepare(find_chapter(slug)) for slug in sys.argv[1:]], fresh=True)
"""


@dataclass(frozen=True)
class Measured:
    """Wall seconds, processor seconds of all processes, their peak resident memory in MB, and standard error."""

    seconds: float
    processor: float
    memory: float
    said: str

    @property
    def took(self) -> float:
        """Return the number that the command itself wrote last."""
        return float(self.said.split("took ")[1])


def build_rows(scratch: Path) -> list[Row]:
    """Return what was measured, the measurement, and the figure to reach."""
    copy = scratch / "a copy"
    shutil.copytree(paths.root(), copy, ignore=shutil.ignore_patterns(*_LEFT))
    before = plain_scripts(scratch, copy)
    cold = measured([sys.executable, "-c", RUN, *(chapter.slug for chapter in all_chapters())], copy)
    after = plain_scripts(scratch, copy)
    # A machine that others use too drifts within minutes: before and after together are what stood beside.
    scripts, processor = (sum(both) / 2 for both in zip(before, after))
    beside = runner_beside_script(scratch, copy)
    measured([*CASEBOOK, "build"], copy)
    book = measured(jupyter_book(copy, scratch), copy)
    warm = measured([*CASEBOOK, "build"], copy)
    unchanged = warm.said.count("nothing changed, its last run stays")
    with (copy / "book" / "contributing.md").open("a", encoding="utf-8") as page:
        page.write("\nOne more sentence.\n")
    prose = measured([*CASEBOOK, "build"], copy)
    return [
        ("all chapters, side by side ÷ plain scripts on the same cores", f"{cold.seconds / scripts:.2f}", "≤ 1.08"),
        ("the same in processor time, whatever else runs", f"{cold.processor / processor:.2f}", "≤ 1.08"),
        ("chapter by chapter, runner ÷ plain script, both at the same time", f"{beside:.2f}", "≤ 1.08"),
        ("peak memory of all chapters, runner included", f"{cold.memory:.0f} MB", "≤ 1 870 MB"),
        ("build without a change ÷ jupyter-book alone, from nothing", f"{warm.seconds / book.seconds:.2f}", "≤ 0.3"),
        ("the same in processor time", f"{warm.processor / book.processor:.2f}", "≤ 0.3"),
        ("chapters that such a build runs", f"{len(all_chapters()) - unchanged}", "0"),
        ("build after an edit of one page's text ÷ jupyter-book alone", f"{prose.seconds / book.seconds:.2f}", ""),
    ]


def jupyter_book(copy: Path, scratch: Path) -> list[str]:
    """Return the command that makes the same pages from the staged book with jupyter-book alone, from nothing."""
    stage = scratch / "stage"
    shutil.copytree(copy / "_build" / "stage" / "book", stage)
    main = "from jupyter_book.cli.main import main; main()"
    return [sys.executable, "-c", main, "build", str(stage), "--path-output", str(scratch / "alone"), "-q"]


def plain_scripts(scratch: Path, copy: Path) -> tuple[float, float]:
    """Return wall and processor seconds of the chapters as plain scripts, side by side, ordered as a first build."""
    jobs = sorted(all_chapters(), key=lambda chapter: usual_seconds(chapter.slug, None), reverse=True)
    begin, spent = time.perf_counter(), processor_seconds()
    with ThreadPoolExecutor(cores()) as pool:
        list(pool.map(lambda chapter: as_script(chapter, scratch, copy), jobs))
    return time.perf_counter() - begin, processor_seconds() - spent


def runner_beside_script(scratch: Path, copy: Path) -> float:
    """Return how much longer the chapters take under the runner than as scripts, each pair at the same time.

    What else runs on the machine slows both, so this tells the runner's own cost where two long measurements after one
    another differ by more than that. Each chapter pays for a start of the runner here, in a build all share one.
    """
    pairs = []
    with ThreadPoolExecutor(2) as pool:
        for chapter in all_chapters():
            run = pool.submit(measured, [sys.executable, "-c", RUN, chapter.slug], copy)
            script = pool.submit(as_script, chapter, scratch, copy)
            pairs.append((run.result().seconds, script.result().seconds))
    runs, scripts = map(sum, zip(*pairs))
    return runs / scripts


def processor_seconds() -> float:
    """Return what all children that have ended have used of the processors."""
    return os.times().children_user + os.times().children_system


def as_script(chapter: Chapter, scratch: Path, copy: Path) -> Measured:
    cells = [cell for cell in read_notebook(chapter.path)["cells"] if cell["cell_type"] == "code"]
    script = scratch / f"{chapter.slug}.py"
    script.write_text("\n\n".join(source_of(cell) for cell in cells), encoding="utf-8")
    return measured([sys.executable, str(script)], copy, copy / "notebooks")


def measured(command: list[str], root: Path, folder: Path | None = None) -> Measured:
    """Run a command to its end, with the repository's copy as its root."""
    variables = os.environ | {"PYTHONPATH": str(root), "CASEBOOK_ROOT": str(root)}
    variables |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    begin, spent, peak = time.perf_counter(), processor_seconds(), 0.0
    with tempfile.TemporaryFile("w+", encoding="utf-8") as said:
        process = psutil.Popen(command, cwd=folder or root, env=variables, stdout=subprocess.DEVNULL, stderr=said)
        while process.poll() is None:
            peak = max(peak, resident(process))
            time.sleep(0.5)
        seconds = time.perf_counter() - begin
        said.seek(0)
        text = said.read()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command[:4])} … failed with exit status {process.returncode}:\n{text[-2000:]}")
    return Measured(seconds, processor_seconds() - spent, peak / 1e6, text)


def resident(process: psutil.Process) -> float:
    """Return the bytes that a process and its descendants hold; what they share counts once (Linux)."""
    total = 0
    for each in [process, *process.children(recursive=True)]:
        try:
            memory = each.memory_full_info()
            total += getattr(memory, "pss", memory.uss)
        except psutil.Error:
            continue
    return total
