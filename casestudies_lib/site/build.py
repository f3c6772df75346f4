"""Runs the chapters that a change reaches and publishes all; an old site never poses as the new one."""

import shutil
from collections.abc import Callable
from pathlib import Path

from casestudies_lib.runner.cache_compare import cached, refuse_differences
from casestudies_lib.runner.errors import Failure
from casestudies_lib.runner.execute import Notify, obtain
from casestudies_lib.runner.jobs import Job


def build(
    jobs: list[Job],
    destination: Path,
    notify: Notify,
    say: Callable[[str], None],
    *,
    fresh: bool = False,
    address: str | None = None,
) -> Path:
    """Run side by side the chapters of which an input has changed, and publish the site.

    Args:
        jobs: one for each chapter, with default parameters.
        destination: the folder of the site.
        notify: receives the progress of the runs.
        say: receives lines for people.
        fresh: run every chapter, compare with what the cache held, and build the site in any case.
        address: where the site will stand, see `publish`.

    Returns:
        The page to start with.

    Raises:
        CasebookError: a chapter failed, a fresh run differs from the cached one, or the site could not be made; a site
            from before is put aside.
    """
    from casestudies_lib.site.publish import PublishError, publish

    earlier = _identity(destination)
    try:
        before = cached(jobs) if fresh else {}
        results = obtain(jobs, notify, fresh=fresh, say=lambda slug, reasons: say(_reason(slug, reasons)), warn=say)
        refuse_differences(jobs, before, results)
        try:
            publish(results, destination, address, fresh=fresh)
        except PublishError as error:
            raise Failure(f"the site could not be made: {error}") from error
    except BaseException:
        if _identity(destination) == earlier:  # else another build has put its own there meanwhile
            _put_aside(destination, say)
        raise
    return destination / "index.html"


def _reason(slug: str, reasons: list[str]) -> str:
    more = f" and {len(reasons) - 3} more" if len(reasons) > 3 else ""
    return f"{slug}: runs, {', '.join(reasons[:3])}{more}" if reasons else f"{slug}: nothing changed, from the cache"


def _identity(site: Path) -> tuple[int, int] | None:
    return (site.stat().st_ino, site.stat().st_mtime_ns) if site.exists() else None


def _put_aside(site: Path, say: Callable[[str], None]) -> None:
    if not site.exists():
        return
    previous = site.with_name(f"{site.name}.previous")
    shutil.rmtree(previous, ignore_errors=True)
    site.replace(previous)
    say(f"the site of an earlier build is now in {previous}; it does not show what was just tried")
