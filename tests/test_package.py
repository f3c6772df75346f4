"""`pip install .` brings what probes need, and no more; `make lab` opens the chapters with the book's kernel."""

import ast
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from casestudies_lib import probes

REPOSITORY = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NAMES = [name for name in probes.__all__ if name.islower()]
# Refuses every installed package that is not on the list, as if it were not installed.
IMPORTING = """\
import importlib.metadata, sys
sys.path.insert(0, {folder!r})
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {hidden!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Hidden())
import casestudies_lib.probes as probes
assert probes.__file__.startswith({folder!r}), probes.__file__
print([name for name in {names!r} if not callable(getattr(probes, name))])
"""


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def closure(names):
    """Return these distributions and all that they need, by normalised name."""
    found, waiting = set(), list(names)
    while waiting:
        name = normalised(re.split(r"[ <>=!~;\[(]", waiting.pop(), maxsplit=1)[0])
        if name in found:
            continue
        found.add(name)
        try:
            required = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        waiting += [line for line in required if "extra ==" not in line]
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, unpacked into a folder without its dependencies."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(REPOSITORY / "casestudies_lib", folder / "source" / "casestudies_lib")
    for name in ("pyproject.toml", "LICENSE", "LICENSE-TEXT.md"):
        shutil.copy(REPOSITORY / name, folder / "source")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-q"]
    subprocess.run([*command, "-w", folder, folder / "source"], check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    zipfile.ZipFile(path).extractall(folder / "site")
    return folder / "site"


def test_every_probe_imports_with_only_what_the_package_declares(wheel, tmp_path):
    declared = closure([*PROJECT["dependencies"], PROJECT["name"]])
    owners = metadata.packages_distributions()
    hidden = [top for top, owner in owners.items() if not {normalised(o) for o in owner} & declared]
    assert {"papermill", "pydantic", "tokenizers", "typer"} <= set(hidden)
    code = IMPORTING.format(folder=str(wheel), hidden=set(hidden), names=NAMES)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_every_import_of_the_library_is_of_something_that_the_package_declares():
    declared = closure([*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["book"], PROJECT["name"]])
    owners = metadata.packages_distributions()
    imported = set()
    for path in (REPOSITORY / "casestudies_lib").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(node.module.split(".")[0])
    foreign = imported - set(sys.stdlib_module_names) - {"casestudies_lib"}
    assert {"torch", "papermill", "altair"} <= foreign
    assert [name for name in foreign if not {normalised(owner) for owner in owners[name]} & declared] == []


def test_what_the_package_declares_is_locked_and_not_newer_than_the_lock():
    lock = dict(re.findall(r"^([\w.-]+)==([\w.]+)$", (REPOSITORY / "requirements.lock").read_text(), re.MULTILINE))
    lock = {normalised(name): version for name, version in lock.items()}
    for line in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["book"]:
        name, bound = re.fullmatch(r"([\w.-]+)>=([\d.]+)(?:,<\d+)?", line).groups()
        version = lock[normalised(name)]
        numbers = [[int(part) for part in re.findall(r"\d+", text)] for text in (bound, version)]
        assert numbers[0] <= numbers[1], line


def test_make_lab_offers_the_chapters_and_the_books_own_kernel(tmp_path):
    """A foreign kernel of the same name, which does not start, must not be the one that is taken."""
    kernel = tmp_path / "kernels" / "python3" / "kernel.json"
    kernel.parent.mkdir(parents=True)
    kernel.write_text(json.dumps({"argv": ["/bin/false"], "display_name": "x", "language": "python"}))
    flags = "--no-browser --allow-root --ServerApp.port=0 --ServerApp.ip=127.0.0.1 --IdentityProvider.token=t"
    process = subprocess.Popen(
        ["make", "lab", f"LAB_FLAGS={flags}"], cwd=REPOSITORY, env=os.environ | {"JUPYTER_DATA_DIR": str(tmp_path)},
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        lines = iter(process.stderr.readline, "")
        address = next(match[0] for line in lines if (match := re.search(r"http://127\.0\.0\.1:\d+/", line)))

        def ask(path):
            request = urllib.request.Request(f"{address}api/{path}", headers={"Authorization": "token t"})
            for _ in range(100):  # it prints its address a moment before it listens
                with contextlib.suppress(urllib.error.URLError):
                    return json.loads(urllib.request.urlopen(request, timeout=30).read())
                time.sleep(0.1)

        listed = {entry["name"] for entry in ask("contents")["content"]}
        assert {path.name for path in (REPOSITORY / "notebooks").glob("[0-9]_*.ipynb")} <= listed
        specification = ask("kernelspecs")["kernelspecs"]["python3"]["spec"]
        assert Path(specification["argv"][0]).name.startswith("python")
    finally:
        os.killpg(process.pid, 15)
        process.wait(20)
        process.stderr.close()
