"""`casebook run` from end to end: a whole result, or one clear line, a non-zero exit and nothing half-written."""

import contextlib
import json
import os
import re
import subprocess
import time
from pathlib import Path

import nbformat
import pytest

from casestudies_lib.runner import results

fault = pytest.mark.fault
RESULT_FILES = {"notebook.ipynb", "verdicts.json", "provenance.json"}


def files_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def only_line(done: subprocess.CompletedProcess) -> str:
    """Return the error line, which must be the only one that is not progress."""
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if not re.match(r"\w+: \d+/\d+ cells, ", line)]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.fixture(scope="module")
def stored(finished):
    assert finished.completed.returncode == 0, finished.completed.stderr
    return finished.runs / "tiny"


def test_a_run_leaves_exactly_the_three_files_of_a_result(stored):
    assert files_in(stored) == RESULT_FILES
    assert [entry["id"] for entry in results.read_result(stored).verdicts] == ["T1", "T2"]


def test_json_output_is_pure_and_says_where_the_result_is(finished, stored):
    printed = json.loads(finished.completed.stdout)
    assert printed["folder"] == str(stored)
    assert printed["verdicts"] == json.loads((stored / "verdicts.json").read_text())


def test_progress_names_each_cell_on_standard_error(finished):
    lines = finished.completed.stderr.splitlines()
    assert [line.split(",")[0] for line in lines[:5]] == [f"tiny: {done}/5 cells" for done in range(5)]
    assert "code cell 1 (`seed = 0" in lines[0]


def test_the_kernel_has_one_thread_and_starts_in_the_notebooks_folder(finished, stored):
    cells = nbformat.read(stored / "notebook.ipynb", 4).cells
    assert cells[2].outputs[0].text == "1\n"
    assert cells[3].outputs[0].data["text/plain"] == repr(str(finished.root / "notebooks"))


def test_provenance_says_what_ran_on_what(stored):
    provenance = json.loads((stored / "provenance.json").read_text())
    assert provenance["chapter"] == "tiny"
    assert provenance["parameters"]["optimiser"] == "adam"
    assert provenance["threads"] == 1
    assert provenance["cells"] == 5
    assert provenance["torch"].startswith("2.")
    assert provenance["peak_memory_mb"] > 10
    assert {"code cells", "parameters", "requirements.lock", "data/reports/tiny.toml"} <= provenance["inputs"].keys()
    assert {"python", "platform", "casebook", "started", "seconds"} <= provenance.keys()


def test_no_secret_of_the_environment_reaches_a_result(finished, stored):
    assert finished.secret
    assert not [path for path in stored.iterdir() if finished.secret.encode() in path.read_bytes()]


def test_the_users_own_kernels_and_plot_settings_do_not_matter(stored):
    """The fixture sets a plot backend, and a kernel named python3 that does not start."""
    cells = nbformat.read(stored / "notebook.ipynb", 4).cells
    assert cells[4].outputs[0].text == "module://matplotlib_inline.backend_inline\n"


HOSTILE = '__import__("os").system("touch pwned")\n"""; import os; os.system(\'touch pwned\') #\\" {seed}'


