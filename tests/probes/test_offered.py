"""What `casestudies_lib.probes` offers, and that asking for one probe imports no other."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from casestudies_lib import paths, probes

PROBES = [name for name in probes.__all__ if name.islower()]
FOLDER = Path(probes.__file__).parent
LOADED = """
import json, sys
{statement}
print(json.dumps([name.rpartition(".")[2] for name in sys.modules if name.startswith("casestudies_lib.probes.")]))
"""


def loaded(statement: str) -> set[str]:
    """Return the modules of the package that a new Python has imported after a statement."""
    done = subprocess.run(
        [sys.executable, "-c", LOADED.format(statement=statement)], capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout))


def said(program: str) -> str:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip()


def answers_as_a_probe(path: Path) -> bool:
    """Return whether a module's function of its own name returns a result, or the watch that leads to one."""
    functions = [node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef)]
    answers = {node.name: ast.unparse(node.returns).strip("'") for node in functions if node.returns}
    return answers.get(path.stem) in ("ProbeResult", "Watch")


def test_every_probe_is_offered():
    assert {path.stem for path in FOLDER.glob("*.py") if answers_as_a_probe(path)} == set(PROBES)


@pytest.mark.parametrize("name", PROBES)
def test_a_probe_imports_no_other_probe(name):
    assert loaded(f"from casestudies_lib.probes import {name}") & set(PROBES) == {name}


def test_the_package_alone_imports_no_probe_and_no_torch():
    assert not loaded("import casestudies_lib.probes") & set(PROBES)
    assert said("import sys, casestudies_lib.probes; print('torch' in sys.modules)") == "False"


@pytest.mark.parametrize(
    "way",
    [
        "import casestudies_lib.probes.gates; from casestudies_lib.probes import gates",
        "from casestudies_lib.probes.gates import gates as first; from casestudies_lib.probes import gates",
        "from casestudies_lib.probes import *",
        "from casestudies_lib import probes; gates = probes.gates",
        "import casestudies_lib.probes as probes, importlib; importlib.reload(probes); gates = probes.gates",
        "from unittest import mock; from casestudies_lib import probes\n"
        "with mock.patch.object(probes, 'gates', 3): assert probes.gates == 3\n"
        "gates = probes.gates",
    ],
)
def test_a_probe_is_a_function_whichever_way_it_is_asked_for(way):
    assert said(f"{way}\nprint(type(gates).__name__, gates.__module__)") == "function casestudies_lib.probes.gates"


def test_a_name_that_is_no_probe_is_refused_with_the_names_that_are():
    with pytest.raises(AttributeError, match=r"no attribute 'gaits'; its probes are ablation_diff, .*stepping"):
        probes.gaits  # noqa: B018
    with pytest.raises(ImportError):
        from casestudies_lib.probes import gaits  # noqa: F401


def test_help_and_completion_know_the_probes_before_they_are_imported():
    assert set(json.loads(said("import json; from casestudies_lib import probes; print(json.dumps(dir(probes)))"))) >= {
        *probes.__all__
    }


@pytest.mark.parametrize(
    "path", sorted((paths.root() / "data" / "evidence").glob("*.json")), ids=lambda path: path.stem
)
def test_a_chapters_evidence_follows_from_its_own_probes_alone(path):
    inputs = json.loads(path.read_text(encoding="utf-8"))["inputs"]
    notebook = next(file for file in paths.notebooks().glob(f"[0-9]_{path.stem}.ipynb"))
    cells = [cell["source"] for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]]
    lines = [line for cell in cells for line in "".join(cell).splitlines() if "casestudies_lib.probes import" in line]
    imported = {
        name for name in PROBES for line in lines if name in line.partition("import")[2].replace(",", " ").split()
    }
    read = {name for name in PROBES if f"casestudies_lib/probes/{name}.py" in inputs}
    assert imported
    assert read == imported
