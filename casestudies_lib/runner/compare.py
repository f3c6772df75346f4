"""Checks committed notebooks: first that each keeps the contract, then that a new execution shows the same.

nbval compares the cells tagged `nbval-check-output`. It passes a notebook that stores no outputs: the contract test,
which comes first, does not.
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from casestudies_lib import paths
from casestudies_lib.runner.chapters import Chapter
from casestudies_lib.runner.errors import Failure
from casestudies_lib.runner.execute import cores
from casestudies_lib.runner.supervise import guarded

CONTRACT = Path("tests") / "test_notebook_contract.py"
_PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]


def contract_command(chapters: list[Chapter], everything: bool) -> list[str]:
    """Return the command of the contract test, for all chapters or for these: its test ids hold their slugs."""
    chosen = [] if everything else ["-k", " or ".join(chapter.slug for chapter in chapters)]
    return [*_PYTEST, str(CONTRACT), *chosen]


def nbval_command(chapters: list[Chapter], cell_limit: int) -> list[str]:
    """Return the command that compares these notebooks.

    The cell limit ends what nbval would wait 2 000 s for. Notebooks go whole to the workers, one kernel each.
    """
    workers = min(len(chapters), cores())
    spread = ["-n", str(workers), "--dist", "loadfile"] if workers > 1 else []
    files = [str(chapter.path.absolute()) for chapter in chapters]
    options = ["--nbval-lax", "--nbval-current-env", f"--nbval-cell-timeout={cell_limit}"]
    return [*_PYTEST, *options, *spread, *files]


def compare(
    chapters: list[Chapter], *, everything: bool, cell_limit: int, announce: Callable[[str], None]
) -> list[str]:
    """Run contract test and comparison, their output going where this process writes.

    Args:
        chapters: the chapters to check.
        everything: whether these are all chapters, so that tests which belong to none run too.
        cell_limit: seconds for one cell.
        announce: receives a line before each part.

    Returns:
        The names of the parts that failed.

    Raises:
        Failure: the contract test is not there, without which the comparison proves nothing.
    """
    if not (paths.root() / CONTRACT).is_file():
        raise Failure(f"{paths.root() / CONTRACT} is missing; nbval alone passes notebooks without outputs")
    parts = {"contract": contract_command(chapters, everything), "stored outputs": nbval_command(chapters, cell_limit)}
    failed = []
    for name, command in parts.items():
        announce(f"{name}: {', '.join(chapter.slug for chapter in chapters)}")
        if _passes(command):
            announce(f"{name}: passed")
        else:
            failed.append(name)
    return failed


def _passes(command: list[str]) -> bool:
    """Return whether pytest ran something and all of it passed; collecting nothing has its own exit status."""
    with (
        tempfile.TemporaryDirectory(prefix="casebook-check-") as scratch,
        guarded(command, Path(scratch), captured=False, folder=paths.root()) as process,
    ):
        return process.wait() == 0
