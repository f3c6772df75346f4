"""Every page of both sites, as a browser shows it: sound, accessible, complete, and without a request elsewhere."""

import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe

WIDTHS = (360, 768, 1280)
# What a page is made of is the same in the dark; only its colours are not.
RULES = {
    "light": {"resultTypes": ["violations"]},
    "dark": {"resultTypes": ["violations"], "runOnly": ["color-contrast", "link-in-text-block"]},
}
TYPESET = """() => window.MathJax.startup.promise.then(() => ({
    asked: document.querySelectorAll('.math').length,
    done: document.querySelectorAll('.math mjx-container').length,
    wrong: document.querySelectorAll('mjx-merror').length,
}))"""
HEADINGS = """() => [...document.querySelectorAll('main h1, main h2, main h3, main h4, main h5')]
    .filter(heading => heading.getClientRects().length).map(heading => Number(heading.tagName[1]))"""
OUTLINED = """() => {
    const style = getComputedStyle(document.activeElement);
    const outlined = style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) > 0;
    return outlined || style.boxShadow !== 'none';
}"""
STICKS_OUT = """() => [...document.querySelectorAll('main pre, main table, main img, main svg')].filter(element => {
    const box = element.getBoundingClientRect();
    if (!box.width || box.right <= innerWidth + 1) return false;
    for (let up = element.parentElement; up; up = up.parentElement) {
        const style = getComputedStyle(up);
        const inside = up.getBoundingClientRect().right <= innerWidth + 1;
        if (/auto|scroll|hidden/.test(style.overflowX) && inside) return false;
    }
    return true;
}).map(element => element.outerHTML.slice(0, 120))"""
OVERLAPS = """() => {
    const blocks = [...document.querySelectorAll('main article > section > *, main article > section > section > *')]
        .filter(element => element.getClientRects().length && getComputedStyle(element).position === 'static'
            && getComputedStyle(element).display !== 'inline' && element.tagName !== 'SPAN')
        .map(element => [element, element.getBoundingClientRect()]);
    const found = [];
    for (let at = 1; at < blocks.length; at++) {
        const [before, above] = blocks[at - 1], [after, below] = blocks[at];
        if (before.contains(after) || before.parentElement !== after.parentElement) continue;
        if (above.bottom > below.top + 2 && above.right > below.left && above.left < below.right)
            found.push(before.outerHTML.slice(0, 80) + ' / ' + after.outerHTML.slice(0, 80));
    }
    return found;
}"""
BROKEN_PICTURES = """() => [...document.querySelectorAll('main img')].filter(i => i.complete && !i.naturalWidth)
    .map(i => i.src.slice(0, 120))"""
SMUGGLE = """() => { const script = document.createElement('script');
    script.textContent = 'window.owned = true'; document.head.append(script); return window.owned; }"""


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


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_to_object_to(browser, site, scheme):
    context = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme=scheme, reduced_motion="reduce")
    page, found = context.new_page(), []
    for name in pages_of(site):
        page.goto((site / name).as_uri(), wait_until="load")
        if not name.startswith("slides/"):
            assert page.locator("html").get_attribute("data-theme") == scheme
        page.evaluate("Promise.allSettled(document.getAnimations().map(each => each.finished))")
        violations = Axe().run(page, options=RULES[scheme]).response["violations"]
        found += [f"{name}: {each['id']}: {each['nodes'][0]['html'][:200]}" for each in violations]
    context.close()
    assert found == []


def test_axe_would_have_objected(page):
    page.set_content("<html lang='en'><title>t</title><main><h1>t</h1><img src='x.png'></main></html>")
    assert "image-alt" in [violation["id"] for violation in Axe().run(page).response["violations"]]


def test_pages_load_without_a_complaint_or_a_request_elsewhere_and_with_all_their_math(page, site, address):
    complaints, requests = watch(page)
    for name in pages_of(site):
        page.goto(f"{address}/{name}", wait_until="networkidle")
        if page.locator(".math").count():
            math = page.evaluate(TYPESET)
            assert (math["done"], math["wrong"]) == (math["asked"], 0), name
        levels = page.evaluate(HEADINGS)
        assert levels[:1] == [1], name
        assert levels.count(1) == 1, name
        assert all(after <= before + 1 for before, after in pairwise(levels)), (name, levels)
        alts = page.eval_on_selector_all("main img", "all => all.map(image => image.alt)")
        assert [alt for alt in alts if len(alt.split()) < 4] == [], name
    assert complaints == []
    assert [url for url in requests if not url.startswith((address, "data:"))] == []


def test_no_page_runs_a_script_that_it_did_not_come_with(page, site):
    for name in pages_of(site):
        page.goto((site / name).as_uri())
        assert page.evaluate(SMUGGLE) is None, name
        policy = page.locator('meta[http-equiv="Content-Security-Policy"]').get_attribute("content")
        scripts = policy.split("script-src")[1].split(";")[0]
        assert not re.search(r"unsafe|\*|https?:", scripts), name


