"""Builds the site from the book's pages and the results of its chapters, and moves it into place only when complete."""

import importlib.util
import json
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
from casestudies_lib.claims import MEASUREMENTS_MIME, VERDICTS_MIME, Report, ReportError, load_report, report_slugs
from casestudies_lib.runner import pages
from casestudies_lib.runner.chapters import source_of
from casestudies_lib.runner.errors import Failure
from casestudies_lib.runner.fault_table import read_table, table_file
from casestudies_lib.runner.links import broken_links
from casestudies_lib.runner.pages import Case
from casestudies_lib.runner.results import locked

TIME_LIMIT = 600  # seconds; a build takes a few
MARKER = "casebook-site.json"
_RECORDS = (VERDICTS_MIME, MEASUREMENTS_MIME)
_MATHJAX = ("tex-chtml.js", "output/chtml/fonts/woff-v2")
_UNUSED = (
    "**/*.map", "_static/*webpack-macros.html", "_static/locales", ".buildinfo", "objects.inv",
    "_static/vendor/fontawesome/*/js", "_static/vendor/fontawesome/**/*.ttf",
)  # fmt: skip
_ICON_LINES = (r'<script src="[^"]*/fontawesome/[^"]*"></script>\n?', r'<link rel="preload" as="font"[^>]*>\n?')
_MATH_LINES = (r"<script>window\.MathJax = .*</script>\n?", r"<script [^>]*mathjax/tex-chtml\.js[^>]*></script>\n?")
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_TARGET = re.compile(r"^\(([^()\s]+)\)=\s*$", re.MULTILINE)


class PublishError(Failure):
    """The site could not be built; the old one is untouched. The message says what to mend."""


def publish(results: dict[str, Path], destination: Path) -> Path:
    """Build the site and put it in the place of the old one.

    Args:
        results: the folder of a complete run for every chapter in the book's contents, by slug.
        destination: the folder that becomes the site; it may hold an earlier site.

    Returns:
        The destination.

    Raises:
        ResultError: a result is missing, damaged, or does not belong to its report file.
        PublishError: contents and results differ, a trial has no target to link to, or jupyter-book warns.
    """
    _check_replaceable(destination)
    cases = sorted((pages.read_case(slug, folder) for slug, folder in results.items()), key=_number)
    _check_contents(cases)
    with _staging() as stage:
        _write_stage(stage, cases)
        site = _build(stage)
        _lighten(site)
        _check_links(site)
        (site / MARKER).write_text(json.dumps({"chapters": [case.report.slug for case in cases]}), encoding="utf-8")
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


def _write_stage(stage: Path, cases: Sequence[Case]) -> None:
    """Lay out what jupyter-book reads: the book's own pages, the generated parts, executed chapters, extra files."""
    shutil.copytree(paths.book(), stage, dirs_exist_ok=True)
    generated = stage / "generated"
    generated.mkdir()
    for name, text in _generated(cases).items():
        (generated / name).write_text(text, encoding="utf-8")
    for folder in ("notebooks", "extra/downloads"):
        (stage / folder).mkdir(parents=True)
    for case in cases:
        _stage_chapter(stage, case)
    records = [verdict.model_dump(mode="json") for case in cases for verdict in case.verdicts]
    (stage / "extra/downloads/verdicts.json").write_text(json.dumps(records, indent=1), encoding="utf-8")
    _copy_mathjax(stage / "extra/_static/mathjax")


def _generated(cases: Sequence[Case]) -> dict[str, str]:
    return {
        "landing.md": pages.landing_board(cases, _waiting(cases)),
        "board.md": pages.verdict_board(cases),
        "symptoms.md": pages.symptom_index(cases),
        "runs.md": pages.run_table(cases),
        "probes.md": pages.probe_table(),
        "faults.md": pages.fault_table(read_table(table_file())),
    }


def _waiting(cases: Sequence[Case]) -> list[Report]:
    """Return the reports that have no chapter on the site yet."""
    on_trial = {case.report.slug for case in cases}
    try:
        return [load_report(slug) for slug in report_slugs() if slug not in on_trial]
    except ReportError as error:
        raise PublishError(str(error)) from error


def _stage_chapter(stage: Path, case: Case) -> None:
    executed = case.folder / "notebook.ipynb"
    notebook = json.loads(executed.read_text(encoding="utf-8"))
    text = "\n".join(source_of(cell) for cell in notebook["cells"] if cell["cell_type"] == "markdown")
    targets = set(_TARGET.findall(text))
    if missing := [verdict.id for verdict in case.verdicts if verdict.id.lower() not in targets]:
        raise PublishError(f"{case.name}.ipynb has no target for {', '.join(missing)}; write `({missing[0].lower()})=` "
                           "on the line before the heading of its trial")  # fmt: skip
    with_header = notebook | {"cells": _with_header(case, notebook["cells"])}
    (stage / "notebooks" / f"{case.name}.ipynb").write_text(json.dumps(with_header), encoding="utf-8")
    downloads = stage / "extra" / "downloads"
    shutil.copyfile(executed, downloads / f"{case.name}.ipynb")
    shutil.copyfile(case.folder / "verdicts.json", downloads / f"{case.name}.verdicts.json")


def _with_header(case: Case, cells: list[dict]) -> list[dict]:
    """Return the cells with the generated header right under the title, which must open the first cell."""
    title, _, rest = source_of(cells[0]).partition("\n") if cells else ("", "", "")
    if not title.startswith("# ") or cells[0]["cell_type"] != "markdown":
        raise PublishError(f"{case.name}.ipynb must start with a Markdown cell whose first line is its title, `# ...`")
    first = cells[0] | {"source": f"{title}\n\n{pages.chapter_header(case)}\n{rest}"}
    return [first, *(_without_records(cell) for cell in cells[1:])]


def _without_records(cell: dict) -> dict:
    """Return the cell without the records among its outputs; they are for the runner, no page can show them."""
    if not cell.get("outputs"):
        return cell
    outputs = [dict(output) for output in cell["outputs"]]
    for output in outputs:
        if "data" in output:
            output["data"] = {kind: data for kind, data in output["data"].items() if kind not in _RECORDS}
    return cell | {"outputs": outputs}


def _copy_mathjax(target: Path) -> None:
    """Copy the one script and the fonts that typesetting needs from the installed package."""
    package = importlib.util.find_spec("sphinx-mathjax-offline")
    if package is None or package.origin is None:
        raise PublishError("the package sphinx-mathjax-offline is not installed; `make book` installs it")
    source = Path(package.origin).parent / "static" / "mathjax"
    script, fonts = _MATHJAX
    shutil.copytree(source / fonts, target / fonts)
    shutil.copyfile(source / script, target / script)


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


def _lighten(site: Path) -> None:
    """Take out what Sphinx and the themes copy along and no reader needs.

    Icons come from a font and, once more, from a script of 1.5 MB; the font is enough. MathJax stays where math is.
    """
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        heavy = _ICON_LINES if 'class="math' in text else _ICON_LINES + _MATH_LINES
        page.write_text(re.sub("|".join(heavy), "", text), encoding="utf-8")
    for pattern in _UNUSED:
        for path in sorted(site.glob(pattern)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _check_links(site: Path) -> None:
    """Refuse links that end nowhere and anything that a page would fetch from elsewhere; Sphinx sees no raw HTML."""
    if broken := broken_links(site):
        raise PublishError("the pages hold links that lead nowhere:\n" + "\n".join(broken))


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
