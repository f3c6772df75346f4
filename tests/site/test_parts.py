"""The rooms of the site one by one: policy, markup, lessons, symptoms, sweeps, slides, and what stops a build."""

import base64
import hashlib
import json
import re
from dataclasses import replace

import pandas as pd
import pytest
from PIL import Image

from casestudies_lib import paths
from casestudies_lib.claims import Report, ReportError, load_report, report_slugs
from casestudies_lib.runner.results import FAILED, SEAL, ResultError
from casestudies_lib.site import (
    citations,
    explorer,
    lessons,
    mend,
    pictures,
    policy,
    reproduce,
    slides,
    sweeps,
    symptoms,
    teaching,
    verdict_lines,
)
from casestudies_lib.site.case import read_case
from casestudies_lib.site.markup import html_path, number


@pytest.fixture
def cases(casebook):
    return [read_case(slug, folder) for slug, folder in casebook.results.items()]


def digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def test_the_policy_admits_the_inline_scripts_of_the_page_and_no_other():
    text = '<meta charset="utf-8"><script src="a.js"></script><script>let a = 1;</script>'
    guarded = policy.guarded(text, "page.html")
    assert f"script-src 'self' 'sha256-{digest('let a = 1;')}';" in guarded
    assert guarded.count("sha256-") == 1
    assert "unsafe-eval" not in guarded


def test_data_in_a_script_element_needs_no_admission():
    text = '<meta charset="utf-8"><script type="application/json">{"a": 1}</script>'
    assert "sha256-" not in policy.guarded(text, "page.html")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('<meta charset="utf-8"><button onclick="go()">x</button>', "onclick"),
        ("<p>no encoding</p>", "no encoding"),
    ],
)
def test_a_page_that_no_policy_fits_is_refused_by_name(text, message):
    with pytest.raises(policy.PolicyError, match=rf"page\.html.*{message}"):
        policy.guarded(text, "page.html")


def test_a_description_is_the_first_paragraph_cut_at_a_word():
    page = f"<title>t</title><article><p class='x'>no</p><p>{'some <em>words</em> ' * 40}</p></article>"
    found = mend.description(page)
    assert found.startswith("some words some")
    assert len(found) <= 155
    assert found.endswith("…")
    assert f'content="{found}"' in mend.mended(page)
    assert mend.description("<article></article>") == ""


def write_lessons(casebook, exhibit: str) -> list[lessons.Lesson]:
    path = casebook.root / "book" / "lessons.toml"
    path.write_text(f'[[lessons]]\ntitle = "T"\ntext = "X"\nask = "A?"\nexhibits = [{exhibit}]\n')
    return lessons.read_lessons(path)


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("owner/a_name.md", "owner/<wbr>a_<wbr>name.md"),
        ("<b>/&_", "&lt;b&gt;/<wbr>&amp;_"),
        ("plain", "plain"),
    ],
)
def test_a_path_may_break_after_slash_and_underscore_and_shows_its_markup(path, shown):
    assert html_path(path) == shown


def test_a_lesson_links_to_its_exhibit_with_its_verdict(casebook, cases):
    found = write_lessons(casebook, '{ chapter = "plain_case", claim = "P2", shows = "see" }')
    page = lessons.lesson_page(found, cases, [])
    assert 'href="notebooks/1_plain_case.html#p2"' in page
    assert "refuted" in page


@pytest.mark.parametrize(
    ("exhibit", "message"),
    [
        ('{ chapter = "plain_case", claim = "P9", shows = "see" }', "trial P9 of plain_case"),
        ('{ chapter = "nowhere", claim = "P1", shows = "see" }', "chapter nowhere, which does not exist"),
    ],
)
def test_a_lesson_whose_exhibit_is_not_there_is_refused(casebook, cases, exhibit, message):
    with pytest.raises(lessons.LessonError, match=message):
        lessons.lesson_page(write_lessons(casebook, exhibit), cases, [])


def test_a_lesson_about_a_chapter_in_preparation_waits_for_it(casebook, cases):
    found = write_lessons(casebook, '{ chapter = "soon", claim = "S1", shows = "see" }')
    assert lessons.lesson_page(found, cases, ["soon"]).strip() == ""


