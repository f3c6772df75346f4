"""The generated parts: texts are shown and never obeyed, counts add up, and a result that is not true is refused."""

import inspect
import json
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from casestudies_lib import probes
from casestudies_lib.claims import load_report
from casestudies_lib.runner import results
from casestudies_lib.runner.results import ResultError
from casestudies_lib.site import board, chapter, markup, reproduce, symptoms
from casestudies_lib.site.case import read_case
from casestudies_lib.site.landing import landing_board


class Reader(HTMLParser):
    """Keeps the text between tags, and the tags."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.tags = "", []

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_starttag(self, tag: str, attributes: object) -> None:
        self.tags.append(tag)


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    reader.close()
    return reader


def reseal(folder, records=None, **changes):
    """Put other records or other provenance into a result folder, under a seal that fits."""
    result = results.read_result(folder)
    provenance = {name: value for name, value in (result.provenance | changes).items() if value is not ...}
    notebook = (folder / "notebook.ipynb").read_bytes()
    with results.scratch_folder(folder) as scratch:
        results.write_result(folder, scratch, notebook, records or result.verdicts, provenance)


@given(st.text())
def test_html_text_is_read_back_as_the_text_itself_and_never_as_a_tag(text):
    reader = read(f"<p>{markup.html_text(text)}</p>")
    assert (reader.text, reader.tags) == (markup.visible(text), ["p"])


@given(st.text(alphabet=st.characters(codec="utf-8")))
def test_markdown_text_is_read_back_as_the_text_itself(text):
    rendered = MarkdownIt("commonmark").render(f"x {markup.myst_text(text)} x")
    reader = read(rendered)
    assert reader.tags == ["p"]
    assert reader.text.split() == ["x", *markup.visible(text).split(), "x"]


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
    assert markup.visible(text) == shown


def test_backticks_become_code_after_escaping():
    assert markup.html_prose("set `a < b` now") == "set <code>a &lt; b</code> now"


def test_a_badge_says_the_verdict_in_words_beside_its_symbol():
    assert read(markup.badge("refuted")).text == "✗ refuted"


def test_the_tally_counts_each_verdict_and_shows_none_only_when_asked(casebook):
    case = read_case("plain_case", casebook.results["plain_case"])
    upheld = [verdict for verdict in case.verdicts if verdict.verdict == "upheld"] * 3
    assert read(markup.tally(upheld)).text == "3 ✓ upheld"
    everything = read(markup.tally(upheld, every=True)).text
    assert everything == "3 ✓ upheld0 ✗ refuted0 ≈ inconclusive0 ∅ uninformative0 … untested"


def test_the_landing_board_adds_up_all_chapters_and_names_what_is_in_preparation(casebook, tmp_path):
    cases = [read_case(slug, folder) for slug, folder in casebook.results.items()]
    text = read(landing_board(cases[:1], [load_report("hostile_case")], tmp_path)).text
    assert "5 claims on trial in 1 incident\n" in text
    assert "In preparation: <script>" in text
    assert "10 claims on trial in 2 incidents" in read(landing_board(cases, [], tmp_path)).text
    assert "In preparation" not in landing_board(cases, [], tmp_path)


def test_the_board_shows_value_interval_unit_n_and_rule_of_every_record(casebook):
    shown = board.verdict_board([read_case("plain_case", casebook.results["plain_case"])])
    assert shown.count("<tr") == 1 + 5
    first = read(shown.split("<tbody")[1].split("</tr>")[0]).text
    rule = "upheld if ≥ 0.1; refuted if ≤ 0.05"
    for part in ("P1", "✓ upheld", "0.25 [0.125, 0.375] nats", "n = 6", rule, "effect", "difference of two medians"):
        assert part in first
    assert 'href="notebooks/1_plain_case.html#p1"' in shown


def test_an_identity_has_no_interval_and_an_untested_claim_no_value(casebook):
    upheld, *_, untested = read_case("plain_case", casebook.results["plain_case"]).verdicts
    exact = upheld.model_copy(update={"value": 0.0, "low": 0.0, "high": 0.0, "unit": "bits"})
    assert read(markup.measured(exact)).text == "0 bits"
    assert markup.measured(untested) == "—"


def test_a_loss_is_written_with_a_minus_sign(casebook):
    upheld = read_case("plain_case", casebook.results["plain_case"]).verdicts[0]
    worse = upheld.model_copy(update={"value": -0.00251, "low": -0.00949, "high": 0.00446, "unit": "AUC"})
    assert read(markup.measured(worse)).text == "−0.00251 [−0.00949, 0.00446] AUC"


def test_the_symptom_index_leads_from_what_is_seen_to_claim_probe_and_chapter(casebook):
    index = symptoms.symptom_index([read_case("plain_case", casebook.results["plain_case"])])
    assert index.count("<tr ") == 1 + 2
    assert 'href="notebooks/1_plain_case.html#p1"' in index
    assert "idle_parameters" in index
    assert "✓ upheld" in read(index).text
    assert "no probe: repeat the trial" in read(index).text
    assert "None" not in index


def test_the_run_table_says_when_how_long_and_with_what(casebook):
    text = read(reproduce.run_table([read_case("plain_case", casebook.results["plain_case"])])).text
    for part in ("20 November 2026", "83", "2.13.0", "3.11.4", "Linux x86_64"):
        assert part in text


def test_the_probe_table_holds_the_probes_of_the_package_and_none_of_their_helpers():
    rows = reproduce.probe_table().split("<tbody>")[1]
    offered = {name for name in probes.__all__ if inspect.isfunction(getattr(probes, name))}
    assert set(re.findall(r"<code>(\w+)</code></t", rows)) == offered
    assert "stepping" in offered  # it returns a watcher, not a result
    assert "signals" not in rows


def test_a_chapter_header_names_source_counts_run_and_downloads(casebook):
    header = chapter.chapter_header(read_case("plain_case", casebook.results["plain_case"])).replace("<wbr>", "")
    for part in ("example/repository", "POST_MORTEM.md", "7 November 2025", "torch 2.13.0", "83 s"):
        assert part in header
    assert 'href="../downloads/1_plain_case.ipynb"' in header


@pytest.mark.parametrize("name", ["notebook.ipynb", "verdicts.json", "provenance.json"])
def test_a_result_without_one_of_its_files_is_refused(casebook, name):
    (casebook.results["plain_case"] / name).unlink()
    with pytest.raises(ResultError, match=name):
        read_case("plain_case", casebook.results["plain_case"])


def test_a_result_edited_after_its_run_is_refused(casebook):
    path = casebook.results["plain_case"] / "verdicts.json"
    path.write_text(path.read_text().replace('"refuted"', '"upheld"'))
    with pytest.raises(ResultError, match="does not match its seal"):
        read_case("plain_case", casebook.results["plain_case"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda records: records[:-1], "the report holds P1, P2, P3, P4, P5"),
        (lambda records: [*records, records[0]], "P1, P2, P3, P4, P5, P1"),
        (lambda records: [record | {"chapter": "hostile_case"} for record in records], "chapter hostile_case"),
        (lambda records: [record | {"rule": "upheld if >= 0.2"} for record in records], "another rule"),
        (lambda records: [record | {"verdict": "proven"} for record in records], "proven"),
    ],
)
def test_records_that_the_report_does_not_ask_for_are_refused(casebook, change, message):
    folder = casebook.results["plain_case"]
    reseal(folder, change(json.loads((folder / "verdicts.json").read_text())))
    with pytest.raises(ResultError, match=message):
        read_case("plain_case", folder)


@pytest.mark.parametrize(("changes", "message"), [({"torch": ...}, "torch"), ({"started": "today"}, "'today'")])
def test_provenance_that_cannot_be_shown_is_refused(casebook, changes, message):
    folder = casebook.results["plain_case"]
    reseal(folder, **changes)
    with pytest.raises(ResultError, match=message):
        chapter.chapter_header(read_case("plain_case", folder))


def test_a_chapter_that_never_loads_torch_claims_no_version_of_it(casebook):
    reseal(casebook.results["plain_case"], torch=None)
    case = read_case("plain_case", casebook.results["plain_case"])
    assert "torch" not in chapter.chapter_header(case)
    assert "None" not in reproduce.run_table([case])


def test_a_result_without_its_notebook_in_the_book_is_refused(casebook):
    (casebook.root / "notebooks" / "1_plain_case.ipynb").unlink()
    with pytest.raises(ResultError, match="0 notebooks are named N_plain_case"):
        read_case("plain_case", casebook.results["plain_case"])
