"""The lessons across incidents, from `book/lessons.toml`; each must show an exhibit that is on trial on this site."""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from casestudies_lib.runner.errors import Failure
from casestudies_lib.site.case import Case
from casestudies_lib.site.markup import badge, html_prose, myst_text

Text = Annotated[str, Field(min_length=1)]


class LessonError(Failure):
    """The lessons cannot be shown; the message names the lesson and what to mend."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Exhibit(_Strict):
    """A trial that shows the lesson: the chapter's slug, the claim's id, and what to see there."""

    chapter: Text
    claim: Text
    shows: Text


class Lesson(_Strict):
    """One lesson: a title, a text of our own (Markdown), the question to take along, and its exhibits."""

    title: Text
    text: Text
    ask: Text
    exhibits: Annotated[list[Exhibit], Field(min_length=1)]


def read_lessons(path: Path) -> list[Lesson]:
    """Read the file of lessons.

    Raises:
        LessonError: the file is missing, is not TOML, or breaks the schema.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        return [Lesson.model_validate(entry) for entry in content["lessons"]]
    except OSError as error:
        raise LessonError(f"{path} cannot be read ({error.strerror}); restore it from the repository") from error
    except (ValueError, KeyError, ValidationError) as error:
        raise LessonError(f"{path.name}: {error}") from error


def lesson_page(lessons: Sequence[Lesson], cases: Sequence[Case], waiting: Sequence[str]) -> str:
    """Return the lessons as MyST, each with links to its exhibits.

    Args:
        lessons: what `read_lessons` gave.
        cases: the chapters on the site.
        waiting: slugs whose chapters are in preparation; their exhibits are left out.

    Raises:
        LessonError: an exhibit names no known chapter or claim, or a lesson is left without any exhibit.
    """
    chapters = {case.report.slug: case for case in cases}
    return "\n".join(_section(number, lesson, chapters, waiting) for number, lesson in enumerate(lessons, start=1))


def _section(number: int, lesson: Lesson, chapters: dict[str, Case], waiting: Sequence[str]) -> str:
    shown = [exhibit for exhibit in lesson.exhibits if exhibit.chapter in chapters]
    for exhibit in lesson.exhibits:
        if exhibit.chapter not in chapters and exhibit.chapter not in waiting:
            raise LessonError(f"lessons.toml: {lesson.title!r} names the chapter {exhibit.chapter}, which does not "
                              f"exist; known are {', '.join([*chapters, *waiting])}")  # fmt: skip
    if not shown:
        return ""
    items = "".join(_exhibit(lesson, exhibit, chapters[exhibit.chapter]) for exhibit in shown)
    return (
        f"## {number} · {myst_text(lesson.title)}\n\n{lesson.text.strip()}\n\n"
        f'<ul class="exhibits">\n{items}</ul>\n\n**Ask:** {lesson.ask.strip()}\n'
    )


def _exhibit(lesson: Lesson, exhibit: Exhibit, case: Case) -> str:
    verdict = next((each for each in case.verdicts if each.id == exhibit.claim), None)
    if verdict is None:
        raise LessonError(f"lessons.toml: {lesson.title!r} names the trial {exhibit.claim} of {exhibit.chapter}, whose "
                          f"report holds {', '.join(each.id for each in case.verdicts)}")  # fmt: skip
    link = f"{case.trial_link(exhibit.claim)} {badge(verdict.verdict)}"
    return f'<li>{link} {html_prose(exhibit.shows)} <span class="fine">{case.chapter_link()}</span></li>\n'
