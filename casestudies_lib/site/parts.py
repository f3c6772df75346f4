"""What the directives of the book show: for each template in `book/_templates/parts`, its context.

All is read from the folder that `stage_book` lays out: `results/` holds the runs, `reports/` the report files.
"""

import functools
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from markupsafe import Markup

from casestudies_lib.claims import Verdict
from casestudies_lib.reports import ReportError, parse_report
from casestudies_lib.runner.chapters import source_of
from casestudies_lib.runner.exercises import Exercise, exercises_of
from casestudies_lib.site.case import Case, read_case

_INSTRUCTIVE = ("uninformative", "refuted", "inconclusive", "upheld", "untested")


class Staged:
    """What `publish` laid out for the book."""

    def __init__(self, folder: Path) -> None:
        """Read the cases in the order of the book."""
        self.folder = folder
        found = (read_case(each.name, each, folder / "reports") for each in (folder / "results").iterdir())
        self.cases = sorted(found, key=lambda case: case.number)

    def case(self, slug: str) -> Case | None:
        """Return the case of a slug, or None where it is not on this site."""
        return next((case for case in self.cases if case.slug == slug), None)

    def trial(self, where: str, name: str, slug: str) -> tuple[Case, Verdict] | None:
        """Return case and verdict of `Z2` or `zero_weight_head:Z2`; None where that report has no chapter yet.

        Args:
            where: what names the trial, for messages.
            name: the trial.
            slug: the chapter that is meant where `name` holds none.

        Raises:
            ReportError: there is no such report, or its chapter holds no such claim.
        """
        given, _, claim_id = name.rpartition(":")
        case = self.case(given or slug)
        if case is None and (self.folder / "reports" / f"{given}.toml").is_file():
            return None
        verdict = case and case.verdict(claim_id)
        if verdict is None:
            known = ", ".join(each.id for each in case.verdicts) if case else ", ".join(c.slug for c in self.cases)
            raise ReportError(f"{where} names the trial {name}, which does not exist; known are {known}")
        return case, verdict


@functools.cache  # one build reads one state of the folder
def staged(folder: Path) -> Staged:
    """Return what lies in the staged folder."""
    return Staged(folder)


def _landing_board(staged: Staged, *_: object) -> dict:
    reports = (parse_report(path) for path in sorted((staged.folder / "reports").glob("[!_]*.toml")))
    return {"cases": staged.cases, "waiting": [report.title for report in reports if not staged.case(report.slug)]}


def _cases(staged: Staged, *_: object) -> dict:
    return {"cases": staged.cases}


def _symptom_index(staged: Staged, *_: object) -> dict:
    rows = []
    for case in staged.cases:
        for symptom in case.report.symptoms:
            named = [(symptom.claim, symptom.suspect), *((name, None) for name in symptom.then)]
            trials = [(staged.trial(f"{case.slug}.toml: a symptom", name, case.slug), cause) for name, cause in named]
            suspects = [(*trial, cause) for trial, cause in trials if trial]
            rows.append({"case": case, "symptom": symptom, "suspects": suspects})
    return {"rows": rows}


def _exhibits(staged: Staged, _: str, lines: Sequence[str]) -> dict:
    """Each line is `slug:ID`, then what to see there."""
    parts = [line.split(maxsplit=1) for line in lines if line.strip()]
    found = [(staged.trial("an exhibit", name, ""), shows) for name, shows in parts]
    return {"exhibits": [(*trial, shows) for trial, shows in found if trial]}


def _teaching_plans(staged: Staged, *_: object) -> dict:
    return {"plans": [(case, _exercises(case), central_trials(case)) for case in staged.cases]}


def central_trials(case: Case) -> list[Verdict]:
    """Return the two trials to spend class time on: those whose verdict surprises most, in the report's order."""
    ranked = sorted(case.verdicts, key=lambda verdict: _INSTRUCTIVE.index(verdict.verdict))
    chosen = [verdict.id for verdict in ranked[:2]]
    return [verdict for verdict in case.verdicts if verdict.id in chosen]


def _exercises(case: Case) -> list[dict]:
    return [
        {"number": each.number, "kind": each.kind, "question": Markup(each.question), "wrong": Markup(each.wrong),
         "solution": Markup(_right_answer(each))}
        for each in exercises_of(case.notebook, f"{case.name}.ipynb")
    ]  # fmt: skip


def _right_answer(exercise: Exercise) -> str:
    """Return the solution as a Markdown block of code, without the line that only asks the check."""
    code = re.sub(rf"\n*^check_{exercise.number}\(.*\)\s*\Z", "", source_of(exercise.solution), flags=re.MULTILINE)
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", code))])
    return f"{fence}python\n{code.strip()}\n{fence}"


def _sweep_table(staged: Staged, *_: object) -> dict:
    sweeps = json.loads((staged.folder / "sweeps.json").read_text(encoding="utf-8"))
    return {"sweeps": [(case, sweeps[case.slug]) for case in staged.cases if case.slug in sweeps]}


def _probe_table(staged: Staged, *_: object) -> dict:
    return {"probes": json.loads((staged.folder / "probes.json").read_text(encoding="utf-8"))}


def _chapter(staged: Staged, slug: str, _: object) -> dict:
    return {"case": staged.case(slug)}


def _sweep_explorer(staged: Staged, slug: str, _: object) -> dict:
    from casestudies_lib.runner.evidence import read_evidence
    from casestudies_lib.site.explorer import explorer  # Altair and pandas, only where a page needs them

    case = staged.case(slug)
    return explorer(read_evidence(slug).lines, case.report, case.provenance["parameters"])


# The template of each directive, its context, and what its page is rebuilt for, below the staged folder.
_EVERYTHING = ("results/*/*", "reports/*")
PARTS: dict[str, tuple[Callable[..., dict], tuple[str, ...]]] = {
    "landing-board.html": (_landing_board, _EVERYTHING),
    "verdict-board.md": (_cases, _EVERYTHING),
    "symptom-index.html": (_symptom_index, _EVERYTHING),
    "exhibits.html": (_exhibits, _EVERYTHING),
    "teaching-plans.md": (_teaching_plans, _EVERYTHING),
    "run-table.html": (_cases, _EVERYTHING),
    "sweep-table.html": (_sweep_table, ("sweeps.json",)),
    "probe-table.html": (_probe_table, ("probes.json",)),
    "chapter-header.md": (_chapter, ("results/*_{slug}/*", "reports/{slug}.toml")),
    "sweep-explorer.html": (_sweep_explorer, ("results/*_{slug}/*", "reports/{slug}.toml", "sweeps.json")),
    "downloads.html": (lambda *_: {}, ()),
}
