"""Whatever a notebook file, a parameters cell or a value from outside holds: it is data, or it is refused."""

import ast
import copy
import json
import math
from pathlib import Path

import nbformat
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from papermill.translators import PythonTranslator

from casestudies_lib.runner.chapters import ChapterError, read_notebook, source_of, strict_json, title_of
from casestudies_lib.runner.executed import Incomplete, cleaned, notebook_text, verdicts_of
from casestudies_lib.runner.parameters import parse_cell, read_parameters
from casestudies_lib.runner.publishable import private_traces_in, unpublishable

TEMPLATE = Path(__file__).resolve().parents[2] / "notebooks" / "_template.ipynb"
VALUES = st.one_of(
    st.booleans(), st.integers(-(10**18) + 1, 10**18 - 1), st.floats(allow_nan=False, allow_infinity=False),
    st.text(alphabet=st.characters(codec="utf-8")),
)  # fmt: skip


@given(VALUES)
def test_papermill_writes_every_admitted_value_as_one_literal_that_reads_back_as_the_value(value):
    """The other side of the check of values: what passes it becomes a constant of the injected cell, never code."""
    code = PythonTranslator.codify({"value": value})
    (statement,) = ast.parse(code).body
    assert isinstance(statement, ast.Assign)
    assert [target.id for target in statement.targets] == ["value"]
    found = ast.literal_eval(statement.value)
    assert (found, type(found)) == (value, type(value))


SPEAKING = {
    "quotes": "'\"\"\" ''' \\",
    "code": '"); import os; os.system("touch pwned") #',
    "lines": "a\nb\r\nc\u2028d\x0be",
    "braces": "{seed} {{x}} %s ${HOME} $(ls)",
    "marks": "user\u202egnp.exe \u200b\ufeff",
    "letters": "ünïcödé 🦆 \x7f",
}


def test_hostile_values_arrive_in_the_kernel_as_they_were_sent(ran):
    cell = "".join(f'{name} = ""  # free text [text: any]\n' for name in SPEAKING)
    cell += "whole = 0  # a number [1: any]\nfraction = 0.0  # a number [1: any]\n"
    names = ", ".join([*SPEAKING, "whole", "fraction"])
    ran.write_chapter("tiny", (f"import json; print(json.dumps([{names}]))",), parameters=cell)
    arguments = [word for name, text in SPEAKING.items() for word in ("-p", f"{name}={text}")]
    done = ran.casebook("run", "tiny", *arguments, "-p", f"whole=-{'9' * 18}", "-p", "fraction=-1e-300", "--json")
    assert done.returncode == 0, done.stderr
    notebook = nbformat.read(Path(json.loads(done.stdout)["folder"]) / "notebook.ipynb", 4)
    (shown,) = [output.text for cell in notebook.cells for output in cell.get("outputs", []) if "text" in output]
    assert json.loads(shown) == [*SPEAKING.values(), -(10**18 - 1), -1e-300]
    assert not list(ran.root.rglob("pwned"))


CODE = [
    "import os; os.system('touch pwned')", "x = __import__('os').system('touch pwned')  # a [1: any]",
    "x = open('pwned', 'w')  # a [1: any]", "x = [open('pwned', 'w')][0] or 1  # a [1: any]",
    "x = f\"{open('pwned', 'w')}\"  # a [text: any]", "x: int = 1  # a [1: any]", "x = 1 if True else 2  # a [1: any]",
    "x = (y := 1)  # a [1: any]", "x[0] = 1  # a [1: any]", "x.y = 1  # a [1: any]", "x = lambda: 1  # a [1: any]",
    "x = 1j  # a [1: any]", "x = b'1'  # a [1: any]", "x = ...  # a [1: any]", "x = " + "9" * 5000 + "  # a [1: any]",
    "x = " + "-" * 200_000 + "1  # a [1: any]", "x = " + "(" * 5000 + "1" + ")" * 5000, "!touch pwned", "%pwd",
    "x = 1  # a [1: \u202e0 to 5]", "x = '\ud800'  # a [text: any]", "x\x00 = 1  # a [1: any]",
]  # fmt: skip


