"""A small casebook with results of its own, in a folder whose path contains a space, and a browser for its site."""

import base64
import functools
import http.server
import json
import os
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pytest
import yaml
from nbformat import v4

from casestudies_lib.claims import SYMBOLS, VERDICTS_MIME, Table
from casestudies_lib.figures import Shown
from casestudies_lib.runner import results, sweep_table
from casestudies_lib.runner.cache_key import parts
from casestudies_lib.runner.chapters import find_chapter, read_notebook
from casestudies_lib.runner.parameters import read_parameters
from casestudies_lib.site.publish import MARKER, publish

REAL_ROOT = Path(__file__).resolve().parents[2]
HOSTILE = '<script>document.title="owned"</script> **bold** {{ title }} $x$ [l](http://example.invalid) \u202egnp.exe'
CHROMIUM = Path("/usr/bin/chromium")
BROWSER_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
PICTURE = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII="
VERDICTS = ("upheld", "refuted", "inconclusive", "uninformative", "untested")
EVIDENCE = {
    "text/plain": "the evidence",
    "text/html": '<div class="casebook-table"><table><caption>Evidence</caption><tr><td>0.25</td></tr></table></div>'
    '<p class="casebook-verdict refuted">P2 ✗ refuted</p>',
    VERDICTS_MIME: [{"id": "P1"}],
}
PARAMETERS = "seed = 0  # first seed [seed: 0 to 100]\nn_seeds = 2  # paired seeds [seeds: 2 to 64]"
LESSONS = """
[[lessons]]
title = "A test that cannot fail"
text = "It says nothing."
ask = "What if it were false?"
exhibits = [{ chapter = "plain_case", claim = "P1", shows = "A `gap` of nothing." }]
"""
LOSS = r"$$\mathcal{L} = \lambda\,\ell_1 + (1-\lambda)\,\ell_2$$"
PROVENANCE = {
    "started": "2026-11-20T20:00:00+00:00", "seconds": 83.4, "torch": "2.13.0", "python": "3.11.4",
    "platform": "Linux x86_64", "threads": 1, "parameters": {},
}  # fmt: skip


def report_text(slug: str, title: str, letter: str, says: str) -> str:
    """Return a report file with five claims; JSON string syntax is TOML string syntax for these texts."""
    lines = [f'slug = "{slug}"', f"title = {json.dumps(title)}", 'summary = "A report, retold."', "[source]",
             'repository = "example/repository"', 'document = "POST_MORTEM.md"',
             'date = "7 November 2025"']  # fmt: skip
    for number in range(1, 6):
        lines += ["[[claims]]", f'id = "{letter}{number}"', 'kind = "effect"', f"says = {json.dumps(says)}",
                  'measure = "difference of two medians"', 'unit = "nats"', 'upheld_if = ">= 0.1"',
                  'refuted_if = "<= 0.05"', "min_seeds = 2", 'why = "a reason"']  # fmt: skip
    lines += ["[[symptoms]]", f"shows = {json.dumps(says)}", f'claim = "{letter}1"', 'probe = "idle_parameters"']
    lines += ["[[symptoms]]", 'shows = "a symptom without a probe"', f'claim = "{letter}2"']
    return "\n".join(lines) + "\n"


def record(slug: str, claim_id: str, verdict: str, says: str) -> dict:
    """Return one verdict record as a run leaves it."""
    numbers = (None, None, None) if verdict == "untested" else (0.25, 0.125, 0.375)
    return {
        "id": claim_id, "chapter": slug, "kind": "effect", "verdict": verdict, "says": says,
        "measure": "difference of two medians", "unit": "nats", "value": numbers[0], "low": numbers[1],
        "high": numbers[2], "n": 6, "seeds": [0, 1, 2, 3, 4, 5], "control": None,
        "rule": "upheld if >= 0.1; refuted if <= 0.05", "reason": "It follows.",
    }  # fmt: skip