def test_the_lessons_of_the_book_name_trials_that_its_reports_hold():
    reports = {slug: [claim.id for claim in load_report(slug).claims] for slug in report_slugs()}
    found = lessons.read_lessons(paths.book() / "lessons.toml")
    assert len(found) >= 5
    for lesson in found:
        for exhibit in lesson.exhibits:
            assert exhibit.claim in reports[exhibit.chapter], lesson.title


def test_the_book_knows_at_least_twenty_five_symptoms():
    assert sum(len(load_report(slug).symptoms) for slug in report_slugs()) >= 25


def with_symptom(cases, **changes) -> list:
    symptom = cases[0].report.symptoms[0].model_copy(update=changes)
    report: Report = cases[0].report.model_copy(update={"symptoms": [symptom]})
    return [type(cases[0])(cases[0].name, cases[0].folder, report, cases[0].verdicts, cases[0].provenance), *cases[1:]]


def test_suspects_stand_in_the_order_of_the_report_file(cases):
    index = symptoms.symptom_index(with_symptom(cases, suspect="the <clock>", then=["P3", "hostile_case:H2"]))
    first = index.split("<ol>")[1].split("</ol>")[0]
    order = [first.index(part) for part in ("the &lt;clock&gt;", "#p1", "#p3", "2_hostile_case.html#h2")]
    assert order == sorted(order)


def test_a_suspect_of_a_chapter_that_is_not_on_the_site_is_left_out_and_an_unknown_trial_is_refused(cases):
    assert "soon" not in symptoms.symptom_index(with_symptom(cases, then=["soon:S1"]))
    with pytest.raises(ReportError, match="hostile_case:H9"):
        symptoms.symptom_index(with_symptom(cases, then=["hostile_case:H9"]))


def test_a_sweep_becomes_rows_that_know_their_place_in_the_grid(casebook):
    found = sweeps.read_sweep(load_report("plain_case"))
    assert found.parameters == {"epochs": ["5", "10", "20"], "router": ["hard", "soft"]}
    assert len(found.rows) == 24
    row = next(row for row in found.rows if row["i_epochs"] == 2 and row["seed"] == 8)
    assert row["value"] == pytest.approx(2.08)
    assert sweeps.read_sweep(load_report("hostile_case")) is None


def test_measurements_of_a_sweep_become_a_table_with_a_line_a_setting_and_a_column_a_point(casebook):
    shown = sweeps.read_sweep(load_report("plain_case")).measures
    assert '<th scope="col">P1 · loss &lt;b&gt; (nats)</th>' in shown
    heads = ["epochs 5, router hard", "epochs 5, router soft", "epochs 10, router hard", "epochs 10, router soft"]
    places = [shown.index(f">{head}</th>") for head in heads]
    assert places == sorted(places)
    fault, fix = shown.split("<tbody>")[1].split("<tr>")[1:]
    assert fault.startswith('<th scope="row">arm fault</th><td>7 <span>[5, 9]</span></td>')
    assert fix.startswith('<th scope="row">arm fix</th><td>—</td><td>—</td><td>12 <span>[10, 14]</span></td>')


def test_the_explorer_opens_at_a_claim_whose_verdict_the_parameters_change(casebook):
    found = sweeps.read_sweep(load_report("plain_case"))
    flat = [row | {"verdict": "upheld"} if row["claim"] == "P1" else row for row in found.rows]
    assert explorer._first_shown(found) == "P1"
    assert explorer._first_shown(replace(found, rows=flat)) == "P2"
    assert explorer._first_shown(replace(found, rows=flat[:12])) == "P1"


def test_the_explorer_opens_at_the_settings_of_its_page_where_the_sweep_holds_them(casebook, tmp_path):
    report = load_report("plain_case")
    found = sweeps.read_sweep(report)
    assert explorer._places(found, {"epochs": 10, "router": "soft", "seed": 0}) == ({"epochs": 1, "router": 1}, True)
    assert explorer._places(found, {"epochs": 7, "router": "soft"}) == ({"epochs": 0, "router": 1}, False)
    shown = explorer.explorer(found, report, tmp_path, {"epochs": 10, "router": "soft"})
    content = json.loads(shown.split('type="application/json">')[1].split("</script>")[0])
    signals = {each["name"]: each["value"] for each in content["spec"]["params"]}
    assert (signals["at_epochs"], signals["at_router"], signals["marked"]) == (1, 1, 1)
    rows = [row["value"] for row in found.rows if row["claim"] == "P1" and row["i_router"] == 1]
    assert f"between {min(rows):.3g} and {max(rows):.3g}" in shown


