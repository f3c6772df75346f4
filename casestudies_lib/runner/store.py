"""The notebooks of the repository: stores an executed one, compares them, copies one for students, starts a new one."""

import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path

from casestudies_lib import paths
from casestudies_lib.records import COMPARED, SOLUTION, STUB
from casestudies_lib.runner.chapters import SLUG, Chapter, all_chapters, read_notebook, source_of, tags_of
from casestudies_lib.runner.errors import Failure, Mistake
from casestudies_lib.runner.executed import cleaned, notebook_text
from casestudies_lib.runner.exercises import exercises_of
from casestudies_lib.runner.files import replace_file, writing
from casestudies_lib.runner.jobs import Job
from casestudies_lib.runner.processes import command_environment, supervised
from casestudies_lib.runner.publishable import private_traces_in, unpublishable
from casestudies_lib.runner.results import NOTEBOOK, Result

STORED_LIMIT = 1_000_000  # bytes of a stored notebook
TEMPLATE = "_template"


def check_storable(job: Job) -> None:
    """Raise `Mistake` unless the job runs with the default parameters, which committed notebooks must show."""
    if job.changed:
        raise Mistake(f"--store needs the default parameters; leave out -p {', -p '.join(job.changed)}")


def store_notebook(job: Job, result: Result) -> None:
    """Put the executed notebook, cleaned, in place of the chapter's notebook, whose outputs nbval compares.

    Raises:
        Failure: the notebook was edited since it ran, may not be stored as it is, or cannot be written.
    """
    notebook = cleaned(json.loads((result.folder / NOTEBOOK).read_text(encoding="utf-8")))
    if _authored(read_notebook(job.chapter.path)) != _authored(notebook):
        raise Failure(f"{job.chapter.path.name} was edited since it ran; not stored: run it again")
    content = notebook_text(notebook).encode()
    if objections := storing_objections(notebook, len(content)):
        raise Failure(f"{job.chapter.path.name} is not stored: {'; '.join(objections)}")
    with writing(job.chapter.path):
        replace_file(job.chapter.path, content)


def storing_objections(notebook: dict, size: int) -> list[str]:
    """Return in words why a notebook of this many bytes may not be committed; empty where it may."""
    found = [*unpublishable(notebook), *(f"it holds {trace}" for trace in private_traces_in(notebook))]
    if size > STORED_LIMIT:
        found.append(f"it has {size:,} bytes, at most {STORED_LIMIT:,} are stored; show fewer or smaller outputs")
    return found


def _authored(notebook: dict) -> list[tuple[str, str, dict]]:
    return [(cell["cell_type"], source_of(cell), cell["metadata"]) for cell in cleaned(notebook)["cells"]]


def compare_stored(chapters: list[Chapter], say: Callable[[str], None], *, everything: bool, cell_limit: int) -> None:
    """Execute committed notebooks with nbval and compare their marked outputs, after the test of their contract.

    nbval alone passes a notebook that stores no outputs; the contract test does not. What pytest prints goes where this
    process writes.

    Args:
        chapters: the chapters to compare.
        say: receives a line before each part.
        everything: whether these are all chapters, so that tests which belong to none run too.
        cell_limit: seconds for one cell.

    Raises:
        Failure: a part failed, or the contract test is missing.
    """
    contract = Path("tests") / "test_notebook_contract.py"
    if not (paths.root() / contract).is_file():
        raise Failure(f"{paths.root() / contract} is missing; nbval alone passes notebooks without outputs")
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    only = [] if everything else ["-k", " or ".join(chapter.slug for chapter in chapters)]
    files = [str(chapter.path.resolve()) for chapter in chapters]
    parts = {
        "contract": [*pytest, str(contract), *only],
        "stored outputs": [*pytest, "--nbval-lax", "--nbval-cell-timeout", str(cell_limit), *files],
    }
    failed = []
    for name, command in parts.items():
        say(f"{name}: {', '.join(chapter.slug for chapter in chapters)}")
        with supervised(command, command_environment(), cwd=paths.root(), stdout=None) as process:
            failed += [name] if process.wait() else []  # collecting no test has an exit status of its own
    if failed:
        raise Failure(f"check failed: {', '.join(failed)}; the lines above name the cells")


def write_student_copy(chapter: Chapter, folder: Path) -> Path:
    """Write the student copy of a chapter (no outputs, no solutions, every check and stub) and return its path.

    Raises:
        Failure: there are no exercises, a file of that name is there already, or the folder cannot be written.
    """
    notebook = cleaned(read_notebook(chapter.path))
    if not exercises_of(notebook, chapter.path.name):
        raise Failure(f"{chapter.path.name} has no exercises; write one as contributing.md shows, then try again")
    notebook["cells"] = [_for_students(cell) for cell in notebook["cells"] if SOLUTION not in tags_of(cell)]
    target = folder / chapter.path.name
    if target.exists():
        raise Failure(f"{target} exists already and may hold answers; name another folder with --out")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(target, notebook_text(notebook).encode())
    return target


def _for_students(cell: dict) -> dict:
    """Return the cell without outputs; a stub is no longer compared, because its answer is meant to change."""
    if cell["cell_type"] != "code":
        return cell
    emptied = copy.deepcopy(cell) | {"outputs": [], "execution_count": None}
    if STUB in tags_of(cell):
        emptied["metadata"]["tags"] = [tag for tag in tags_of(cell) if tag != COMPARED]
    return emptied


def start_chapter(slug: str) -> tuple[Path, Path]:
    """Make the notebook and the report file of a new chapter from the two templates; returns their paths.

    Raises:
        Mistake: the slug is not of the right form, or is taken.
        Failure: a template is missing, or a file cannot be written; neither file is left behind.
    """
    chapters = all_chapters()
    report = paths.reports() / f"{slug}.toml"
    if not SLUG.fullmatch(slug):
        raise Mistake(f"{slug!r} is not a slug; take a letter, then lower case letters, digits and _ (a_new_case)")
    if slug in [chapter.slug for chapter in chapters] or report.exists():
        taken = ", ".join(chapter.slug for chapter in chapters)
        raise Mistake(f"the slug {slug} is taken: by a chapter ({taken}) or by the report file {report.name}")
    notebook = paths.notebooks() / f"{max((chapter.number for chapter in chapters), default=0) + 1}_{slug}.ipynb"
    contents = {
        notebook: _notebook_from_template(slug),
        report: _template(paths.reports() / f"{TEMPLATE}.toml").replace(f'"{TEMPLATE}"', f'"{slug}"'),
    }
    try:
        for path, content in contents.items():
            with writing(path):
                replace_file(path, content.encode())
    except Failure:
        for path in contents:
            path.unlink(missing_ok=True)
        raise
    return notebook, report


def _template(path: Path) -> str:
    if not path.is_file():
        raise Failure(f"{path} is missing; restore it from the repository")
    return path.read_text(encoding="utf-8")


def _notebook_from_template(slug: str) -> str:
    path = paths.notebooks() / f"{TEMPLATE}.ipynb"
    _template(path)
    notebook = read_notebook(path)
    for cell in notebook["cells"]:
        cell["source"] = source_of(cell).replace(f'"{TEMPLATE}"', f'"{slug}"').splitlines(keepends=True)
        if cell["cell_type"] == "code":  # the template's verdicts are not the new chapter's
            cell["outputs"], cell["execution_count"] = [], None
    return notebook_text(cleaned(notebook))
