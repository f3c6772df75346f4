"""Settings of all tests: shapes in annotations are checked, hypothesis draws the same examples everywhere, and the
process-wide generators start from the name of whoever draws, so that neither the order of tests nor the worker matters.
"""

import fcntl
import hashlib
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import settings
from jaxtyping import install_import_hook

REPOSITORY = Path(__file__).resolve().parents[1]

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


# Gives each chapter a result made of its stored outputs, with its present inputs, so that none has to run.
PRETEND = """\
import json
from casestudies_lib.runner import chapters, executed, files, inputs, results
for chapter in chapters.all_chapters():
    notebook, now = chapters.read_notebook(chapter.path), results.current_inputs(chapter)
    verdicts = executed.verdicts_of(notebook, chapter.slug, chapters.claim_ids(chapter.slug))
    values = {name[10:]: json.loads(value) for name, value in now.items() if name.startswith("parameter ")}
    known = {"chapter": chapter.slug, "parameters": values, **results.machine(), "threads": 1, "inputs": now,
             "cpu_capability": "AVX2", "peak_memory_mb": 900, "started": "2026-11-28T12:00:00+00:00", "seconds": 90.0,
             "cells": sum(cell["cell_type"] == "code" for cell in notebook["cells"])}
    folder = results.folder_of(chapter.slug) / inputs.key_of(now)
    with files.scratch_folder(folder) as scratch:
        results.write_result(folder, scratch, chapter.path.read_bytes(), verdicts, known)
"""


class RealBook:
    """A copy of the real book in a folder of its own, with a result for every chapter."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.environment = {**os.environ, "PYTHONPATH": str(root), "CASEBOOK_ROOT": str(root)}

    def lay_out(self) -> None:
        ignored = shutil.ignore_patterns("__pycache__", "_build")
        for name in ("casestudies_lib", "notebooks", "data", "book"):
            shutil.copytree(REPOSITORY / name, self.root / name, ignore=ignored)
        shutil.copy(REPOSITORY / "requirements.lock", self.root)
        self.pretend()

    def pretend(self) -> None:
        self.python("-c", PRETEND)

    def python(self, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments], env=self.environment, cwd=self.root, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def casebook(self, *arguments: str, **options) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "casestudies_lib.cli", *map(str, arguments)]
        options = {"timeout": 300} | options
        return subprocess.run(
            command, env=self.environment, cwd=self.root, capture_output=True, text=True, **options
        )  # fmt: skip


@pytest.fixture(scope="session")
def new_real_book():
    """Return the class, for fixtures that lay out a copy which their tests change."""
    return RealBook


@pytest.fixture(scope="session")
def published_book(tmp_path_factory: pytest.TempPathFactory) -> RealBook:
    """The real book with its site, built by `casebook build` once for all workers; tests must not change it."""
    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared
    book = RealBook(shared / "published" / "the book")
    with (shared / "published.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not book.root.exists():
            book.lay_out()
            done = book.casebook("build")
            assert done.returncode == 0, done.stderr
    return book
