"""What a sweep is asked for becomes a table of rows, or one clear line, before any process starts."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casestudies_lib.runner import sweep_plan
from casestudies_lib.runner.chapters import find_chapter
from casestudies_lib.runner.errors import Mistake
from casestudies_lib.runner.parameters import parse_cell
from casestudies_lib.runner.sweep_plan import plan


@pytest.fixture
def tiny(book):
    return find_chapter("tiny")


def settings(found):
    return [{name: row.job.values[name] for name in ("rate", "optimiser", "seed", "n_seeds")} for row in found.rows]


def test_every_point_of_the_grid_meets_every_block_of_seeds(tiny):
    found = plan(tiny, ["rate=0.2,0.3", "optimiser=sgd,adamw"], "0:18", n_seeds=9)
    expected = itertools.product((0.2, 0.3), ("sgd", "adamw"), (0, 9))
    assert settings(found) == [
        {"rate": rate, "optimiser": optimiser, "seed": seed, "n_seeds": 9} for rate, optimiser, seed in expected
    ]
    assert len({row.key for row in found.rows}) == 8
    assert found.grid == {"rate": [0.2, 0.3], "optimiser": ["sgd", "adamw"]}
    assert found.seeds == (0, 18)


def test_blocks_have_as_many_seeds_as_the_chapter_runs_with_unless_told(tiny):
    assert [row["seed"] for row in settings(plan(tiny, [], "12:30"))] == [12, 18, 24]
    assert [row["n_seeds"] for row in settings(plan(tiny, [], "12:30"))] == [6, 6, 6]
    assert [row["seed"] for row in settings(plan(tiny, [], "12:30", n_seeds=18))] == [12]


def test_without_seeds_the_chapter_runs_with_its_own(tiny):
    assert settings(plan(tiny, ["rate=0.2"])) == [{"rate": 0.2, "optimiser": "adam", "seed": 0, "n_seeds": 6}]


@given(blocks=st.integers(1, 12), size=st.integers(5, 20), start=st.integers(0, 500))
def test_blocks_cover_every_seed_once(blocks, size, start):
    lines = "seed = 0  # first [seed: 0 to 1000]\nn_seeds = 6  # paired [seeds: 5 to 64]\n"
    declared = {parameter.name: parameter for parameter in parse_cell(lines, "tiny")}
    found = sweep_plan._blocks(declared, f"{start}:{start + blocks * size}", size)
    covered = [seed for a, n in found for seed in range(int(a[5:]), int(a[5:]) + int(n[8:]))]
    assert covered == list(range(start, start + blocks * size))


def test_the_key_of_a_row_follows_what_it_is_made_from_and_nothing_else(tiny, book):
    def keys():
        return [row.key for row in plan(tiny, ["rate=0.2,0.3"], "0:6").rows]

    before = keys()
    assert keys() == before
    path = book.root / "notebooks" / "1_tiny.ipynb"
    notebook = json.loads(path.read_text())
    notebook["cells"][0]["source"] = "# Another title\n\nOther prose."
    path.write_text(json.dumps(notebook))
    assert keys() == before
    book.write_report("tiny", ("T1", "T2", "T3"))
    after_report = keys()
    assert not set(after_report) & set(before)
    (book.root / "requirements.lock").write_text("other==1\n")
    assert not set(keys()) & set(after_report)


def test_where_a_file_lies_on_this_machine_is_not_in_the_key_but_its_content_is(tiny, tmp_path):
    def key(folder, content):
        folder.mkdir(exist_ok=True)
        (folder / "records.csv").write_text(content)
        return plan(tiny, [f"records={folder / 'records.csv'}"]).rows[0].key

    assert key(tmp_path / "a", "1") == key(tmp_path / "b", "1")
    assert key(tmp_path / "a", "2") != key(tmp_path / "b", "1")


REFUSED = [
    (["--grid", "rat=0.2"], "unknown parameter 'rat'; did you mean rate?"),
    (["--grid", "rate"], "--grid 'rate' is not of the form NAME=VALUE,VALUE"),
    (["--grid", "rate="], "rate = '' is not a finite number"),
    (["--grid", "rate=0.2,,0.3"], "holds an empty value"),
    (["--grid", "note=,a"], "holds an empty value"),
    (["--grid", "rate=0.2,0.20"], "--grid rate holds '0.2' twice"),
    (["--grid", "rate=0.2", "--grid", "rate=0.3"], "--grid sets rate twice"),
    (["--grid", "rate=0.2,7"], "rate = 7.0 is outside what is allowed; allowed: 0.1 to 1.0"),
    (["--grid", "rate=0.2,nan"], "is not a finite number"),
    (["--grid", "optimiser=adam,lion"], "allowed: one of adam, adamw, sgd"),
    (["--grid", "shuffled=true,maybe"], "is not true or false"),
    (["--grid", "seed=0,1"], "--grid cannot set seed: use --seeds A:B"),
    (["--grid", "n_seeds=6,7"], "--grid cannot set n_seeds: use --seeds A:B, and --n-seeds"),
    (["--grid", "a=1;import os=1"], "unknown parameter 'a'"),
    (["--grid", '__import__("os").system("touch pwned")=1'], "unknown parameter"),
    (["--grid", 'rate=__import__("os").system("touch pwned")'], "is not a finite number"),
    (["--grid", "records=nowhere,elsewhere"], "there is no"),
    (["--seeds", "0:7"], "0:7 are 7 seeds, and a row takes 6 (--n-seeds): give a multiple, such as 0:6"),
    (["--seeds", "5:5"], "is not of the form A:B with A below B"),
    (["--seeds", "6:0"], "is not of the form A:B with A below B"),
    (["--seeds", "-6:0"], "is not of the form A:B with A below B"),
    (["--seeds", "0"], "is not of the form A:B"),
    (["--seeds", "0:6; import os"], "is not of the form A:B"),
    (["--seeds", "996:1008"], "seed = 1002 is outside what is allowed"),
    (["--n-seeds", "4"], "n_seeds = 4 is outside what is allowed; allowed: 5 to 64"),
    (["--n-seeds", "0"], "n_seeds = 0 is outside what is allowed"),
    (["--workers", "0"], "--workers"),
    (["--time-limit", "0"], "--time-limit is 0"),
    (["--scheduler", "nonsense"], "is no address; give HOST:PORT"),
    (["--scheduler", "http://127.0.0.1:80"], "is no address; give HOST:PORT"),
    (["--scheduler", "127.0.0.1:99999"], "is no address; give HOST:PORT"),
    (["--scheduler", "tls://127.0.0.1:8786"], "needs --tls-ca, --tls-cert and --tls-key"),
    (["--scheduler", "127.0.0.1:8786", "--tls-ca", "x"], "TLS files are of no use"),
]


@pytest.mark.parametrize(("arguments", "says"), REFUSED)
def test_a_bad_sweep_is_one_line_before_any_process_starts(book, arguments, says):
    done = book.casebook("sweep", "tiny", *arguments)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ")
    assert says in done.stderr
    assert not (book.root / "_build").exists()
    assert not list(book.root.rglob("pwned"))


def test_a_grid_that_is_too_large_is_refused_before_it_is_written_out(tiny):
    notes = "note=" + ",".join(f"n{number}" for number in range(2000))
    with pytest.raises(Mistake, match=r"the grid has 102000 rows; at most 100000"):
        plan(tiny, [notes, "rate=" + ",".join(f"0.{number}" for number in range(100, 151))])


def test_a_chapter_without_seeds_cannot_be_swept(book):
    book.write_chapter("tiny", parameters="rate = 0.5  # learning rate [1: 0.1 to 1.0]\n")
    with pytest.raises(Mistake, match="no parameter seed"):
        plan(find_chapter("tiny"), ["rate=0.2"])
