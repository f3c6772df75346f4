"""Committed evidence: whole or refused, made of sweeps that are still true, and checked by running a part again."""

import json
import shutil
import subprocess
import sys

import pandas as pd
import pyarrow.parquet as pq
import pytest

from casestudies_lib.runner import evidence, sweep_table
from casestudies_lib.runner.cache_key import digest
from casestudies_lib.runner.chapters import find_chapter
from casestudies_lib.runner.errors import Failure, Mistake
from casestudies_lib.runner.sweep_table import BadTable

MEASURED = "application/vnd.casebook.measurements+json"
VERDICTS = "application/vnd.casebook.verdicts+json"


def shows(rate_limit):
    """Return a cell whose verdict T1 is refuted above a rate, with one measurement a seed."""
    verdict = f"'refuted' if claim == 'T1' and rate > {rate_limit} else 'upheld'"
    record = (
        f"dict(id=claim, chapter='tiny', kind='identity', verdict={verdict}, says='s', "
        "measure='m', unit='1', value=rate, low=rate, high=rate, n=1, seeds=[], control=None, rule='r', reason='w')"
    )
    measured = "dict(chapter='tiny', claim='T1', measure='m', unit='1', setting={}, seed=each, value=rate)"
    return (
        "from IPython.display import display\n"
        f"verdicts = [{record} for claim in ('T1', 'T2')]\n"
        f"measured = [{measured} for each in range(seed, seed + n_seeds)]\n"
        f"display({{'{VERDICTS}': verdicts, '{MEASURED}': measured, 'text/plain': 'evidence'}}, raw=True)"
    )


@pytest.fixture(scope="module")
def swept_once(tmp_path_factory, new_book):
    """A book with one sweep of two rows."""
    book = new_book(tmp_path_factory.mktemp("swept") / "a book")
    book.write_chapter("tiny", last=shows(0.25))
    done = book.casebook("sweep", "tiny", "--grid", "rate=0.2,0.3", "--workers", "2")
    assert done.returncode == 0, done.stderr
    return book


@pytest.fixture
def swept(swept_once, tmp_path, monkeypatch):
    shutil.copytree(swept_once.root, tmp_path / "a copy")
    copied = type(swept_once)(tmp_path / "a copy")
    monkeypatch.setenv("CASEBOOK_ROOT", str(copied.root))
    yield copied
    copied.end()


@pytest.fixture
def updated(swept):
    evidence.update(find_chapter("tiny"))
    return swept


def files(book):
    return [book.root / "data" / "evidence" / f"tiny.{ending}" for ending in ("parquet", "json")]


def test_update_puts_the_sweep_into_the_room_for_evidence_as_it_is(swept):
    done = swept.casebook("evidence", "update", "tiny", "--json")
    assert done.returncode == 0, done.stderr
    parquet, provenance = files(swept)
    (source,) = (swept.root / "_build" / "sweeps" / "tiny").glob("*.parquet")
    assert parquet.read_bytes() == source.read_bytes()
    assert json.loads(provenance.read_text())["sha256"] == digest(parquet.read_bytes())
    found = evidence.read_evidence("tiny")
    verdicts = found.lines[found.lines["record"] == "verdict"]
    assert dict(zip(zip(verdicts["param_rate"], verdicts["claim"]), verdicts["verdict"])) == {
        (0.2, "T1"): "upheld", (0.2, "T2"): "upheld", (0.3, "T1"): "refuted", (0.3, "T2"): "upheld",
    }  # fmt: skip
    assert list(found.lines[found.lines["record"] == "measurement"]["seed"]) == [*range(6), *range(6)]
    assert evidence.slugs() == ["tiny"]


def test_evidence_does_not_make_its_own_sweep_or_itself_stale(updated):
    assert evidence.staleness(find_chapter("tiny"), evidence.read_evidence("tiny").provenance) == []
    assert json.loads(updated.casebook("sweep", "tiny", "--grid", "rate=0.2,0.3", "--json").stdout)["ran"] == 0