def test_a_hostile_text_stays_a_text_and_does_not_replace_the_default_run(ran):
    before = (ran.runs / "tiny" / "provenance.json").read_bytes()
    ran.write_chapter("tiny", ("note",))
    done = ran.casebook("run", "tiny", "-p", f"note={HOSTILE}", "--json")
    assert done.returncode == 0, done.stderr
    folder = Path(json.loads(done.stdout)["folder"])
    assert folder.parent == ran.runs
    assert re.fullmatch(r"tiny--[0-9a-f]{10}", folder.name)
    shown = nbformat.read(folder / "notebook.ipynb", 4).cells[3].outputs[0].data["text/plain"]
    assert eval(shown, {"__builtins__": {}}) == HOSTILE
    assert not list(ran.root.rglob("pwned"))
    assert (ran.runs / "tiny" / "provenance.json").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "tyni"], "no chapter 'tyni'; did you mean tiny?"),
        (["run", "tiny", "-p", "sed=1"], "unknown parameter 'sed'; did you mean seed?"),
        (["run", "tiny", "-p", "a=1;import os=1"], "unknown parameter 'a'"),
        (["run", "tiny", "-p", "n_seeds=many"], "n_seeds = 'many' is not a whole number"),
        (["run", "tiny", "-p", "n_seeds=4"], "allowed: 5 to 64 (seeds; paired seeds for every effect)"),
        (["run", "tiny", "-p", "records=nowhere"], "there is no"),
        (["run", "tiny", "--time-limit", "0"], "--time-limit is 0; give a positive number"),
        (["run", "tiny", "--time-limit", "nan"], "give a positive number"),
        (["run", "tiny", "--cell-limit", "-1"], "--cell-limit is -1"),
        (["run", "tiny", "--time-limit", "soon"], "--time-limit"),
        (["run"], "Missing argument"),
        (["rum"], "No such command 'rum'"),
        (["run", "tiny", "--bogus"], "No such option"),
    ],
)
def test_a_wrong_command_is_one_line_before_any_kernel_starts(book, arguments, says):
    begun = time.monotonic()
    done = book.casebook(*arguments)
    assert done.returncode == 2
    assert says in only_line(done)
    assert done.stdout == ""
    assert not book.runs.exists()
    assert time.monotonic() - begun < 20


BROKEN = [
    pytest.param(
        lambda book: book.write_chapter("tiny", parameters=None), "1_tiny.ipynb has no parameters cell", id="parameters"
    ),
    pytest.param(
        lambda book: (book.root / "data/reports/tiny.toml").write_text("x ="), "tiny.toml is not valid TOML", id="TOML"
    ),
    pytest.param(lambda book: (book.root / "data/reports/tiny.toml").unlink(), "no report file tiny.toml", id="report"),
]


@pytest.mark.parametrize(("damage", "says"), BROKEN)
def test_a_broken_chapter_is_one_line_before_any_kernel_starts(book, damage, says):
    damage(book)
    done = book.casebook("run", "tiny")
    assert done.returncode == 2
    assert says in only_line(done)
    assert not book.runs.exists()


@fault("A notebook is not valid JSON")
def test_a_notebook_that_is_no_json_is_one_line_before_any_kernel_starts(ran, observed):
    earlier = ran.stored_in(ran.runs / "tiny")
    path = ran.root / "notebooks" / "1_tiny.ipynb"
    whole = path.read_text()
    path.write_text('{"cells": [')
    done = ran.casebook("run", "tiny")
    assert "1_tiny.ipynb is not valid JSON" in only_line(done)
    assert "cells, " not in done.stderr
    shown = ran.casebook("verdicts", "--json")
    assert (shown.returncode, json.loads(shown.stdout)) == (1, [])
    path.write_text(whole)
    proof = [
        ran.spared(ran.runs / "tiny", earlier),
        "no kernel was started",
        "`casebook verdicts` shows none of this chapter",
    ]
    observed(only_line(done), done.returncode, proof, {ran.root: "BOOK"})


