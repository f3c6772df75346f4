"""The printed book: every page of the site in it, numbered as its contents say, links that arrive, nothing folded."""

import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pypdf import PdfReader

from casestudies_lib.runner.errors import Failure
from casestudies_lib.site import pdf
from casestudies_lib.site.print_document import anchor_of, joined, pages_in_order


@pytest.fixture(scope="module")
def printed(published, browser, tmp_path_factory):
    """Print the small casebook once, by the command; `browser` skips, or fails on CI, where there is none."""
    folder = tmp_path_factory.mktemp("printed") / "a folder"
    command = [sys.executable, "-m", "casestudies_lib.cli", "pdf", "--out", str(folder)]
    environment = os.environ | {"CASEBOOK_ROOT": str(published.root)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert browser.is_connected()
    return [Path(line.removeprefix("printed ")) for line in done.stderr.splitlines()]


@pytest.fixture(scope="module")
def book(printed):
    return PdfReader(io.BytesIO(printed[0].read_bytes()))


def text_of(page) -> str:
    return " ".join(page.extract_text().split())


def links_of(reader):
    for page in reader.pages:
        for annotation in page.get("/Annots", None) or []:
            entry = annotation.get_object()
            if entry["/Subtype"] == "/Link":
                yield entry


def test_the_book_and_each_chapter_are_printed(printed):
    assert [path.name for path in printed] == ["casebook.pdf", "1_plain_case.pdf", "2_hostile_case.pdf"]


def test_the_order_is_that_of_the_contents(published):
    pages = pages_in_order(published.site)
    assert pages[:2] == ["index.html", "how-to-read.html"]
    assert [page for page in pages if "notebooks" in page] == [
        "notebooks/1_plain_case.html", "notebooks/2_hostile_case.html"
    ]  # fmt: skip
    assert set(pages) <= {path.relative_to(published.site).as_posix() for path in published.site.rglob("*.html")}


def test_every_page_starts_on_the_sheet_that_the_contents_name(published, book):
    contents = text_of(book.pages[1])
    pages = pages_in_order(published.site)
    for page, sheet in pdf.sheets(_content(book), pages).items():
        title = next(o.title for o in book.outline if not isinstance(o, list) and _sheet(book, o) == sheet)
        words = " ".join(title.split())
        assert words.replace(" ", "") in text_of(book.pages[sheet - 1]).replace(" ", ""), page
        assert re.search(rf"(?<!\d){sheet}(?!\d)", contents), page


def _content(reader) -> bytes:
    return reader.stream.getvalue()


def _sheet(reader, entry) -> int:
    return reader.get_destination_page_number(entry) + 1


def test_sheets_are_numbered_at_the_foot(book):
    assert all(text_of(page).endswith(str(number)) for number, page in enumerate(book.pages, start=1))


def test_links_inside_the_book_arrive_at_the_trial_that_they_name(book):
    place = book.named_destinations["/" + anchor_of("notebooks/1_plain_case.html", "p2")]
    assert "P2: a trial" in text_of(book.pages[book.get_destination_page_number(place)])


def test_no_link_leads_to_a_file_of_the_machine(printed):
    for path in printed:
        reader = PdfReader(io.BytesIO(path.read_bytes()))
        links = list(links_of(reader))
        assert [link for link in links if "file:" in str(link.get("/A", ""))] == []
        named = {str(link["/Dest"]) for link in links if "/Dest" in link}
        assert {name.removeprefix("/") for name in named} <= {n.removeprefix("/") for n in reader.named_destinations}


def test_what_is_folded_on_the_page_is_open_on_paper(printed):
    text = "".join(text_of(page) for page in PdfReader(io.BytesIO(printed[1].read_bytes())).pages)
    assert "answer_1 = 42" in text  # the solution, folded on the page


def test_the_outline_names_each_page_once(published, book):
    titles = [entry.title for entry in book.outline if not isinstance(entry, list)]
    assert len(titles) == len(pages_in_order(published.site)) + 2  # cover and contents
    assert "Verdict board" in titles


def test_a_link_out_of_a_chapter_keeps_its_words_only(published):
    document = joined(published.site, ["notebooks/1_plain_case.html"], {})
    assert 'href="../' not in document
    assert "downloads/" not in document


def test_without_a_site_the_command_to_build_one_is_named(tmp_path):
    with pytest.raises(Failure, match="casebook build"):
        pdf.print_site(tmp_path / "no site", tmp_path)


def test_without_a_browser_the_command_to_install_one_is_named(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(Failure, match="make browser"):
        pdf.browser()


def test_a_pdf_that_lost_a_page_is_noticed(book):
    with pytest.raises(Failure, match=r"no place for gone\.html"):
        pdf.sheets(_content(book), ["index.html", "gone.html"])