def notebook(title: str, letter: str) -> nbformat.NotebookNode:
    """Return an executed notebook with one section a claim, math, wide code, a wide table and a picture."""
    wide = "wide = " + " + ".join(f"number_{index}" for index in range(40))
    cells = [
        v4.new_markdown_cell(
            f"# {title}\n\nThe report in our words, with $\\lambda = 1$ inline, from `{'a/long/path/' * 9}`."
        ),
        v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}, execution_count=1),
    ]
    cells.append(v4.new_markdown_cell("## Place your bets"))
    cells.append(shown_cell("case.bets()", bets_table(letter)))
    for number in range(1, 6):
        text = f"({letter.lower()}{number})=\n## {letter}{number}: a trial\n\n{LOSS}\n"
        output = v4.new_output("stream", name="stdout", text=f"counted {number}\n")
        cells += [v4.new_markdown_cell(text), v4.new_code_cell(wide, execution_count=number, outputs=[output])]
    table = v4.new_output("display_data", data=EVIDENCE)
    cells.append(v4.new_code_cell("case.evidence()", execution_count=7, outputs=[table]))
    figure = Shown("The fault in orange stays above the fix in blue", base64.b64decode(PICTURE))
    cells += [v4.new_markdown_cell("## The symptom"), shown_cell("figures.show(area)", figure)]
    cells += [v4.new_markdown_cell("## Verdicts"), shown_cell("case.table()", verdict_table(letter))]
    cells += [v4.new_markdown_cell("## Exercises"), *exercise_cells()]
    return v4.new_notebook(
        cells=cells,
        metadata={
            "kernelspec": {"name": "python3", "display_name": "Python 3"},
            "language_info": {"name": "python", "pygments_lexer": "ipython3"},
        },
    )


def shown_cell(source: str, value: object) -> nbformat.NotebookNode:
    """Return a code cell whose output is what the value shows in a notebook."""
    data = {"text/plain": repr(value), "text/html": value._repr_html_()}
    return v4.new_code_cell(source, execution_count=1, outputs=[v4.new_output("display_data", data=data)])


def bets_table(letter: str) -> Table:
    """Return the table of claims before any result, as a case shows it."""
    rows = [(f"{letter}{number}", "effect", "it holds", "a difference") for number in range(1, 6)]
    return Table("Place your bets", ("claim", "kind", "the report says that", "what is measured"), rows)


def verdict_table(letter: str) -> Table:
    """Return the table of verdicts, as a case shows it."""
    rows = [(f"{letter}{i}", f"{SYMBOLS[v]} {v}", "effect", "it holds", "a rule") for i, v in enumerate(VERDICTS, 1)]
    return Table("Verdicts", ("claim", "verdict", "kind", "the report says that", "rule"), rows)


def exercise_cells() -> list[nbformat.NotebookNode]:
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


def evidence_of_a_sweep() -> list[dict]:
    """Return the verdicts of two claims over two parameters and two seeds, as lines of evidence."""
    return [
        {
            "record": "verdict", "chapter": "plain_case", "claim": claim, "key": f"{epochs}-{router}-{seed}",
            "verdict": "upheld" if epochs > 5 else "inconclusive", "value": 0.1 * epochs + 0.01 * seed,
            "low": 0.1 * epochs - 0.1, "high": 0.1 * epochs + 0.1, "param_seed": seed, "param_epochs": epochs,
            "param_router": router,
        }
        for claim in ("P1", "P2") for epochs in (5, 10, 20) for router in ("hard", "soft") for seed in (0, 8)
    ]  # fmt: skip


def measurements_of_a_sweep() -> list[dict]:
    """Return the measurements behind one of these claims: two arms, of which one was not run with few epochs."""
    return [
        {
            "record": "measurement", "chapter": "plain_case", "claim": "P1", "key": f"{epochs}-{router}-{seed}",
            "measure": "loss <b>", "unit": "nats", "value": epochs + 0.5 * seed, "seed": seed, "setting_arm": arm,
            "param_seed": seed, "param_epochs": epochs, "param_router": router,
        }
        for epochs in (5, 10, 20) for router in ("hard", "soft") for seed in (0, 8) for arm in ("fault", "fix")
        if not (epochs == 5 and arm == "fix")
    ]  # fmt: skip


def write_evidence(root: Path) -> None:
    """Commit that sweep, with its provenance, in a casebook."""
    parquet = sweep_table.to_parquet(evidence_of_a_sweep() + measurements_of_a_sweep())
    provenance = {
        "format": sweep_table.FORMAT, "chapter": "plain_case", "command": "casebook sweep plain_case",
        "grid": {"epochs": [5, 10, 20]}, "rows": 12, "inputs": {}, "sha256": sweep_table.digest(parquet),
    }  # fmt: skip
    sweep_table.write(root / "data" / "evidence", "plain_case", parquet, provenance)


