"""Sweeps and evidence as a user types them: Dask's own scheduler and workers, killed processes, rows that fail."""

import json
import os
import re
import shutil
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

from casestudies_lib.runner import evidence
from casestudies_lib.runner.chapters import find_chapter
from casestudies_lib.runner.inputs import digest
from casestudies_lib.runner.table import BadTable

DASK = Path(sys.executable).parent / "dask"
# A line for each time that a row really runs.
LOGGED = "with open('../ran.txt', 'a') as log: print(rate, seed, file=log)"
# T1 is refuted above a rate; one measurement a seed and arm.
MEASURING = """\
from IPython.display import display
common = dict(chapter="tiny", kind="identity", says="s", measure="m", unit="1", n=1, seeds=[], control=None,
              rule="r", reason="w", value=rate, low=rate, high=rate)
verdicts = [dict(common, id="T1", verdict="refuted" if rate > 0.25 else "upheld"),
            dict(common, id="T2", verdict="upheld")]
measured = [dict(chapter="tiny", claim="T1", measure="way", unit="1", setting={"arm": arm}, seed=each,
                 value=rate * each)
            for arm in ("fault", "fix") for each in range(seed, seed + n_seeds)]
display({"application/vnd.casebook.verdicts+json": verdicts, "application/vnd.casebook.measurements+json": measured,
         "text/plain": "evidence"}, raw=True)
"""


def write_chapter(book, *cells):
    book.write_chapter("tiny", (*cells, LOGGED), last=MEASURING)


def ran(book):
    path = book.root / "ran.txt"
    return sorted(path.read_text().splitlines()) if path.exists() else []


def lines_of(book):
    (path,) = (book.root / "_build" / "sweeps" / "tiny").glob("*.parquet")
    return pq.read_table(path, use_threads=False).to_pylist()


def until(condition, what, seconds=60.0):
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

    def __init__(self, book, folder, *options, **variables):
        self.book, self.folder, self.options, self.variables = book, folder, options, variables
        file = folder / "scheduler.json"
        self.processes = []
        self.scheduler = self._start(
            "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(file)
        )
        until(lambda: file.exists() and file.read_text(), "the scheduler's start")
        self.address = json.loads(file.read_text())["address"]

    def _start(self, *arguments):
        process = subprocess.Popen(
            [DASK, *arguments, *self.options], env=self.book.environment | self.variables, cwd=self.folder,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
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


def test_a_sweep_leaves_a_tidy_table_with_provenance_and_a_second_one_runs_nothing(book):
    write_chapter(book)
    done = book.casebook("sweep", "tiny", "--grid", "rate=0.2,0.3", "--seeds", "0:6", "--workers", "2", "--json",
                         env=book.environment | {"API_TOKEN": book.secret})  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["ran"], said["found"], said["failed"]) == (2, 0, 0)
    assert ran(book) == ["0.2 0", "0.3 0"]
    lines = lines_of(book)
    verdicts = [(line["param_rate"], line["claim"], line["verdict"]) for line in lines if line["record"] == "verdict"]
    assert verdicts == [(0.2, "T1", "upheld"), (0.2, "T2", "upheld"), (0.3, "T1", "refuted"), (0.3, "T2", "upheld")]
    measured = [line for line in lines if line["record"] == "measurement"]
    assert [(m["param_rate"], m["setting_arm"], m["seed"], m["value"]) for m in measured] == [
        (rate, arm, seed, rate * seed) for rate in (0.2, 0.3) for arm in ("fault", "fix") for seed in range(6)
    ]
    assert all(line["seconds"] > 0 and line["torch"].startswith("2.") and line["threads"] == 1 for line in lines)
    provenance = said["provenance"]
    assert provenance["command"] == "casebook sweep tiny --grid rate=0.2,0.3 --seeds 0:6 --n-seeds 6"
    assert (provenance["rows"], provenance["failures"], provenance["seeds"]) == (2, 0, [0, 6])
    assert {"code cells", "data/reports/tiny.toml"} == provenance["inputs"].keys() - {"casestudies_lib/__init__.py"}
    shown = json.dumps(lines) + json.dumps(provenance)
    for word in (str(book.root), str(Path.home()), socket.gethostname(), book.secret, time.strftime("%Y-%m-%d")):
        assert word not in shown
    again = json.loads(book.casebook("sweep", "tiny", "--grid", "rate=0.2,0.3", "--json").stdout)
    assert (again["ran"], again["found"]) == (0, 2)
    write_chapter(book, "1 + 1")
    edited = json.loads(book.casebook("sweep", "tiny", "--grid", "rate=0.2", "--json").stdout)
    assert (edited["ran"], edited["found"]) == (1, 0)


