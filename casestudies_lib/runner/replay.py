"""A pytest plugin that has nbval compare stored notebooks with runs that have already happened, by nbval's own rules.

`pytest -p casestudies_lib.runner.replay --casebook-ran FILE --nbval-lax NOTEBOOK...`, where the file maps each notebook
to its executed copy. In the place of a kernel nbval gets one that answers from it, so that nothing executes twice.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from nbval import plugin


class ReplayKernel:
    """Answers nbval as a kernel would, from the outputs of an executed notebook."""

    def __init__(self, executed: Path) -> None:
        """Answer from this notebook."""
        notebook = nbformat.read(executed, as_version=4)
        self._cells: Iterator = iter([cell for cell in notebook.cells if cell.cell_type == "code"])
        self._messages: list[dict] = []
        self._asked = 0

    def is_alive(self) -> bool:
        """Return True: what is replayed cannot die."""
        return True

    def stop(self) -> None:
        """Do nothing."""

    def execute_cell_input(self, source: str, allow_stdin: bool) -> str:
        """Take out the messages of the next cell with this source.

        Raises:
            RuntimeError: the run has no such cell.
        """
        cell = next((cell for cell in self._cells if cell.source == source), None)
        if cell is None:
            raise RuntimeError("the run that is compared has no such cell; run the chapter again")
        self._asked += 1
        name = str(self._asked)
        contents = [*cell.outputs, {"output_type": "status", "execution_state": "idle"}]
        self._messages = [_message(content, name) for content in contents]
        return name

    def await_reply(self, name: str, timeout: float) -> None:
        """Return at once."""

    def await_idle(self, name: str, timeout: float) -> None:
        """Return at once."""

    def get_message(self, stream: str, timeout: float) -> dict:
        """Return the next message."""
        return self._messages.pop(0)


def _message(content: dict, name: str) -> dict:
    return {"msg_type": content["output_type"], "content": content, "parent_header": {"msg_id": name}}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that names the runs."""
    parser.addoption("--casebook-ran", metavar="FILE", help="JSON: executed copy of each notebook, by its path")


def pytest_configure(config: pytest.Config) -> None:
    """Give nbval kernels that replay."""
    copies = json.loads(Path(config.getoption("casebook_ran")).read_text(encoding="utf-8"))

    def setup(notebook: plugin.IPyNbFile) -> None:
        notebook.kernel = ReplayKernel(Path(copies[str(notebook.path)]))
        notebook.setup_sanitize_files()

    plugin.IPyNbFile.setup = setup
