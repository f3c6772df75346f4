"""Builds the site from the book's pages and the results of its chapters, and moves it into place only when complete."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml

from casestudies_lib import paths
from casestudies_lib.claims import ReportError
from casestudies_lib.runner.errors import CasebookError, Failure
from casestudies_lib.runner.private import private_traces
from casestudies_lib.runner.results import locked
from casestudies_lib.site.address import set_address
from casestudies_lib.site.case import Case, read_case
from casestudies_lib.site.lighten import lighten
from casestudies_lib.site.links import broken_links
from casestudies_lib.site.mend import mend
from casestudies_lib.site.policy import PolicyError, guard
from casestudies_lib.site.stage import write_stage
from casestudies_lib.site.unchanged import MARKER, mark, site_key, stands

TIME_LIMIT = 600  # seconds; a build takes a few
_READ = (".html", ".ipynb", ".json", ".txt", ".xml")
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


class PublishError(Failure):
    """The site could not be built; the old one is untouched. The message says what to mend."""


def publish(results: dict[str, Path], destination: Path, address: str | None = None, *, fresh: bool = False) -> Path:
    """Build the site and put it in the place of the old one; one that would come out the same stays.

    Args:
        results: the folder of a complete run for every chapter in the book's contents, by slug.
        destination: the folder that becomes the site; it may hold an earlier site.
        address: where the site will stand, `https://host/path/`; sitemap and link previews are made for it alone.
        fresh: build it in any case.

    Returns:
        The destination.

    Raises:
        ResultError: a result is missing, damaged, or does not belong to its report file.
        PublishError: contents and results differ, a trial has no target to link to, or jupyter-book warns.
    """
    _check_replaceable(destination)
    cases = sorted((read_case(slug, folder) for slug, folder in results.items()), key=_number)
    _check_contents(cases)
    with _staging() as stage:
        try:
            write_stage(stage, cases)
            if address:
                set_address(stage / "_config.yml", address)
            key = site_key(stage)
            if not fresh and stands(destination, key):
                _check_private(destination)  # what counts as a secret may have changed
                return destination
            site = _build(stage)
            lighten(site)
            mend(site)
            guard(site)
        except (ReportError, PolicyError, CasebookError) as error:
            raise error if isinstance(error, PublishError) else PublishError(str(error)) from error
        _check_links(site)
        _check_private(site)
        mark(site, [case.report.slug for case in cases], key)
        _move_into_place(site, destination)
    return destination


def _number(case: Case) -> int:
    return int(case.name.split("_")[0])


def _check_replaceable(destination: Path) -> None:
    if (
        destination.exists()
        and not (destination / MARKER).is_file()
        and (not destination.is_dir() or any(destination.iterdir()))
    ):
        raise PublishError(f"{destination} exists and is no site of the casebook ({MARKER} is missing); "
                           "name an empty or a new folder")  # fmt: skip


def _check_contents(cases: Sequence[Case]) -> None:
    """Refuse contents that promise a chapter without a result, and results that the contents do not list."""
    listed = [path.removeprefix("notebooks/") for path in _files_in(_contents()) if path.startswith("notebooks/")]
    present = [case.name for case in cases]
    if missing := [name for name in listed if name not in present]:
        raise PublishError(f"_toc.yml lists {', '.join(missing)} without a result; run it or take the line out")
    if unlisted := [name for name in present if name not in listed]:
        lines = ", ".join(f"`- file: notebooks/{name}`" for name in unlisted)
        raise PublishError(f"_toc.yml does not list {', '.join(unlisted)}; add {lines}")


def _contents() -> object:
    try:
        return yaml.safe_load((paths.book() / "_toc.yml").read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise PublishError(f"_toc.yml is not valid YAML: {error}") from error


def _files_in(entry: object) -> Iterator[str]:
    if isinstance(entry, dict):
        if "file" in entry:
            yield str(entry["file"]).removesuffix(".ipynb")
        for value in entry.values():
            yield from _files_in(value)
    elif isinstance(entry, list):
        for value in entry:
            yield from _files_in(value)


@contextmanager
def _staging() -> Iterator[Path]:
    """Lend a folder of our own under `_build/stage`, so that two builds at once do not mix."""
    parent = paths.build() / "stage"
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="site-", dir=parent) as folder:
        yield Path(folder)


def _build(stage: Path) -> Path:
    """Run jupyter-book, with warnings as errors, and return the folder of pages that it made."""
    output = stage / "_output"
    command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "build", str(stage)]
    command += ["--path-output", str(output), "-W", "-n", "--keep-going", "-q"]
    environment = os.environ | {"NO_COLOR": "1", "PYTHONIOENCODING": "utf-8"}
    try:
        done = subprocess.run(
            command, cwd=stage, env=environment, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8",
            errors="replace", timeout=TIME_LIMIT,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise PublishError(f"jupyter-book took longer than {TIME_LIMIT} s") from error
    site = output / "_build" / "html"
    if done.returncode or not (site / "index.html").is_file():
        raise PublishError(f"jupyter-book refused the book:\n{_complaints(done, stage)}")
    return site


def _complaints(done: subprocess.CompletedProcess[str], stage: Path) -> str:
    """Return Sphinx's warnings and errors with file names as in the repository, or the end of what it said."""
    plain = _ANSI.sub("", done.stderr + done.stdout).replace(f"{stage}{os.sep}", "")
    lines = plain.splitlines()
    wanted = [line for line in lines if re.search(r"WARNING|ERROR|SEVERE|CRITICAL|threw an exception", line)]
    return "\n".join(wanted or lines[-15:])


def _check_links(site: Path) -> None:
    """Refuse links that end nowhere and anything that a page would fetch from elsewhere; Sphinx sees no raw HTML."""
    if broken := broken_links(site):
        raise PublishError("the pages hold links that lead nowhere:\n" + "\n".join(broken))


def _check_private(site: Path) -> None:
    """Refuse pages and downloads that tell of this machine, wherever that comes from: a chapter, a tool, a page."""
    for path in sorted(path for path in site.rglob("*") if path.suffix in _READ or path.name == "searchindex.js"):
        if traces := private_traces(path.read_text(encoding="utf-8")):
            raise PublishError(f"{path.relative_to(site)} would publish {'; '.join(traces)}")


def _move_into_place(site: Path, destination: Path) -> None:
    """Swap the new site for the old one by two renames on the destination's own filesystem."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    with (
        locked(destination.parent),  # another build would find no old site between the renames
        tempfile.TemporaryDirectory(prefix=f".{destination.name}-", dir=destination.parent) as folder,
    ):
        new, old = Path(folder) / "new", Path(folder) / "old"
        shutil.move(site, new)
        if destination.exists():
            destination.rename(old)
        try:
            new.rename(destination)
        except OSError:
            if old.exists():
                old.rename(destination)
            raise
