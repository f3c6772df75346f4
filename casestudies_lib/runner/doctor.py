"""Examines whether this machine and environment have what the casebook needs, and says how to mend what is missing."""

import sys
from dataclasses import dataclass
from importlib import metadata

from casestudies_lib import paths
from casestudies_lib.runner.inputs import LOCK, pins


@dataclass(frozen=True)
class Check:
    """One finding: `state` is right, wrong (something needed) or missing (something optional); `fix` mends it."""

    name: str
    state: str
    found: str
    fix: str = ""


def examine() -> list[Check]:
    """Return all findings."""
    return [*package_versions(), kernel(), browser()]


def package_versions() -> list[Check]:
    """Return one finding for the whole lock, and one for each package that differs from it."""
    wanted = pins()
    if not wanted:
        return [Check("packages", "wrong", f"no {LOCK}", f"restore {LOCK} from the repository")]
    differing = []
    for name, version in wanted.items():
        found = _installed(name)
        if found.split("+")[0] != version.split("+")[0]:  # a local part only names the build, such as torch's +cpu
            says = f"{found} instead of {version}"
            differing.append(Check(f"package {name}", "wrong", says, "install what the lock names: make venv"))
    return differing or [Check("packages", "right", f"{len(wanted)} as locked")]


def _installed(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def kernel() -> Check:
    """Return whether the kernel that chapters run on is installed; it is always that of this Python."""
    try:
        import ipykernel.kernelspec  # noqa: F401
        import jupyter_client  # noqa: F401
    except ImportError as error:
        return Check("kernel", "wrong", str(error), "reinstall ipykernel and jupyter_client: make venv")
    return Check("kernel", "right", sys.executable)


def browser() -> Check:
    """Return whether the browser for page tests and PDF is here."""
    if found := paths.browser():
        return Check("browser", "right", found)
    return Check("browser", "missing", "no Chromium", "needed for page tests and PDF; install it with: make browser")
