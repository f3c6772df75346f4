"""What a teacher needs of each chapter: a plan of fifty minutes, bets, exercises and the wrong answers to expect."""

import re
from collections.abc import Sequence

from casestudies_lib.claims import Verdict
from casestudies_lib.runner.chapters import source_of
from casestudies_lib.runner.exercises import Exercise, exercises_of
from casestudies_lib.site.case import Case
from casestudies_lib.site.markup import badge, counted, fenced, html_prose, html_text, myst_text, table

_INSTRUCTIVE = ("uninformative", "refuted", "inconclusive", "upheld", "untested")


def teaching_page(cases: Sequence[Case]) -> str:
    """Return one section a chapter as MyST."""
    return "\n".join(_section(case) for case in cases)


def _section(case: Case) -> str:
    exercises = exercises_of(case.notebook, f"{case.name}.ipynb")
    return "\n\n".join(
        [
            f"## {myst_text(case.report.title)}",
            f'<p><a href="{case.page}">Chapter</a> · <a href="{case.slides}">slides</a> · student copy: '
            f"<code>casebook teach {html_text(case.report.slug)} --out class</code></p>",
            f"### Fifty minutes: case {html_text(case.name.split('_')[0])}",
            _plan(case, exercises),
            f"### Bets: case {html_text(case.name.split('_')[0])}",
            _bets(case),
            f"### Exercises: case {html_text(case.name.split('_')[0])}",
            *(_exercise(each) for each in exercises),
        ]
    )


def central_trials(case: Case) -> list[Verdict]:
    """Return the two trials to spend class time on: those whose verdict surprises first, in the report's order."""
    ranked = sorted(case.verdicts, key=lambda verdict: _INSTRUCTIVE.index(verdict.verdict))
    chosen = [verdict.id for verdict in ranked[:2]]
    return [verdict for verdict in case.verdicts if verdict.id in chosen]


def _plan(case: Case, exercises: Sequence[Exercise]) -> str:
    trials = " and ".join(case.trial_link(verdict.id) for verdict in central_trials(case))
    claims = counted(len(case.verdicts), "claim")
    first = f"exercise {exercises[0].number}" if exercises else "the first symptom"
    last = f"exercise {exercises[-1].number} in pairs" if exercises else "the probe on a model of theirs"
    rows = [
        ("0–5", "Tell the incident from its first paragraph. No results yet."),
        ("5–12", f"Bets: each student marks the {claims}, alone, then compares with a neighbour."),
        ("12–18", "Show the symptom's figure. Ask what would have looked different without the fault."),
        ("18–34", f"Try {trials}. Before each result: which outcome would refute it, and what is the control?"),
        ("34–40", "What the report missed. Sort what is shown by intervention from what is only consistent."),
        ("40–47", f"Predict: {first}, by show of hands. Then {last}."),
        ("47–50", "Open the verdicts and settle the bets. One sentence each: what will you ask of the next report?"),
    ]
    return table(f"Plan: {case.report.title}", ("Minutes", "What you do"), rows, "plan")


def _bets(case: Case) -> str:
    rows = [(html_text(v.id), html_prose(v.says), badge(v.verdict)) for v in case.verdicts]
    answers = table(f"Bets: {case.report.title}", ("Claim", "The report says", "Verdict"), rows, "bets-key")
    return f"<details>\n<summary>Claims and their verdicts</summary>\n{answers}</details>"


def _exercise(exercise: Exercise) -> str:
    wrong = f"\n\nWrong answer to expect: {exercise.wrong}" if exercise.wrong else ""
    return f"**{exercise.number} · {exercise.kind}.** {exercise.question}{wrong}\n\n{_right_answer(exercise)}"


def _right_answer(exercise: Exercise) -> str:
    """Return the code of the solution, folded, without the line that only asks the check."""
    code = re.sub(rf"\n*^check_{exercise.number}\(.*\)\s*\Z", "", source_of(exercise.solution), flags=re.MULTILINE)
    return f"::::{{dropdown}} The right answer\n{fenced(code)}\n::::"
