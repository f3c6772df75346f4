"""A small casebook with results of its own, in a folder whose path contains a space, and a browser for its site."""

import base64
import functools
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from nbformat import v4, writes

from casestudies_lib import paths
from casestudies_lib.figures import Shown
from casestudies_lib.records import SYMBOLS, VERDICTS_MIME
from casestudies_lib.runner.chapters import find_chapter
from casestudies_lib.runner.inputs import portable
from casestudies_lib.runner.results import current_inputs
from casestudies_lib.runner.table import FORMAT
from casestudies_lib.site.pdf import FLAGS
from casestudies_lib.site.publish import publish
from casestudies_lib.tables import Table

REAL_ROOT = Path(__file__).resolve().parents[2]
VERDICTS = tuple(SYMBOLS)
HOSTILE = '<script>document.title="owned"</script> **bold** {{ title }} $x$ [l](http://example.invalid) \u202egnp.exe'
PICTURE = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII="
EVIDENCE = {
    "text/plain": "the evidence",
    "text/html": '<div class="casebook-table"><table><caption>Evidence</caption><tr><td>0.25</td></tr></table></div>'
    '<p class="casebook-verdict refuted">P2 ✗ refuted — the report says that (not in the report) zeros do</p>',
    VERDICTS_MIME: [{"id": "P1"}],
}
PARAMETERS = "seed = 0  # first seed [seed: 0 to 100]\nn_seeds = 2  # paired seeds [seeds: 2 to 64]"
POST_MORTEMS = """# How to read a post-mortem

One habit.

## 1 · A test that cannot fail

It says nothing.

```{exhibits}
plain_case:P2 A `gap` of nothing.
later_case:L1 A trial of a chapter that nobody has written yet.
```
"""
LOSS = r"$$\mathcal{L} = \lambda\,\ell_1 + (1-\lambda)\,\ell_2$$"
PROVENANCE = {
    "started": "2026-11-20T20:00:00+00:00", "seconds": 83.4, "torch": "2.13.0", "python": "3.11.4",
    "platform": "Linux x86_64", "threads": 1, "parameters": {"seed": 0, "n_seeds": 2, "epochs": 10, "router": "soft"},
    "inputs": {},
}  # fmt: skip


def report_text(slug: str, title: str, letter: str, says: str) -> str:
    """Return a report file with five claims; JSON string syntax is TOML string syntax for these texts."""
    own = json.dumps(says)
    lines = [f'slug = "{slug}"', f"title = {json.dumps(title)}", f"summary = {own}", "[source]",
             f"repository = {own}", 'document = "POST_MORTEM.md"', 'date = "7 November 2025"']  # fmt: skip
    for number in range(1, 6):
        lines += ["[[claims]]", f'id = "{letter}{number}"', 'kind = "effect"', f"says = {own}", f"measure = {own}",
                  f"unit = {own}", 'upheld_if = ">= 0.1"', 'refuted_if = "<= 0.05"', "min_seeds = 2",
                  'why = "a reason"']  # fmt: skip
    lines += ["[[symptoms]]", f"shows = {own}", f'claim = "{letter}2"', 'probe = "idle_parameters"']
    lines += [f"suspect = {own}", f'then = ["{letter}4", "later_case:L1", "plain_case:P1"]']
    lines += ["[[symptoms]]", 'shows = "a symptom without a probe"', f'claim = "{letter}1"']
    return "\n".join(lines) + "\n"


def record(slug: str, claim_id: str, verdict: str, says: str) -> dict:
    """Return one verdict record as a run leaves it."""
    value, low, high, n = (None, None, None, 0) if verdict == "untested" else (-0.25, -0.375, 0.125, 6)
    return {
        "id": claim_id, "chapter": slug, "kind": "effect", "verdict": verdict, "says": says, "measure": says,
        "unit": says, "value": value, "low": low, "high": high, "n": n, "seeds": list(range(n)), "control": None,
        "rule": "upheld if >= 0.1; refuted if <= 0.05", "reason": "It follows.",
    }  # fmt: skip


