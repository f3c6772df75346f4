"""What `casestudies_lib.probes` offers, and that asking for one probe imports no other."""

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from casestudies_lib import probes

FOLDER_OF = {name: module.split(".")[2] for name, module in probes.OFFERED.items()}
# Each probe alone in a new Python would cost two seconds apiece; one Python forgets the package between two probes.
LOADED = """
import importlib, json, sys
loaded = {}
for name in NAMES:
    for module in [module for module in sys.modules if module.startswith("casestudies_lib.probes")]:
        del sys.modules[module]
    getattr(importlib.import_module("casestudies_lib.probes"), name)
    loaded[name] = [module.split(".")[2] for module in sys.modules if module.startswith("casestudies_lib.probes.")]
print(json.dumps(loaded))
"""


def said(program: str) -> str:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip()


def test_every_probe_is_offered_and_no_folder_has_the_name_of_a_function():
    folders = {path.parent.name for path in Path(probes.__file__).parent.glob("*/probe.py")}
    assert sorted(FOLDER_OF.values()) == sorted(folders)
    assert not folders & set(probes.__all__)
    assert set(probes.__all__) == {*probes.OFFERED, "Finding", "ProbeFault", "ProbeInputError", "ProbeResult"}


def test_a_probe_imports_no_other_probe():
    loaded = json.loads(said(f"NAMES = {list(probes.OFFERED)}\n{LOADED}"))
    assert {name: set(modules) & set(FOLDER_OF.values()) for name, modules in loaded.items()} == {
        name: {folder} for name, folder in FOLDER_OF.items()
    }


def test_the_package_alone_imports_no_probe_and_no_torch():
    program = "import sys, casestudies_lib.probes; print([name for name in sys.modules if name in ('torch', 'numpy')])"
    assert said(program) == "[]"


@pytest.mark.parametrize("name", probes.OFFERED)
def test_a_probe_is_a_function_and_its_folder_a_module(name):
    function = getattr(probes, name)
    assert (function.__module__, function.__name__) == (probes.OFFERED[name], name)
    assert import_module(f"casestudies_lib.probes.{FOLDER_OF[name]}").__doc__
    assert getattr(probes, name) is function


def test_a_name_that_is_no_probe_is_refused_with_the_names_that_are():
    with pytest.raises(AttributeError, match=r"no attribute 'gaits'; its probes are ablation_diff, .*stepping"):
        probes.gaits  # noqa: B018
    with pytest.raises(ImportError):
        from casestudies_lib.probes import gaits  # noqa: F401


def test_help_and_completion_know_the_probes_before_they_are_imported():
    assert set(json.loads(said("import json; from casestudies_lib import probes; print(json.dumps(dir(probes)))"))) >= {
        *probes.__all__
    }
