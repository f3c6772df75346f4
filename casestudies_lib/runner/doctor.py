"""Examines whether this machine and environment have what the casebook needs, and says how to mend what is missing."""

import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from casestudies_lib import paths
from casestudies_lib.runner.execute import cores
from casestudies_lib.runner.supervise import guarded

OLDEST_PYTHON = (3, 11)
_PIN = re.compile(r"([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==([^\s;]+)")


@dataclass(frozen=True)
class Check:
    """One finding: `state` is right, wrong (something needed) or missing (something optional); `fix` mends it."""

    name: str
    state: str
    found: str
    fix: str = ""


def examine() -> list[Check]:
    """Return all findings."""
    return [python_version(), *package_versions(), kernel_starts(), *folders_writable(), threads(), browser()]


def python_version() -> Check:
    """Return whether this Python is new enough."""
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] >= OLDEST_PYTHON:
        return Check("python", "right", found)
    return Check("python", "wrong", found, "install Python 3.11 or newer, then: make clean-venv && make venv")


def locked_versions(lock: str) -> dict[str, str]:
    """Return the exact versions that a lock file pins, by package."""
    lines = (line.split("#")[0].strip() for line in lock.splitlines())
    return {match[1]: match[2] for line in lines if (match := _PIN.match(line))}


def package_versions() -> list[Check]:
    """Return one finding for the whole lock, and one for each package that differs from it."""
    lock = paths.root() / "requirements.lock"
    fix = "install what the lock names: make venv"
    if not lock.is_file():
        return [Check("packages", "wrong", f"no {lock}", "restore requirements.lock from the repository")]
    pins = locked_versions(lock.read_text(encoding="utf-8"))
    differing = []
    for name, wanted in pins.items():
        found = _installed(name)
        if found.split("+")[0] != wanted.split("+")[0]:  # a local part only names the build, such as torch's +cpu
            differing.append(Check(f"package {name}", "wrong", f"{found} instead of {wanted}", fix))
    return differing or [Check("packages", "right", f"{len(pins)} as locked")]


def _installed(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def kernel_starts() -> Check:
    """Return whether a kernel of this Python starts and can import this package."""
    command = [sys.executable, "-m", "casestudies_lib.runner.kernel_test"]
    try:
        with tempfile.TemporaryDirectory() as scratch, guarded(command, Path(scratch)) as process:
            process.wait(60)  # not communicate(): that would close standard input, the life line
            output, errors = process.stdout.read(), process.stderr.read()
    except (OSError, subprocess.TimeoutExpired) as error:
        return Check("kernel", "wrong", str(error), "reinstall the packages: make venv")
    if process.returncode == 0:
        return Check("kernel", "right", output.decode().strip())
    reason = errors.decode(errors="replace").strip().splitlines()[-1:] or ["no answer"]
    return Check("kernel", "wrong", reason[0], "reinstall ipykernel and this package: make venv")


def folders_writable() -> list[Check]:
    """Return for each folder that commands write to whether it takes a file."""
    return [folder_writable(folder) for folder in (paths.build(), paths.notebooks(), Path(tempfile.gettempdir()))]


def folder_writable(folder: Path) -> Check:
    """Return whether a folder, or the nearest one above it that exists, takes a file."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with tempfile.NamedTemporaryFile(dir=existing) as file:
            file.write(b"x" * 4096)
            file.flush()
    except OSError as error:
        fix = f"make {existing} a folder that you may write to, with room on its disk"
        return Check(f"folder {folder}", "wrong", error.strerror or str(error), fix)
    return Check(f"folder {folder}", "right", f"writable, {shutil.disk_usage(existing).free / 2**30:.1f} GB free")


def threads() -> Check:
    """Return how many cores there are; each kernel gets one thread, so chapters run side by side."""
    return Check("threads", "right", f"{cores()} cores, one thread for each kernel")


def browser() -> Check:
    """Return whether the browser is here that prints the book and looks at its pages."""
    if found := paths.browser():
        return Check("browser", "right", found)
    return Check(
        "browser", "missing", "no chromium", "needed for page tests and PDF only; install it with: make browser"
    )