STUBBORN = 'import re; re.match(r"(a+)+$", "a" * 64 + "b")'  # holds the interpreter lock for ever
FAILING = [
    pytest.param(
        "1 / 0", [], "code cell 2 (`1 / 0`) raised ZeroDivisionError: division by zero",
        marks=fault("A cell raises an error"), id="an error",
    ),
    pytest.param(
        "import sys; sys.exit(0)", [], "code cell 2 (`import sys; sys.exit(0)`) raised SystemExit: 0",
        marks=fault("A cell calls sys.exit(0)"), id="a clean exit",
    ),
    pytest.param(
        "import os; os.kill(os.getpid(), 9)", [], "the kernel died in code cell 2 (`import os;",
        marks=fault("A cell's kernel is killed (SIGKILL)"), id="a killed kernel",
    ),
    pytest.param(
        STUBBORN, ["--time-limit", "8"], "time limit of 8 s reached in code cell 2 (`import re;",
        marks=fault("A cell never ends and holds the interpreter lock"), id="an endless cell",
    ),
    pytest.param(
        "import time; time.sleep(600)", ["--cell-limit", "1"], "cell limit of 1 s reached in code cell 2",
        marks=fault("A cell never ends"), id="a slow cell",
    ),
    pytest.param(
        "for _ in range(100): print('x' * 10**6)", [], "too much output in code cell 2",
        marks=fault("A cell prints 100 MB"), id="too much output",
    ),
    pytest.param("raise ValueError('x' * 2**24)", [], "too much output in code cell 2", id="a long error"),
    pytest.param("display({'application/json': ['x'] * 2**21}, raw=True)", [], "too much output", id="long JSON"),
]  # fmt: skip


@pytest.mark.parametrize(("cell", "options", "says"), FAILING)
def test_a_failed_run_names_the_cell_keeps_its_notebook_and_spares_the_earlier_result(
    ran, request, cell, options, says
):
    ran.write_chapter("tiny", (cell, "'never reached'"))
    folder = ran.runs / "tiny"
    earlier = ran.stored_in(folder)
    begun = time.monotonic()
    done = ran.casebook("run", "tiny", *options)
    assert time.monotonic() - begun < 30
    assert done.returncode == 1
    line = only_line(done)
    assert says in line
    assert f"rerun with: casebook run tiny{' ' * bool(options)}{' '.join(options)}" in line
    partial = folder / "notebook.failed.ipynb"
    assert f"partial notebook: {partial}" in line
    cells = nbformat.read(partial, 4).cells
    assert (cells[1].execution_count, cells[-1].execution_count) == (1, None)
    assert files_in(folder) == RESULT_FILES | {"notebook.failed.ipynb"}
    proof = [ran.spared(folder, earlier), "the notebook is kept as far as it came", ran.all_ended()]
    if request.node.get_closest_marker("fault"):
        request.getfixturevalue("observed")(line, done.returncode, proof, {ran.root: "BOOK"})


def test_a_run_without_all_its_verdicts_is_a_failure(book):
    book.write_report("tiny", ("T1", "T2", "T3"))
    done = book.casebook("run", "tiny")
    assert done.returncode == 1
    assert "no verdict for T3; judge each claim of tiny.toml once" in only_line(done)
    assert files_in(book.runs / "tiny") == {"notebook.failed.ipynb"}


