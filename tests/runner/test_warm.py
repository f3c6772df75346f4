"""A forked kernel shows what a new one shows, shares no randomness, and never outlives who asked for it."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from pathlib import Path

import nbformat
import psutil
import pytest

from casestudies_lib.runner import execute, warm_process, warm_provisioner
from casestudies_lib.runner.chapters import all_chapters
from casestudies_lib.runner.jobs import prepare

FIGURE = "import matplotlib.pyplot as plt\nplt.figure(figsize=(2, 1)); plt.plot([1, 3, 2]); plt.show()"
SHOWS = (
    "import torch, numpy; torch.arange(6).reshape(2, 3), torch.get_num_threads(), numpy.linspace(0, 1, 3)",
    FIGURE,
    "import sys; print('stdout'); print('stderr', file=sys.stderr); sys.argv[0], sys.path, len(sys.argv)",
    "import os; os.getcwd(), sorted(name for name in os.environ if name not in ('CI', 'JPY_SESSION_NAME'))",
    "%matplotlib inline\nplt.figure(figsize=(2, 1)); plt.plot([1, 2]);",
    "import __main__, pickle, threading; __main__.__name__, os.getsid(0) == os.getpid(), threading.active_count() > 1",
    "import matplotlib; matplotlib.get_backend(), plt.get_backend()",
    "try:\n    input()\nexcept Exception as error:\n    print(type(error).__name__)",
)
DRAWS = "import random, numpy, torch; print(random.random(), numpy.random.rand(), torch.rand(1).item())"
STUBBORN = 'import re; re.match(r"(a+)+$", "a" * 64 + "b")'


@pytest.fixture
def local(monkeypatch):
    """This process and those it starts are at somebody's desk, whatever runs the tests."""
    monkeypatch.delenv("CI", raising=False)


def run_one(book, **variables) -> tuple[list[dict], dict]:
    """Run the chapter; returns its cells and its provenance."""
    done = book.casebook("run", "tiny", "--fresh", env=book.environment | variables)
    assert done.returncode == 0, done.stderr
    cells = nbformat.read(book.runs / "tiny" / "notebook.ipynb", 4).cells
    return cells, json.loads((book.runs / "tiny" / "provenance.json").read_text())


def test_a_forked_kernel_shows_what_a_new_one_shows_figures_included(book, local):
    book.write_chapter("tiny", SHOWS)
    forked, about_forked = run_one(book)
    new, about_new = run_one(book, CI="1")
    assert (about_forked["kernel"], about_new["kernel"]) == ("forked", "new process")
    assert [cell.get("outputs") for cell in forked] == [cell.get("outputs") for cell in new]
    assert [cell.get("execution_count") for cell in forked] == [cell.get("execution_count") for cell in new]
    outputs = [output for cell in forked for output in cell.get("outputs", [])]
    pictures = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 2
    assert about_forked["not_cached"] == about_new["not_cached"] == []
    assert set(about_new["inputs"]) <= set(about_forked["inputs"])


def test_what_a_new_kernel_ran_is_served_where_kernels_are_forked(book, local):
    run_one(book, CI="1")
    done = book.casebook("run", "tiny")
    assert "nothing it read has changed" in done.stderr


def test_forked_kernels_share_no_random_states(book, local):
    for number, slug in enumerate(("tiny", "second"), start=1):
        book.write_chapter(slug, (DRAWS,), number=number)
    execute.run_side_by_side([prepare(chapter) for chapter in all_chapters()])
    drawn = []
    for slug in ("tiny", "second"):
        assert json.loads((book.runs / slug / "provenance.json").read_text())["kernel"] == "forked"
        drawn.append(nbformat.read(book.runs / slug / "notebook.ipynb", 4).cells[2].outputs[0].text.split())
    assert [one for one, other in zip(*drawn) if one == other] == []
    assert book.survivors() == []


@pytest.mark.parametrize(
    ("obstacle", "says"),
    [
        ("hasattr", "this system has no fork"),
        ("platform", "only Linux forks a process safely once PyTorch is loaded"),
    ],
)
def test_where_a_process_cannot_be_forked_kernels_start_anew_and_that_is_said(book, local, monkeypatch, obstacle, says):
    if obstacle == "hasattr":
        monkeypatch.delattr(os, "fork")
    else:
        monkeypatch.setattr(warm_process.sys, "platform", "darwin")
    assert warm_process.obstacle() == says
    monkeypatch.undo()
    monkeypatch.setenv("CASEBOOK_ROOT", str(book.root))
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr(execute, "obstacle", lambda: says)
    said = []
    execute.run_side_by_side([prepare(all_chapters()[0])], warn=said.append)
    assert said == [f"kernels start cold: {says}"]
    assert json.loads((book.runs / "tiny" / "provenance.json").read_text())["kernel"] == "new process"