def test_a_sweep_without_measurements_has_no_such_table(casebook):
    line = {"record": "verdict", "claim": "P1", "verdict": "upheld", "value": 1.0, "low": 0.0, "high": 2.0}
    frame = pd.DataFrame([line | {"param_a": a, "param_seed": 0} for a in (1, 2)])
    assert sweeps.sweep_of(load_report("plain_case"), frame).measures == ""


def test_evidence_of_an_unknown_claim_or_without_a_column_is_refused(casebook):
    frame = pd.DataFrame([{"claim": "X1", "verdict": "upheld", "value": 1.0, "low": 0.0, "high": 2.0, "param_a": 1}])
    with pytest.raises(sweeps.SweepError, match="holds X1"):
        sweeps.sweep_of(load_report("plain_case"), frame)
    with pytest.raises(sweeps.SweepError, match="lacks high"):
        sweeps.sweep_of(load_report("plain_case"), frame.drop(columns="high"))


def test_the_table_of_sweeps_says_how_each_was_made_and_whether_it_is_still_true(cases):
    shown = reproduce.sweep_table(cases)
    assert "<code>casebook sweep plain_case</code>" in shown
    assert "up to date with its code" in shown
    assert "No sweep is committed yet" in reproduce.sweep_table(cases[1:])


def test_a_figure_becomes_a_file_that_keeps_size_and_words(casebook, cases, tmp_path):
    picture = pictures.symptom_picture(cases[0].notebook, tmp_path)
    assert (picture.width, picture.height) == (1, 1)
    assert "stays above the fix" in picture.markup("../")
    assert 'src="../_figures/' in picture.markup("../")
    assert (tmp_path / picture.file).stat().st_size > 0


def test_a_kept_figure_is_used_only_if_it_shows_the_same_pixels(casebook, cases, tmp_path):
    first = pictures.symptom_picture(cases[0].notebook, tmp_path / "first")
    kept = casebook.root / "_build" / "figures" / first.file
    good = (tmp_path / "first" / first.file).read_bytes()
    assert kept.read_bytes() == good
    Image.new("RGB", (first.width, first.height), "red").save(kept, "WEBP", lossless=True)
    for damaged in (kept.read_bytes(), good[:20], b""):
        kept.write_bytes(damaged)
        pictures.symptom_picture(cases[0].notebook, tmp_path / str(len(damaged)))
        assert (tmp_path / str(len(damaged)) / first.file).read_bytes() == good
        assert kept.read_bytes() == good


def test_slides_hold_claims_figures_and_verdicts_and_no_script(cases, tmp_path):
    page = slides.slide_page(cases[0], tmp_path)
    assert page.count('class="slide"') >= 4
    assert "Place your bets" in page
    assert 'href="../notebooks/1_plain_case.html#p1"' in page
    assert "<img" in page
    alone = slides.slide_file(cases[1], "body { color: black }")
    assert "<script" not in page + alone
    assert "<a " not in alone
    assert "data:image/png" in alone


def test_a_trial_asks_on_one_slide_and_answers_on_the_next_with_what_was_measured(cases, tmp_path):
    shown = re.findall(r"<section.*?</section>", slides.slide_page(cases[0], tmp_path), re.DOTALL)
    [answer] = [place for place, slide in enumerate(shown) if "casebook-verdict" in slide]
    heading = re.search("<h2>.*?</h2>", shown[answer])[0]
    assert heading in shown[answer - 1]
    assert "✗ refuted" not in shown[answer - 1]
    assert "Measured: " in shown[answer]


def test_a_verdict_line_ends_with_what_was_measured_and_calls_the_book_s_own_claim_its_own(cases):
    line = '<p class="casebook-verdict refuted"><strong>P2 ✗ refuted</strong> — the report says that {}</p>'
    value = next(verdict.value for verdict in cases[0].verdicts if verdict.id == "P2")
    said = verdict_lines.with_measurements(cases[0], f"<b>a</b>{line.format('(not in the report) zeros do')}<i>b</i>")
    assert "this book adds that zeros do" in said
    assert said.startswith("<b>a</b><p class=")
    assert said.endswith("</span></p><i>b</i>")
    assert f'Measured: <span class="measured">{number(value)}' in said
    unknown = line.replace("P2", "P9").format("it is so")
    assert verdict_lines.with_measurements(cases[0], unknown) == unknown


