"""Where things lie: every other file asks here, so that a checkout may stand anywhere."""

import os
import shutil
from pathlib import Path

DECLARED = "CASEBOOK_DECLARED"  # set by the runner: the data files that a running chapter may read


def root() -> Path:
    """Return the repository root: the folder above this package, or CASEBOOK_ROOT where it is set."""
    return Path(os.environ.get("CASEBOOK_ROOT") or Path(__file__).resolve().parent.parent)


def reports() -> Path:
    """Return the folder of report files, one TOML a published post-mortem."""
    return root() / "data" / "reports"


def notebooks() -> Path:
    """Return the folder of chapters."""
    return root() / "notebooks"


def book() -> Path:
    """Return the folder of hand-written pages and site settings."""
    return root() / "book"


def build() -> Path:
    """Return the folder that everything generated goes into; it may be deleted at any time."""
    return root() / "_build"


BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def browser() -> str | None:
    """Return the path of an installed Chromium, which prints the book and looks at its pages, or None."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def data_file(name: str) -> Path:
    """Return a committed data file, given as `data/FOLDER/FILE`.

    A module that reads such files lists them in a tuple `DATA_FILES` of its own, in literal strings: so the runner
    knows what a chapter depends on without running it. While a chapter runs, any other file is refused.

    Raises:
        LookupError: the running chapter does not declare the file.
    """
    declared = os.environ.get(DECLARED)
    if declared is not None and name not in declared.split(os.pathsep):
        raise LookupError(
            f"{name} is not declared by any module that this chapter imports; declared: "
            f"{declared.replace(os.pathsep, ', ') or 'nothing'}; add it to DATA_FILES of the module that reads it"
        )
    return root() / name
