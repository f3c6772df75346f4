"""Builds the site and moves it into place only when it is complete; an old site never poses as the new one.

The staged book and Sphinx's output are kept in `_build/stage`, so that Sphinx reads again only what changed.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import casestudies_lib
from casestudies_lib import paths
from casestudies_lib.reports import ReportError
from casestudies_lib.runner.errors import CasebookError, Failure, Mistake
from casestudies_lib.runner.files import locked
from casestudies_lib.runner.publishable import private_traces
from casestudies_lib.site.stage import RESULT, stage_book

MARKER = "casebook-site.json"
_TIME_LIMIT = 600  # seconds; a build takes a few
_READ = (".html", ".ipynb", ".json", ".txt", ".xml")
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


class PublishError(Failure):
    """The site could not be built; the old one is untouched. The message says what to mend."""


def publish(
    results: Mapping[str, Path],
    destination: Path,
    address: str | None = None,
    *,
    pdf: bool = False,
    fresh: bool = False,
) -> Path:
    """Build the site and put it in the place of the old one; one that would come out the same stays.

    Args:
        results: the folder of a complete run for every chapter in the book's contents, by slug.
        destination: the folder that becomes the site; it may hold an earlier site.
        address: where the site will be, `https://host/path/`; sitemap and link previews are made for it alone.
        pdf: print the book and each chapter too, and link to them.
        fresh: build it from nothing in any case.

    Returns:
        The destination.

    Raises:
        PublishError: a result or a page is wrong, contents and results differ, jupyter-book warns, or the site would
            tell of this machine.
    """
    stage = paths.build() / "stage"
    stage.mkdir(parents=True, exist_ok=True)
    with locked(stage):
        key = _key(results, address, pdf)
        if not fresh and _is_current(destination, key):
            return destination
        try:
            stage_book(stage / "book", results, address, pdf)
        except (ReportError, CasebookError) as error:
            raise PublishError(str(error)) from error
        if fresh:
            shutil.rmtree(stage / "output", ignore_errors=True)
        site = build_book(stage, "html")
        destination.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{destination.name}-", dir=destination.parent) as folder:
            new = Path(folder) / "new"
            shutil.copytree(site, new)
            if pdf:
                from casestudies_lib.site.pdf import print_site

                print_site(new, new / "pdf")
            _check_private(new)
            marker = {"chapters": sorted(results), "key": key, "files": _tree(new)}
            (new / MARKER).write_text(json.dumps(marker), encoding="utf-8")
            if destination.exists():
                destination.rename(new.with_name("old"))
            new.rename(destination)
    return destination


def check_address(address: str) -> str:
    """Return a base address with its trailing slash.

    Raises:
        Mistake: it is not of the form https://host/path.
    """
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.query or parts.fragment:
        raise Mistake(f"--base-url {address!r} is not the address of a site; write it as https://host/path/")
    return address.rstrip("/") + "/"


@contextmanager
def set_aside_on_failure(site: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Move an earlier site to `html.previous` where what happens inside fails, unless another build replaced it."""
    before = _identity(site)
    try:
        yield
    except BaseException:
        if before is not None and _identity(site) == before:
            previous = site.with_name(f"{site.name}.previous")
            shutil.rmtree(previous, ignore_errors=True)
            site.replace(previous)
            say(f"the site of an earlier build is now in {previous}; it does not show what was just tried")
        raise


def _identity(site: Path) -> tuple[int, int] | None:
    return (site.stat().st_ino, site.stat().st_mtime_ns) if site.exists() else None


def _key(results: Mapping[str, Path], address: str | None, pdf: bool) -> str:
    """Return the digest of all that a site follows from: pages, results, reports, evidence, code, installed versions.

    Code and notebooks count as a whole, because evidence is out of date when what it was made with has changed.
    """
    evidence = paths.root() / "data" / "evidence"
    files = [*_files(paths.book(), paths.reports(), paths.notebooks(), evidence), *_code()]
    files += [folder / name for folder in results.values() for name in RESULT if (folder / name).is_file()]
    return _digest(files, paths.root(), sorted(results), address, pdf, _installed())


