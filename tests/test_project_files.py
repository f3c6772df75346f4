"""The files that set the project up agree with each other and say nothing of the machine they were written on."""

import re
import shlex
import subprocess
import sys
import tomllib

import yaml

from casestudies_lib import __version__, paths

PIN = re.compile(r"([A-Za-z0-9_.-]+)==([^\s#]+)")


def text_of(name: str) -> str:
    return (paths.root() / name).read_text(encoding="utf-8")


def pins(text: str) -> dict[str, str]:
    return {name.lower().replace("_", "-"): version for name, version in PIN.findall(text)}


def test_every_pin_of_the_conda_environment_equals_the_lock():
    environment = yaml.safe_load(text_of("environment.yml"))
    lock = pins(text_of("requirements.lock"))
    listed = pins("\n".join(environment["dependencies"][-1]["pip"]))
    assert len(listed) == len(environment["dependencies"][-1]["pip"])
    assert {name: lock.get(name) for name in listed} == listed


def test_every_pin_of_the_conda_environment_names_its_user():
    lines = [line for line in text_of("environment.yml").splitlines() if "==" in line]
    assert lines
    assert all(re.search(r"# \w+", line) for line in lines)


def test_the_lock_is_exact_and_names_torch_without_a_local_version():
    lines = [line for line in text_of("requirements.lock").splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(PIN, line) for line in lines)
    assert "+" not in pins(text_of("requirements.lock"))["torch"]


def test_continuous_integration_calls_the_command_of_the_readme():
    assert "make test" in text_of(".ci/run")
    assert "bash .ci/run" in text_of(".github/workflows/ci.yml")
    assert {"make book", "make test"} <= set(re.findall(r"make \w+", text_of("README.md")))


def steps_of(workflow: str, job: str) -> list[str]:
    content = yaml.safe_load(text_of(f".github/workflows/{workflow}.yml"))
    return [step["run"] for step in content["jobs"][job]["steps"] if "run" in step]


def test_the_weekly_run_starts_from_scratch_on_locked_and_newest_versions_and_asks_the_evidence():
    job = yaml.safe_load(text_of(".github/workflows/weekly.yml"))["jobs"]["fresh"]
    assert job["strategy"]["matrix"]["versions"] == ["locked", "newest"]
    assert {"make newest", "make book", ".venv/bin/casebook evidence check", "make test"} <= set(
        steps_of("weekly", "fresh")
    )


def test_what_is_published_knows_its_address_and_links_its_pdfs():
    (build,) = [step for step in steps_of("publish", "book") if "casebook build" in step]
    assert "--pdf" in build
    assert "--base-url" in build


def test_the_newest_versions_are_those_of_every_direct_package_that_the_site_does_not_hold_back():
    recipe = subprocess.run(
        ["make", "-n", "newest"], cwd=paths.root(), capture_output=True, text=True, check=True
    ).stdout
    command = next(line for line in recipe.splitlines() if line.startswith("sed ")).partition(" > ")[0]
    chosen = subprocess.run(
        ["bash", "-c", command], cwd=paths.root(), capture_output=True, text=True, check=True
    ).stdout
    listed = pins(text_of("environment.yml"))
    assert {pin.partition("==")[0].lower().replace("_", "-") for pin in chosen.split()} == set(listed)
    assert "torch" in chosen.split()
    assert f"Sphinx=={listed['sphinx']}" in chosen.split()


def test_make_offers_every_target_that_is_spoken_of():
    offered = set(re.findall(r"^([a-z-]+):", text_of("Makefile"), re.MULTILINE))
    pages = [path.read_text(encoding="utf-8") for path in paths.book().glob("*.md")] + [text_of("README.md")]
    spoken = set(re.findall(r"^\s*(?:\$ )?make ([a-z-]+)", "\n".join(pages), re.MULTILINE))
    spoken |= set(re.findall(r"`make ([a-z-]+)`", "\n".join(pages)))
    assert spoken
    assert spoken <= offered


def test_the_commit_hook_leaves_the_committed_notebooks_as_they_are(tmp_path):
    hooks = {hook["id"]: hook for hook in yaml.safe_load(text_of(".pre-commit-config.yaml"))["repos"][0]["hooks"]}
    arguments = shlex.split(hooks["nbstripout"]["entry"])[1:]
    for path in sorted(paths.notebooks().glob("*.ipynb")):
        copy = tmp_path / path.name
        copy.write_bytes(path.read_bytes())
        subprocess.run([sys.executable, *arguments, str(copy)], check=True)
        assert copy.read_text(encoding="utf-8") == path.read_text(encoding="utf-8"), path.name


def test_the_version_stands_once_in_code_and_once_in_the_package():
    assert tomllib.loads(text_of("pyproject.toml"))["project"]["version"] == __version__


def test_no_tracked_file_names_a_path_of_the_machine_it_was_written_on():
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=paths.root(), capture_output=True, text=True, check=False)
    names = [name for name in listing.stdout.split("\0") if name and (paths.root() / name).is_file()]
    here = str(paths.root())
    found = [name for name in names if here.encode() in (paths.root() / name).read_bytes()]
    assert len(here) > 1
    assert not found
