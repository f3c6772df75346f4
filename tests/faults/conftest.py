"""Runs a chapter's own cells in this process, small and with one line changed, to see its verdicts change."""

import ast
import json
from collections.abc import Callable, Iterator

import pytest

from casestudies_lib import paths
from casestudies_lib.claims import open_case
from casestudies_lib.runner.chapters import source_of, tags_of


class Bench:
    """The cells of one chapter in one namespace."""

    def __init__(self, slug: str, parameters: dict[str, object]) -> None:
        path = next(paths.notebooks().glob(f"[0-9]*_{slug}.ipynb"))
        self.slug, self.space = slug, {}
        code = [cell for cell in json.loads(path.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]
        self.run(next(source_of(cell) for cell in code if "parameters" in tags_of(cell)))
        # One statement a line and single quotes, so that a change is found however the notebook is laid out.
        self.cells = [ast.unparse(ast.parse(source_of(cell))) for cell in code]
        assert parameters.keys() <= self.space.keys(), "a parameter of the test is gone from the notebook"
        self.space |= parameters

    def run(self, source: str) -> None:
        exec(compile(source, self.slug, "exec"), self.space)

    def cell(self, holds: str) -> str:
        """Return the source of the one cell that holds a text."""
        found = [source for source in self.cells if holds in source]
        assert len(found) == 1, f"{len(found)} cells hold {holds!r}"
        return found[0]

    def run_cells(self, *texts: str, change: tuple[str, str] | None = None) -> None:
        """Run the cells that hold the texts, in this order, after a change that must apply somewhere."""
        sources = [self.cell(text) for text in texts]
        if change:
            assert any(change[0] in source for source in sources), f"{change[0]!r} is in none of these cells"
            sources = [source.replace(*change) for source in sources]
        for source in sources:
            self.run(source)

    def verdict(self, claim: str, *texts: str, change: tuple[str, str] | None = None) -> str:
        """Open a fresh case, run the cells, the judging one last, and return the claim's verdict."""
        self.space["case"] = open_case(self.slug)
        judged = {}
        judge = self.space["case"].judge
        self.space["case"].judge = lambda name, *args, **kwargs: judged.setdefault(name, judge(name, *args, **kwargs))
        self.run_cells(*texts, f"case.judge('{claim}'", change=change)
        return judged[claim].verdict


@pytest.fixture(scope="session")
def bench() -> Callable[..., Bench]:
    return Bench


@pytest.fixture
def restored(chapter: Bench) -> Iterator[Bench]:
    """The chapter that the test file sets up, its names put back afterwards."""
    before = dict(chapter.space)
    yield chapter
    chapter.space.clear()
    chapter.space.update(before)
