"""What a second worker brings to a sweep, and what Dask adds to a row; part of `make bench`."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat

from casestudies_lib import paths
from casestudies_lib.runner.cluster import cluster

Row = tuple[str, str, str]
ROWS = 6
TURNS = 2  # the best of each counts: what else runs on the machine only ever adds
PARAMETERS = """\
seed = 0  # first seed [seed: 0 to 1000]
n_seeds = 2  # seeds of a row [seeds: 2 to 64]
"""
WORK = """\
import torch
state = torch.Generator().manual_seed(seed)
matrix = torch.randn(64, 64, generator=state)
for _ in range(700_000):
    matrix = torch.tanh(matrix @ matrix / 8)
"""
EVIDENCE = """\
from IPython.display import display
record = dict(id="B1", chapter="bench", kind="identity", verdict="upheld", says="", measure="", unit="1", value=0.0,
              low=0.0, high=0.0, n=1, seeds=[], control=None, rule="", reason="")
display({"application/vnd.casebook.verdicts+json": [record], "text/plain": "evidence"}, raw=True)
"""
REPORT = """\
slug = "bench"
title = "Bench"
summary = "A chapter that keeps one core busy."
source = {repository = "none", document = "none", date = "never"}
[[claims]]
id = "B1"
kind = "identity"
says = "nothing"
measure = "nothing"
unit = "1"
upheld_if = "== 0"
refuted_if = "> 1"
min_seeds = 0
why = "It measures the runner."
"""


def sweep_rows() -> list[Row]:
    """Return what was measured, the measurement, and the figure to reach.

    On a machine that others use too, a ratio below two says little unless a second core was free; how much faster two
    plain loops ran side by side than one after the other is shown beside it.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = book(Path(folder) / "book")
        turns = [[swept(root, workers) for workers in (1, 2)] for _ in range(TURNS)]
        one, two = map(min, zip(*turns))
    return [
        ("sweep, 1 worker ÷ 2 workers, start of the cluster included", f"{one / two:.2f}", "≥ 1.8"),
        ("the same for a plain loop, 1 process ÷ 2 processes", f"{free_cores():.2f}", "2 on two free cores"),
        ("Dask, to hand out a row and take its answer", f"{seconds_per_task() * 1e3:.1f} ms", "≤ 20 ms"),
    ]


def book(root: Path) -> Path:
    """Return a book of one chapter whose rows take 15 seconds each, a tenth of a real one; the real store stays."""
    v4 = nbformat.v4
    cells = [v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})]
    cells += [v4.new_code_cell(source) for source in (WORK, EVIDENCE)]
    (root / "notebooks").mkdir(parents=True)
    nbformat.write(v4.new_notebook(cells=cells), root / "notebooks" / "1_bench.ipynb")
    (root / "data" / "reports").mkdir(parents=True)
    (root / "data" / "reports" / "bench.toml").write_text(REPORT, encoding="utf-8")
    shutil.copy(paths.root() / "requirements.lock", root)
    return root


def swept(root: Path, workers: int) -> float:
    seeds = ["--seeds", f"0:{2 * ROWS}", "--workers", str(workers)]
    command = [sys.executable, "-m", "casestudies_lib.cli", "sweep", "bench", "--fresh", "--json"]
    begin = time.perf_counter()
    environment = os.environ | {"CASEBOOK_ROOT": str(root)}
    done = subprocess.run([*command, *seeds], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"the sweep failed: {done.stderr}")
    assert json.loads(done.stdout)["ran"] == ROWS
    return time.perf_counter() - begin


def seconds_per_task(tasks: int = 200) -> float:
    """Return what it costs to hand out one row and take its answer, measured with empty tasks on a local worker."""
    with cluster(None, 1, print) as client:
        client.submit(abs, -1).result(60)
        begin = time.perf_counter()
        client.gather(client.map(abs, range(tasks), pure=False))
        return (time.perf_counter() - begin) / tasks


def free_cores() -> float:
    """Return how much faster two processes count than one counts twice."""
    loop = [sys.executable, "-c", "for _ in range(40_000_000): pass"]
    begin = time.perf_counter()
    for _ in range(2):
        subprocess.run(loop, check=True)
    middle = time.perf_counter()
    for process in [subprocess.Popen(loop) for _ in range(2)]:
        process.wait()
    return (middle - begin) / (time.perf_counter() - middle)