def notebook(letter: str) -> dict:
    """Return an executed notebook with one section a claim, math, wide code, a wide table and two figures."""
    wide = "wide = " + " + ".join(f"number_{index}" for index in range(40))
    title = f"# Case {letter}\n\nThe report in our words, with $\\lambda = 1$ inline, from `{'a/long/path/' * 9}`."
    bets = Table("Place your bets", ("claim", "kind", "the report says that", "what is measured"),
                 [(f"{letter}{i}", "effect", "it holds", "a difference") for i in range(1, 6)])  # fmt: skip
    table = Table(
        "Verdicts",
        ("claim", "verdict", "kind", "the report says that", "rule"),
        [(f"{letter}{i}", f"{SYMBOLS[v]} {v}", "effect", "it", "a rule") for i, v in enumerate(VERDICTS, 1)],
    )
    before = Shown("A figure before the symptom, which no card shows", base64.b64decode(PICTURE))
    figure = Shown("The fault in orange stays above the fix in blue", base64.b64decode(PICTURE) + b" ")
    cells = [v4.new_markdown_cell(title), v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})]
    cells += [v4.new_markdown_cell("## Place your bets"), shown_cell(bets), shown_cell(before)]
    for number in range(1, 6):
        heading = f"({letter.lower()}{number})=\n## {letter}{number}: a trial"
        text = f"{heading}\n\nIs **it** so [here](#{letter.lower()}1)?\n\n{LOSS}\n\nAnd so."
        output = v4.new_output("stream", name="stdout", text=f"counted {number}\n")
        cells += [v4.new_markdown_cell(text), v4.new_code_cell(wide, execution_count=number, outputs=[output])]
    cells.append(v4.new_code_cell("case.evidence()", outputs=[v4.new_output("display_data", data=EVIDENCE)]))
    cells += [v4.new_markdown_cell("## The symptom"), shown_cell(figure)]
    cells += [v4.new_markdown_cell("## Verdicts"), shown_cell(table), v4.new_markdown_cell("## Exercises")]
    kernel = {"name": "python3", "display_name": "Python 3"}
    language = {"name": "python", "pygments_lexer": "ipython3"}
    return v4.new_notebook(
        cells=[*cells, *exercise_cells()], metadata={"kernelspec": kernel, "language_info": language}
    )


def shown_cell(value: object) -> dict:
    """Return a code cell whose output is what the value shows in a notebook."""
    data = {"text/plain": repr(value), "text/html": value._repr_html_()}
    return v4.new_code_cell("shown", execution_count=1, outputs=[v4.new_output("display_data", data=data)])


def exercise_cells() -> list[dict]:
    """Return one exercise in the form that every chapter keeps."""
    wrong = ":::{dropdown} A wrong answer to expect\n**41.** It is near.\n:::"
    said = [v4.new_output("execute_result", data={"text/plain": text}) for text in ("False", "True")]
    stub, solution = ["exercise-stub", "nbval-check-output"], ["exercise-solution", "hide-cell", "nbval-check-output"]
    return [
        v4.new_markdown_cell(f"**1 · Predict.** What is the answer?\n\n{wrong}"),
        v4.new_code_cell("def check_1(answer):\n    return answer == 6 * 7", metadata={"tags": ["exercise-check"]}),
        v4.new_code_cell("answer_1 = None\ncheck_1(answer_1)", metadata={"tags": stub}, outputs=said[:1]),
        v4.new_code_cell("answer_1 = 42\ncheck_1(answer_1)", metadata={"tags": solution}, outputs=said[1:]),
    ]


def swept_lines() -> pd.DataFrame:
    """Return evidence: verdicts of two claims over two parameters and two seeds, and measurements of one of them.

    The verdicts of the second claim hang on a parameter, those of the first do not. Of the measurement's two arms, one
    was not run with few epochs.
    """
    lines = []
    for epochs in (5, 10, 20):
        for router in ("hard", "soft"):
            for seed in (0, 8):
                row = {"chapter": "plain_case", "key": f"{epochs}-{router}-{seed}", "param_seed": seed,
                       "param_epochs": epochs, "param_router": router}  # fmt: skip
                value = 0.1 * epochs + 0.01 * seed + (1 if router == "hard" else 0)
                for claim in ("P1", "P2"):
                    verdict = "upheld" if epochs > 5 or claim == "P1" else "inconclusive"
                    lines.append(row | {"record": "verdict", "claim": claim, "verdict": verdict, "value": value,
                                        "low": value - 0.1, "high": value + 0.3})  # fmt: skip
                for arm in ("fault", "fix")[: 1 if epochs == 5 else 2]:
                    lines.append(row | {"record": "measurement", "claim": "P1", "measure": "loss <b>", "unit": "nats",
                                        "seed": seed, "value": epochs + 0.5 * seed, "setting_arm": arm})  # fmt: skip
    return pd.DataFrame(lines)


def write_evidence(root: Path) -> None:
    """Commit that sweep, with its provenance, in a casebook."""
    path = root / "data" / "evidence" / "plain_case.parquet"
    swept_lines().to_parquet(path)
    provenance = {
        "format": FORMAT, "chapter": "plain_case", "command": "casebook sweep plain_case", "rows": 12,
        "grid": {"epochs": [5, 10, 20]}, "made_with": {"torch": ["2.13.0", "2.14.0"]},
        "inputs": portable(current_inputs(find_chapter("plain_case"))),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }  # fmt: skip
    path.with_suffix(".json").write_text(json.dumps(provenance), encoding="utf-8")