def text_cell(text):
    return {"cell_type": "markdown", "source": text}


def printing(text):
    return {"cell_type": "code", "source": "", "outputs": [{"text": [text]}]}


@pytest.mark.parametrize(
    ("cells", "lead"),
    [
        (
            [text_cell("It works. Again:"), printing("loss 1 <b>\n")],
            "<p>It works. Again:</p>\n<pre>loss 1 &lt;b&gt;</pre>\n",
        ),
        ([text_cell("It works. Again:")], "<p>It works.</p>\n"),
        ([text_cell("Again:")], ""),
        ([text_cell("Two:\n\n- one\n- more")], "<p>Two:</p>\n<ul>\n<li>one</li>\n<li>more</li>\n</ul>\n"),
    ],
)
def test_a_slide_ends_with_a_colon_only_before_what_it_announces(cells, lead):
    assert slides._lead(cells) == lead


@pytest.mark.parametrize(
    ("cells", "shown"),
    [
        ([text_cell("**Proven.** It is both.")], ["<p><strong>Proven.</strong> It is both.</p>"]),
        ([text_cell("**Open.** Why? It shows:"), text_cell("")], ["<p><strong>Open.</strong> Why?</p>"]),
        (
            [text_cell("**A.** So:\n\nit is."), text_cell("More.")],
            ["<p><strong>A.</strong> So:</p><p>it is.</p>"],
        ),
        (
            [text_cell("**Cause.** Which?"), printing("both\n"), text_cell("The pass.")],
            ["<p><strong>Cause.</strong> Which?</p><pre>both</pre>\n<p>The pass.</p>"],
        ),
    ],
)
def test_a_conclusion_s_slide_goes_on_to_what_it_asks_for(cells, shown):
    assert slides._conclusions([text_cell("lead"), *cells]) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("noise {cite}`bengio2013estimating,jang2017gumbel`.", "noise (Bengio et al., 2013; Jang et al., 2017)."),
        ("{cite:t}`bengio2013estimating` say", "Bengio et al. (2013) say"),
        ("nothing {cite}`nobody1900`.", "nothing."),
    ],
)
def test_a_citation_on_a_slide_is_author_and_year(text, shown):
    assert citations.with_citations(text) == shown


def test_the_teaching_page_plans_fifty_minutes_around_the_trials_that_surprise(cases):
    page = teaching.teaching_page(cases)
    assert [verdict.id for verdict in teaching.central_trials(cases[0])] == ["P2", "P4"]
    for part in (
        "47–50",
        "slides/1_plain_case.html",
        "casebook teach plain_case",
        "Wrong answer to expect: **41.** It is near.",
    ):
        assert part in page
    folded = page.split("{dropdown} The right answer")[1].split("::::")[0]
    assert "42" in folded
    assert "check_1(" not in folded


def test_a_failed_run_that_left_no_result_stops_the_build_with_the_command_that_mends_it(casebook):
    folder = casebook.results["plain_case"]
    (folder / FAILED).write_text("{}")
    assert read_case("plain_case", folder).verdicts  # cut off beside a result that is still true
    (folder / SEAL).unlink()
    with pytest.raises(ResultError, match=r"last run failed.*casebook run plain_case"):
        read_case("plain_case", folder)


def test_missing_verdicts_stop_the_build_with_the_command_that_mends_it(casebook):
    (casebook.results["plain_case"] / "verdicts.json").unlink()
    with pytest.raises(ResultError, match="casebook run plain_case"):
        read_case("plain_case", casebook.results["plain_case"])


def test_verdicts_older_than_the_chapter_s_code_stop_the_build_with_the_command_that_mends_it(casebook):
    path = casebook.root / "notebooks" / "1_plain_case.ipynb"
    notebook = json.loads(path.read_text())
    notebook["cells"][-1]["source"] = "answer_1 = 43\ncheck_1(answer_1)"
    path.write_text(json.dumps(notebook))
    with pytest.raises(ResultError, match=r"older than what they follow from.*casebook run plain_case"):
        read_case("plain_case", casebook.results["plain_case"])
