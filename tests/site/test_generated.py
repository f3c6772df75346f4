"""The parts of the small site that are made from results say what reports and records say, counted and in order."""

import base64
import hashlib
import inspect
import re

import pandas as pd
import pytest
from bs4 import BeautifulSoup
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from casestudies_lib import paths, probes
from casestudies_lib.reports import load_report, report_slugs
from casestudies_lib.site import explorer, templates
from casestudies_lib.site.extension import policy

CHAPTER = "notebooks/1_plain_case.html"


@pytest.fixture(scope="session")
def soup(published):
    """Give tests the article of a page of the small site."""
    return lambda name: BeautifulSoup((published.site / name).read_text(encoding="utf-8"), "html.parser").article


def words(element) -> str:
    return " ".join(element.get_text(" ").split())


def test_the_front_page_counts_all_verdicts_and_shows_each_case_with_its_line_figure_and_count(soup):
    page = soup("index.html")
    assert words(page.select_one(".total")) == "10 claims on trial in 2 incidents"
    assert "2 ✓ upheld 2 ✗ refuted 2 ≈ inconclusive 2 ∅ uninformative 2 … untested" in words(page)
    card = page.select(".incidents > li")[0]
    assert words(card.select_one(".incident-title")) == "Case 1 A plain case"
    assert words(card.select_one(".incident-line")) == "the gap is real when λ = 1 ."
    assert "1 ✓ upheld 1 ✗ refuted" in words(card)
    assert card.img["alt"].startswith("The fault in orange")
    assert "In preparation: A later case." in words(page)


def test_the_board_shows_value_interval_unit_n_and_rule_of_a_record(soup):
    first, *_, last = soup("verdicts.html").select(".board")[0].select("tbody tr")
    says = "the gap is real when λ = 1 . More follows."
    shown = words(first)
    for part in ("P1 ✓ upheld", says, "effect · ", "upheld if ≥ 0.1; refuted if ≤ 0.05", "n = 6"):
        assert part in shown
    assert "−0.25 [−0.375, 0.125] " + says in shown
    assert words(last.select("td")[-1]) == "— not measured"


def test_the_symptom_index_says_whose_claim_each_mark_belongs_to(soup):
    row = soup("symptoms.html").select("tbody tr")[0]
    first, second, third = row.select("li")
    assert words(first).startswith("the gap is real when λ = 1 . More follows. P2 : the report says that the gap")
    assert words(first).endswith("✗ refuted")
    assert "P4 : the report says that" in words(second)
    assert third.a["href"] == f"{CHAPTER}#p1"
    assert "idle_parameters" in words(row)
    assert "no probe: repeat the trial" in words(soup("symptoms.html").select("tbody tr")[1])


def test_a_habit_links_to_its_exhibits_and_leaves_out_what_is_not_written_yet(soup):
    exhibits = soup("post-mortems.html").select(".exhibits li")
    assert [words(each) for each in exhibits] == ["P2 ✗ refuted A gap of nothing. A plain case"]
    assert exhibits[0].a["href"] == f"{CHAPTER}#p2"


def test_the_exhibits_of_the_book_are_trials_that_its_reports_hold():
    known = {f"{slug}:{claim.id}" for slug in report_slugs() for claim in load_report(slug).claims}
    text = (paths.book() / "post-mortems.md").read_text(encoding="utf-8")
    named = re.findall(r"^(\w+:[A-Z]\d+) ", text, re.MULTILINE)
    assert len(named) >= 20
    assert set(named) <= known


def test_the_book_knows_at_least_twenty_five_symptoms():
    assert sum(len(load_report(slug).symptoms) for slug in report_slugs()) >= 25


def test_a_chapter_opens_with_source_counts_run_downloads_and_symptoms(soup, published):
    page = soup(CHAPTER)
    header = page.select_one(".case-header")
    for part in ("7 November 2025", "torch 2.13.0", "20 November 2026", "83 s", "1 ✗ refuted"):
        assert part in words(header)
    assert header.cite.get_text() == "POST_MORTEM.md"
    addresses = [link["href"] for link in header.select("a")]
    assert addresses == ["../downloads/1_plain_case.ipynb", "../downloads/1_plain_case.verdicts.json",
                         "../slides/1_plain_case.html"]  # fmt: skip
    assert "a symptom without a probe" in words(page.details)
    download = published.site / "downloads" / "1_plain_case.ipynb"
    assert download.read_bytes() == (published.results["plain_case"] / "notebook.ipynb").read_bytes()