def test_a_row_that_fails_is_tried_three_times_and_recorded_and_the_rest_goes_on(book):
    write_chapter(book, LOGGED, "assert rate != 0.3, 'the model diverged'")
    done = book.casebook("sweep", "tiny", "--grid", "rate=0.3,0.2", "--workers", "1")
    assert done.returncode == 1
    assert "1 of 2 rows failed; the result holds their errors" in done.stderr
    assert ran(book).count("0.3 0") == 3
    (failure,) = [line for line in lines_of(book) if line["record"] == "failure"]
    assert failure["param_rate"] == 0.3
    assert "raised AssertionError: the model diverged" in failure["error"]
    assert str(book.root) not in failure["error"]
    assert {line["param_rate"] for line in lines_of(book) if line["record"] == "verdict"} == {0.2}


def test_two_sweeps_of_the_same_rows_at_once_run_each_of_them_once(book):
    write_chapter(book)
    both = [book.start("sweep", "tiny", "--grid", "rate=0.2,0.3", "--workers", "2") for _ in range(2)]
    assert [process.wait(120) for process in both] == [0, 0], [process.stderr.read() for process in both]
    assert ran(book) == ["0.2 0", "0.3 0"]
    assert len(book.results()) == 2


SLOW = "import os, time\nwhile not os.path.exists('../go'):\n    time.sleep(0.1)"


def test_the_row_of_a_killed_worker_is_done_by_another(book, cluster):
    write_chapter(book, LOGGED, SLOW)
    first = cluster.worker()
    sweep = book.start("sweep", "tiny", "--grid", "rate=0.2,0.3", "--scheduler", cluster.address)
    until(lambda: ran(book) == ["0.2 0"], "the first row")
    kernels = [p for p in psutil.Process(first.pid).children(recursive=True) if "ipykernel" in command(p)]
    assert kernels
    second = cluster.worker()
    first.kill()
    assert psutil.wait_procs(kernels, timeout=6)[1] == []
    (book.root / "go").touch()
    status, said = sweep.wait(120), sweep.stderr.read()
    assert status == 0, said
    # Twice logged in one run: the cell before the wait, and the one after it. The killed row logged once more.
    assert (sorted(set(ran(book))), len(ran(book))) == (["0.2 0", "0.3 0"], 5), said
    assert {line["param_rate"] for line in lines_of(book) if line["record"] == "verdict"} == {0.2, 0.3}
    assert second.poll() is None


def test_a_killed_scheduler_is_said_and_the_same_command_goes_on_from_there(book, cluster):
    waits = "    open('../waits', 'w').close()\n    time.sleep(600)"
    write_chapter(book, f"import os, time\nif rate == 0.3 and not os.path.exists('../go'):\n{waits}")
    cluster.worker()
    arguments = ("sweep", "tiny", "--grid", "rate=0.2,0.3", "--scheduler", cluster.address)
    sweep = book.start(*arguments)
    # A row that had not looked for `go` yet could still end well after the scheduler, and leave nothing to go on with.
    until(lambda: (book.root / "waits").exists() and finished(book) == 1, "the first row, the second begun")
    cluster.scheduler.kill()
    assert sweep.wait(60) == 1
    said = sweep.stderr.read()
    assert "the scheduler went away; what ended is kept, the same command goes on from there" in said
    assert "Traceback" not in said
    cluster.end()
    (book.root / "go").touch()
    again = json.loads(book.casebook(*arguments[:4], "--json").stdout)
    assert (again["ran"], again["found"]) == (1, 1)
    assert ran(book) == ["0.2 0", "0.3 0"]


def finished(book):
    return len(list((book.runs / "tiny").glob("*/provenance.json")))


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_nothing_survives_an_ended_sweep_and_finished_rows_stay(book, number, status):
    write_chapter(book, "import time; time.sleep(600 if rate == 0.3 else 0)")
    sweep = book.start("sweep", "tiny", "--grid", "rate=0.2,0.3", "--workers", "2")
    until(lambda: finished(book) == 1 and any("ipykernel" in command(p) for p in book.survivors()), "the first row")
    sweep.send_signal(number)
    assert sweep.wait(15) == status
    assert book.wait_until_alone(6) == []
    assert finished(book) == 1


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


