"""The comparison of stored outputs turns red when a stored output is wrong, and lets pass what has none."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from casestudies_lib import paths

TEMPLATE = paths.notebooks() / "_template.ipynb"


def nbval(notebook: Path) -> subprocess.CompletedProcess:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--nbval-lax",
        "--nbval-cell-timeout=120",
    ]
    return subprocess.run([*command, str(notebook)], cwd=notebook.parent, capture_output=True, text=True, timeout=300)


@pytest.fixture
def copy(tmp_path) -> Callable[..., Path]:
    def make(old: str = "", new: str = "") -> Path:
        text = TEMPLATE.read_text(encoding="utf-8")
        assert old in text
        target = tmp_path / "copied notebook.ipynb"
        target.write_text(text.replace(old, new), encoding="utf-8")
        return target

    return make


def test_the_committed_template_is_green(copy):
    run = nbval(copy())
    assert run.returncode == 0, run.stdout


@pytest.mark.parametrize(
    ("stored", "edited"),
    [("T1 ✗ refuted", "T1 ✓ upheld"), ("seven eights: 56", "seven eights: 54")],
    ids=["a verdict", "an identity"],
)
def test_one_edited_output_is_red(copy, stored, edited):
    run = nbval(copy(stored, edited))
    assert run.returncode == 1
    assert edited in run.stdout


def test_a_stripped_notebook_passes_which_is_why_there_is_a_contract(copy):
    notebook = copy()
    content = json.loads(notebook.read_text(encoding="utf-8"))
    for cell in content["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], None
    notebook.write_text(json.dumps(content), encoding="utf-8")
    assert nbval(notebook).returncode == 0, "nbval has learned to refuse this: simplify the contract test"
