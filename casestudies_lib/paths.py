"""Where things lie: every other file asks here, so that a checkout may stand anywhere."""

import os
from pathlib import Path


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
