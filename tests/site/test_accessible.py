"""Every page of both sites: nothing for axe-core, a policy, sound headings, visible focus, room on phones."""

from itertools import pairwise
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe

WIDTHS = (360, 768, 1280)
HEADINGS = """() => [...document.querySelectorAll('main h1, main h2, main h3, main h4, main h5')]
    .filter(heading => heading.getClientRects().length).map(heading => Number(heading.tagName[1]))"""
OUTLINED = """() => {
    const style = getComputedStyle(document.activeElement);
    const outlined = style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) > 0;
    return outlined || style.boxShadow !== 'none';
}"""
LONE_OVERFLOW = """() => [...document.querySelectorAll('main pre, main table, main img, main svg')].filter(element => {
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
SCREENSHOTS = Path(__file__).resolve().parents[2] / "_build" / "screenshots"


def pages_of(site: Path) -> list[str]:
    return sorted(path.relative_to(site).as_posix() for path in site.rglob("*.html"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_to_object_to(browser, site, scheme):
    context = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme=scheme, reduced_motion="reduce")
    page, found = context.new_page(), []
    for name in pages_of(site):
        page.goto((site / name).as_uri(), wait_until="load")
        page.evaluate("Promise.allSettled(document.getAnimations().map(each => each.finished))")
        violations = Axe().run(page).response["violations"]
        found += [f"{name}: {each['id']}: {each['nodes'][0]['html'][:200]}" for each in violations]
    context.close()
    assert found == []


def test_axe_would_have_objected(browser):
    page = browser.new_page()
    page.set_content("<html lang='en'><title>t</title><main><h1>t</h1><img src='x.png'></main></html>")
    assert "image-alt" in [violation["id"] for violation in Axe().run(page).response["violations"]]
    page.close()


def test_headings_descend_one_step_at_a_time_from_a_single_first_one(browser, site):
    page = browser.new_page()
    for name in pages_of(site):
        page.goto((site / name).as_uri())
        levels = page.evaluate(HEADINGS)
        assert levels.count(1) == 1, name
        assert levels[0] == 1, name
        assert all(after <= before + 1 for before, after in pairwise(levels)), (name, levels)
    page.close()


def test_whoever_moves_by_keyboard_sees_where_they_are(browser, site):
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    chapter = next(name for name in pages_of(site) if name.startswith("notebooks/"))
    for name in ("index.html", "verdicts.html", chapter):
        page.goto((site / name).as_uri())
        for _ in range(25):
            page.keyboard.press("Tab")
            focused = page.evaluate("document.activeElement.outerHTML.slice(0, 120)")
            assert page.evaluate(OUTLINED), (name, focused)
    page.close()


@pytest.mark.parametrize("width", WIDTHS)
def test_pages_are_neither_blank_nor_overlapping_and_nothing_sticks_out(browser, site, width, request):
    kind = request.node.callspec.params["site"]
    folder = SCREENSHOTS / kind
    folder.mkdir(parents=True, exist_ok=True)
    page = browser.new_page(viewport={"width": width, "height": 900})
    for name in pages_of(site):
        page.goto((site / name).as_uri(), wait_until="load")
        page.evaluate("window.MathJax?.startup?.promise")
        page.screenshot(path=folder / f"{name.replace('/', '_').removesuffix('.html')}-{width}.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
        assert page.evaluate(LONE_OVERFLOW) == [], name
        assert page.evaluate(OVERLAPS) == [], name
        assert len(page.locator("main").inner_text().split()) >= 3, name
        broken = "all => all.filter(i => i.complete && !i.naturalWidth).map(i => i.src)"
        assert page.eval_on_selector_all("main img", broken) == [], name
    page.close()


def test_the_overlap_check_bites(browser):
    page = browser.new_page()
    page.set_content("<main><article><section><p>a</p><p style='margin-top:-30px'>b</p></section></article></main>")
    assert page.evaluate(OVERLAPS)
    page.close()


def test_every_page_has_a_policy_that_keeps_scripts_of_others_out(browser, site):
    page = browser.new_page()
    for name in pages_of(site):
        text = (site / name).read_text(encoding="utf-8")
        [policy] = [line for line in text.splitlines() if "Content-Security-Policy" in line]
        scripts = policy.split("script-src")[1].split(";")[0]
        assert "unsafe" not in scripts, name
        assert "*" not in scripts, name
        page.goto((site / name).as_uri())
        page.evaluate("""() => { const script = document.createElement('script');
            script.textContent = 'window.owned = true'; document.head.append(script); }""")
        assert page.evaluate("window.owned") is None, name
    page.close()