def test_two_sweeps_become_one_evidence_and_a_shared_row_counts_once(swept):
    assert swept.casebook("sweep", "tiny", "--grid", "rate=0.3,0.4").returncode == 0
    with pytest.raises(Mistake, match=r"several sweeps of tiny; name one or more with --sweep: .*rate=0\.3,0\.4"):
        evidence.update(find_chapter("tiny"))
    names = [path.stem for path in (swept.root / "_build" / "sweeps" / "tiny").glob("*.parquet")]
    _, found = evidence.update(find_chapter("tiny"), names)
    assert found.provenance["rows"] == 3
    assert sorted(found.provenance["grid"]["rate"]) == [0.2, 0.3, 0.4]
    lines = found.lines
    assert len(lines) == 3 * (2 + 6)
    assert sorted(lines.drop_duplicates("key")["param_rate"]) == [0.2, 0.3, 0.4]
    before = pd.read_parquet(swept.root / "_build" / "sweeps" / "tiny" / f"{names[0]}.parquet")
    pd.testing.assert_series_equal(lines.dtypes, before.dtypes)


@pytest.mark.parametrize(
    ("names", "says"), [(["nothing"], r"no sweep 'nothing' of tiny; there are"), (["../../x"], "no sweep")]
)
def test_update_names_the_sweeps_there_are(swept, names, says):
    with pytest.raises(Mistake, match=says):
        evidence.update(find_chapter("tiny"), names)


def test_update_without_a_sweep_says_how_to_make_one(book):
    done = book.casebook("evidence", "update", "tiny")
    assert done.returncode == 2
    assert "no finished sweep of tiny; run one: casebook sweep tiny" in done.stderr