def add_chapter(root: Path, number: int, slug: str, title: str, says: str, letter: str) -> Path:
    """Add report, notebook and a sealed result; returns the result folder."""
    (root / "data" / "reports" / f"{slug}.toml").write_text(report_text(slug, title, letter, says), encoding="utf-8")
    content = nbformat.writes(notebook(f"Case {letter}", letter)).encode()
    (root / "notebooks" / f"{number}_{slug}.ipynb").write_bytes(content)
    records = [record(slug, f"{letter}{i}", verdict, says) for i, verdict in enumerate(VERDICTS, start=1)]
    folder = root / "_build" / "runs" / slug
    seal = PROVENANCE | {"chapter": slug, "inputs": inputs_of(slug)}
    with results.scratch_folder(folder) as scratch:
        return results.write_result(folder, scratch, content, records, seal)


def inputs_of(slug: str) -> dict[str, str]:
    """Return what the chapter's verdicts follow from, as a run at this moment would record it."""
    chapter = find_chapter(slug)
    content = read_notebook(chapter.path)
    parameters = read_parameters(content, chapter.path.name)
    return parts(slug, content, parameters, {entry.name: entry.default for entry in parameters})


def write_contents(root: Path, names: list[str]) -> None:
    """Keep the real book's contents, with these chapters in place of its own."""
    path = root / "book" / "_toc.yml"
    contents = yaml.safe_load((REAL_ROOT / "book" / "_toc.yml").read_text(encoding="utf-8"))
    for part in contents["parts"]:
        if any(entry["file"].startswith("notebooks/") for entry in part["chapters"]):
            part["chapters"] = [{"file": f"notebooks/{name}"} for name in names]
    path.write_text(yaml.safe_dump(contents, sort_keys=False), encoding="utf-8")


@dataclass(frozen=True)
class SmallCasebook:
    """A casebook on disk: its root and the result folder of each chapter."""

    root: Path
    results: dict[str, Path]
    hostile: str = HOSTILE

    @property
    def site(self) -> Path:
        """Return where its site goes."""
        return self.root / "_build" / "html"


def build_casebook(root: Path) -> SmallCasebook:
    """Lay out the real book's pages, one plain chapter and one whose texts are hostile."""
    shutil.copytree(REAL_ROOT / "book", root / "book")
    for folder in ("data/reports", "data/evidence", "notebooks"):
        (root / folder).mkdir(parents=True)
    shutil.copyfile(REAL_ROOT / "data" / "faults.json", root / "data" / "faults.json")
    (root / "book" / "lessons.toml").write_text(LESSONS, encoding="utf-8")
    write_evidence(root)
    found = {
        "plain_case": add_chapter(root, 1, "plain_case", "A plain case", "the gap is real when `λ = 1`", "P"),
        "hostile_case": add_chapter(root, 2, "hostile_case", HOSTILE, HOSTILE, "H"),
    }
    write_contents(root, ["1_plain_case", "2_hostile_case"])
    return SmallCasebook(root, found)


@pytest.fixture
def casebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SmallCasebook:
    """Give a test a small casebook that it may damage."""
    root = tmp_path / "a casebook"
    monkeypatch.setenv("CASEBOOK_ROOT", str(root))
    return build_casebook(root)


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> SmallCasebook:
    """Give tests a small casebook whose site is built; they must not change it."""
    root = tmp_path_factory.mktemp("published") / "a casebook"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CASEBOOK_ROOT", str(root))
        small = build_casebook(root)
        publish(small.results, small.site)
    return small


@pytest.fixture(scope="session", params=["small", "real"])
def site(request: pytest.FixtureRequest) -> Path:
    """Give tests two sites in turn: that of the small casebook, and the real one where `make book` has built it."""
    if request.param == "small":
        return request.getfixturevalue("published").site
    real = REAL_ROOT / "_build" / "html"
    if not (real / MARKER).is_file():
        pytest.skip("the real site is not built; `make book` builds it")
    return real


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="session")
def address(site: Path) -> Iterator[str]:
    """Serve the site on a free port of this machine."""
    handler = functools.partial(QuietHandler, directory=site)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="session")
def browser():
    """Start Debian's chromium with a fresh profile; skip where it is missing, but fail on CI."""
    if not CHROMIUM.is_file():
        message = f"{CHROMIUM} is missing; install it with: make browser"
        pytest.fail(message) if os.environ.get("CI") == "true" else pytest.skip(message)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=list(BROWSER_FLAGS))
        yield chromium
        chromium.close()
