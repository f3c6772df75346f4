"""No text is evaluated, nothing unpickled, no shell run: in the package, and in no chapter either."""

from pathlib import Path

import pytest

import casestudies_lib
from casestudies_lib.runner.code_rules import code_problems, notebook_code_problems

LIBRARY = Path(casestudies_lib.__file__).parent
MODULES = sorted(LIBRARY.rglob("*.py"))
FORBIDDEN = [
    "eval('1')", "exec('1')", "compile('1', 'x', 'exec')", "__import__('os')", "run = eval",
    "import os\nos.system('ls')", "from os import system as run\nrun('ls')", "import os as o\no.popen('ls')",
    "import subprocess\nsubprocess.run('ls', shell=True)", "from subprocess import run\nrun('ls', shell=flag)",
    "from subprocess import getoutput\ngetoutput('ls')", "import pickle", "from pickle import loads",
    "import dill as d",
    "import shelve", "import marshal", "import cloudpickle.cloudpickle", "import torch\ntorch.load('x')",
    "import torch as t\nt.load('x', weights_only=True)", "import joblib\njoblib.load('x')",
    "import numpy as np\nnp.load('x', allow_pickle=True)", "import numpy as np\nnp.load('x', allow_pickle=flag)",
    "import pandas as pd\npd.read_pickle('x')", "from pandas import read_pickle\nread_pickle('x')",
    "x = 1  # \u202e} # \u2066", "x\u200b = 1", "import yaml\nyaml.load('x')", "def f():\n    import pickle",
]  # fmt: skip
ALLOWED = [
    "model.eval()", "import re\nre.compile('x')", "import torch\ntorch.compile(model)", "import json\njson.load(file)",
    "import numpy as np\nnp.load('x', allow_pickle=False)", "import ast\nast.literal_eval('1')", "'eval(x)'  # exec(x)",
    "import subprocess\nsubprocess.run(['ls'], shell=False)", "import yaml\nyaml.safe_load('x')", "loss.load = 1",
]  # fmt: skip


def test_no_module_of_the_package_evaluates_text_unpickles_or_runs_a_shell():
    assert len(MODULES) > 40
    found = {str(path.relative_to(LIBRARY)): code_problems(path.read_text(encoding="utf-8")) for path in MODULES}
    assert {name: problems for name, problems in found.items() if problems} == {}


@pytest.mark.parametrize("text", FORBIDDEN)
def test_each_way_to_do_it_is_found(text):
    assert code_problems(text)


@pytest.mark.parametrize("text", ALLOWED)
def test_what_only_looks_like_it_is_left_alone(text):
    assert code_problems(text) == []


def notebook(*sources):
    return {"cells": [{"cell_type": "code", "source": source, "metadata": {}} for source in sources]}


@pytest.mark.parametrize(
    "source",
    [
        "!ls", "!!ls", "%ls", "%%bash\nls", "x = !ls", "x = %pwd", "?print", "print?", "get_ipython().system('ls')",
        "run = get_ipython\nrun().run_line_magic('ls', '')", "from IPython import get_ipython as g\ng().system('ls')",
        "import subprocess\nsubprocess.run(['ls'])", "from subprocess import Popen", "if x:\n    !ls", "ls", "ls -l",
        "pwd  # where", "# where\nenv", "import pickle\nx = 1",
    ],
)  # fmt: skip
def test_a_shell_line_or_a_magic_in_a_notebook_is_found_by_cell(source):
    (problem, *_) = notebook_code_problems(notebook("x = 1", source))
    assert problem.startswith("code cell 2 (`")


@pytest.mark.parametrize(
    "source",
    ["x", "x.shape", "'''\n%ls\n!ls\n'''", "y = 5 % x\nx != 3", "z = 1", "len(x)", "# only a remark", "", "f'{x!r:%}'",
     "for ls in range(3): ls", "def ls(): return 1", "[ls for ls in x]"],
)  # fmt: skip
def test_plain_python_is_left_alone(source):
    assert notebook_code_problems(notebook("import os\nx = 1", source)) == []


def test_a_name_counts_only_where_a_cell_before_defines_it():
    assert notebook_code_problems(notebook("ls = 1", "ls")) == []
    assert notebook_code_problems(notebook("ls", "ls = 1"))
