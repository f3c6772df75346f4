"""`make bench`: speed and memory, as ratios that are each measured in one run. Machines are noisy; read, do not gate.

With --set-up it also times a fresh virtual environment, which fetches every package.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from benchmark_probes import probe_rows
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


def set_up(scratch: Path) -> tuple[str, str, str]:
    """Return the seconds for a fresh virtual environment with everything in it."""
    seconds = measured([sys.executable, "-m", "venv", str(scratch / "venv")])[0]
    pip = [str(scratch / "venv/bin/python"), "-m", "pip", "install", "-q", "-r", "requirements.lock"]
    return ("set-up", f"{seconds + measured(pip)[0]:.0f} s", "≤ 180 s")


def main() -> None:
    table = Table("measured", "here", "to reach", title="Benchmarks")
    with tempfile.TemporaryDirectory() as folder:
        rows = probe_rows() + figures(Path(folder))
        rows += [set_up(Path(folder))] if "--set-up" in sys.argv else []
    for row in rows:
        table.add_row(*row)
    Console().print(table)


if __name__ == "__main__":
    main()
