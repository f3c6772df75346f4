"""The symptom index: what a log shows, whom to suspect, in order, and where to read on."""

from collections.abc import Sequence

from casestudies_lib.claims import ReportError, Symptom, Verdict
from casestudies_lib.site.case import Case
from casestudies_lib.site.markup import badge, html_prose, html_text, myst_text, stacking_table

_COLUMNS = ("What you see", "Suspects, the likeliest first", "Find it with", "Chapter")


def symptom_index(cases: Sequence[Case]) -> str:
    """Return the index as an HTML table.

    Raises:
        ReportError: a symptom names a trial that its chapter does not hold.
    """
    rows = [_row(case, symptom, cases) for case in cases for symptom in case.report.symptoms]
    if not rows:
        return '<p class="fine">No report file lists a symptom yet.</p>\n'
    return stacking_table("Symptom index", _COLUMNS, (("", row) for row in rows), "symptoms")


def _row(case: Case, symptom: Symptom, cases: Sequence[Case]) -> tuple[str, ...]:
    first = _suspect(case, symptom.claim, symptom.suspect)
    others = [_suspect(*found, None) for name in symptom.then if (found := _trial(name, case, cases))]
    suspects = "".join(f"<li>{each}</li>" for each in (first, *others))
    return html_prose(symptom.shows), f"<ol>{suspects}</ol>", _probe(symptom.probe), case.chapter_link()


def _trial(name: str, case: Case, cases: Sequence[Case]) -> tuple[Case, str] | None:
    """Return chapter and claim id of `Z2` or `zero_weight_head:Z2`; None where that chapter is not on the site."""
    slug, _, claim_id = name.rpartition(":")
    chapter = next((each for each in cases if each.report.slug == (slug or case.report.slug)), None)
    if chapter is not None and claim_id not in [verdict.id for verdict in chapter.verdicts]:
        raise ReportError(f"{case.report.slug}.toml: a symptom names the trial {name}, and {chapter.report.slug} "
                          "holds no such claim; mend its `then`")  # fmt: skip
    return chapter and (chapter, claim_id)


def _suspect(case: Case, claim_id: str, cause: str | None) -> str:
    verdict = _verdict(case, claim_id)
    tried = f"{case.trial_link(claim_id)} {badge(verdict.verdict)}"
    claim = f'<span class="fine">{tried} {html_prose(verdict.says)}</span>'
    return f"{html_prose(cause)}{claim}" if cause else f"{tried} {html_prose(verdict.says)}"


def _verdict(case: Case, claim_id: str) -> Verdict:
    return next(verdict for verdict in case.verdicts if verdict.id == claim_id)


def _probe(probe: str | None) -> str:
    if probe is None:
        return '<span class="fine">no probe: repeat the trial on your own model</span>'
    return f'<a href="probes.html"><code>{html_text(probe)}</code></a>'


def chapter_symptoms(case: Case) -> str:
    """Return the chapter's symptoms as MyST, which the site's search reads, folded; empty where there are none."""
    if not case.report.symptoms:
        return ""
    shown = [(myst_text(symptom.shows), symptom.claim) for symptom in case.report.symptoms]
    items = "\n".join(f"- {text} ([{claim}](#{claim.lower()}))" for text, claim in shown)
    return f":::{{dropdown}} What you would see in a log\n{items}\n:::\n"