@pytest.mark.parametrize("source", CODE, ids=range(len(CODE)))
def test_a_parameters_cell_with_code_is_refused_and_never_run(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ChapterError, match=r"1_tiny\.ipynb: parameters cell"):
        parse_cell(source, "1_tiny.ipynb")
    assert list(tmp_path.iterdir()) == []


def test_a_parameters_cell_that_is_no_code_cell_is_refused():
    cell = {"cell_type": "markdown", "source": "x = 1  # a [1: any]", "metadata": {"tags": ["parameters"]}}
    with pytest.raises(ChapterError, match="tag exactly one code cell"):
        read_parameters({"cells": [cell]}, "1_tiny.ipynb")


def test_control_characters_of_a_notebook_reach_no_terminal(book):
    book.write_chapter("tiny", parameters="seed = 0  # \x1b[2J \u202e [seed: 0 to 10]\n")
    done = book.casebook("run", "tiny", "-p", "seed=11")
    assert done.returncode == 2
    assert "⟨U+001B⟩[2J ⟨U+202E⟩" in done.stderr
    assert "\x1b" not in done.stderr


@pytest.mark.parametrize("text", ["NaN", "[Infinity]", '{"x": -Infinity}', "[" * 100_000, "{", ""])
def test_json_that_other_programs_cannot_read_is_refused(text):
    with pytest.raises(ValueError, match=r"."):
        strict_json(text)


def places(value, path=()):
    yield path
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    if isinstance(value, list) and all(isinstance(entry, str) for entry in value):
        entries = list(entries)[:1]  # one line of a text stands for all
    for key, entry in entries:
        yield from places(entry, (*path, key))


def small_notebook():
    """Return the template with one cell of each kind: prose, parameters, a judgement, the evidence."""
    notebook = json.loads(TEMPLATE.read_text(encoding="utf-8"))
    wanted = ("seed = ", "case.judge(", "case.evidence()")
    cells = [next(cell for cell in notebook["cells"] if words in source_of(cell)) for words in wanted]
    return notebook | {"cells": [notebook["cells"][0], *cells]}


WHOLE = small_notebook()
PLACES = sorted((place for place in places(WHOLE) if len(place) < 7), key=str)
JUNK = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@pytest.mark.parametrize("junk", [None, 1, "x", [], [1], {}, {"x": 1}])
def test_a_notebook_with_another_kind_of_thing_in_any_one_place_is_read_or_refused(junk):
    for place in PLACES:
        check_with(place, junk)


@settings(max_examples=300)
@given(st.sampled_from(PLACES), JUNK)
def test_a_notebook_with_anything_in_any_place_is_read_or_refused_but_never_breaks_a_reader(place, junk):
    check_with(place, junk)


def check_with(place, junk):
    damaged = copy.deepcopy(WHOLE)
    target = damaged
    for key in place[:-1]:
        target = target[key]
    if place:
        target[place[-1]] = junk
    else:
        damaged = junk
    said = ""
    try:
        everything_that_reads(damaged)
    except (ChapterError, Incomplete) as refusal:
        said = str(refusal)
    assert "\n" not in said


def everything_that_reads(content):
    notebook = read_text(json.dumps(content))
    title_of(notebook)
    [source_of(cell) for cell in notebook["cells"]]
    assert math.isfinite(len(notebook_text(cleaned(notebook))))
    unpublishable(notebook)
    private_traces_in(notebook)
    read_parameters(notebook, "n")
    verdicts_of(notebook, "_template", ["T1", "T2"])


def read_text(text):
    class File:
        name = "n"

        def read_text(self, encoding):
            return text

    return read_notebook(File())
