"""Lays out the folder that jupyter-book builds the site from."""

import importlib.util
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from casestudies_lib import paths
from casestudies_lib.claims import Report, load_report, report_slugs
from casestudies_lib.runner.errors import Failure
from casestudies_lib.runner.fault_table import read_table, table_file
from casestudies_lib.site import pictures, reproduce
from casestudies_lib.site.board import verdict_board
from casestudies_lib.site.case import Case
from casestudies_lib.site.chapter import chapter_notebook
from casestudies_lib.site.explorer import SCRIPTS, explorer, write_scripts
from casestudies_lib.site.landing import landing_board
from casestudies_lib.site.lessons import lesson_page, read_lessons
from casestudies_lib.site.slides import slide_page
from casestudies_lib.site.sweeps import SweptClaims, read_sweep
from casestudies_lib.site.symptoms import symptom_index
from casestudies_lib.site.teaching import teaching_page

_MATHJAX = ("tex-chtml.js", "output/chtml/fonts/woff-v2")


def write_stage(stage: Path, cases: Sequence[Case]) -> None:
    """Lay out what jupyter-book reads: the book's own pages, the generated parts, executed chapters, extra files.

    Args:
        stage: an empty folder.
        cases: the chapters, in the order of the book.

    Raises:
        ReportError: a report file, a symptom or a claim is wrong.
        CasebookError: a chapter, the lessons, the evidence or an installed package lacks what its page needs.
    """
    shutil.copytree(paths.book(), stage, dirs_exist_ok=True)
    for folder in ("generated", "notebooks", "extra/downloads", "extra/slides"):
        (stage / folder).mkdir(parents=True)
    for name, text in _generated(cases, stage / "extra" / pictures.FOLDER).items():
        (stage / "generated" / name).write_text(text, encoding="utf-8")
    sweeps = {case.name: read_sweep(case.report) for case in cases}
    for case in cases:
        _stage_chapter(stage, case, sweeps[case.name])
    if any(sweeps.values()):
        write_scripts(stage / "extra" / SCRIPTS)
    records = [verdict.model_dump(mode="json") for case in cases for verdict in case.verdicts]
    (stage / "extra/downloads/verdicts.json").write_text(json.dumps(records, indent=1), encoding="utf-8")
    shutil.copyfile(stage / "slides.css", stage / "extra/slides/slides.css")
    _copy_mathjax(stage / "extra/_static/mathjax")


def _generated(cases: Sequence[Case], figures: Path) -> dict[str, str]:
    waiting = _waiting(cases)
    lessons = read_lessons(paths.book() / "lessons.toml")
    return {
        "landing.md": landing_board(cases, waiting, figures),
        "board.md": verdict_board(cases),
        "symptoms.md": symptom_index(cases),
        "lessons.md": lesson_page(lessons, cases, [report.slug for report in waiting]),
        "teaching.md": teaching_page(cases),
        "runs.md": reproduce.run_table(cases),
        "sweeps.md": reproduce.sweep_table(cases),
        "faults.md": reproduce.fault_table(read_table(table_file())),
        "probes.md": reproduce.probe_table(),
    }


def _waiting(cases: Sequence[Case]) -> list[Report]:
    """Return the reports that have no chapter on the site yet."""
    on_trial = {case.report.slug for case in cases}
    return [load_report(slug) for slug in report_slugs() if slug not in on_trial]


def _stage_chapter(stage: Path, case: Case, sweep: SweptClaims | None) -> None:
    figures = stage / "extra" / pictures.FOLDER
    explored = explorer(sweep, case.report, figures, case.provenance.get("parameters", {})) if sweep else ""
    notebook = chapter_notebook(case, figures, explored)
    (stage / "notebooks" / f"{case.name}.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    (stage / "extra" / case.slides).write_text(slide_page(case, figures), encoding="utf-8")
    downloads = stage / "extra" / "downloads"
    shutil.copyfile(case.folder / "notebook.ipynb", downloads / f"{case.name}.ipynb")
    shutil.copyfile(case.folder / "verdicts.json", downloads / f"{case.name}.verdicts.json")


def _copy_mathjax(target: Path) -> None:
    """Copy the one script and the fonts that typesetting needs from the installed package."""
    package = importlib.util.find_spec("sphinx-mathjax-offline")
    if package is None or package.origin is None:
        raise Failure("the package sphinx-mathjax-offline is not installed; `make book` installs it")
    source = Path(package.origin).parent / "static" / "mathjax"
    script, fonts = _MATHJAX
    shutil.copytree(source / fonts, target / fonts)
    shutil.copyfile(source / script, target / script)
