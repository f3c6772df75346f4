"""`make bench`: speed and memory, as ratios that are each measured in one run. Machines are noisy; read, do not gate.

Names of groups as arguments measure these alone. With --set-up it also times a fresh virtual environment, which
fetches every package. Rows are noted as they are measured; the table comes last.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from builds import build_rows
from cohorts import cohort_rows
from probes import probe_rows
from rich.console import Console
from rich.table import Table
from routing import routing_rows
from sweeps import sweep_rows

from casestudies_lib import paths
from casestudies_lib.runner.chapters import all_chapters
from casestudies_lib.runner.results import newest

CASEBOOK = [sys.executable, "-m", "casestudies_lib.cli"]


def figures() -> list[tuple[str, str, str]]:
    """Return how fast the light command answers, and how long each chapter took in its last run, beside others."""
    listing = seconds(lambda: subprocess.run([*CASEBOOK, "list"], stdout=subprocess.DEVNULL, check=True))
    rows = [("casebook list", f"{listing:.2f} s", "≤ 0.5 s")]
    for chapter in all_chapters():
        if last := newest(chapter.slug):
            taken = f"{last.provenance['seconds']:.0f} s"
            rows.append((f"{chapter.slug}, one thread, when it last ran here", taken, "≤ 120 s quiet"))
    return rows


def dominoes() -> list[tuple[str, str, str]]:
    """Return how fast endgames are solved, next to brute force, and what the interference probe costs."""
    from casestudies_lib.tasks.dominoes.game import brute_force, solve

    four, three = ([endgame(seed, tricks) for seed in range(40)] for tricks in (4, 3))
    solve(four[0])  # compiles
    each = seconds(lambda: [solve(position) for position in four]) / len(four)
    fast, slow = (seconds(lambda find=find: [find(p) for p in three]) for find in (solve, brute_force))
    return [
        ("four-trick endgames solved a second", f"{1 / each:.0f}", "≥ 50"),
        ("brute force ÷ solver, three tricks", f"{slow / fast:.0f}", "≥ 100"),
        ("interference ÷ forward-backward, two losses and their total", f"{interference_cost():.2f}", "≤ 3"),
    ]


def endgame(seed: int, tricks: int):
    from casestudies_lib.tasks.dominoes.game import deal, random_game

    generator = np.random.default_rng(seed)
    return next(p for p in random_game(deal(generator, seed % 10), generator) if p.tricks == tricks)


def interference_cost() -> float:
    import torch

    from casestudies_lib.probes import interference

    layer = torch.nn.TransformerEncoderLayer(64, 4, 256, dropout=0.0, batch_first=True)
    model = torch.nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
    batch = torch.randn(32, 64, 64)

    def losses(module, batch):
        out = module(batch)
        first, rest = out[:, 0].square().mean(), (out[:, 1:] - 1).square().mean()
        return {"first": first, "rest": rest, "total": first + rest}

    def plain():
        losses(model, batch)["total"].backward()
        model.zero_grad()

    plain()
    return seconds(lambda: interference(model, losses, batch, total="total")) / seconds(plain)


def seconds(work, turns: int = 5) -> float:
    """Return the shortest of a few turns."""
    taken = []
    for _ in range(turns):
        begin = time.perf_counter()
        work()
        taken.append(time.perf_counter() - begin)
    return min(taken)


def set_up(scratch: Path) -> tuple[str, str, str]:
    """Return the seconds for a fresh virtual environment with everything in it."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-m", "venv", str(scratch / "venv")], check=True)
    pip = [str(scratch / "venv/bin/python"), "-m", "pip", "install", "-q", "-r", "requirements.lock"]
    subprocess.run(pip, cwd=paths.root(), check=True)
    return ("set-up", f"{time.perf_counter() - begin:.0f} s", "≤ 180 s")


def groups_of(scratch: Path, with_set_up: bool) -> dict[str, Callable[[], list[tuple[str, str, str]]]]:
    """Return what can be measured, by name, in the order it is measured in."""
    groups = {
        "figures": figures,
        "probes": probe_rows,
        "routing": routing_rows,
        "cohort": cohort_rows,
        "dominoes": dominoes,
        "builds": lambda: build_rows(scratch),
        "sweep": sweep_rows,
    }
    return groups | ({"set-up": lambda: [set_up(scratch)]} if with_set_up else {})


def main() -> None:
    asked = [argument for argument in sys.argv[1:] if not argument.startswith("--")]
    table = Table("measured", "here", "to reach", title="Benchmarks")
    notes = Console(stderr=True)
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        groups = groups_of(Path(folder), "--set-up" in sys.argv or "set-up" in asked)
        if unknown := sorted(set(asked) - set(groups)):
            sys.exit(f"no group of measurements is called {', '.join(unknown)}; there are {', '.join(groups)}")
        for name in asked or groups:
            begin = time.perf_counter()
            try:
                rows = groups[name]()
            except Exception:  # an hour of measurements must not be lost with one of them
                notes.print_exception()
                failed.append(name)
                continue
            for row in rows:
                table.add_row(*row)
                notes.print(" | ".join(row), markup=False, highlight=False, soft_wrap=True)
            notes.print(f"{name}: {time.perf_counter() - begin:.0f} s", highlight=False)
    Console().print(table)
    if failed:
        sys.exit(f"not measured, see above: {', '.join(failed)}")


if __name__ == "__main__":
    main()
