"""What a reader's browser makes of every page, over http and from a folder; Debian's chromium looks at them."""

import json
from pathlib import Path

import pytest

from casestudies_lib.site.links import broken_links

WIDTHS = (360, 1280)
CONTRAST = """selector => [...document.querySelectorAll(selector)].map(element => {
    const numbers = text => text.match(/[0-9.]+/g).map(Number);
    const light = rgb => rgb.slice(0, 3).map(v => v / 255)
        .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    let ground = element;
    while (ground && numbers(getComputedStyle(ground).backgroundColor)[3] === 0) ground = ground.parentElement;
    const text = light(numbers(getComputedStyle(element).color));
    const back = light(numbers(getComputedStyle(ground || document.body).backgroundColor));
    return (Math.max(text, back) + 0.05) / (Math.min(text, back) + 0.05);
})"""
TYPESET = """() => window.MathJax.startup.promise.then(() => ({
    asked: document.querySelectorAll('.math').length,
    done: document.querySelectorAll('.math mjx-container').length,
    wrong: document.querySelectorAll('mjx-merror').length,
}))"""


def pages_of(site: Path) -> list[str]:
    return sorted(path.relative_to(site).as_posix() for path in site.rglob("*.html"))


def first_chapter(site: Path) -> str:
    return next(name for name in pages_of(site) if name.startswith("notebooks/"))


def watch(page) -> tuple[list[str], list[str]]:
    """Collect what a page complains about, and every address that it asks for."""
    complaints, requests = [], []
    loud = ("error", "warning")
    page.on("console", lambda message: complaints.append(message.text) if message.type in loud else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("requestfailed", lambda request: complaints.append(f"failed: {request.url}"))
    page.on("response", lambda response: complaints.append(response.url) if response.status >= 400 else None)
    page.on("request", lambda request: requests.append(request.url))
    return complaints, requests


@pytest.fixture
def page(browser):
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    yield context.new_page()
    context.close()


def test_every_page_loads_without_a_complaint_and_without_a_request_elsewhere(page, site, address):
    complaints, requests = watch(page)
    for name in pages_of(site):
        page.goto(f"{address}/{name}", wait_until="networkidle")
        assert page.locator("main h1:visible").count() == 1, name
    assert complaints == []
    assert [url for url in requests if not url.startswith((address, "data:"))] == []


def test_math_is_typeset_on_every_page_that_holds_some(page, site, address, published):
    with_math = [name for name in pages_of(site) if 'class="math' in (site / name).read_text(encoding="utf-8")]
    assert with_math or site != published.site
    for name in with_math:
        page.goto(f"{address}/{name}")
        found = page.evaluate(TYPESET)
        assert (found["done"], found["wrong"]) == (found["asked"], 0), name


def test_every_link_inside_the_site_ends_at_a_page_and_an_anchor(site):
    assert broken_links(site) == []


def test_no_page_scrolls_sideways_on_a_phone_or_a_desk(page, site, address):
    for name in pages_of(site):
        page.goto(f"{address}/{name}")
        page.evaluate("window.MathJax?.startup?.promise")
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 800})
            assert page.evaluate("document.documentElement.scrollWidth") <= width, name


def test_tables_of_sentences_need_no_sideways_scroll_on_a_phone_and_name_their_columns_there(page, site, address):
    page.set_viewport_size({"width": 360, "height": 800})
    seen = 0
    for name in ("verdicts.html", "symptoms.html", "reproduce.html", "faults.html", first_chapter(site)):
        page.goto(f"{address}/{name}")
        for box in page.locator(".casebook-table.stacking").all():
            assert box.evaluate("box => box.scrollWidth <= box.clientWidth"), (name, box.get_attribute("aria-label"))
            columns = box.get_by_role("columnheader").all_inner_texts()
            shown = (
                box.locator("tbody tr")
                .first.locator("td")
                .evaluate_all("cells => cells.map(cell => getComputedStyle(cell, '::before').content)")
            )
            assert shown == [f'"{column}" / ""' for column in columns[1:]], name
            seen += 1
    assert seen >= 5


def test_the_board_shows_each_record_with_its_verdict_and_a_way_to_its_trial(page, site, address):
    records = json.loads((site / "downloads" / "verdicts.json").read_text(encoding="utf-8"))
    page.goto(f"{address}/verdicts.html")
    rows = page.locator(".casebook-table.board tbody tr")
    assert rows.count() == len(records)
    for row, record in zip(rows.all(), records):
        link = row.locator("th a")
        assert link.inner_text() == record["id"]
        assert link.get_attribute("href").endswith(f"_{record['chapter']}.html#{record['id'].lower()}")
        assert record["verdict"] in row.inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_verdicts_tables_and_fine_print_are_legible(browser, site, address, scheme):
    context = browser.new_context(color_scheme=scheme)
    page = context.new_page()
    texts = ".verdict, .fine, .source, .bd-article a:not(.headerlink), .bd-article code.literal"
    for name in ("verdicts.html", first_chapter(site)):
        page.goto(f"{address}/{name}")
        assert page.locator("html").get_attribute("data-theme") == scheme
        assert min(page.evaluate(CONTRAST, f"{texts}, .cell_output caption, .cell_output td, .casebook-verdict")) >= 4.5
    context.close()


def test_every_picture_of_a_page_says_what_it_shows(page, site, address):
    for name in pages_of(site):
        page.goto(f"{address}/{name}")
        alts = page.eval_on_selector_all(".bd-article img", "all => all.map(image => image.alt)")
        assert [alt for alt in alts if len(alt.split()) < 4] == [], name


def test_hostile_texts_are_shown_and_never_obeyed(page, published):
    page.goto((published.site / "verdicts.html").as_uri())
    said = published.hostile.replace("\u202e", "⟨U+202E⟩")
    assert page.title() == "Verdict board — Training Incident Casebook"
    heading = page.locator(".bd-article h2").nth(1).inner_text().replace("“", '"').replace("”", '"')
    assert heading.removesuffix("#").strip() == said
    assert page.locator(".board td", has_text=said).count() == 5
    assert "\u202e" not in page.content()
    assert page.locator('a[href*="example.invalid"]').count() == 0


def test_the_site_works_from_a_folder(page, site):
    complaints, requests = watch(page)
    for name in ("index.html", "verdicts.html", first_chapter(site)):
        page.goto((site / name).as_uri(), wait_until="networkidle")
    if page.locator(".math").count():
        assert page.evaluate(TYPESET)["done"] == page.locator(".math").count()
    assert complaints == []
    assert [url for url in requests if not url.startswith((site.as_uri(), "data:"))] == []
