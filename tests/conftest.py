"""Settings of all tests: shapes in annotations are checked, hypothesis draws the same examples everywhere, and the
process-wide generators start from the name of whoever draws, so that neither the order of tests nor the worker matters.
"""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import settings
from jaxtyping import install_import_hook

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