def test_a_verdict_line_ends_with_what_was_measured_and_calls_the_book_s_own_claim_its_own(soup):
    line = words(soup(CHAPTER).select_one(".casebook-verdict"))
    assert line.startswith("P2 ✗ refuted — this book adds that zeros do Measured: −0.25 [−0.375, 0.125] the gap")


def test_figures_are_files_of_known_size_beside_the_page(soup, published):
    figures = soup(CHAPTER).select(".cell_output img.casebook-figure")
    assert [figure["alt"].split()[0] for figure in figures] == ["A", "The"]
    for figure in figures:
        assert (figure["width"], figure["height"], figure["loading"]) == ("1", "1", "lazy")
        assert (published.site / "notebooks" / figure["src"]).is_file()


def test_the_page_for_teachers_plans_around_the_trials_that_surprise_and_folds_the_answers(soup):
    section = soup("teaching.html").select("section > section")[0]
    shown = words(section)
    assert "Try P2 and P4 ." in shown
    for part in ("casebook teach plain_case --out class", "marks the 5 claims", "exercise 1 in pairs", "47–50",
                 "1 · Predict. What is the answer?", "Wrong answer to expect: 41. It is near."):  # fmt: skip
        assert part in shown
    answer = section.select("details")[-1]
    assert "answer_1 = 42" in words(answer)
    assert "check_1" not in words(answer)


def test_the_page_for_those_who_run_the_book_lists_runs_and_sweeps(soup):
    runs, sweeps = soup("reproduce.html").select(".stacking")
    first = words(runs.select("tbody tr")[0])
    assert first == "A plain case 20 November 2026 83 2.13.0 3.11.4 Linux x86_64"
    made = words(sweeps.tbody)
    assert made == "A plain case casebook sweep plain_case torch 2.13.0, 2.14.0 12 up to date with its code"


def test_the_table_of_probes_holds_the_probes_of_the_package_and_none_of_their_helpers(soup):
    offered = {name for name in probes.__all__ if inspect.isfunction(getattr(probes, name))}
    assert {words(row.th) for row in soup("probes.html").select("tbody tr")} == offered
    assert "stepping" in offered  # it returns a watcher, not a result


def test_slides_ask_before_they_answer_and_need_nothing_beside_them(published):
    text = (published.site / "slides" / "1_plain_case.html").read_text(encoding="utf-8")
    slides = [words(slide) for slide in BeautifulSoup(text, "html.parser").select(".slide")]
    assert "<script" not in text
    assert not re.search(r'(?:src|href)="(?!data:)', text)
    assert slides[1].startswith("Place your bets P1 the gap is real")
    assert slides[2] == "P1: a trial Is it so here?"
    [answer] = [place for place, slide in enumerate(slides) if "Measured:" in slide]
    assert "✗ refuted" not in slides[answer - 1]
    assert "The fault in orange" in text
    assert slides[-1].startswith("Verdicts 1 ✓ upheld 1 ✗ refuted")


@pytest.fixture
def shown(casebook):
    """Give tests what the explorer of the plain chapter's sweep shows on a page that was run with these parameters."""
    lines = pd.read_parquet(casebook.root / "data" / "evidence" / "plain_case.parquet")
    return lambda lines=lines, **used: explorer.explorer(lines, load_report("plain_case"), used)


