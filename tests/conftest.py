"""Settings of all tests: shapes in annotations are checked, hypothesis draws the same examples everywhere, and what
the tests of faults observe is compared with the committed table of faults, or recorded there. The process-wide
generators start from the name of whoever draws, so that neither the order of tests nor the worker matters."""

import hashlib
import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import settings
from jaxtyping import install_import_hook

from casestudies_lib.runner.fault_table import FaultRow, read_table, table_text

settings.register_profile("casebook", deadline=None, derandomize=True, database=None)
settings.load_profile("casebook")
# The tower lets an int stand where a float is annotated, as type checkers do.
CHECKER = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
install_import_hook(["casestudies_lib.models", "casestudies_lib.tasks"], CHECKER)


@contextmanager
def seeded(name: str) -> Iterator[None]:
    """Start the generators of Python, NumPy and PyTorch from a name, and put them back afterwards."""
    python, numpy, pytorch = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4])
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.random.set_rng_state(pytorch)


@pytest.fixture(autouse=True)
def generators_seeded_by_the_tests_name(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test draws what it would draw alone."""
    with seeded(request.node.nodeid):
        yield


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef, request: pytest.FixtureRequest) -> Iterator[None]:
    """A fixture that many tests share is set up before the one above, by whichever of them comes first."""
    if fixturedef.scope == "function":
        return (yield)
    with seeded(f"{request.node.nodeid} {fixturedef.argname}"):
        return (yield)


@pytest.fixture
def shapes_unchecked(monkeypatch):
    """Users run without the checker of the tests, which would otherwise answer before the library's own error."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


FAULTS = Path(__file__).resolve().parents[1] / "data" / "faults.json"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record-faults", action="store_true", help="write what fault tests observe to data/faults.json")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "fault(title): the test fills this row of the table of faults with `observed`")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--record-faults"):
        items[:] = [item for item in items if item.get_closest_marker("fault")]


@pytest.fixture
def observed(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Give a test with the mark `fault` the function that compares what it saw with its row, or records the row.

    The function takes what standard error said, the exit status (a negative one as subprocess gives it), statements
    that the test has checked, and names for the folders and addresses of this test, which must not reach the table.
    """
    title = request.node.get_closest_marker("fault").args[0]

    def observe(sees: str, status: int, proof: Sequence[str], places: dict[Path | str, str]) -> None:
        for place, name in sorted(places.items(), key=lambda entry: -len(str(entry[0]))):
            sees = sees.replace(str(place), name)
        row = FaultRow(title, sees.strip(), status if status >= 0 else 128 - status, tuple(proof))
        here = ("/tmp/", str(Path.home()) + os.sep, str(FAULTS.parents[1]) + os.sep)
        assert not [place for place in here if place in sees], sees
        rows = {entry.fault: entry for entry in read_table(FAULTS)} if FAULTS.exists() else {}
        if request.config.getoption("--record-faults"):
            FAULTS.write_text(table_text(sorted((rows | {title: row}).values(), key=lambda row: row.fault)), "utf-8")
        else:
            assert rows.get(title) == row, "the table of faults says otherwise; if this is right now: make faults"

    return observe
