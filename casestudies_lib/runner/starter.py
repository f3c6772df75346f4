"""Starts a chapter: its notebook from the template, and a report file to fill in."""

from pathlib import Path

from casestudies_lib import paths
from casestudies_lib.runner.chapters import SLUG, all_chapters, read_notebook, source_of
from casestudies_lib.runner.cleaning import cleaned, notebook_text
from casestudies_lib.runner.errors import Failure, Mistake
from casestudies_lib.runner.results import replace_file, unwritable

TEMPLATE = "_template"
_REPORT = """\
# Claims and rules are fixed here before the first run; casestudies_lib/claims.py says what each field means.
slug = "{slug}"
title = "{title}"
summary = "What happened, in at most 120 words of your own."

[source]
repository = "owner/name of the repository that published the report"
document = "name of the document in it"
date = "when it was published"

[[claims]]
id = "{letter}1"
kind = "identity"
says = "what the report says, in your words"
measure = "what you measure to decide it"
unit = "1"
upheld_if = "<= 0.01"
refuted_if = ">= 0.1"
min_seeds = 0
why = "why this rule decides it, with a factor of two to spare"
"""


def start_chapter(slug: str) -> tuple[Path, Path]:
    """Make the notebook and the report file of a new chapter.

    Args:
        slug: the chapter's name.

    Returns:
        The paths of notebook and report file.

    Raises:
        Mistake: the slug is not one, or is taken.
        Failure: the template is missing, or a file cannot be written; neither file is left behind.
    """
    chapters = all_chapters()
    report = paths.reports() / f"{slug}.toml"
    if not SLUG.fullmatch(slug):
        raise Mistake(f"{slug!r} is no slug; start with a letter, then lower case letters, digits and _ (a_new_case)")
    if slug in [chapter.slug for chapter in chapters] or report.exists():
        raise Mistake(f"the slug {slug} is taken; taken are {', '.join(chapter.slug for chapter in chapters) or slug}")
    notebook = paths.notebooks() / f"{max((chapter.number for chapter in chapters), default=0) + 1}_{slug}.ipynb"
    contents = {notebook: _notebook_from_template(slug), report: _report_from_template(slug)}
    try:
        for path, content in contents.items():
            replace_file(path, content.encode())
    except OSError as error:
        for path in contents:
            path.unlink(missing_ok=True)
        raise Failure(unwritable(paths.root(), error)) from error
    return notebook, report


def _notebook_from_template(slug: str) -> str:
    path = paths.notebooks() / f"{TEMPLATE}.ipynb"
    if not path.is_file():
        raise Failure(f"{path} is missing; restore it from the repository")
    notebook = read_notebook(path)
    for cell in notebook["cells"]:
        cell["source"] = source_of(cell).replace(f'"{TEMPLATE}"', f'"{slug}"').splitlines(keepends=True)
        if cell["cell_type"] == "code":  # the template's verdicts are not the new chapter's
            cell["outputs"], cell["execution_count"] = [], None
    return notebook_text(cleaned(notebook))


def _report_from_template(slug: str) -> str:
    template = paths.reports() / f"{TEMPLATE}.toml"
    if template.is_file():
        return template.read_text(encoding="utf-8").replace(f'"{TEMPLATE}"', f'"{slug}"')
    return _REPORT.format(slug=slug, title=slug.replace("_", " ").capitalize(), letter=slug[0].upper())
