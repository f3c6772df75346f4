"""The printed book: the site links to it, every page is in it, sheets are numbered, nothing is folded or leads away."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pypdf import PdfReader

from casestudies_lib import paths
from casestudies_lib.runner.errors import Failure
from casestudies_lib.site.pdf import print_site

# In a process of its own, because Playwright can be started once in each.
PUBLISH = """
from casestudies_lib import paths
from casestudies_lib.site.publish import publish
runs = paths.build() / "runs"
publish({folder.name: folder for folder in runs.iterdir()}, paths.build() / "html", pdf=True)
"""


@pytest.fixture(scope="module")
def printed(published, browser, tmp_path_factory):
    """Publish the small casebook with its PDFs; `browser` skips, or fails on CI, where there is none."""
    assert browser.is_connected()
    root = tmp_path_factory.mktemp("printed") / "a casebook"
    shutil.copytree(published.root, root)
    done = subprocess.run(
        [sys.executable, "-c", PUBLISH], env=os.environ | {"CASEBOOK_ROOT": str(root)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return root / "_build" / "html"


def read(printed: Path, name: str) -> PdfReader:
    return PdfReader(printed / "pdf" / f"{name}.pdf")


def text_of(page) -> str:
    return " ".join(page.extract_text().split())


def titles_of(outline) -> list[str]:
    return [title for entry in outline for title in (titles_of(entry) if isinstance(entry, list) else [entry.title])]


def test_book_and_chapters_are_printed_and_linked_from_the_site_and_only_where_they_are_there(printed, published):
    assert {path.name for path in (printed / "pdf").iterdir()} == {
        "casebook.pdf", "1_plain_case.pdf", "2_hostile_case.pdf"
    }  # fmt: skip
    for page, link in (("index.html", "pdf/casebook.pdf"), ("notebooks/1_plain_case.html", "../pdf/1_plain_case.pdf")):
        assert f'href="{link}"' in (printed / page).read_text(encoding="utf-8")
        assert ".pdf" not in (published.site / page).read_text(encoding="utf-8")


def test_the_outline_of_the_book_names_every_page(printed):
    titles = titles_of(read(printed, "casebook").outline)
    for title in ("How to read this book", "Verdict board", "Case P", "Case H", "Glossary", "References"):
        assert title in titles


def test_sheets_are_numbered_at_the_foot(printed):
    assert all(text_of(page).endswith(f" {number}") for number, page in enumerate(read(printed, "casebook").pages, 1))


def test_links_of_the_book_arrive_in_it_and_none_leads_to_a_file_of_the_machine(printed):
    for name in ("casebook", "1_plain_case"):
        reader = read(printed, name)
        entries = [entry.get_object() for page in reader.pages for entry in page.get("/Annots", None) or []]
        assert [entry for entry in entries if "file:" in str(entry.get("/A", ""))] == []
        named = {str(entry["/Dest"]).strip("/") for entry in entries if "/Dest" in entry}
        assert named <= {place.strip("/") for place in reader.named_destinations}
    book = read(printed, "casebook")
    trial = next(place for name, place in book.named_destinations.items() if name.strip("/") == "p2")
    assert "P2: a trial" in text_of(book.pages[book.get_destination_page_number(trial)])


def test_what_is_folded_on_the_page_is_open_on_paper(printed):
    text = "".join(text_of(page) for page in read(printed, "1_plain_case").pages)
    assert "answer_1 = 42" in text  # the solution, folded on the page


def test_without_a_site_or_a_browser_the_command_that_makes_one_is_named(published, tmp_path, monkeypatch):
    monkeypatch.setenv("CASEBOOK_ROOT", str(published.root))
    with pytest.raises(Failure, match="casebook build"):
        print_site(tmp_path / "no site", tmp_path)
    monkeypatch.setattr(paths, "browser", lambda: None)
    with pytest.raises(Failure, match="make browser"):
        print_site(published.site, tmp_path)