def test_a_warm_process_that_must_not_fork_is_said_and_the_chapter_runs(book, local, monkeypatch):
    """A file beside the chapters stands in for a package that starts a thread when it is imported."""
    (book.root / "notebooks" / "matplotlibrc").write_text("lines.linewidth: 3\n")
    book.write_chapter("tiny", ("open('matplotlibrc', 'a').close()",))
    monkeypatch.setattr(execute, "warm_process", unfit)
    said = []
    execute.run_side_by_side([prepare(all_chapters()[0])], warn=said.append)
    assert said == ["tiny: its kernel started cold: imported packages run 2 threads"]
    assert read_provenance(book)["kernel"] == "new process"


def unfit(folder, root):
    """Lend an address at which nobody will ever answer."""
    import contextlib
    import tempfile
    from pathlib import Path

    @contextlib.contextmanager
    def lend():
        with tempfile.TemporaryDirectory() as scratch:
            (Path(scratch) / "unfit").write_text("imported packages run 2 threads")
            yield Path(scratch) / "kernels"

    return lend()


def read_provenance(book) -> dict:
    return json.loads((book.runs / "tiny" / "provenance.json").read_text())


@pytest.mark.parametrize("cell", ["import os; os.kill(os.getpid(), 9)", "import os; os._exit(3)"])
def test_the_death_of_a_forked_kernel_is_noticed_at_once(book, local, cell):
    book.write_chapter("tiny", (cell,))
    begun = time.monotonic()
    done = book.casebook("run", "tiny")
    assert done.returncode == 1
    assert "the kernel died in code cell 2" in done.stderr
    assert time.monotonic() - begun < 40
    assert book.survivors() == []


DAEMON = """\
import subprocess, sys
code = "import os, time\\nif os.fork() == 0:\\n    os.setsid()\\n    if os.fork() == 0: time.sleep(617)"
subprocess.run([sys.executable, "-c", code], env={})
import multiprocessing
multiprocessing.get_context("fork").Process(target=__import__("time").sleep, args=(618,)).start()
print("started")
"""


def sleepers() -> list[psutil.Process]:
    """Return what the daemon cell leaves behind; one of them has no environment to be known by."""
    found = []
    for process in psutil.process_iter():
        try:
            if "time.sleep(617)" in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_a_child_that_left_everything_behind_is_ended_with_its_forked_kernel(book, local):
    book.write_chapter("tiny", (DAEMON,))
    done = book.casebook("run", "tiny")
    assert done.returncode == 0, done.stderr
    assert read_provenance(book)["kernel"] == "forked"
    assert sleepers() == []
    assert book.survivors() == []


def into_a_cell(book):
    """Start `casebook run` and return once its forked kernel is inside a cell that holds the interpreter lock."""
    book.write_chapter("tiny", ("print('here', flush=True)", STUBBORN))
    process = book.start("run", "tiny")
    deadline = time.monotonic() + 40
    while "code cell 3" not in (line := process.stderr.readline()) and time.monotonic() < deadline and line:
        pass
    return process


@pytest.fixture
def in_a_cell(book, local):
    """A `casebook run` whose forked kernel is inside a cell that holds the interpreter lock."""
    return book, into_a_cell(book)


@pytest.mark.fault("The process that kernels are forked from is killed by SIGKILL while a cell runs")
def test_the_death_of_the_warm_process_fails_the_run_and_costs_nothing_else(book, local, observed):
    assert book.casebook("run", "tiny").returncode == 0
    folder = book.runs / "tiny"
    assert read_provenance(book)["kernel"] == "forked"
    earlier, process = book.stored_in(folder), into_a_cell(book)
    (warm,) = [p for p in book.survivors() if runs(p, "runner.warm_server")]
    warm.kill()
    status, said = process.wait(15), book.messages(process.stderr.read())
    proof = [book.spared(folder, earlier), book.all_ended(5)]
    book.write_chapter("tiny", ("print('here', flush=True)",))
    proof += [book.runs_again("run", "tiny"), book.one_whole_result(folder)]
    observed(said, status, proof, {book.root: "BOOK"})


@pytest.mark.parametrize("victim", ["runner.warm_server", "runner.worker"])
def test_nothing_survives_when_a_part_of_the_machinery_is_killed(in_a_cell, victim):
    book, process = in_a_cell
    (killed,) = [p for p in book.survivors() if runs(p, victim)]
    killed.kill()
    assert process.wait(15) == 1
    assert book.wait_until_alone(5) == []


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_no_forked_kernel_survives_a_signal_to_casebook(in_a_cell, number, status):
    book, process = in_a_cell
    process.send_signal(number)
    assert process.wait(10) == status
    assert book.wait_until_alone(5) == []


