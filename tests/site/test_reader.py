"""What a reader does with the pages: bets, filters, explores by keyboard, unfolds, searches, prints."""

import pytest

CHAPTER = "notebooks/1_plain_case.html"


@pytest.fixture
def chapter(page, published):
    page.goto((published.site / CHAPTER).as_uri())
    return page


def press(page, selector: str, *keys: str) -> None:
    """Focus an element and press keys, as someone without a mouse does."""
    page.locator(selector).focus()
    for key in keys:
        page.keyboard.press(key)


def test_bets_persist_and_are_settled_beside_the_verdicts(chapter):
    chapter.get_by_label("Your bet on P1").select_option("upheld")
    chapter.get_by_label("Your bet on P2").select_option("upheld")
    chapter.get_by_label("Your bet on P4").select_option("something else")
    chapter.reload()
    assert chapter.get_by_label("Your bet on P1").input_value() == "upheld"
    settled = chapter.locator('[aria-label="Verdicts"] tbody tr td:last-child').all_inner_texts()
    assert settled == ["upheld: won", "upheld: lost", "—", "something else: won", "—"]
    assert "placed 3 of 5 bets and won 2" in chapter.locator(".bets-note").inner_text()


def test_bets_can_be_taken_back(chapter):
    chapter.get_by_label("Your bet on P1").select_option("refuted")
    chapter.get_by_role("button", name="Clear my bets").click()
    chapter.reload()
    assert chapter.get_by_label("Your bet on P1").input_value() == ""


def test_a_page_whose_stored_bets_are_damaged_still_works(chapter):
    chapter.evaluate("localStorage.setItem('casebook.bets.1_plain_case', '{broken')")
    chapter.reload()
    assert chapter.get_by_label("Your bet on P1").input_value() == ""


def test_without_scripts_claims_verdicts_board_and_picture_are_plain_and_complete(browser, published):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((published.site / CHAPTER).as_uri())
    assert page.locator("select").count() == 0
    assert page.locator('[aria-label="Place your bets"] tbody tr').count() == 5
    assert page.locator(".explorer-picture").is_visible()
    page.goto((published.site / "verdicts.html").as_uri())
    assert page.locator(".board tbody tr:visible").count() == 10
    context.close()


def test_the_board_filters_by_incident_kind_and_verdict(page, published):
    page.goto((published.site / "verdicts.html").as_uri())
    rows = page.locator(".board tbody tr:visible")
    page.get_by_role("combobox", name="Verdict").select_option("refuted")
    assert rows.count() == 2
    page.get_by_role("combobox", name="Incident").select_option("A plain case")
    assert rows.count() == 1
    assert page.get_by_text("1 of 10 claims shown.").is_visible()
    assert page.locator("section:visible > h2").count() == 1
    page.get_by_role("combobox", name="Kind").select_option("effect")
    assert rows.count() == 1


def drawn(page) -> list[str]:
    """Return where the chart's points stand and what stands under its axis."""
    points = page.eval_on_selector_all(
        ".explorer-chart .mark-symbol.role-mark path", "all => all.map(x => x.getAttribute('transform'))"
    )
    return [*points, page.locator(".explorer-chart .role-axis-label").first.text_content()]


def test_the_explorer_follows_the_keyboard(chapter):
    chapter.locator(".explorer").scroll_into_view_if_needed()
    chapter.locator(".explorer.live").wait_for()
    before, words = drawn(chapter), chapter.locator(".explorer-words").inner_text()
    assert "P2 at epochs 10, router soft (as on this page): 1 [0.9, 1.3]" in words
    press(chapter, ".explorer-input:has-text('epochs') input", "ArrowLeft")
    said = chapter.locator(".explorer-words").inner_text()
    assert "P2 at epochs 5, router soft: 0.5 [0.4, 0.8]" in said
    assert "inconclusive" in said
    press(chapter, ".explorer-panel select >> nth=1", "ArrowDown")
    chapter.wait_for_function("document.querySelector('.explorer-chart').textContent.includes('hard')")
    assert drawn(chapter) != before


def test_the_explorer_runs_under_the_policy_and_loads_its_library_only_when_it_comes_into_view(page, published):
    asked, complaints = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on(
        "console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None
    )
    page.goto((published.site / CHAPTER).as_uri(), wait_until="load")
    assert not [url for url in asked if url.endswith("vega.js")]
    page.locator(".explorer").scroll_into_view_if_needed()
    page.locator(".explorer.live").wait_for()
    assert len([url for url in asked if url.endswith("vega.js")]) == 1
    assert complaints == []


def test_solutions_are_folded_until_the_reader_opens_them(chapter):
    solution = chapter.locator("details:has-text('answer_1 = 42')").last
    assert not solution.locator("pre").first.is_visible()
    solution.locator("summary").first.click()
    assert solution.locator("pre").first.is_visible()


@pytest.mark.parametrize(("words", "name"), [("symptom without a probe", "1_plain_case.html")])
def test_search_finds_a_chapter_by_the_words_of_its_symptoms(page, published, words, name):
    page.goto((published.site / "search.html").as_uri() + f"?q={words.replace(' ', '+')}")
    page.locator("ul.search li a").first.wait_for()
    found = page.eval_on_selector_all("ul.search li a", "all => all.map(a => a.href)")
    assert [address for address in found if name in address]


def test_the_page_prints_without_navigation_and_with_the_explorer_as_a_picture(chapter):
    chapter.locator(".explorer").scroll_into_view_if_needed()
    chapter.locator(".explorer.live").wait_for()
    chapter.emulate_media(media="print")
    for hidden in (
        ".bd-sidebar-primary",
        ".bd-sidebar-secondary",
        ".bd-header-article",
        ".explorer-panel",
        ".explorer-chart",
    ):
        assert chapter.locator(f"{hidden}:visible").count() == 0, hidden
    assert chapter.locator(".explorer-picture").is_visible()
    assert chapter.locator("h1:visible").count() == 1