def write_result(folder: Path, content: bytes, records: list[dict], provenance: dict) -> Path:
    """Write a complete result as a run leaves it."""
    files = {"notebook.ipynb": content, "verdicts.json": json.dumps(records).encode()}
    digests = {name: hashlib.sha256(found).hexdigest() for name, found in files.items()}
    files["provenance.json"] = json.dumps(provenance | {"files": digests}).encode()
    folder.mkdir(parents=True, exist_ok=True)
    for name, found in files.items():
        (folder / name).write_bytes(found)
    return folder


def add_chapter(root: Path, number: int, slug: str, title: str, says: str) -> Path:
    """Add report, notebook and a result; returns the result folder."""
    letter = slug[0].upper()
    (root / "data" / "reports" / f"{slug}.toml").write_text(report_text(slug, title, letter, says), encoding="utf-8")
    content = writes(notebook(letter)).encode()
    (root / "notebooks" / f"{number}_{slug}.ipynb").write_bytes(content)
    records = [record(slug, f"{letter}{i}", verdict, says) for i, verdict in enumerate(VERDICTS, start=1)]
    return write_result(root / "_build" / "runs" / slug, content, records, PROVENANCE | {"chapter": slug})


Change = Callable[[Any], Any]


def same(content: Any) -> Any:
    """Return what came."""
    return content


@dataclass(frozen=True)
class SmallCasebook:
    """A casebook on disk: its root and the result folder of each chapter."""

    root: Path
    results: dict[str, Path]

    @property
    def site(self) -> Path:
        """Return where its site goes."""
        return self.root / "_build" / "html"

    def change(self, slug: str, *, records: Change = same, notebook: Change = same, provenance: Change = same) -> None:
        """Put other records, another notebook or another provenance into the result of a chapter."""
        folder = self.results[slug]
        names = ("verdicts.json", "notebook.ipynb", "provenance.json")
        found = (json.loads((folder / name).read_text(encoding="utf-8")) for name in names)
        new = [change(content) for change, content in zip((records, notebook, provenance), found)]
        write_result(folder, json.dumps(new[1]).encode(), new[0], new[2])


def lay_out(root: Path) -> SmallCasebook:
    """Lay out the real book's pages, one plain chapter, one whose texts are hostile, and a report without a chapter."""
    shutil.copytree(REAL_ROOT / "book", root / "book")
    for folder in ("data/reports", "data/evidence", "notebooks"):
        (root / folder).mkdir(parents=True)
    (root / "book" / "post-mortems.md").write_text(POST_MORTEMS, encoding="utf-8")
    found = {
        "hostile_case": add_chapter(root, 2, "hostile_case", HOSTILE, HOSTILE),
        "plain_case": add_chapter(root, 1, "plain_case", "A plain case", "the gap is real when `λ = 1`. More follows."),
    }
    write_evidence(root)
    later = report_text("later_case", "A later case", "L", "it is late")
    (root / "data" / "reports" / "later_case.toml").write_text(later, encoding="utf-8")
    contents = yaml.safe_load((REAL_ROOT / "book" / "_toc.yml").read_text(encoding="utf-8"))
    for part in contents["parts"]:
        if part["caption"] == "Cases":
            part["chapters"] = [{"file": "notebooks/1_plain_case"}, {"file": "notebooks/2_hostile_case"}]
    (root / "book" / "_toc.yml").write_text(yaml.safe_dump(contents, sort_keys=False), encoding="utf-8")
    return SmallCasebook(root, found)


@pytest.fixture
def casebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SmallCasebook:
    """Give a test a small casebook that it may damage."""
    root = tmp_path / "a casebook"
    monkeypatch.setenv("CASEBOOK_ROOT", str(root))
    return lay_out(root)


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> SmallCasebook:
    """Give tests a small casebook whose site is built; they must not change it."""
    root = tmp_path_factory.mktemp("published") / "a casebook"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CASEBOOK_ROOT", str(root))
        small = lay_out(root)
        publish(small.results, small.site)
    return small


@pytest.fixture(scope="session", params=["small", "real"])
def site(request: pytest.FixtureRequest) -> Path:
    """Give tests two sites in turn: that of the small casebook, and the real one, made of the stored outputs."""
    if request.param == "small":
        return request.getfixturevalue("published").site
    return request.getfixturevalue("published_book").root / "_build" / "html"


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="session")
def address(site: Path) -> Iterator[str]:
    """Serve the site on a free port of this machine."""
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(QuietHandler, directory=site)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="session")
def browser():
    """Start Chromium with a fresh profile; skip where it is missing, but fail on CI."""
    if paths.browser() is None:
        message = "Chromium is missing; install it with: make browser"
        pytest.fail(message) if os.environ.get("CI") == "true" else pytest.skip(message)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=paths.browser(), args=list(FLAGS))
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser):
    """Give a test a new page of its own."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    yield context.new_page()
    context.close()