def runs(process: psutil.Process, module: str) -> bool:
    """Return whether a process is the one that runs this module, not its guard and not a fork of it."""
    try:
        line = " ".join(process.cmdline())
        parent = " ".join(process.parent().cmdline()) if process.parent() else ""
        return module in line and "runner.guard" not in line and not ("warm_server" in parent and "guard" not in parent)
    except psutil.Error:
        return False


CLIENT = textwrap.dedent(
    """
    import json, os, sys, time
    from jupyter_client.manager import start_new_kernel
    from casestudies_lib.runner.warm_provisioner import ForkedKernel
    kinds = []
    for turn in range(2):
        manager, client = start_new_kernel(kernel_name="python3")
        kinds.append(type(manager.provisioner.process).__name__)
        client.execute_interactive("x = 6 * 7", store_history=False)
        shown = []
        client.execute_interactive(
            "print(x, __import__('torch').get_num_threads())",
            output_hook=lambda message: shown.append(message["content"].get("text", "")),
        )
        if turn:
            manager.interrupt_kernel()
            manager.restart_kernel(now=True)
            client.wait_for_ready(timeout=60)
            kinds.append(type(manager.provisioner.process).__name__)
            if len(sys.argv) > 1:
                print("ready", flush=True)
                time.sleep(600)
        client.stop_channels()
        manager.shutdown_kernel(now=turn == 1)
        from casestudies_lib.runner import warm_provisioner
        deadline = time.monotonic() + 60
        while not warm_provisioner._ready(warm_provisioner._own[0]) and time.monotonic() < deadline:
            time.sleep(0.1)
    print(json.dumps([kinds, shown]))
    """
)


@pytest.fixture
def jupyter(book, local):
    """The environment of any program of Jupyter's that uses the provisioner by its name, one thread as recommended."""
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return book.environment | threads | {"JUPYTER_DEFAULT_PROVISIONER_NAME": "casebook-warm"}


def test_any_program_of_jupyter_gets_forked_kernels_by_the_provisioners_name(book, jupyter):
    """The first kernel does not wait for the imports; the next ones, and a restarted one, are forked."""
    done = subprocess.run([sys.executable, "-c", CLIENT], env=jupyter, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    kinds, shown = json.loads(done.stdout.splitlines()[-1])
    assert kinds == ["Popen", "ForkedKernel", "ForkedKernel"]
    assert "".join(shown) == "42 1\n"
    assert book.wait_until_alone(5) == []


def test_no_kernel_and_no_warm_process_outlives_a_program_that_is_killed(book, jupyter):
    client = subprocess.Popen([sys.executable, "-c", CLIENT, "stay"], env=jupyter, stdout=subprocess.PIPE, text=True)
    book.started.append(client)
    assert client.stdout.readline() == "ready\n"
    assert len(book.survivors()) >= 3
    client.send_signal(signal.SIGKILL)
    client.wait(5)
    assert book.wait_until_alone(5) == []


def test_only_python_kernels_of_this_environment_are_forked():
    assert warm_provisioner._is_ours([sys.executable, "-m", "ipykernel_launcher", "-f", "x"])
    assert not warm_provisioner._is_ours(["/usr/bin/R", "-m", "ipykernel_launcher", "-f", "x"])
    assert not warm_provisioner._is_ours([sys.executable, "-m", "another_kernel", "-f", "x"])
    assert not warm_provisioner._is_ours(["/elsewhere/bin/python3.9", "-m", "ipykernel_launcher", "-f", "x"])


@pytest.mark.parametrize("stream", [None, subprocess.PIPE, subprocess.DEVNULL])
def test_asking_for_a_kernel_leaves_no_file_open_but_the_connection(stream):
    def answer() -> None:
        connection, _ = server.accept()
        with connection:
            content, streams, *_ = socket.recv_fds(connection, 65536, 2)
            received.append(len(streams))
            for each in streams:
                os.close(each)
            while not content.endswith(b"\n"):
                content += connection.recv(65536)
            connection.sendall(b'{"pid": 1}\n{"status": 0}\n')

    received: list[int] = []
    # The path of a socket must be short: not pytest's folder.
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as server:
        address = Path(folder) / "s"
        server.bind(str(address))
        server.listen()
        answering = threading.Thread(target=answer)
        answering.start()
        before = psutil.Process().num_fds()
        kernel = warm_provisioner._fork(address, [], {"stdout": stream, "stderr": stream})
        answering.join(10)
        assert received == [2]
        assert kernel.wait(10) == 0
        assert psutil.Process().num_fds() == before
