"""Prints the built site with Chromium: the whole book as one PDF, and each chapter as one of its own."""

import shutil
from pathlib import Path

from casestudies_lib import paths
from casestudies_lib.runner.errors import Failure
from casestudies_lib.runner.files import replace_file
from casestudies_lib.site.publish import build_book

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
_TIME_LIMIT = 120_000  # milliseconds for a page to load or to print
_FOOT = (
    '<div style="width:100%;text-align:center;font:8pt sans-serif;color:#444"><span class="pageNumber"></span></div>'
)
# On paper nothing is folded or loads late, and a link leads to a place in the same file, to the web, or nowhere. Sphinx
# gives each page of its single file the id `document-NAME`.
_PREPARE = """() => {
    for (const folded of document.querySelectorAll('details')) folded.open = true;
    for (const picture of document.images) picture.loading = 'eager';
    for (const link of document.querySelectorAll('main a[href]')) {
        if (!link.href.startsWith('file:')) continue;
        const page = link.pathname.replace(location.pathname.replace(/[^/]*$/, ''), '').replace(/[.]html$/, '');
        const ids = [decodeURIComponent(link.hash.slice(1)), `document-${page}`];
        const found = ids.find(id => id && document.getElementById(id));
        if (found) link.href = `#${found}`; else link.removeAttribute('href');
    }
    const pictures = [...document.images].map(picture => picture.decode().catch(() => null));
    return Promise.all([window.MathJax?.startup?.promise, document.fonts.ready, ...pictures]).then(() => null);
}"""


def print_site(site: Path, destination: Path) -> list[Path]:
    """Print the whole book, and each chapter of a built site.

    Args:
        site: the folder of the site; what it was made from is still in `_build/stage`.
        destination: a folder; `casebook.pdf` and one file a chapter go there.

    Returns:
        The files, the book first. Headings are their outline, pages are numbered at the foot.

    Raises:
        Failure: no site, no browser, or the browser did not print.
    """
    stage = paths.build() / "stage"
    if not (site / "index.html").is_file() or not (stage / "book").is_dir():
        raise Failure(f"no site in {site}, or not what it was made from; build it first: casebook build")
    if paths.browser() is None:
        raise Failure(
            f"no browser to print with (looked for {', '.join(paths.BROWSERS)}); install one with: make browser"
        )
    book = build_book(stage, "singlehtml")
    shutil.copytree(site / "_static", book / "_static", dirs_exist_ok=True)
    destination.mkdir(parents=True, exist_ok=True)
    pages = {"casebook.pdf": book / "index.html"}
    pages |= {f"{page.stem}.pdf": page for page in sorted((site / "notebooks").glob("*.html"))}
    for name, content in _printed(pages).items():
        replace_file(destination / name, content)
    return [destination / name for name in pages]


def _printed(pages: dict[str, Path]) -> dict[str, bytes]:
    from playwright.sync_api import Error, sync_playwright  # only where something is printed

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=paths.browser(), args=list(FLAGS))
        try:
            page = browser.new_page(color_scheme="light")
            page.set_default_timeout(_TIME_LIMIT)
            printed = {}
            for name, path in pages.items():
                page.goto(path.absolute().as_uri(), wait_until="load")
                page.evaluate(_PREPARE)
                printed[name] = page.pdf(
                    prefer_css_page_size=True, print_background=True, tagged=True, outline=True,
                    display_header_footer=True, header_template="<span></span>", footer_template=_FOOT,
                )  # fmt: skip
            return printed
        except Error as error:
            raise Failure(f"the browser could not print: {error.message.splitlines()[0]}") from error
        finally:
            browser.close()