def _files(*folders: Path) -> list[Path]:
    return [path for folder in folders for path in folder.rglob("*") if path.is_file()]


def _code() -> list[Path]:
    return sorted(Path(casestudies_lib.__file__).parent.rglob("*.py"))


def _installed() -> list[str]:
    """Return all installed distributions as their folders are named, with their versions."""
    return sorted({path.name for folder in sys.path for path in Path(folder).glob("*.dist-info")})


def _digest(files: Iterable[Path], root: Path, *more: object) -> str:
    """Return the digest of names and contents of files, and of what else is given, with Python's version."""
    total = hashlib.sha256(json.dumps([sys.version, *more]).encode())
    for path in sorted(files):
        total.update(os.path.relpath(path, root).encode() + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def _tree(folder: Path) -> str:
    return _digest((path for path in _files(folder) if path.name != MARKER), folder)


def _is_current(site: Path, key: str) -> bool:
    """Return whether a site was made from what this key stands for and holds what it held then."""
    try:
        marker = json.loads((site / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(marker, dict) and marker.get("key") == key and marker.get("files") == _tree(site)


def build_book(stage: Path, builder: str) -> Path:
    """Run jupyter-book on the staged book, with warnings as errors, and return the folder of what it made.

    Sphinx reads again what changed, and everything where code, templates, settings, an installed version or the list of
    chapters and reports did; it writes every page again, because a link may lead to what changed. After a failure
    nothing is kept, because Sphinx does not repeat the warnings of a page that it has read.

    Raises:
        PublishError: jupyter-book warns, fails, or does not end.
    """
    book, output, note = stage / "book", stage / "output", stage / "output.key"
    code = [path for path in _code() if not {"models", "tasks", "probes"} & set(path.parts)]
    listed = sorted(path.name for folder in ("results", "reports") for path in (book / folder).iterdir())
    base = _digest([*code, *_files(book / "_templates"), book / "_config.yml"], stage, _installed(), listed)
    if not note.is_file() or note.read_text() != base:
        shutil.rmtree(output, ignore_errors=True)
    note.unlink(missing_ok=True)
    site = output / "_build" / builder
    stale = [*site.rglob("*.html"), site / "searchindex.js", *(site / each.name for each in (book / "extra").iterdir())]
    for path in stale:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "build", str(book)]
    command += ["--path-output", str(output), "--builder", builder, "-W", "-n", "--keep-going", "-q"]
    environment = os.environ | {"NO_COLOR": "1", "PYTHONIOENCODING": "utf-8"}
    try:
        done = subprocess.run(
            command, cwd=book, env=environment, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8",
            errors="replace", timeout=_TIME_LIMIT,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise PublishError(f"jupyter-book took longer than {_TIME_LIMIT} s") from error
    if done.returncode or not (site / "index.html").is_file():
        raise PublishError(f"jupyter-book refused the book:\n{_complaints(done.stderr + done.stdout, book)}")
    note.write_text(base)
    return site


def _complaints(said: str, book: Path) -> str:
    """Return Sphinx's warnings and errors with file names as in the repository, or the end of what it said."""
    lines = _ANSI.sub("", said).replace(f"{book}{os.sep}", "").splitlines()
    wanted = [line for line in lines if re.search(r"WARNING|ERROR|SEVERE|CRITICAL|threw an exception", line)]
    return "\n".join(wanted or lines[-15:])


def _check_private(site: Path) -> None:
    """Refuse pages and downloads that tell of this machine, wherever that comes from: a chapter, a tool, a page."""
    for path in sorted(path for path in _files(site) if path.suffix in _READ or path.name == "searchindex.js"):
        if traces := private_traces(path.read_text(encoding="utf-8")):
            raise PublishError(f"{path.relative_to(site)} would publish {'; '.join(traces)}")
