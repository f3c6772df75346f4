"""Imports run downhill: a room imports the rooms named here, and the files beside all rooms; these import no room."""

import ast

import pytest

from casestudies_lib import paths

PACKAGE = paths.root() / "casestudies_lib"
BELOW = {
    "cli": {"site", "runner"},
    "site": {"runner"},
    "runner": set(),
    "models": set(),
    "tasks": set(),
    "probes": set(),
}
BESIDE = {path.stem for path in PACKAGE.glob("*.py")} - {"cli"} | {"__version__"}


@pytest.mark.parametrize("room", [*BELOW, *sorted(BESIDE & {path.stem for path in PACKAGE.glob("[a-z]*.py")})])
def test_imports_run_downhill(room):
    for file in [*PACKAGE.glob(f"{room}.py"), *(PACKAGE / room).rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            names = [f"{getattr(node, 'module', None) or ''}.{name}".strip(".").split(".") for name in names]
            upwards = (
                {part for name in names if name[0] == "casestudies_lib" for part in name[1:2]}
                - BESIDE
                - {room}
                - BELOW.get(room, set())
            )
            assert not upwards, f"{file.relative_to(PACKAGE)}, line {node.lineno}"
