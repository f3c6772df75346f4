"""What a second worker brings to a sweep, and what Dask adds to a row; part of `make bench`."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from casestudies_lib import paths
from casestudies_lib.runner.sweep_cost import seconds_per_task

Row = tuple[str, str, str]
CHAPTER = "zero_weight_head"
GRID = ["--grid", "steps=20,21", "--seeds", "0:8", "--n-seeds", "4"]  # four rows, of the chapter's smallest size


def sweep_rows(turns: int = 1) -> list[Row]:
    """Return what was measured, the measurement, and the figure to reach.

    On a machine that others use too, a ratio below two
    says little unless a second core was free, so how much of two cores a pair of plain loops got is shown beside it.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = book(Path(folder) / "book")
        taken = {workers: [] for workers in (1, 2)}
        for _ in range(turns):
            for workers, seconds in taken.items():
                seconds.append(swept(root, workers))
    one, two = min(taken[1]), min(taken[2])
    return [
        ("sweep, 1 worker ÷ 2 workers, start of the cluster included", f"{one / two:.2f}", "≥ 1.8"),
        ("the same for a plain loop, 1 process ÷ 2 processes", f"{free_cores():.2f}", "2 on two free cores"),
        ("Dask, to hand out a row and take its answer", f"{seconds_per_task() * 1e3:.1f} ms", "≤ 20 ms"),
    ]


def book(root: Path) -> Path:
    """Return a copy of what a sweep needs, so that the store of the real book stays as it is."""
    for name in ("notebooks", "data"):
        shutil.copytree(paths.root() / name, root / name)
    shutil.copy(paths.root() / "requirements.lock", root)
    return root


def swept(root: Path, workers: int) -> float:
    command = [sys.executable, "-m", "casestudies_lib.cli", "sweep", CHAPTER, *GRID, "--fresh", "--json"]
    begin = time.perf_counter()
    environment = os.environ | {"CASEBOOK_ROOT": str(root)}
    done = subprocess.run([*command, "--workers", str(workers)], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"the sweep failed: {done.stderr}")
    assert json.loads(done.stdout)["ran"] == 4
    return time.perf_counter() - begin


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


if __name__ == "__main__":
    for line in sweep_rows():
        print(*line, sep=" | ")
