"""Runs every chapter and hands the results to the publisher; an old site never poses as the new one."""

import shutil
from collections.abc import Callable
from pathlib import Path

from casestudies_lib.runner.errors import Failure
from casestudies_lib.runner.execute import Notify, run_side_by_side
from casestudies_lib.runner.jobs import Job


def build(jobs: list[Job], destination: Path, notify: Notify, say: Callable[[str], None]) -> Path:
    """Run the chapters side by side and publish the site.

    Args:
        jobs: one for each chapter, with default parameters.
        destination: the folder of the site.
        notify: receives the progress of the runs.
        say: receives lines for people.

    Returns:
        The page to start with.

    Raises:
        CasebookError: a chapter failed, or the site could not be made; a site from before is put aside.
    """
    from casestudies_lib.runner.publish import PublishError, publish

    earlier = _identity(destination)
    try:
        results = run_side_by_side(jobs, notify)
        try:
            publish(results, destination)
        except PublishError as error:
            raise Failure(f"the site could not be made: {error}") from error
    except BaseException:
        if _identity(destination) == earlier:  # else another build has put its own there meanwhile
            _put_aside(destination, say)
        raise
    return destination / "index.html"


def _identity(site: Path) -> tuple[int, int] | None:
    return (site.stat().st_ino, site.stat().st_mtime_ns) if site.exists() else None


def _put_aside(site: Path, say: Callable[[str], None]) -> None:
    if not site.exists():
        return
    previous = site.with_name(f"{site.name}.previous")
    shutil.rmtree(previous, ignore_errors=True)
    site.replace(previous)
    say(f"the site of an earlier build is now in {previous}; it does not show what was just tried")
