"""The link check finds each kind of dead end in a folder of pages, and nothing in a sound one."""

import pytest

from casestudies_lib.site.links import broken_links


@pytest.fixture
def site(tmp_path):
    (tmp_path / "notebooks").mkdir()
    front = '<h1 id="top">A</h1><a href="notebooks/a%20b.html#z1">B</a><a href="#top">C</a>'
    chapter = '<span id="z1"></span><a href="../index.html">A</a><a href="..">A</a>'
    (tmp_path / "index.html").write_text(front)
    (tmp_path / "notebooks" / "a b.html").write_text(chapter)
    return tmp_path


def test_a_sound_site_has_no_broken_link(site):
    assert broken_links(site) == []


@pytest.mark.parametrize(
    ("markup", "problem"),
    [
        ('<a href="missing.html">x</a>', "missing.html is no file of the site"),
        ('<a href="notebooks/a%20b.html#z9">x</a>', "#z9 names no anchor"),
        ('<a href="#nowhere">x</a>', "#nowhere names no anchor"),
        ('<a href="../outside.html">x</a>', "../outside.html is no file of the site"),
        ('<img src="figure.png">', "figure.png is no file of the site"),
        ('<script src="https://cdn.example/x.js"></script>', "fetches https://cdn.example/x.js"),
        ('<script src="//cdn.example/x.js"></script>', "fetches //cdn.example/x.js"),
        ('<link rel="stylesheet" href="https://fonts.example/x.css">', "fetches https://fonts.example/x.css"),
    ],
)
def test_a_dead_end_is_named_with_its_page(site, markup, problem):
    (site / "page.html").write_text(markup)
    (site.parent / "outside.html").write_text("not part of the site")
    (found,) = broken_links(site)
    assert found.startswith("page.html: ")
    assert problem in found


def test_links_that_a_reader_may_follow_elsewhere_are_no_fault(site):
    (site / "page.html").write_text('<a href="https://example.org">x</a><a href="mailto:a@example.org">y</a>')
    assert broken_links(site) == []
