"""`make bench-site`: Lighthouse on the front page and every chapter, bytes of a first and a next page, in one table.

Everything stays on this machine: the site is served on a free port of the loopback address, compressed as by a host.
"""

import contextlib
import functools
import gzip
import io
import json
import mimetypes
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from rich.console import Console
from rich.table import Table

from casestudies_lib import paths
from casestudies_lib.site.pdf import FLAGS

LIGHTHOUSE = ["npx", "--yes", "lighthouse@12.8.2"]
LOWEST = {"performance": 95, "accessibility": 100, "best-practices": 95, "seo": 95}
FIRST_LOAD, NEXT_LOAD = 1_500_000, 300_000  # bytes over the wire, compressed
LARGEST_PAINT = 1500.0  # milliseconds, Lighthouse's desktop setting
TIME_LIMIT = 180  # seconds for one page
_TEXT = ("text/", "application/javascript", "application/json", "image/svg+xml")


class CompressingHandler(SimpleHTTPRequestHandler):
    """Serves files as a static host does: text compressed, everything to be kept by the browser."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def send_head(self) -> io.BytesIO | None:
        """Answer with the whole file in memory, compressed where that helps."""
        path = Path(self.translate_path(self.path))
        path = path / "index.html" if path.is_dir() else path
        if not path.is_file():
            self.send_error(404)
            return None
        kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        content = path.read_bytes()
        self.send_response(200)
        if kind.startswith(_TEXT):
            content = gzip.compress(content)
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Type", f"{kind}; charset=utf-8" if kind.startswith("text/") else kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "max-age=31536000")
        self.end_headers()
        return io.BytesIO(content)


@contextlib.contextmanager
def served(site: Path) -> Iterator[str]:
    """Lend the address of the site for as long as the block runs."""
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(CompressingHandler, directory=str(site))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@dataclass(frozen=True)
class Audit:
    """What Lighthouse says of one page: scores from 0 to 100, the largest paint, and what cost points."""

    page: str
    scores: dict[str, int]
    largest_paint: float
    transferred: int
    complaints: list[str]


def audit(address: str, page: str) -> Audit:
    """Run Lighthouse with its desktop setting on one page."""
    flags = " ".join(flag for flag in FLAGS if flag != "--headless") + " --headless=new"
    command = [*LIGHTHOUSE, f"{address}/{page}", "--preset=desktop", "--quiet", "--output=json"]
    command += ["--output-path=stdout", f"--chrome-flags={flags}", f"--only-categories={','.join(LOWEST)}"]
    with tempfile.TemporaryDirectory() as home:
        environment = os.environ | {"CHROME_PATH": paths.browser(), "HOME": home}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIME_LIMIT)
    if done.returncode:
        raise SystemExit(f"lighthouse failed on {page}: {done.stderr.strip()[-600:]}")
    return read_audit(page, json.loads(done.stdout))


def read_audit(page: str, answer: dict) -> Audit:
    """Return the part of Lighthouse's answer that the table shows."""
    scores = {name: round(100 * (answer["categories"][name]["score"] or 0)) for name in LOWEST}
    audits = answer["audits"]
    weighty = {
        ref["id"] for category in answer["categories"].values() for ref in category["auditRefs"] if ref["weight"]
    }
    complaints = [
        f"{found['title']} ({found.get('displayValue') or 'failed'})"
        for name, found in audits.items()
        if name in weighty and found["score"] is not None and found["score"] < 0.9
    ]
    transferred = sum(item["transferSize"] for item in audits["network-requests"]["details"]["items"])
    return Audit(page, scores, audits["largest-contentful-paint"]["numericValue"], transferred, complaints)


def next_load(address: str, first: str, second: str) -> int:
    """Return the bytes over the wire for a page that is opened after another, with a browser that keeps files."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=paths.browser(), args=list(FLAGS))
        page = chromium.new_page()
        page.goto(f"{address}/{first}", wait_until="networkidle")
        session, received = page.context.new_cdp_session(page), []
        session.send("Network.enable")
        session.on("Network.loadingFinished", lambda event: received.append(event["encodedDataLength"]))
        page.goto(f"{address}/{second}", wait_until="networkidle")
        chromium.close()
    return int(sum(received))


def missed(found: Audit, following: int | None) -> list[str]:
    """Return in words which figures a page does not reach."""
    words = [f"{name} {found.scores[name]} < {low}" for name, low in LOWEST.items() if found.scores[name] < low]
    if found.largest_paint > LARGEST_PAINT:
        words.append(f"largest paint {found.largest_paint:.0f} ms > {LARGEST_PAINT:.0f} ms")
    if found.transferred > FIRST_LOAD:
        words.append(f"first load {found.transferred} bytes > {FIRST_LOAD}")
    if following is not None and following > NEXT_LOAD:
        words.append(f"next load {following} bytes > {NEXT_LOAD}")
    return words


def main() -> int:
    """Measure, print one table, and fail where a figure is missed."""
    site = paths.build() / "html"
    if shutil.which("npx") is None or paths.browser() is None:
        raise SystemExit("Lighthouse needs npx (Node.js 20 or newer) and Chromium; the latter comes with: make browser")
    pages = ["index.html", *(f"notebooks/{page.name}" for page in sorted((site / "notebooks").glob("*.html")))]
    table = Table("page", *LOWEST, "largest paint, ms", "first load, kB", "next load, kB", title="The site, measured")
    short, complaints = [], []
    with served(site) as address:
        for before, page in zip([pages[-1], *pages], pages):
            found = audit(address, page)
            following = None if page == "index.html" else next_load(address, before, page)
            short += [f"{page}: {words}" for words in missed(found, following)]
            complaints += [f"{page}: {words}" for words in found.complaints]
            after = "" if following is None else f"{following / 1000:.0f}"
            scores = [str(score) for score in found.scores.values()]
            table.add_row(page, *scores, f"{found.largest_paint:.0f}", f"{found.transferred / 1000:.0f}", after)
    console = Console(width=150)
    console.print(table)
    for line in complaints:
        console.print(f"note: {line}")
    for line in short:
        console.print(f"missed: {line}")
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())
