"""`make bench`: speed and memory, as ratios that are each measured in one run. Machines are noisy; read, do not gate.

With --set-up it also times a fresh virtual environment, which fetches every package.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
from benchmark_probes import probe_rows
from benchmark_routing import routing_rows
from rich.console import Console
from rich.table import Table

from casestudies_lib import paths
from casestudies_lib.runner.chapters import all_chapters, read_notebook, source_of

CASEBOOK = [sys.executable, "-m", "casestudies_lib.cli"]
PUBLISH = (
    "from casestudies_lib import paths; from casestudies_lib.runner.publish import publish; "
    "from casestudies_lib.runner.chapters import all_chapters; from pathlib import Path; import sys; "
    "publish({c.slug: paths.build() / 'runs' / c.slug for c in all_chapters()}, Path(sys.argv[1]) / 'html')"
)


def measured(command: list[str], folder: Path | None = None) -> tuple[float, float]:
    """Return seconds and the peak resident memory of a process and all its descendants, in MB."""
    begin, peak = time.perf_counter(), 0.0
    process = psutil.Popen(command, cwd=folder or paths.root(), stdout=subprocess.DEVNULL)
    while process.poll() is None:
        peak = max(peak, resident(process))
        time.sleep(0.05)
    if process.returncode:
        raise SystemExit(f"{' '.join(command[:4])} … failed with exit status {process.returncode}")
    return time.perf_counter() - begin, peak / 1e6


def resident(process: psutil.Process) -> float:
    total = 0
    try:
        for each in [process, *process.children(recursive=True)]:
            total += each.memory_info().rss
    except psutil.NoSuchProcess:
        pass
    return total


def plain_scripts(scratch: Path) -> float:
    """Return the seconds that the chapters take as plain scripts, one after the other."""
    total = 0.0
    for chapter in all_chapters():
        cells = [cell for cell in read_notebook(chapter.path)["cells"] if cell["cell_type"] == "code"]
        script = scratch / f"{chapter.slug}.py"
        script.write_text("\n\n".join(source_of(cell) for cell in cells), encoding="utf-8")
        total += measured([sys.executable, str(script)], paths.notebooks())[0]
    return total


def figures(scratch: Path) -> list[tuple[str, str, str]]:
    """Return what was measured, the measurement, and the figure to reach."""
    listing = min(measured([*CASEBOOK, "list"])[0] for _ in range(5))
    scripts = plain_scripts(scratch)
    build, memory = measured([*CASEBOOK, "build"])
    site = measured([sys.executable, "-c", PUBLISH, str(scratch)])[0]
    chapters = {chapter.slug: paths.build() / "runs" / chapter.slug / "provenance.json" for chapter in all_chapters()}
    seconds = {slug: json.loads(path.read_text("utf-8"))["seconds"] for slug, path in chapters.items()}
    rows = [
        ("casebook list", f"{listing:.2f} s", "≤ 0.5 s"),
        ("build ÷ (plain scripts + site)", f"{build / (scripts + site):.2f}", "≤ 1.3"),
        ("site alone", f"{site:.1f} s", ""),
        ("peak memory of a build, runner included", f"{memory:.0f} MB", "≤ 1500 MB"),
    ]
    return rows + [(f"chapter {slug}, one thread", f"{value:.0f} s", "≤ 120 s") for slug, value in seconds.items()]


def dominoes() -> list[tuple[str, str, str]]:
    """Return how fast endgames are solved, next to brute force, and what the interference probe costs."""
    from casestudies_lib.tasks.dominoes import brute_force, solve

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
    from casestudies_lib.tasks.dominoes import deal, random_game

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
    seconds = measured([sys.executable, "-m", "venv", str(scratch / "venv")])[0]
    pip = [str(scratch / "venv/bin/python"), "-m", "pip", "install", "-q", "-r", "requirements.lock"]
    return ("set-up", f"{seconds + measured(pip)[0]:.0f} s", "≤ 180 s")


def main() -> None:
    table = Table("measured", "here", "to reach", title="Benchmarks")
    with tempfile.TemporaryDirectory() as folder:
        rows = probe_rows() + routing_rows() + dominoes() + figures(Path(folder))
        rows += [set_up(Path(folder))] if "--set-up" in sys.argv else []
    for row in rows:
        table.add_row(*row)
    Console().print(table)


if __name__ == "__main__":
    main()
