"""The parameters cell is read as data, and nothing but a declared name with an allowed value gets past it."""

import ast
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casestudies_lib.runner.chapters import ChapterError
from casestudies_lib.runner.parameters import ParameterError, changed, parse_cell, read_parameters, resolve

CELL = """\
# What may be set from outside.
seed = 0  # first seed [seed: 0 to 1000]
shift = -3  # offset [tokens: -10 to 10]
rate = 0.5  # learning rate [1: 0.1 to 1.0]
optimiser = "adam"  # update rule [name: one of adam, adamw, sgd]
heads = 4  # attention heads [heads: one of 1, 2, 4]
shuffled = True  # whether batches are shuffled [flag: any]
note = "#1"  # free text, with a # inside [text: any]
records = ""  # folder or file; empty for none [path: any]
"""
DECLARED = parse_cell(CELL, "1_tiny.ipynb")
DEFAULTS = {
    "seed": 0, "shift": -3, "rate": 0.5, "optimiser": "adam", "heads": 4, "shuffled": True, "note": "#1", "records": "",
}  # fmt: skip


def resolved(*assignments, folder=Path("/")):
    return resolve(DECLARED, assignments, folder)


def test_without_assignments_every_parameter_keeps_its_default():
    assert resolved() == DEFAULTS
    assert changed(DECLARED, resolved()) == {}


def test_meaning_and_unit_come_from_the_comment():
    shift = DECLARED[1]
    assert (shift.meaning, shift.unit, shift.limits) == ("offset", "tokens", (-10.0, 10.0))
    assert DECLARED[6].meaning == "free text, with a # inside"


@pytest.mark.parametrize(
    ("assignment", "value"),
    [
        ("seed=7", 7), ("shift=-10", -10), ("rate=1", 1.0), ("rate=2.5e-1", 0.25), ("optimiser=sgd", "sgd"),
        ("heads=2", 2), ("shuffled=false", False), ("shuffled=True", True), ("note=a=b", "a=b"),
        ("note=", ""), ("records=", ""),
    ],
)  # fmt: skip
def test_a_value_arrives_in_the_type_of_its_default(assignment, value):
    name = assignment.partition("=")[0]
    found = resolved(assignment)[name]
    assert (found, type(found)) == (value, type(DEFAULTS[name]))


def test_only_what_differs_from_the_defaults_counts_as_changed():
    assert changed(DECLARED, resolved("seed=0", "rate=0.25")) == {"rate": 0.25}


