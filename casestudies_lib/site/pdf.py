"""Prints the built site with Chromium: the whole book as one PDF with contents, and each chapter as one of its own."""

import io
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from casestudies_lib.runner.errors import Failure
from casestudies_lib.runner.results import replace_file
from casestudies_lib.site.print_document import anchor_of, joined, pages_in_order

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
_TIME_LIMIT = 120_000  # milliseconds for a page to load or to print
_FOOT = (
    '<div style="width:100%;text-align:center;font:8pt sans-serif;color:#444"><span class="pageNumber"></span></div>'
)
_ROUNDS = 3  # numbers in the contents may move the contents; they settle at once


def print_site(site: Path, destination: Path) -> list[Path]:
    """Print the whole site and each of its chapters.

    Args:
        site: the folder of the built site.
        destination: a folder; `casebook.pdf` and one file a chapter go there.

    Returns:
        The files, the book first.

    Raises:
        Failure: no site, no browser, or the browser did not print.
    """
    pages = pages_in_order(site)
    chapters = [page for page in pages if page.startswith("notebooks/")]
    destination.mkdir(parents=True, exist_ok=True)
    with _Press() as press:
        made = [(destination / "casebook.pdf", _book(press, site, pages))]
        for page in chapters:
            made.append((destination / f"{Path(page).stem}.pdf", press.printed(joined(site, [page], {}))))
    for path, content in made:
        replace_file(path, content)
    return [path for path, _ in made]


def browser() -> str:
    """Return the path of an installed Chromium.

    Raises:
        Failure: there is none.
    """
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        raise Failure(f"no browser to print with (looked for {', '.join(BROWSERS)}); install one with: make browser")
    return found


class _Press:
    """A browser that turns documents into PDF, open for as long as the `with` block runs."""

    def __enter__(self) -> "_Press":
        from playwright.sync_api import sync_playwright

        self._playwright = sync_playwright().start()
        self._browser = self._playwright.chromium.launch(executable_path=browser(), args=list(FLAGS))
        return self

    def __exit__(self, *_: object) -> None:
        self._browser.close()
        self._playwright.stop()

    def printed(self, document: str) -> bytes:
        """Return a document as PDF, sheets numbered, headings as outline."""
        from playwright.sync_api import Error

        with tempfile.TemporaryDirectory(prefix="casebook-print-") as folder:
            path = Path(folder) / "document.html"
            path.write_text(document, encoding="utf-8")
            page = self._browser.new_page()
            try:
                page.set_default_timeout(_TIME_LIMIT)
                page.goto(path.as_uri(), wait_until="load")
                page.evaluate("() => window.MathJax?.startup?.promise")
                page.evaluate("() => document.fonts.ready.then(() => true)")
                return page.pdf(
                    prefer_css_page_size=True, print_background=True, tagged=True, outline=True,
                    display_header_footer=True, header_template="<span></span>", footer_template=_FOOT,
                )  # fmt: skip
            except Error as error:
                raise Failure(f"the browser could not print: {error.message.splitlines()[0]}") from error
            finally:
                page.close()


def _book(press: _Press, site: Path, pages: Sequence[str]) -> bytes:
    """Print until the numbers in the contents are those of the sheets."""
    numbers: dict[str, int] = {}
    for _ in range(_ROUNDS):
        content = press.printed(joined(site, pages, numbers))
        found = sheets(content, pages)
        if found == numbers:
            return content
        numbers = found
    raise Failure(f"the page numbers of the contents did not settle in {_ROUNDS} rounds; build the site again")


def sheets(content: bytes, pages: Sequence[str]) -> dict[str, int]:
    """Return the sheet, counted from 1, on which each page of the site starts.

    Raises:
        Failure: a page has no place in the PDF.
    """
    from pypdf import PdfReader  # only where something is printed

    reader = PdfReader(io.BytesIO(content))
    places = reader.named_destinations
    if missing := [page for page in pages if f"/{anchor_of(page)}" not in places]:
        raise Failure(f"the PDF has no place for {', '.join(missing)}; the browser dropped a link of the contents")
    return {page: reader.get_destination_page_number(places[f"/{anchor_of(page)}"]) + 1 for page in pages}