def test_the_explorer_opens_at_its_page_s_settings_and_at_a_claim_whose_verdict_the_parameters_change(shown):
    found = shown(epochs=10, router="soft")
    assert (found["content"]["claim"], found["content"]["at"]) == ("P2", {"epochs": 1, "router": 1})
    assert found["content"]["own"]
    assert found["content"]["parameters"] == {"epochs": ["5", "10", "20"], "router": ["hard", "soft"]}
    signals = {each["name"]: each["value"] for each in found["content"]["spec"]["params"]}
    assert (signals["at_epochs"], signals["at_router"], signals["marked"]) == (1, 1, 1)
    # Router soft, from 5 epochs and seed 0 to 20 epochs and seed 8.
    assert (
        "over epochs from 5 to 20 the values lie between 0.5 and 2.08; verdicts: inconclusive, upheld" in found["alt"]
    )
    elsewhere = shown(epochs=7, router="soft")
    assert (elsewhere["content"]["at"], elsewhere["content"]["own"]) == ({"epochs": 0, "router": 1}, False)


def test_each_row_of_the_explorer_knows_its_place_in_the_grid(shown):
    rows = shown()["content"]["rows"]
    assert len(rows) == 24
    [row] = [r for r in rows if (r["claim"], r["i_epochs"], r["i_router"], r["seed"]) == ("P1", 2, 0, 8)]
    assert row["value"] == pytest.approx(20 * 0.1 + 8 * 0.01 + 1)
    assert [row["claim"] for row in rows] == ["P1"] * 12 + ["P2"] * 12


def test_measurements_of_a_sweep_are_tabled_with_a_row_a_setting_and_a_column_a_point(soup):
    table = soup(CHAPTER).select_one(".measures table")
    points = [f"epochs {epochs}, router {router}" for epochs in (5, 10, 20) for router in ("hard", "soft")]
    assert [words(head) for head in table.select("thead th")] == ["P1 · loss <b> (nats)", *points]
    fault, fix = table.select("tbody tr")
    # The mean of seeds 0 and 8 is two above the number of epochs.
    assert words(fault) == "arm fault " + " ".join(f"{e + 2} [{e}, {e + 4}]" for e in (5, 5, 10, 10, 20, 20))
    assert words(fix).startswith("arm fix — — 12 [10, 14]")


def test_evidence_that_cannot_be_explored_is_refused(shown, casebook):
    lines = pd.read_parquet(casebook.root / "data" / "evidence" / "plain_case.parquet")
    with pytest.raises(explorer.SweepError, match="holds X1"):
        shown(lines.replace({"claim": {"P2": "X1"}}))
    with pytest.raises(explorer.SweepError, match="no parameter takes two values"):
        shown(lines[(lines["param_epochs"] == 5) & (lines["param_router"] == "soft")])


@given(st.text(alphabet=st.characters(exclude_characters="`")))
def test_text_in_a_template_is_read_back_as_the_text_itself_and_never_as_a_tag(text):
    read = BeautifulSoup(f"<p>{templates.prose(text)}</p>", "html.parser")
    assert (read.get_text(), [tag.name for tag in read.find_all()]) == (templates.visible(text), ["p"])


@given(st.text(alphabet=st.characters(codec="utf-8")))
def test_markdown_text_is_read_back_as_the_text_itself(text):
    read = BeautifulSoup(MarkdownIt("commonmark").render(f"x {templates.myst(text)} x"), "html.parser")
    assert [tag.name for tag in read.find_all()] == ["p"]
    assert read.get_text().split() == ["x", *templates.visible(text).split(), "x"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("user\u202egnp.exe", "user⟨U+202E⟩gnp.exe"),
        ("zero\u200bwidth", "zero⟨U+200B⟩width"),
        ("bell\x07", "bell⟨U+0007⟩"),
        ("lone \ud800 surrogate", "lone ⟨U+D800⟩ surrogate"),
        ("two\n\nparagraphs\tand  gaps ", "two paragraphs and gaps"),
        ("λ ≤ 1, naïve", "λ ≤ 1, naïve"),
    ],
)
def test_invisible_characters_are_named_and_white_space_is_folded(text, shown):
    assert templates.visible(text) == shown


def test_the_policy_admits_the_inline_scripts_of_a_page_and_no_other():
    page = '<script src="a.js"></script><script>let a = 1;</script><script type="application/json">{}</script>'
    digest = base64.b64encode(hashlib.sha256(b"let a = 1;").digest()).decode()
    assert f"script-src 'self' 'sha256-{digest}';" in policy(page)