@pytest.mark.parametrize("kind", ["web server", "silence", "closed port"])
def test_an_address_that_is_no_scheduler_is_one_line_within_half_a_minute(book, impostors, kind):
    """Dask's own client waits for ever for a server that answers something else."""
    begun = time.monotonic()
    done = book.casebook("sweep", "tiny", "--scheduler", f"127.0.0.1:{impostors[kind]}")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert f"error: no Dask scheduler at tcp://127.0.0.1:{impostors[kind]}: " in done.stderr
    assert time.monotonic() - begun < 30
    assert not (book.root / "_build").exists()


def test_a_scheduler_with_tls_takes_a_sweep_by_dasks_own_settings_and_refuses_one_without(book, tmp_path):
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    made = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1",
         "-keyout", key, "-out", certificate],
        capture_output=True,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    tls = {"DASK_DISTRIBUTED__COMM__TLS__CA_FILE": str(certificate)}
    for role in ("SCHEDULER", "WORKER", "CLIENT"):
        tls |= {f"DASK_DISTRIBUTED__COMM__TLS__{role}__{what}": str(file)
                for what, file in (("CERT", certificate), ("KEY", key))}  # fmt: skip
    cluster = Cluster(book, tmp_path, "--protocol", "tls", **tls)
    try:
        assert cluster.address.startswith("tls://")
        cluster.worker()
        write_chapter(book)
        done = book.casebook("sweep", "tiny", "--scheduler", cluster.address, env=book.environment | tls)
        assert done.returncode == 0, done.stderr
        plain = book.casebook("sweep", "tiny", "--fresh", "--scheduler", cluster.address.removeprefix("tls://"))
        assert plain.returncode == 1
        assert "no Dask scheduler at" in plain.stderr
    finally:
        cluster.end()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--grid", "rate"], "not of the form NAME=VALUE,VALUE"),
        (["--grid", "rat=0.1"], "did you mean rate?"),
        (["--grid", "rate=0.2,,0.3"], "holds an empty value"),
        (["--grid", "rate=0.2,0.20"], "holds '0.2' twice"),
        (["--grid", "rate=2"], "allowed: 0.1 to 1.0"),
        (["--grid", "seed=1,2"], "--grid cannot set seed: use --seeds"),
        (["--grid", "rate=0.2", "--grid", "rate=0.3"], "--grid sets rate twice"),
        (["--grid", "records=."], "--grid cannot set the path records"),
        (["--seeds", "5:2"], "not of the form A:B with A below B"),
        (["--seeds", "0:7"], "are 7 seeds, and a row takes 6"),
        (["--seeds", "0:999999"], "give a multiple"),
        (["--seeds", "0:6000"], "seed = 1002 is outside what is allowed"),
        (["--scheduler", "nowhere"], "is not an address; give HOST:PORT"),
        (["--scheduler", "http://x:1"], "is not an address"),
    ],
)
def test_a_wrong_sweep_is_one_line_before_any_process_starts(book, arguments, says):
    done = book.casebook("sweep", "tiny", *arguments)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert says in done.stderr
    assert not (book.root / "_build").exists()


