"""What an edit reaches runs again, and nothing else; on a copy of the real book, whose results are made up."""

import json
from pathlib import Path

import pytest

ALL = {"zero_weight_head", "value_head_spillover", "mixing_gates", "distillation_loss", "head_routing"}
# Imports what a chapter's cells import, and prints which files of ours Python then holds.
IMPORTED = """\
import ast, json, sys
cells = [c for c in json.load(open(sys.argv[1]))["cells"] if c["cell_type"] == "code"]
nodes = [n for c in cells for n in ast.parse("".join(c["source"])).body if isinstance(n, ast.Import | ast.ImportFrom)]
exec(compile(ast.Module(nodes, []), "imports", "exec"))
print(json.dumps([m.__file__ for n, m in sys.modules.items() if n.startswith("casestudies_lib")]))
"""


def stale(copy) -> set[str]:
    rows = json.loads(copy.casebook("list", "--json").stdout)
    assert {row["last_run"] for row in rows} <= {"fresh", "stale"}
    return {row["slug"] for row in rows if row["last_run"] == "stale"}


@pytest.fixture(scope="module")
def copy(tmp_path_factory, new_real_book):
    copy = new_real_book(tmp_path_factory.mktemp("copy") / "a book")
    copy.lay_out()
    assert stale(copy) == set()
    return copy


EDITS = {
    "casestudies_lib/models/tracing.py": {"zero_weight_head"},
    "casestudies_lib/models/gates/ladder.py": {"mixing_gates"},
    "casestudies_lib/tasks/students.py": {"zero_weight_head"},
    "casestudies_lib/tasks/dominoes/data.py": {"value_head_spillover"},
    "casestudies_lib/probes/idle/probe.py": {"zero_weight_head"},
    "casestudies_lib/probes/routing/probe.py": {"head_routing"},
    "casestudies_lib/probes/result.py": ALL,
    "casestudies_lib/claims.py": ALL,
    "casestudies_lib/site/publish.py": set(),
    "casestudies_lib/runner/worker.py": set(),
    "data/reports/head_routing.toml": {"head_routing"},
    "data/text/harbour.txt": {"mixing_gates", "distillation_loss"},
    "data/text/sentences.txt": {"head_routing"},
    "data/dominoes/endgames.npz": {"value_head_spillover"},
    "data/evidence/head_routing.json": set(),
    "requirements.lock": ALL,
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_makes_exactly_the_chapters_stale_that_it_reaches_and_taken_back_none(copy, name):
    path = copy.root / name
    whole = path.read_bytes()
    path.write_bytes(whole + b"\n# more\n")
    assert stale(copy) == EDITS[name]
    path.write_bytes(whole)
    assert stale(copy) == set()


def test_only_the_code_of_a_notebook_counts(copy):
    path = copy.root / "notebooks" / "1_zero_weight_head.ipynb"
    whole = path.read_text()
    notebook = json.loads(whole)
    notebook["cells"][0]["source"] = ["# Another title"]
    path.write_text(json.dumps(notebook))
    assert stale(copy) == set()
    cell = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"][-1]
    cell["source"] = [*cell["source"], "\n1"]
    path.write_text(json.dumps(notebook))
    assert stale(copy) == {"zero_weight_head"}
    path.write_text(whole)


def test_a_module_that_is_imported_only_inside_a_function_counts(copy):
    late, tracing = copy.root / "casestudies_lib/models/late.py", copy.root / "casestudies_lib/models/tracing.py"
    whole = tracing.read_text()
    late.write_text("x = 1\n")
    tracing.write_text(f"{whole}\n\ndef later():\n    if True:\n        from casestudies_lib.models import late\n")
    copy.pretend()
    assert stale(copy) == set()
    late.write_text("x = 2\n")
    assert stale(copy) == {"zero_weight_head"}
    tracing.write_text(whole)
    late.unlink()
    assert stale(copy) == set()


@pytest.mark.parametrize("number", range(1, 6))
def test_what_python_really_imports_for_a_chapter_is_among_its_inputs(copy, number):
    (path,) = (copy.root / "notebooks").glob(f"{number}_*.ipynb")
    imported = json.loads(copy.python("-c", IMPORTED, str(path)))
    names = {Path(file).relative_to(copy.root).as_posix() for file in imported}
    slug = path.stem.split("_", 1)[1]
    known = [json.loads(path.read_text())["inputs"] for path in copy.root.glob(f"_build/runs/{slug}/*/provenance.json")]
    assert len(names) > 10
    assert any(names <= inputs.keys() for inputs in known)


@pytest.mark.parametrize("name", ["models/tracing.py", "runner/run.py"])
def test_a_module_that_is_not_python_is_named_before_any_kernel_starts(copy, name):
    path = copy.root / "casestudies_lib" / name
    whole = path.read_text()
    path.write_text("x = 1\ny = (\n")
    done = copy.casebook("run", "zero_weight_head")
    path.write_text(whole)
    assert done.returncode in (1, 2)
    assert f"{name}" in done.stderr
    assert "is not Python: '(' was never closed" in done.stderr
    assert "Traceback" not in done.stderr
    assert "cells, " not in done.stderr
