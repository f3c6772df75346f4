"""Sweeps on the real tools: Dask's own scheduler and workers, processes that are killed, and rows that fail."""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from casestudies_lib.runner import sweep_cluster, sweep_rows
from casestudies_lib.runner.sweep_rows import BadRow

fault = pytest.mark.fault
DASK = Path(sys.executable).parent / "dask"
PATIENCE = 60.0
# A line for each time that a row really runs.
LOGGED = "with open('../ran.txt', 'a') as log: print(rate, seed, file=log)"
MEASURING = """\
from IPython.display import display
verdicts = {verdicts!r}
measured = [
    {{"chapter": "tiny", "claim": "T1", "measure": "way", "unit": "1", "setting": {{"arm": arm}}, "seed": each,
     "value": rate * each}}
    for arm in ("fault", "fix") for each in range(seed, seed + n_seeds)
]
display({{"application/vnd.casebook.verdicts+json": verdicts, "application/vnd.casebook.measurements+json": measured,
         "text/plain": "evidence"}}, raw=True)
"""


def verdict(claim):
    return {
        "id": claim, "chapter": "tiny", "kind": "identity", "verdict": "upheld", "says": "it holds",
        "measure": "largest difference", "unit": "1", "value": 0.0, "low": 0.0, "high": 0.0, "n": 1, "seeds": [],
        "control": None, "rule": "upheld if <= 0.01; refuted if >= 0.1", "reason": "hand-made",
    }  # fmt: skip


def write_chapter(book, *cells):
    book.write_chapter("tiny", (*cells, LOGGED), last=MEASURING.format(verdicts=[verdict("T1"), verdict("T2")]))


def ran(book):
    path = book.root / "ran.txt"
    return sorted(path.read_text().splitlines()) if path.exists() else []


def table(book):
    (path,) = (book.root / "_build" / "sweeps" / "tiny").glob("*.parquet")
    return pq.read_table(path, use_threads=False).to_pylist()


def rows_on_disk(book):
    return list((book.root / "_build" / "sweeps" / "tiny" / "rows").glob("*.json"))


def messages(stderr):
    """Return what a sweep says beside progress, without what differs between runs."""
    # Python's own tracker of semaphores outlives a kill by a moment, and says that it tidied up.
    beside = re.compile(r"tiny: \d+/\d+ rows, [0-9.]+ s[^:]*|.*resource_tracker.*|  warnings\.warn\(.*")
    lines = [line for line in stderr.splitlines() if not beside.fullmatch(line)]
    return re.sub(r"[0-9.]+ s\b", "S s", re.sub(r"\b[0-9a-f]{10}\b", "NAME", "\n".join(lines)))


def until(condition, what, seconds=PATIENCE):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return
        time.sleep(0.05)
    pytest.fail(f"{what} did not happen within {seconds:.0f} s")


def command(process):
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