@pytest.mark.parametrize(
    ("assignment", "says"),
    [
        ("sed=1", "unknown parameter 'sed'; did you mean seed? allowed names: seed, shift"),
        ("a=1;import os=2", "unknown parameter"),
        ("seed", "not of the form NAME=VALUE"),
        ("=1", "unknown parameter ''"),
        ("seed=x", "'x' is not a whole number"),
        ("seed=1.0", "is not a whole number"),
        ("seed=True", "is not a whole number"),
        ("seed=1_0", "is not a whole number"),
        ("seed=" + "9" * 5000, "is not a whole number"),
        ("seed=1001", "1001 is outside what is allowed; allowed: 0 to 1000 (seed; first seed)"),
        ("shift=-11", "outside what is allowed"),
        ("rate=nan", "is not a finite number"),
        ("rate=inf", "is not a finite number"),
        ("rate=1e999", "is not a finite number"),
        ("rate=0.099", "outside what is allowed"),
        ("optimiser=rmsprop", "allowed: one of adam, adamw, sgd"),
        ("heads=3", "outside what is allowed"),
        ("shuffled=1", "is not true or false"),
        ("note=\udcff", "not valid UTF-8"),
        ("records=nowhere", "there is no '/nowhere'"),
        ("records=" + "x" * 5000, "there is no"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_is_allowed(assignment, says):
    with pytest.raises(ParameterError) as caught:
        resolved(assignment)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_parameter_given_twice_is_refused():
    with pytest.raises(ParameterError, match="seed is given twice"):
        resolved("seed=1", "seed=2")


def test_a_path_becomes_absolute_from_the_given_folder(tmp_path):
    (tmp_path / "some records").mkdir()
    assert resolved("records=some records", folder=tmp_path)["records"] == str(tmp_path / "some records")


@pytest.mark.parametrize(
    "line",
    [
        "x = 1",
        "x = 1  # no rule",
        "x = 1  # [no: any]",
        "x = 1  # meaning [unit any]",
        "x = 1  # meaning [unit: 5 to 64]",  # the default is outside
        "x = 1  # meaning [unit: 2 to 0]",
        "x = 1  # meaning [unit: one of a, b]",
        "x = 1  # meaning [unit: sometimes]",
        'x = "a"  # meaning [unit: 0 to 1]',
        "x = y = 1  # meaning [unit: any]",
        "x = 1; y = 2  # meaning [unit: any]",
        "x, y = 1, 2  # meaning [unit: any]",
        "x = [1]  # meaning [unit: any]",
        "x = None  # meaning [unit: any]",
        "x = float('nan')  # meaning [unit: any]",
        "x = 1e999  # meaning [unit: any]",
        "import os  # meaning [unit: any]",
        "x = (\n1)  # meaning [unit: any]",
        "x = 1 +  # meaning [unit: any]",
    ],
)
def test_a_cell_outside_the_grammar_is_refused_by_name_of_the_notebook(line):
    with pytest.raises(ChapterError, match=r"1_tiny\.ipynb: parameters cell"):
        parse_cell(line, "1_tiny.ipynb")


def test_the_same_name_on_two_lines_is_refused():
    with pytest.raises(ChapterError, match="sets x twice"):
        parse_cell("x = 1  # a [b: any]\nx = 2  # a [b: any]", "n")


@pytest.mark.parametrize("count", [0, 2])
def test_a_notebook_needs_exactly_one_parameters_cell(count):
    cell = {"cell_type": "code", "source": CELL, "metadata": {"tags": ["parameters"]}}
    with pytest.raises(ChapterError, match="exactly one code cell 'parameters'"):
        read_parameters({"cells": [cell] * count}, "1_tiny.ipynb")


@given(st.text())
def test_text_stays_the_text_it_was(text):
    try:
        text.encode()
    except UnicodeEncodeError:
        return
    assert resolved(f"note={text}")["note"] == text


@given(st.integers())
def test_whole_numbers_pass_exactly_inside_their_limits(number):
    try:
        assert resolved(f"seed={number}")["seed"] == number
        assert 0 <= number <= 1000
    except ParameterError:
        assert not 0 <= number <= 1000


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_numbers_pass_exactly_inside_their_limits(number):
    try:
        assert resolved(f"rate={number!r}")["rate"] == number
        assert 0.1 <= number <= 1.0
    except ParameterError:
        assert not 0.1 <= number <= 1.0


@given(st.text(), st.text())
def test_any_assignment_is_resolved_to_declared_names_or_refused(name, value):
    try:
        values = resolved(f"{name}={value}")
    except ParameterError:
        return
    assert values.keys() == DEFAULTS.keys()
    assert all(type(values[key]) is type(DEFAULTS[key]) for key in values)


SCALARS = st.one_of(st.booleans(), st.integers(-(10**9), 10**9), st.floats(-1e9, 1e9), st.text(max_size=30))


@given(SCALARS)
def test_any_literal_default_is_read_as_python_reads_it(value):
    line = f"x = {value!r}  # meaning [unit: any]"
    (parameter,) = parse_cell(line, "n")
    assert parameter.default == ast.literal_eval(repr(value))
    assert type(parameter.default) is type(value)


@given(st.text())
def test_any_cell_text_is_parsed_or_refused_and_never_run(source):
    said = "n: "
    try:
        parse_cell(source, "n")
    except ChapterError as error:
        said = str(error)
    assert said.startswith("n: ")