def test_a_path_parameter_is_taken_from_the_callers_folder(book, tmp_path):
    (tmp_path / "some records.txt").write_text("1 2 3")
    book.write_chapter("tiny", ("print(records)",))
    done = book.casebook("run", "tiny", "-p", "records=some records.txt", "--out", "there {x}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    cells = nbformat.read(tmp_path / "there {x}" / "notebook.ipynb", 4).cells
    assert cells[3].outputs[0].text == f"{tmp_path / 'some records.txt'}\n"
    provenance = json.loads((tmp_path / "there {x}" / "provenance.json").read_text())
    assert "files of parameter records" in provenance["inputs"]


def test_an_output_folder_below_a_file_is_refused(book):
    (book.root / "file").write_text("")
    done = book.casebook("run", "tiny", "--out", "file/below")
    assert done.returncode == 1
    assert re.search(r"cannot write to .*/file/below \(Not a directory\); nothing was stored: choose", only_line(done))


@contextlib.contextmanager
def mounted(folder: Path, options: str):
    """Mount a small filesystem of its own, which root is held to like everybody else."""
    folder.mkdir()
    # A user who may call sudo without a password, as on many CI machines, mounts through it.
    become_root = [] if os.getuid() == 0 else ["sudo", "-n"]
    command = [*become_root, "mount", "-t", "tmpfs", "-o", f"{options},uid={os.getuid()}", "tmpfs", folder]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
        refused = done.stderr.strip() if done.returncode else ""
    except FileNotFoundError as error:
        refused = str(error)
    if refused:
        pytest.skip(f"this user may not mount a filesystem: {refused}")
    try:
        yield folder
    finally:
        subprocess.run([*become_root, "umount", "-l", folder], check=True)


@fault("The output folder is read-only")
def test_a_read_only_output_folder_is_refused_before_any_kernel_starts(book, tmp_path, observed):
    with mounted(tmp_path / "ro", "size=1m,ro") as folder:
        done = book.casebook("run", "tiny", "--out", folder / "out")
        assert "Read-only file system" in only_line(done)
        assert "cells, " not in done.stderr
        proof = [book.nothing_stored(folder), "no kernel was started", book.all_ended()]
        observed(only_line(done), done.returncode, proof, {folder: "DISK"})


@fault("The disk is full from the start")
def test_a_disk_that_is_full_from_the_start_is_one_line(book, tmp_path, observed):
    with mounted(tmp_path / "small", "size=64k") as folder:
        with contextlib.suppress(OSError), (folder / "filler").open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)
        done = book.casebook("run", "tiny", "--out", folder / "out")
        assert re.search("the disk of .* is full; nothing was stored", only_line(done))
        assert files_in(folder) == {"filler"}
        (folder / "filler").unlink()
        observed(only_line(done), done.returncode, [book.nothing_stored(folder), book.all_ended()], {folder: "DISK"})


@fault("The disk fills while a chapter runs")
def test_a_disk_that_fills_while_the_notebook_is_saved_leaves_nothing_half_written(book, tmp_path, observed):
    book.write_chapter("tiny", ("print('x' * 10**6)",))
    with mounted(tmp_path / "small", "size=900k") as folder:
        done = book.casebook("run", "tiny", "--out", folder / "out")
        assert "is full; nothing was stored: make room, or choose another folder with --out" in only_line(done)
        assert files_in(folder) == set()
        observed(only_line(done), done.returncode, [book.nothing_stored(folder), book.all_ended()], {folder: "DISK"})


def test_a_disk_with_room_takes_the_same_run(book, tmp_path):
    book.write_chapter("tiny", ("print('x' * 10**6)",))
    with mounted(tmp_path / "large", "size=20m") as folder:
        done = book.casebook("run", "tiny", "--out", folder / "out")
        assert done.returncode == 0, done.stderr
        assert files_in(folder / "out") == RESULT_FILES


@fault("Two runs of one chapter at once")
def test_two_runs_into_one_folder_at_once_leave_one_whole_result_and_no_trace_of_an_earlier_failure(book, observed):
    (book.runs / "tiny").mkdir(parents=True)
    (book.runs / "tiny" / "notebook.failed.ipynb").write_text("{}")
    started = [book.start("run", "tiny") for _ in range(2)]
    statuses, said = [process.wait(60) for process in started], [process.stderr.read() for process in started]
    assert statuses == [0, 0], said
    lines = {re.sub(r"\([0-9.]+ s\)", "(S s)", book.messages(text)) for text in said}
    proof = [book.one_whole_result(book.runs / "tiny"), "both runs succeed", book.all_ended()]
    observed("\n".join(lines), max(statuses), proof, {book.root: "BOOK"})


def test_the_message_for_a_full_disk_belongs_to_that_error_only():
    """`/dev/full` takes no byte."""
    with pytest.raises(OSError, match="No space") as full, Path("/dev/full").open("wb", buffering=0) as file:
        os.write(file.fileno(), b"x")
    assert "is full" in results.unwritable(Path("out"), full.value)
    assert "is full" not in results.unwritable(Path("out"), PermissionError(13, "Permission denied"))