class Cluster:
    """A `dask scheduler` and its `dask worker`s, as a user starts them."""

    def __init__(self, book, tmp_path, *options):
        self.book, self.folder, self.options = book, tmp_path, options
        file = tmp_path / "scheduler.json"
        self.processes = []
        self.scheduler = self._start(
            "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(file)
        )
        until(lambda: file.exists() and file.read_text(), "the scheduler's start")
        self.address = json.loads(file.read_text())["address"]

    def _start(self, *arguments):
        process = subprocess.Popen(
            [DASK, *arguments, *self.options], env=self.book.environment, cwd=self.folder, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self.processes.append(process)
        return process

    def worker(self):
        return self._start(
            "worker", self.address, "--nthreads", "1", "--no-nanny", "--no-dashboard", "--death-timeout", "20"
        )

    def end(self):
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture
def cluster(book, tmp_path):
    cluster = Cluster(book, tmp_path)
    yield cluster
    cluster.end()


def row_process_of(worker):
    """Return the processes of the row that a worker runs."""
    return [p for p in psutil.Process(worker.pid).children(recursive=True) if "ipykernel" in command(p)]


def test_a_sweep_leaves_a_tidy_table_with_provenance_and_a_second_one_runs_nothing(book):
    write_chapter(book)
    done = book.casebook("sweep", "tiny", "--grid", "rate=0.2,0.3", "--seeds", "0:6", "--workers", "2", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["ran"], said["found"], said["failures"]) == (2, 0, {})
    assert ran(book) == ["0.2 0", "0.3 0"]
    lines = table(book)
    verdicts = [(line["param_rate"], line["claim"], line["verdict"]) for line in lines if line["record"] == "verdict"]
    assert verdicts == [(rate, claim, "upheld") for rate in (0.2, 0.3) for claim in ("T1", "T2")]
    measured = [line for line in lines if line["record"] == "measurement"]
    assert [(m["param_rate"], m["setting_arm"], m["seed"], m["value"]) for m in measured] == [
        (rate, arm, seed, rate * seed) for rate in (0.2, 0.3) for arm in ("fault", "fix") for seed in range(6)
    ]
    assert len({line["key"] for line in lines}) == 2
    assert all(line["seconds"] > 0 and line["torch"].startswith("2.") and line["threads"] == 1 for line in lines)
    provenance = said["provenance"]
    assert provenance["command"] == "casebook sweep tiny --grid rate=0.2,0.3 --seeds 0:6 --n-seeds 6"
    assert (provenance["rows"], provenance["failures"], provenance["seeds"]) == (2, 0, [0, 6])
    assert {"code cells", "data/reports/tiny.toml"} <= provenance["inputs"].keys()

    again = book.casebook("sweep", "tiny", "--grid", "rate=0.2,0.3", "--seeds", "0:6", "--json")
    assert (json.loads(again.stdout)["ran"], json.loads(again.stdout)["found"]) == (0, 2)
    assert json.loads(again.stdout)["provenance"] == provenance
    more = book.casebook("sweep", "tiny", "--grid", "rate=0.3,0.4", "--seeds", "0:6", "--json")
    assert (json.loads(more.stdout)["ran"], json.loads(more.stdout)["found"]) == (1, 1)
    assert ran(book) == ["0.2 0", "0.3 0", "0.4 0"]
    fresh = book.casebook("sweep", "tiny", "--grid", "rate=0.2", "--seeds", "0:6", "--fresh", "--json")
    assert (json.loads(fresh.stdout)["ran"], json.loads(fresh.stdout)["found"]) == (1, 0)


def test_nothing_in_a_sweep_names_the_machine_or_the_hour(book):
    write_chapter(book)
    settings = book.environment | {"API_TOKEN": book.secret}
    assert book.casebook("sweep", "tiny", env=settings).returncode == 0
    (parquet,) = (book.root / "_build" / "sweeps" / "tiny").glob("*.parquet")
    shown = json.dumps(table(book)) + parquet.with_suffix(".json").read_text()
    for word in (str(book.root), str(Path.home()), socket.gethostname(), book.secret, time.strftime("%Y-%m-%d")):
        assert word not in shown


@fault("A row of a sweep fails, whenever it is tried")
def test_a_row_that_fails_is_tried_three_times_and_recorded_and_the_rest_goes_on(book, observed):
    write_chapter(book, LOGGED, "assert rate != 0.3, 'the model diverged'")
    done = book.casebook("sweep", "tiny", "--grid", "rate=0.3,0.2", "--workers", "1")
    assert done.returncode == 1
    assert "1 of 2 rows failed; they are in the result with their errors" in done.stderr
    assert ran(book).count("0.3 0") == 3
    (failure,) = [line for line in table(book) if line["record"] == "failure"]
    assert failure["param_rate"] == 0.3
    assert "raised AssertionError: the model diverged" in failure["error"]
    assert str(book.root) not in failure["error"]
    assert {line["param_rate"] for line in table(book) if line["record"] == "verdict"} == {0.2}
    assert list((book.root / "_build" / "sweeps" / "tiny" / "rows").glob("*.failed.ipynb"))
    proof = ["the row was tried three times", "its error stands in the result", "the other row has its result"]
    observed(messages(done.stderr), done.returncode, proof, {book.root: "BOOK"})


def test_edited_code_makes_a_finished_row_run_again(book):
    write_chapter(book)
    assert book.casebook("sweep", "tiny").returncode == 0
    write_chapter(book, "1 + 1")
    assert json.loads(book.casebook("sweep", "tiny", "--json").stdout)["ran"] == 1


def test_two_sweeps_of_the_same_rows_at_once_run_each_of_them_once(book):
    write_chapter(book)
    both = [book.start("sweep", "tiny", "--grid", "rate=0.2,0.3", "--workers", "2") for _ in range(2)]
    assert [process.wait(120) for process in both] == [0, 0], [process.stderr.read() for process in both]
    assert ran(book) == ["0.2 0", "0.3 0"]
    assert len(rows_on_disk(book)) == 2


SLOW = "import os, time\nwhile not os.path.exists('../go'):\n    time.sleep(0.1)"


@fault("A Dask worker is killed by SIGKILL while it runs a row")
def test_the_row_of_a_killed_worker_is_done_by_another(book, cluster, observed):
    """The worker that dies takes its kernel with it, and its row is redone; no other row runs twice."""
    write_chapter(book, LOGGED, SLOW)
    first = cluster.worker()
    sweep = book.start("sweep", "tiny", "--grid", "rate=0.2,0.3", "--scheduler", cluster.address)
    until(lambda: ran(book) == ["0.2 0"], "the first row")
    kernels = row_process_of(first)
    assert kernels
    second = cluster.worker()
    first.kill()
    assert psutil.wait_procs(kernels, timeout=5)[1] == []
    (book.root / "go").touch()
    status, said = sweep.wait(120), sweep.stderr.read()
    assert status == 0, said
    assert sorted(set(ran(book))) == ["0.2 0", "0.3 0"]
    # Twice logged in one run: the cell before the wait, and the one after it. The killed row logged once more.
    assert len(ran(book)) == 5, said
    assert {line["param_rate"] for line in table(book) if line["record"] == "verdict"} == {0.2, 0.3}
    assert second.poll() is None
    proof = ["its kernel ends with it", "another worker does its row again", "no other row runs twice"]
    observed(messages(said), status, proof, {book.root: "BOOK"})


@fault("The Dask scheduler is killed by SIGKILL while a sweep runs")
def test_a_killed_scheduler_is_said_and_the_same_command_goes_on_from_there(book, cluster, observed):
    waits = "    open('../waits', 'w').close()\n    time.sleep(600)"
    write_chapter(book, f"import os, time\nif rate == 0.3 and not os.path.exists('../go'):\n{waits}")
    cluster.worker()
    arguments = ("sweep", "tiny", "--grid", "rate=0.2,0.3", "--scheduler", cluster.address)
    sweep = book.start(*arguments)
    # A row that had not looked for `go` yet could still end well after the scheduler, and leave nothing to go on with.
    until(lambda: len(rows_on_disk(book)) == 1 and (book.root / "waits").exists(), "the first row, the second begun")
    cluster.scheduler.kill()
    assert sweep.wait(60) == 1
    said = sweep.stderr.read()
    assert f"the scheduler {cluster.address} went away; 1 of 2 rows are stored, and the same command goes on" in said
    assert "Traceback" not in said
    (book.root / "go").touch()
    again = book.casebook(*arguments[:4], "--json")
    assert again.returncode == 0, again.stderr
    assert (json.loads(again.stdout)["ran"], json.loads(again.stdout)["found"]) == (1, 1)
    assert ran(book) == ["0.2 0", "0.3 0"]
    proof = ["the finished row is kept", "the same command runs only what is missing, here on this machine"]
    observed(messages(said), 1, proof, {cluster.address: "ADDRESS"})


ENDED = [
    pytest.param(signal.SIGINT, 130, marks=fault("A sweep is stopped by SIGINT (Ctrl-C)")),
    pytest.param(signal.SIGKILL, -9, marks=fault("A sweep is killed by SIGKILL")),
]


@pytest.mark.parametrize(("number", "status"), ENDED)
def test_nothing_survives_an_ended_sweep_and_finished_rows_stay(book, number, status, observed):
    write_chapter(book, "import time; time.sleep(600 if rate == 0.3 else 0)")
    sweep = book.start("sweep", "tiny", "--grid", "rate=0.2,0.3", "--workers", "2")
    until(lambda: rows_on_disk(book) and any("ipykernel" in command(p) for p in book.survivors()), "the first row")
    sweep.send_signal(number)
    assert sweep.wait(15) == status
    proof = [book.all_ended(5.0)]
    assert len(rows_on_disk(book)) == 1
    proof.append("the finished row is kept")
    observed(messages(sweep.stderr.read()), status, proof, {book.root: "BOOK"})


def test_two_local_clusters_at_once_say_nothing_and_serve_no_page(recwarn):
    """Dask's own page has a fixed port, and a second one warned of it on standard error."""
    with sweep_cluster.local(1) as first, sweep_cluster.local(1) as second:
        assert [place.executor.submit(abs, -1).result(30) for place in (first, second)] == [1, 1]
        listening = [c.laddr for c in psutil.Process().net_connections("inet") if c.status == "LISTEN"]
        assert 8787 not in {address.port for address in listening}
        pages = []
        for address in listening:
            with contextlib.suppress(OSError, http.client.HTTPException):
                connection = http.client.HTTPConnection(address.ip, address.port, timeout=2)
                connection.request("GET", "/info/main/workers.html")
                pages.append(connection.getresponse().status)
                connection.close()
        assert set(pages) <= {404}
    assert [str(each.message) for each in recwarn if issubclass(each.category, UserWarning)] == []


def test_a_local_cluster_listens_on_the_loopback_interface_only():
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    with sweep_cluster.local(1) as place:
        assert place.executor.submit(abs, -1).result(30) == 1
        ours = [p for p in psutil.Process().children(recursive=True) if p.pid not in before]
        listening = [c for p in (psutil.Process(), *ours) for c in p.net_connections("inet") if c.status == "LISTEN"]
        assert listening
        assert {c.laddr.ip for c in listening} <= {"127.0.0.1", "::1"}


def test_a_worker_of_the_local_cluster_that_dies_is_replaced_and_its_task_done(tmp_path):
    with sweep_cluster.local(1) as place:
        assert place.executor.submit(_die_once, str(tmp_path / "died")).result(60) == "done"


def _die_once(path):
    if not Path(path).exists():
        Path(path).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "done"


class _Page(BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        pass

    def handle_one_request(self):
        """Answer as a page would, whatever was asked."""
        self.rfile.readline()
        self.wfile.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        self.close_connection = True


@pytest.fixture
def impostors():
    """Addresses where no scheduler answers: a web server, a socket that says nothing, and a port that is closed."""
    web = ThreadingHTTPServer(("127.0.0.1", 0), _Page)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    silent, closed = socket.socket(), socket.socket()
    for each in (silent, closed):
        each.bind(("127.0.0.1", 0))
    silent.listen()
    port = closed.getsockname()[1]
    closed.close()
    yield {"web server": web.server_port, "silence": silent.getsockname()[1], "closed port": port}
    silent.close()
    web.shutdown()
    web.server_close()


NO_SCHEDULER = [
    pytest.param("web server", marks=fault("The address of the scheduler is a web server's")),
    pytest.param("silence", marks=fault("Whoever listens at the address of the scheduler says nothing")),
    "closed port",  # no row: what the system says of it differs between machines
]


@pytest.mark.parametrize("kind", NO_SCHEDULER)
def test_an_address_that_is_no_scheduler_is_one_line_within_half_a_minute(book, request, impostors, kind):
    """Dask's own client waits for ever for a server that answers something else."""
    begun = time.monotonic()
    done = book.casebook("sweep", "tiny", "--scheduler", f"127.0.0.1:{impostors[kind]}")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert f"error: no Dask scheduler at tcp://127.0.0.1:{impostors[kind]}: " in done.stderr
    assert "start one with: dask scheduler" in done.stderr
    assert time.monotonic() - begun < 30
    assert not (book.root / "_build").exists()
    proof = ["it is said within 30 s", "no row is started"]
    if request.node.get_closest_marker("fault"):
        places = {f"tcp://127.0.0.1:{impostors[kind]}": "ADDRESS"}
        request.getfixturevalue("observed")(messages(done.stderr), done.returncode, proof, places)


def test_a_worker_is_told_from_a_scheduler_and_a_scheduler_without_workers_is_said(book, cluster, monkeypatch):
    monkeypatch.setattr(sweep_cluster, "WORKER_PATIENCE", 1.0)
    with (
        pytest.raises(sweep_cluster.NoCluster, match=r"no worker joined .* start some: dask worker"),
        sweep_cluster.remote(cluster.address, None, sweep_cluster.Tls(), print),
    ):
        pass
    cluster.worker()
    from distributed import Client

    with Client(cluster.address, set_as_default=False) as client:
        client.wait_for_workers(1, timeout=30)
        (worker,) = client.nthreads()
    with (
        pytest.raises(sweep_cluster.NoCluster, match=rf"is a Dask Worker; its scheduler is at {cluster.address}"),
        sweep_cluster.remote(worker, None, sweep_cluster.Tls(), print),
    ):
        pass


@pytest.mark.parametrize(
    ("address", "alone"),
    [("tcp://127.0.0.1:8786", True), ("tcp://localhost:1", True), ("tcp://[::1]:1", True), ("tcp://10.0.0.5:1", False),
     ("tcp://cluster.example:1", False), ("tcp://localhost.example:1", False)],
)  # fmt: skip
def test_an_address_is_loopback_or_not(address, alone):
    assert sweep_cluster.is_loopback(address) == alone


def test_messages_in_the_clear_beyond_this_machine_get_a_warning(monkeypatch):
    def nobody(address, security):
        raise sweep_cluster.NoCluster("nobody is there")

    monkeypatch.setattr(sweep_cluster, "_check_scheduler", nobody)
    said = {}
    for address in ("192.0.2.1:8786", "127.0.0.1:8786"):
        said[address] = []
        with (
            pytest.raises(sweep_cluster.NoCluster),
            sweep_cluster.remote(address, None, sweep_cluster.Tls(), said[address].append),
        ):
            pass
    assert said["127.0.0.1:8786"] == []
    assert len(said["192.0.2.1:8786"]) == 1
    assert "pickled code in the clear" in said["192.0.2.1:8786"][0]
    assert "--tls-ca" in said["192.0.2.1:8786"][0]


def test_a_scheduler_with_tls_takes_a_sweep_and_refuses_one_without(book, tmp_path):
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    made = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1",
         "-keyout", key, "-out", certificate],
        capture_output=True,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    files = ("--tls-ca-file", str(certificate), "--tls-cert", str(certificate), "--tls-key", str(key))
    cluster = Cluster(book, tmp_path, "--protocol", "tls", *files)
    try:
        assert cluster.address.startswith("tls://")
        cluster.worker()
        own = ("--tls-ca", str(certificate), "--tls-cert", str(certificate), "--tls-key", str(key))
        write_chapter(book)
        done = book.casebook("sweep", "tiny", "--scheduler", cluster.address, *own)
        assert done.returncode == 0, done.stderr
        assert "warning" not in done.stderr
        plain = book.casebook("sweep", "tiny", "--fresh", "--scheduler", cluster.address.removeprefix("tls://"))
        assert plain.returncode == 1
        assert "no Dask scheduler at" in plain.stderr
    finally:
        cluster.end()


def test_a_worker_with_another_state_of_the_chapter_refuses_the_row(book):
    write_chapter(book)
    answer = sweep_rows.run_row("tiny", [], "0" * 64, 60.0, "")
    assert "another state of the chapter" in answer["error"]
    assert ran(book) == []


RECORD = {"chapter": "tiny", "claim": "T1", "measure": "m", "unit": "1", "setting": {"a": 1}, "seed": 0, "value": 1.0}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({}, None),
        ({"value": 3}, None),
        ({"value": float("nan")}, "no finite number"),
        ({"value": True}, "no finite number"),
        ({"seed": "0"}, "a seed that is no int"),
        ({"claim": "T9"}, "speaks of tiny T9, which is no claim of tiny"),
        ({"chapter": "other"}, "speaks of other T1"),
        ({"setting": {"a": [1]}}, "a setting that holds more"),
        ({"extra": 1}, "exactly the fields"),
    ],
)
def test_only_measurements_of_the_known_form_are_taken(change, says):
    shown = {"application/vnd.casebook.measurements+json": [RECORD | change]}
    notebook = {"cells": [{"cell_type": "markdown"}, {"cell_type": "code", "outputs": [{"data": shown}]}]}
    if says is None:
        assert sweep_rows.measurements_of(notebook, "tiny", ["T1"]) == [RECORD | change]
    else:
        with pytest.raises(BadRow, match=says):
            sweep_rows.measurements_of(notebook, "tiny", ["T1"])


def test_a_damaged_row_runs_again(book):
    write_chapter(book)
    assert book.casebook("sweep", "tiny").returncode == 0
    (path,) = rows_on_disk(book)
    path.write_text(path.read_text().replace("upheld", "refuted", 1))
    with pytest.raises(BadRow, match="does not match its seal"):
        sweep_rows.read_row("tiny", path.stem)
    assert json.loads(book.casebook("sweep", "tiny", "--json").stdout)["ran"] == 1