def cut(parquet, provenance):
    parquet.write_bytes(parquet.read_bytes()[: parquet.stat().st_size // 2])


def empty(parquet, provenance):
    parquet.write_bytes(b"")


def cut_and_sealed_again(parquet, provenance):
    cut(parquet, provenance)
    change(provenance, sha256=digest(parquet.read_bytes()))


def change(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def rewrite(parquet, provenance, edit):
    lines = edit(pq.read_table(parquet, use_threads=False).to_pandas())
    lines.to_parquet(parquet)
    change(provenance, sha256=digest(parquet.read_bytes()))


DAMAGE = {
    "cut short": (cut, r"tiny\.parquet does not match its provenance tiny\.json \(cut short or edited\?\)"),
    "empty": (empty, "does not match its provenance"),
    "cut short, new seal": (cut_and_sealed_again, r"tiny\.parquet is no Parquet file"),
    "no provenance": (lambda parquet, provenance: provenance.unlink(), r"cannot read .*tiny\.json: No such file"),
    "no Parquet": (lambda parquet, provenance: parquet.unlink(), r"cannot read .*tiny\.parquet: No such file"),
    "provenance cut short": (lambda p, j: j.write_text(j.read_text()[:40]), r"tiny\.json is not valid JSON"),
    "another seal": (lambda p, j: change(j, sha256="0" * 64), "does not match its provenance"),
    "another chapter": (lambda p, j: change(j, chapter="other"), "holds lines of other chapters than other"),
    "another number of rows": (lambda p, j: change(j, rows=7), "holds 2 rows, its provenance says 7"),
    "a field gone": (lambda p, j: change(j, inputs=None), r"tiny\.json has no inputs"),
    "a newer format": (lambda p, j: change(j, format=2), r"is of format 2; this casebook reads 1"),
    "a column gone": (lambda p, j: rewrite(p, j, lambda lines: lines.drop(columns="claim")), "has no column claim"),
    "rows gone": (lambda p, j: rewrite(p, j, lambda lines: lines[:3]), "holds 1 rows, its provenance says 2"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_evidence_is_refused_by_what_is_wrong_with_it(updated, kind):
    damage, says = DAMAGE[kind]
    damage(*files(updated))
    with pytest.raises(BadTable, match=says) as refused:
        evidence.read_evidence("tiny")
    assert "casebook evidence update" in str(refused.value) or "format 2" in str(refused.value)


@pytest.mark.fault("A Parquet file of evidence is cut short")
def test_check_says_damage_on_one_line_and_fails(updated, observed):
    cut(*files(updated))
    done = updated.casebook("evidence", "check", "tiny")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "cut short or edited?" in done.stderr
    parquet, provenance = files(updated)
    before = parquet.read_bytes(), provenance.read_bytes()
    evidence.update(find_chapter("tiny"))
    assert (parquet.read_bytes(), provenance.read_bytes()) != before
    assert evidence.read_evidence("tiny").provenance["rows"] == 2
    proof = ["no line of it is served", "casebook evidence update makes it whole from the stored sweep"]
    observed(done.stderr, done.returncode, proof, {updated.root: "BOOK"})


THREADS = """
import sys
from pathlib import Path

import psutil

from casestudies_lib.runner import sweep_table

sweep_table.to_parquet([{"record": "verdict", "value": 0.5}])
before = psutil.Process().num_threads()
path = Path(sys.argv[1])
assert len(sweep_table.read(path).lines) == len(sweep_table.read(path).lines) > 0
print(psutil.Process().num_threads() - before)
"""


def test_evidence_is_read_without_a_thread_that_could_outlive_the_command(updated):
    # A thread of Arrow's pool that holds a Python file while the process ends can abort it: exit code -6 for a
    # command that had done its work, seen rarely and on a busy machine only.
    command = [sys.executable, "-c", THREADS, str(files(updated)[0])]
    done = subprocess.run(command, capture_output=True, text=True, cwd=updated.root)
    assert (done.stdout, done.stderr) == ("0\n", "")


def test_check_runs_a_tenth_again_and_passes_where_the_verdicts_are_the_same(updated):
    done = updated.casebook("evidence", "check", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["faults"] == []
    assert len(said["checked"]["tiny"]["rows"]) == 1


def test_check_finds_a_verdict_that_comes_out_otherwise(updated):
    def flip(lines):
        verdicts = (lines["record"] == "verdict") & (lines["claim"] == "T2")
        return lines.assign(verdict=lines["verdict"].mask(verdicts, "refuted"))

    rewrite(*files(updated), flip)
    done = updated.casebook("evidence", "check", "tiny")
    assert done.returncode == 1
    assert "T2 was refuted and is upheld" in done.stderr
    assert "casebook run tiny -p rate=" in done.stderr


def test_evidence_older_than_its_chapters_code_is_said_with_the_command_that_renews_it(updated):
    updated.write_chapter("tiny", last=shows(0.26))
    done = updated.casebook("evidence", "check", "tiny")
    assert done.returncode == 1
    assert "the evidence of tiny is older than its chapter's code: code cells changed" in done.stderr
    assert "casebook sweep tiny --grid rate=0.2,0.3 --seeds 0:6 --n-seeds 6 && casebook evidence update" in done.stderr
    with pytest.raises(Failure, match=r"older than the chapter's code: code cells changed; run again: casebook sweep"):
        evidence.update(find_chapter("tiny"))


def test_other_prose_and_another_lock_do_not_make_evidence_old_but_a_report_does(updated):
    path = updated.root / "notebooks" / "1_tiny.ipynb"
    notebook = json.loads(path.read_text())
    notebook["cells"][0]["source"] = "# The tiny incident, told otherwise"
    path.write_text(json.dumps(notebook))
    (updated.root / "requirements.lock").write_text("other==1\n")
    provenance = evidence.read_evidence("tiny").provenance
    assert evidence.staleness(find_chapter("tiny"), provenance) == []
    updated.write_report("tiny", ("T1", "T2", "T3"))
    assert evidence.staleness(find_chapter("tiny"), provenance) == ["data/reports/tiny.toml changed"]


@pytest.mark.parametrize("n_rows", [1, 9, 10, 11, 95])
def test_a_tenth_is_rounded_up_and_the_same_seed_draws_the_same_rows(n_rows):
    lines = pd.DataFrame({"record": "verdict", "key": [f"{number:03}" for number in range(n_rows)]})
    drawn = evidence.sample(lines, 0.1, seed=1)
    assert len(drawn) == len(set(drawn)) == -(-n_rows // 10)
    assert drawn == evidence.sample(lines[::-1], 0.1, seed=1)
    if n_rows == 95:
        assert drawn != evidence.sample(lines, 0.1, seed=2)


def test_columns_of_several_kinds_become_text_and_others_keep_their_own():
    lines = [
        {"record": "verdict", "param_a": 1, "param_b": 1, "param_c": True, "setting_d": 1, "seconds": 2},
        {"record": "failure", "param_a": 2, "param_b": 0.5, "param_c": False, "setting_d": "x", "error": "boom"},
    ]
    back = pq.read_table(pa_file(sweep_table.to_parquet(lines)), use_threads=False).to_pylist()
    assert [(line["param_a"], line["param_b"], line["param_c"], line["setting_d"]) for line in back] == [
        (1, 1.0, True, "1"), (2, 0.5, False, "x"),
    ]  # fmt: skip
    assert (back[0]["seconds"], back[0]["error"], back[1]["error"]) == (2.0, None, "boom")


def pa_file(content):
    import pyarrow as pa

    return pa.BufferReader(content)


def test_the_same_lines_give_the_same_bytes():
    lines = [{"record": "verdict", "value": 0.1 * number, "param_a": number} for number in range(5)]
    assert sweep_table.to_parquet(lines) == sweep_table.to_parquet(lines)