@pytest.fixture(scope="module")
def swept_once(tmp_path_factory, new_book):
    book = new_book(tmp_path_factory.mktemp("swept") / "a book")
    write_chapter(book)
    done = book.casebook("sweep", "tiny", "--grid", "rate=0.2,0.3", "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert book.casebook("evidence", "update", "tiny").returncode == 0
    return book


@pytest.fixture
def swept(swept_once, tmp_path, monkeypatch):
    """A copy of a book with one sweep of two rows, which is its evidence."""
    shutil.copytree(swept_once.root, tmp_path / "a copy")
    copied = type(swept_once)(tmp_path / "a copy")
    monkeypatch.setenv("CASEBOOK_ROOT", str(copied.root))
    yield copied
    copied.end()


def test_evidence_is_its_sweep_and_makes_neither_itself_nor_the_sweep_stale(swept):
    (source,) = (swept.root / "_build" / "sweeps" / "tiny").glob("*.parquet")
    assert (swept.root / "data" / "evidence" / "tiny.parquet").read_bytes() == source.read_bytes()
    found = evidence.read_evidence("tiny")
    assert evidence.staleness(find_chapter("tiny"), found.provenance) == []
    assert json.loads(swept.casebook("sweep", "tiny", "--grid", "rate=0.2,0.3", "--json").stdout)["ran"] == 0
    write_chapter(swept, "1 + 1")
    assert evidence.staleness(find_chapter("tiny"), found.provenance) == ["code cells changed"]
    stale = swept.casebook("evidence", "check", "--share", "0")
    assert stale.returncode == 1
    assert "the evidence of tiny is older than its chapter's code: code cells changed; make it again" in stale.stderr


def test_where_there_are_several_sweeps_one_is_named(swept):
    assert swept.casebook("sweep", "tiny", "--grid", "rate=0.3,0.4").returncode == 0
    several = swept.casebook("evidence", "update", "tiny")
    assert several.returncode == 2
    name = re.search(r"(\w{10}) \(casebook sweep tiny --grid rate=0\.3,0\.4", several.stderr)[1]
    assert "name one of the sweeps" in swept.casebook("evidence", "update", "tiny", "--sweep", "other").stderr
    assert swept.casebook("evidence", "update", "tiny", "--sweep", name).returncode == 0
    found = evidence.read_evidence("tiny")
    assert found.provenance["grid"]["rate"] == [0.3, 0.4]
    assert sorted(found.lines.drop_duplicates("key")["param_rate"]) == [0.3, 0.4]


def test_evidence_check_runs_a_share_again_and_names_a_verdict_that_differs(swept):
    good = swept.casebook("evidence", "check", "--share", "0.5", "--json")
    assert good.returncode == 0, good.stderr
    assert len(json.loads(good.stdout)["checked"]["tiny"]["rows"]) == 1
    parquet, provenance = (swept.root / "data" / "evidence" / f"tiny.{kind}" for kind in ("parquet", "json"))
    lines = pq.read_table(parquet, use_threads=False).to_pandas()
    lines["verdict"] = lines["verdict"].replace("refuted", "inconclusive")
    lines.to_parquet(parquet)
    change(provenance, sha256=digest(parquet.read_bytes()))
    bad = swept.casebook("evidence", "check", "--share", "1")
    assert bad.returncode == 1
    assert re.search(r"row \w{10} \(casebook run tiny -p rate=0\.3\): T1 was inconclusive and is refuted", bad.stderr)


def change(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def cut(parquet, provenance):
    os.truncate(parquet, parquet.stat().st_size // 2)


def cut_and_vouched_for(parquet, provenance):
    cut(parquet, provenance)
    change(provenance, sha256=digest(parquet.read_bytes()))


DAMAGE = {
    "cut short": (cut, "does not match its provenance tiny.json"),
    "cut short, with a digest that fits": (cut_and_vouched_for, "is not a Parquet file"),
    "without provenance": (lambda parquet, provenance: provenance.unlink(), "cannot read"),
    "provenance of another chapter": (lambda p, j: change(j, chapter="other"), "holds lines of other chapters"),
    "fewer rows than promised": (lambda p, j: change(j, rows=3), "holds 2 rows, its provenance says 3"),
    "of another format": (lambda p, j: change(j, format=9), "is of format 9"),
    "without a field": (lambda p, j: j.write_text("{}"), "has no format"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_evidence_is_refused_and_the_way_to_mend_it_said(swept, damage):
    harm, says = DAMAGE[damage]
    harm(*(swept.root / "data" / "evidence" / f"tiny.{kind}" for kind in ("parquet", "json")))
    with pytest.raises(BadTable, match=says):
        evidence.read_evidence("tiny")
    assert swept.casebook("evidence", "update", "tiny").returncode == 0
    assert evidence.read_evidence("tiny").provenance["rows"] == 2


def test_reading_evidence_starts_no_thread(swept):
    """A thread of Arrow's pool that still holds a Python file can abort a command as it ends (arrow issue 34314)."""
    code = (
        "from casestudies_lib.runner import evidence; import psutil\n"
        "before = psutil.Process().num_threads(); evidence.read_evidence('tiny')\n"
        "print(psutil.Process().num_threads() - before)"
    )
    warm = f"import pandas, pyarrow.parquet\n{code}"
    done = subprocess.run([sys.executable, "-c", warm], env=swept.environment, capture_output=True, text=True)
    assert done.stdout == "0\n", done.stderr
