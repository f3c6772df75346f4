"""Checks committed notebooks: first that each keeps the contract, then that a true run of it shows the same.

nbval compares the cells tagged `nbval-check-output`. It passes a notebook that stores no outputs: the contract test,
which comes first, does not. What nbval compares is a run that has already happened, see `replay`.
"""

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from casestudies_lib import paths
from casestudies_lib.runner.chapters import Chapter
from casestudies_lib.runner.errors import Failure
from casestudies_lib.runner.results import NOTEBOOK
from casestudies_lib.runner.supervise import guarded

CONTRACT = Path("tests") / "test_notebook_contract.py"
_PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]


def contract_command(chapters: list[Chapter], everything: bool) -> list[str]:
    """Return the command of the contract test, for all chapters or for these: its test ids hold their slugs."""
    chosen = [] if everything else ["-k", " or ".join(chapter.slug for chapter in chapters)]
    return [*_PYTEST, str(CONTRACT), *chosen]


def nbval_command(chapters: list[Chapter], ran: Path) -> list[str]:
    """Return the command that compares these notebooks with their runs, which a file names."""
    files = [str(chapter.path.resolve()) for chapter in chapters]
    return [*_PYTEST, "-p", "casestudies_lib.runner.replay", "--casebook-ran", str(ran), "--nbval-lax", *files]


def compare(
    chapters: list[Chapter], runs: dict[str, Path], *, everything: bool, announce: Callable[[str], None]
) -> list[str]:
    """Run contract test and comparison, their output going where this process writes.

    Args:
        chapters: the chapters to check.
        runs: the folder of a true result of each, by slug.
        everything: whether these are all chapters, so that tests which belong to none run too.
        announce: receives a line before each part.

    Returns:
        The names of the parts that failed.

    Raises:
        Failure: the contract test is not there, without which the comparison proves nothing.
    """
    if not (paths.root() / CONTRACT).is_file():
        raise Failure(f"{paths.root() / CONTRACT} is missing; nbval alone passes notebooks without outputs")
    failed = []
    with tempfile.TemporaryDirectory(prefix="casebook-check-") as folder:
        ran = Path(folder) / "ran.json"
        copies = {str(chapter.path.resolve()): str(runs[chapter.slug] / NOTEBOOK) for chapter in chapters}
        ran.write_text(json.dumps(copies), encoding="utf-8")
        parts = {"contract": contract_command(chapters, everything), "stored outputs": nbval_command(chapters, ran)}
        for name, command in parts.items():
            announce(f"{name}: {', '.join(chapter.slug for chapter in chapters)}")
            if _passes(command, Path(folder)):
                announce(f"{name}: passed")
            else:
                failed.append(name)
    return failed


def _passes(command: list[str], scratch: Path) -> bool:
    """Return whether pytest ran something and all of it passed; collecting nothing has its own exit status."""
    with guarded(command, scratch, captured=False, folder=paths.root()) as process:
        return process.wait() == 0