@pytest.mark.parametrize("width", WIDTHS)
def test_pages_are_neither_blank_nor_overlapping_and_nothing_sticks_out(browser, site, width):
    page = browser.new_page(viewport={"width": width, "height": 900})
    for name in pages_of(site):
        page.goto((site / name).as_uri(), wait_until="load")
        page.evaluate("window.MathJax?.startup?.promise")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
        for check in (STICKS_OUT, OVERLAPS, BROKEN_PICTURES):
            assert page.evaluate(check) == [], name
        assert len(page.locator("main").inner_text().split()) >= 3, name
    page.close()


def test_the_overlap_check_bites(page):
    page.set_content("<main><article><section><p>a</p><p style='margin-top:-30px'>b</p></section></article></main>")
    assert page.evaluate(OVERLAPS)


def test_tables_of_sentences_need_no_sideways_scroll_on_a_phone_and_name_their_columns_there(page, site):
    page.set_viewport_size({"width": 360, "height": 800})
    seen = 0
    for name in ("verdicts.html", "symptoms.html", "reproduce.html", first_chapter(site)):
        page.goto((site / name).as_uri())
        for box in page.locator(".casebook-table.stacking").all():
            assert box.evaluate("box => box.scrollWidth <= box.clientWidth"), (name, box.get_attribute("aria-label"))
            columns = box.get_by_role("columnheader").all_inner_texts()
            cells = box.locator("tbody tr").first.locator("td")
            shown = cells.evaluate_all("cells => cells.map(cell => getComputedStyle(cell, '::before').content)")
            assert shown == [f'"{column}" / ""' for column in columns[1:]], name
            seen += 1
    assert seen >= 5


def test_whoever_moves_by_keyboard_sees_where_they_are(page, site):
    for name in ("index.html", "verdicts.html", first_chapter(site)):
        page.goto((site / name).as_uri())
        for _ in range(25):
            page.keyboard.press("Tab")
            assert page.evaluate(OUTLINED), (name, page.evaluate("document.activeElement.outerHTML.slice(0, 120)"))


def test_the_board_shows_each_record_with_its_verdict_and_a_way_to_its_trial(page, site):
    records = json.loads((site / "downloads" / "verdicts.json").read_text(encoding="utf-8"))
    page.goto((site / "verdicts.html").as_uri())
    rows = page.locator(".casebook-table.board tbody tr")
    assert rows.count() == len(records)
    for row, record in zip(rows.all(), records):
        link = row.locator("th a")
        assert link.inner_text() == record["id"]
        assert link.get_attribute("href").endswith(f"_{record['chapter']}.html#{record['id'].lower()}")
        assert record["verdict"] in row.inner_text()


class Links(HTMLParser):
    """Collects the anchors of a page, and every address in it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors, self.addresses = {""}, []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list) -> None:
        values = dict(attributes)
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        self.addresses += [values[name] for name in ("href", "src") if values.get(name)]


def dead_ends(site: Path) -> list[str]:
    """Return each link of a site that ends nowhere; Sphinx sees none that stands in HTML."""
    pages = {path: Links(path) for path in site.rglob("*.html")}
    found = []
    for path, page in pages.items():
        for address in dict.fromkeys(page.addresses):
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.is_file() or not target.is_relative_to(site):
                found.append(f"{path.name}: {address} is not a file of the site")
            elif target in pages and unquote(parts.fragment) not in pages[target].anchors:
                found.append(f"{path.name}: {address} names no anchor of that page")
    return found


def test_every_link_inside_the_site_ends_somewhere(site):
    assert dead_ends(site.resolve()) == []


def test_a_dead_end_is_found(tmp_path):
    links = ("page.html#here", "#here", "page.html#there", "no.html", "../outside.html", "https://example.org/#x")
    (tmp_path / "outside.html").write_text("")
    site = tmp_path / "site"
    site.mkdir()
    (site / "page.html").write_text('<p id="here">' + "".join(f'<a href="{link}">a</a>' for link in links))
    assert dead_ends(site) == [
        "page.html: page.html#there names no anchor of that page",
        "page.html: no.html is not a file of the site",
        "page.html: ../outside.html is not a file of the site",
    ]


def test_hostile_texts_are_shown_and_never_obeyed(page, published):
    for name in pages_of(published.site):
        page.goto((published.site / name).as_uri())
        assert page.title() != "owned", name
        assert "\u202e" not in page.content(), name
        assert page.locator('a[href*="example.invalid"]').count() == 0, name
    shown = (
        '<script>document.title="owned"</script> **bold** {{ title }} $x$ [l](http://example.invalid) ⟨U+202E⟩gnp.exe'
    )
    pages = {"index": 1, "verdicts": 5, "symptoms": 3, "notebooks/2_hostile_case": 1, "slides/2_hostile_case": 10}
    for name, times in pages.items():
        page.goto((published.site / f"{name}.html").as_uri())
        for folded in page.locator("main details").all():
            folded.evaluate("element => { element.open = true; }")
        text = page.locator("main").inner_text().replace("“", '"').replace("”", '"')
        assert " ".join(text.split()).count(shown) >= times, name


def test_the_site_works_from_a_folder(page, site):
    complaints, requests = watch(page)
    for name in ("index.html", "verdicts.html", first_chapter(site)):
        page.goto((site / name).as_uri(), wait_until="networkidle")
    if page.locator(".math").count():
        assert page.evaluate(TYPESET)["done"] == page.locator(".math").count()
    assert complaints == []
    assert [url for url in requests if not url.startswith((site.as_uri(), "data:"))] == []
