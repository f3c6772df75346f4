"""The exercises of a chapter: text, check, stub and solution, found by the tags of their cells."""

import re
from dataclasses import dataclass

from casestudies_lib.records import CHECK, SOLUTION, STUB
from casestudies_lib.runner.chapters import ChapterError, source_of, tags_of

_OPENING = re.compile(r"\*\*(\d+) · ([A-Z][a-z]+)\.\*\*\s*(.*)", re.DOTALL)
_WRONG = re.compile(r":::+\s*\{dropdown\}[^\n]*wrong answer[^\n]*\n(.*?)\n:::+", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True)
class Exercise:
    """One exercise; `wrong` is the answer to expect from students and why it tempts, both as Markdown."""

    number: int
    kind: str
    question: str
    wrong: str
    check: dict
    stub: dict
    solution: dict


def exercises_of(notebook: dict, name: str) -> list[Exercise]:
    """Return a chapter's exercises in order.

    Args:
        notebook: the notebook as a dictionary.
        name: its file name, for messages.

    Raises:
        ChapterError: a text is not followed by check, stub and solution, each tagged once, before the next text.
    """
    cells = notebook["cells"]
    starts = [index for index, cell in enumerate(cells) if _is_opening(cell)]
    return [_exercise(cells[start:end], name) for start, end in zip(starts, [*starts[1:], len(cells)])]


def _is_opening(cell: dict) -> bool:
    return cell["cell_type"] == "markdown" and _OPENING.match(source_of(cell)) is not None


def _exercise(cells: list[dict], name: str) -> Exercise:
    number, kind, text = _OPENING.match(source_of(cells[0])).groups()
    parts = [[cell for cell in cells[1:] if tag in tags_of(cell)] for tag in (CHECK, STUB, SOLUTION)]
    if [len(part) for part in parts] != [1, 1, 1]:
        found = ", ".join(f"{len(part)} {tag}" for part, tag in zip(parts, (CHECK, STUB, SOLUTION)))
        raise ChapterError(f"{name}: exercise {number} has {found}; tag one cell with each of them, in this order")
    wrong = _WRONG.search(text)
    question = _WRONG.sub("", text).strip()
    return Exercise(int(number), kind, question, wrong[1].strip() if wrong else "", *(part[0] for part in parts))
