"""A cached result is served only where running again would give the same, and then it is all that a run would leave."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import hypothesis.strategies as st
import nbformat
import pytest
from hypothesis import HealthCheck, given, settings

from casestudies_lib.runner import cache, cache_bound, cache_key, cache_store, environment
from casestudies_lib.runner.cache import Hit, Miss
from casestudies_lib.runner.chapters import find_chapter, read_notebook
from casestudies_lib.runner.jobs import prepare

CELLS = (
    "import sys; sys.path.insert(0, '../lib')",
    "import os, direct; from pathlib import Path",
    "print(direct.total(), rate, n_seeds, note, os.environ.get('SIZE'), os.environ['OMP_NUM_THREADS'])",
    "print(Path('../data/a.txt').read_text(), sorted(p.name for p in Path('../data').glob('*.csv')))",
    "print(Path('../data/extra.txt').read_text() if Path('../data/extra.txt').exists() else 'none')",
)
FILES = {
    "lib/direct.py": "import pack.middle\ndef total(): return 1 + pack.middle.value()",
    "lib/pack/__init__.py": "",
    "lib/pack/middle.py": "from pack import bottom\ndef value(): return bottom.VALUE",
    "lib/pack/bottom.py": "VALUE = 1",
    "lib/unread.py": "x = 1",
    "data/a.txt": "a",
    "data/unread.txt": "u",
}
# Stands in for papermill and kernel: executes the cells under the recorder, 0.1 s instead of 3 s.
KERNEL = """
import io, json, sys, contextlib, os
from casestudies_lib.runner import cache_recorder
cache_recorder.start(sys.argv[1], [])
space, shown = {"__name__": "__main__"}, []
for source in json.loads(sys.stdin.read()):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(source, space)
    shown.append(out.getvalue())
sys.stdout.write(json.dumps({"shown": shown, "recorded": cache_recorder.finish()}))
"""


@pytest.fixture
def small(book, monkeypatch):
    """A book whose chapter depends on modules, data, a listing, a file that is missing, and the environment."""
    for name, text in FILES.items():
        (book.root / name).parent.mkdir(parents=True, exist_ok=True)
        (book.root / name).write_text(text)
    book.write_chapter("tiny", CELLS)
    monkeypatch.delenv("SIZE", raising=False)
    return book


def run(book, values: dict) -> tuple[list[str], dict, dict]:
    """Execute the chapter; returns what its cells show, what was recorded, and its notebook with the outputs."""
    notebook = read_notebook(find_chapter("tiny").path)
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    sources = ["".join(cell["source"]) for cell in cells]
    sources[0] += "\n" + "\n".join(f"{name} = {value!r}" for name, value in values.items())
    library = Path(cache_key.__file__).parent.parent.parent
    done = subprocess.run(
        [sys.executable, "-c", KERNEL, str(book.root)], input=json.dumps(sources[:-1]), capture_output=True, text=True,
        cwd=book.root / "notebooks", env={**os.environ, "PYTHONPATH": str(library), **environment.kernel_threads()},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    for number, (cell, text) in enumerate(zip(cells, [*answer["shown"], ""]), start=1):
        cell["execution_count"] = number
        cell["outputs"] = [{"output_type": "stream", "name": "stdout", "text": text}]
    verdicts = json.loads(json.dumps(eval("".join(cells[-1]["source"]).split("records = ")[1].split("\n")[0])))
    data = {"application/vnd.casebook.verdicts+json": verdicts, "text/plain": "verdicts"}
    cells[-1]["outputs"] = [{"output_type": "display_data", "data": data, "metadata": {}}]
    return answer["shown"], answer["recorded"], notebook


def enter(book, assignments=(), seconds: float = 1.0) -> list[str]:
    """Run the chapter and store the result; returns what its cells show."""
    job = prepare(find_chapter("tiny"), assignments)
    key = cache.key(job)
    shown, recorded, notebook = run(book, job.values)
    assert recorded["doubts"] == []
    provenance = {"parameters": job.values, "seconds": seconds, "started": "2026-01-01T00:00:00+00:00"}
    cache.enter(job, key, recorded["reads"], json.dumps(notebook).encode(), [], provenance)
    return shown


def answer(assignments=()) -> Hit | Miss:
    return cache.lookup(prepare(find_chapter("tiny"), assignments))


def reasons(assignments=()) -> list[str]:
    found = answer(assignments)
    return found.reasons if isinstance(found, Miss) else []


def write(name: str, text: str):
    def edit(book) -> None:
        (book.root / name).parent.mkdir(parents=True, exist_ok=True)
        (book.root / name).write_text(text)

    return edit


def edit_cells(change):
    def edit(book) -> None:
        path = find_chapter("tiny").path
        notebook = read_notebook(path)
        change(notebook["cells"])
        path.write_text(json.dumps(notebook))

    return edit


def tagged(index: int, tag: str):
    return edit_cells(lambda cells: cells[index]["metadata"].setdefault("tags", []).append(tag))


REACHING = {
    "a module": (write("lib/direct.py", "def total(): return 3"), "lib/direct.py changed"),
    "a module through two others": (write("lib/pack/bottom.py", "VALUE = 2"), "lib/pack/bottom.py changed"),
    "a package": (write("lib/pack/__init__.py", "#"), "lib/pack/__init__.py changed"),
    "a module that hides another": (write("lib/pack/bottom/__init__.py", "VALUE"), "of lib/pack/bottom.py is new"),
    "data": (write("data/a.txt", "b"), "data/a.txt changed"),
    "data gone": (lambda book: (book.root / "data/a.txt").unlink(), "data/a.txt is gone"),
    "one more match of a pattern": (write("data/new.csv", ""), "new in data/ changed"),
    "a file that was missing": (write("data/extra.txt", "x"), "data/extra.txt is new"),
    "the lock": (write("requirements.lock", "x==2"), "requirements.lock changed"),
    "the report": (lambda book: book.write_report("tiny", ("T1",)), "data/reports/tiny.toml changed"),
    "code": (edit_cells(lambda cells: cells[3].update(source="print(1)")), "code cells changed"),
    "a comment in code": (edit_cells(lambda cells: cells[3]["source"].append("\n# why")), "code cells changed"),
    "the order": (edit_cells(lambda cells: cells.insert(2, cells.pop(3))), "code cells changed"),
    "a tag that is obeyed": (tagged(3, "skip-execution"), "tags changed"),
}  # fmt: skip


@pytest.mark.parametrize("what", REACHING)
def test_a_change_that_reaches_the_chapter_is_a_miss_and_named(small, what):
    enter(small)
    assert reasons() == []
    edit, reason = REACHING[what]
    edit(small)
    assert reason.removeprefix("new in ") in " ".join(reasons())
    assert isinstance(answer(), Miss)


BESIDE = {
    "prose": edit_cells(lambda cells: cells[0].update(source="# The tiny incident\n\n<!-- a comment --> Other prose.")),
    "a new text cell": edit_cells(lambda cells: cells.insert(2, nbformat.v4.new_markdown_cell("more"))),
    "a display tag": tagged(3, "hide-input"),
    "a module that it does not import": write("lib/unread.py", "x = 2"),
    "data that it does not read": write("data/unread.txt", "v"),
    "another report": write("data/reports/other.toml", "x"),
    "a page of the book": write("book/index.md", "# x"),
    "the stored outputs": edit_cells(lambda cells: cells[2].update(outputs=[], execution_count=9)),
}


@pytest.mark.parametrize("what", BESIDE)
def test_a_change_beside_the_chapter_is_a_hit(small, what):
    enter(small)
    BESIDE[what](small)
    assert isinstance(answer(), Hit), reasons()


def test_other_parameters_have_their_own_entries(small):
    enter(small)
    assert reasons(["seed=1"]) == ["parameters changed"]
    enter(small, ["seed=1"])
    assert isinstance(answer(), Hit)
    assert isinstance(answer(["seed=1"]), Hit)
    assert isinstance(answer(["rate=0.25"]), Miss)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: m.setenv("SIZE", "2"), "environment SIZE is new"),
        (lambda m: m.setenv("MKL_CBWR", "COMPATIBLE"), "environment MKL_CBWR is new"),
        (lambda m: m.setattr(environment, "THREADS", "2"), "environment OMP_NUM_THREADS changed"),
        (lambda m: m.setattr(environment, "_processor", lambda: "another"), "processor changed"),
        (lambda m: m.setattr(environment.platform, "python_version", lambda: "3.99.0"), "Python changed"),
        (lambda m: m.setattr(environment.platform, "machine", lambda: "other"), "platform changed"),
    ],
)
def test_another_machine_or_environment_is_a_miss_and_named(small, monkeypatch, change, reason):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")  # the runner's own count is in force, see ONE_THREAD
    enter(small)
    assert reasons() == []
    change(monkeypatch)
    assert reason in reasons()


def test_another_installed_version_is_a_miss_and_named(small, tmp_path, monkeypatch):
    site = tmp_path / "site-packages"
    (site / "torch-2.13.0+cpu.dist-info").mkdir(parents=True)
    monkeypatch.syspath_prepend(site)
    enter(small)
    assert reasons() == []
    (site / "torch-2.13.0+cpu.dist-info").rename(site / "torch-2.14.0+cpu.dist-info")
    assert reasons() == ["torch 2.13.0+cpu became 2.14.0+cpu"]


def test_variables_of_no_consequence_are_no_input(small, monkeypatch):
    enter(small)
    monkeypatch.setenv("EDITOR", "ed")
    monkeypatch.setenv("PYTHONUNBUFFERED", "1")
    assert reasons() == []


def test_an_edit_taken_back_is_served_again(small):
    enter(small)
    write("data/a.txt", "b")(small)
    enter(small)
    assert isinstance(answer(), Hit)
    write("data/a.txt", "a")(small)
    assert isinstance(answer(), Hit)


def test_a_checkout_elsewhere_is_served_from_a_copied_cache(small, tmp_path, monkeypatch):
    enter(small)
    shutil.copytree(small.root, tmp_path / "elsewhere")
    shutil.rmtree(small.root / "lib")
    monkeypatch.setenv("CASEBOOK_ROOT", str(tmp_path / "elsewhere"))
    assert isinstance(answer(), Hit), reasons()


NUMBERS = st.integers(0, 3)
TEXTS = {
    "lib/direct.py": "import pack.middle\ndef total(): return {} + pack.middle.value()",
    "lib/pack/middle.py": "from pack import bottom\ndef value(): return {} * bottom.VALUE",
    "lib/pack/bottom.py": "VALUE = {}",
    "lib/pack/bottom/__init__.py": "VALUE = {} + 10",
    "lib/unread.py": "x = {}",
    "notebooks/direct.py": "def total(): return {} + 100",
    "data/a.txt": "{}",
    "data/unread.txt": "{}",
    "data/extra.txt": "{}",
    "data/x.csv": "{}",
    "data/y.csv": "{}",
    "requirements.lock": "x=={}",
}
EDITS = st.one_of(
    st.tuples(st.sampled_from(sorted(TEXTS)), NUMBERS),
    st.tuples(st.just("variable SIZE"), NUMBERS),
    st.tuples(st.just("threads"), NUMBERS),
    st.tuples(st.just("remove"), st.sampled_from(sorted(TEXTS.keys() - FILES.keys()))),
)


def apply(book, monkeypatch, where: str, what) -> None:
    if where == "variable SIZE":
        monkeypatch.setenv("SIZE", str(what))
    elif where == "threads":
        monkeypatch.setattr(environment, "THREADS", str(what + 1))
    elif where == "remove":
        (book.root / what).unlink(missing_ok=True)
    else:
        write(where, TEXTS[where].format(what))(book)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=st.lists(EDITS, min_size=1, max_size=5), assignments=st.sampled_from([(), ("seed=1",), ("rate=0.25",)]))
def test_whatever_is_edited_a_hit_shows_what_a_fresh_run_shows(small, edits, assignments):
    """The oracle runs the cells anew after every edit; a needless miss would not be wrong, a false hit would."""
    with pytest.MonkeyPatch.context() as patched:
        for name in TEXTS:
            (small.root / name).unlink(missing_ok=True)
        for name, text in FILES.items():
            write(name, text)(small)
        enter(small)
        for where, what in edits:
            apply(small, patched, where, what)
            found = answer(assignments)
            shown, _, _ = run(small, prepare(find_chapter("tiny"), assignments).values)
            if isinstance(found, Hit):
                assert cached_texts(found) == shown
            enter(small, assignments)
            assert isinstance(answer(assignments), Hit), "what was just run is served"


def cached_texts(hit: Hit) -> list[str]:
    cells = [cell for cell in json.loads(hit.notebook)["cells"] if cell["cell_type"] == "code"]
    return [cell["outputs"][0]["text"] for cell in cells[:-1]]


def test_the_property_above_meets_hits_and_misses(small):
    """Its control: of these edits some reach the chapter and some do not."""
    enter(small)
    write("lib/unread.py", "x = 7")(small)
    assert isinstance(answer(), Hit)
    write("lib/pack/bottom.py", "VALUE = 3")(small)
    assert isinstance(answer(), Miss)
    assert run(small, prepare(find_chapter("tiny")).values)[0][3].startswith("4 ")


def only_entry() -> Path:
    (path,) = cache_store.entry_files("tiny")
    return path


DAMAGES = {
    "an edited entry": lambda path: path.write_text(path.read_text().replace("2026", "2027")),
    "half an entry": lambda path: path.write_bytes(path.read_bytes()[:99]),
    "an empty entry": lambda path: path.write_bytes(b""),
    "no JSON object": lambda path: path.write_text("[]"),
    "a lost notebook": lambda path: shutil.rmtree(cache_store.folder() / "notebooks"),
    "an edited notebook": lambda path: next((cache_store.folder() / "notebooks").iterdir()).write_text("{}"),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_a_damaged_entry_is_not_served_and_the_next_run_mends_it(small, what):
    enter(small)
    DAMAGES[what](only_entry())
    assert any("damage" in reason or "cannot be read" in reason for reason in reasons())
    enter(small)
    assert isinstance(answer(), Hit)


@pytest.mark.parametrize("step", range(3))
def test_an_interruption_while_an_entry_is_stored_leaves_no_half_entry(small, monkeypatch, step):
    """Three files are moved into place: the notebook, the counter, the entry."""
    moves = iter(range(9))
    real = Path.replace

    def replace(path, target):
        if next(moves) == step:
            raise KeyboardInterrupt
        return real(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", replace)
        with pytest.raises(KeyboardInterrupt):
            enter(small)
    assert reasons() == ["no earlier run in the cache"]
    assert not list(cache_store.folder().rglob(".new-*"))
    enter(small)
    assert isinstance(answer(), Hit)


def test_the_newest_entry_is_known_also_when_the_clock_is_set_back(small):
    enter(small, seconds=9.0)
    write("data/a.txt", "b")(small)
    enter(small, seconds=5.0)
    for path in cache_store.entry_files("tiny"):
        os.utime(path, (0, 0))
    assert cache.last_seconds(prepare(find_chapter("tiny"))) == 5.0


def test_how_long_a_chapter_takes_is_known_without_its_result_folder(small):
    job = prepare(find_chapter("tiny"))
    assert cache.last_seconds(job) == float("inf")
    enter(small, seconds=7.5)
    assert not job.destination.exists()
    assert cache.last_seconds(job) == 7.5


def test_before_its_first_run_here_a_chapter_is_expected_to_take_as_long_as_a_row_of_its_committed_sweep(small):
    job = prepare(find_chapter("tiny"))
    write("data/evidence/tiny.json", '{"seconds": 90.0, "rows": 6}')(small)
    assert cache.last_seconds(job) == 15.0
    enter(small, seconds=7.5)
    assert cache.last_seconds(job) == 7.5
    for damaged in ("{", "[]", '{"seconds": 90.0}', '{"seconds": 90.0, "rows": 0}', '{"seconds": [], "rows": 1}'):
        write("data/evidence/tiny.json", damaged)(small)
        assert cache.committed_seconds("tiny") == float("inf"), damaged


def test_collecting_keeps_the_newest_runs_and_what_they_need(small):
    for number in range(4):
        write("data/a.txt", str(number))(small)
        enter(small)
    cache_store.entry_files("tiny")[0].with_name("damaged.json").write_text("{")
    swept = cache_store.collect(keep=2)
    assert (swept.removed, swept.kept) == (3, 2)
    assert swept.freed_bytes > 0
    assert len(list((cache_store.folder() / "notebooks").iterdir())) == 2
    assert isinstance(answer(), Hit)
    write("data/a.txt", "0")(small)
    assert isinstance(answer(), Miss)


def numbers() -> set[str]:
    """Return the text that each run in the cache has read, which tells the runs apart."""
    texts = {cache_key.digest(str(number).encode()): str(number) for number in range(9)}
    entries = [cache_store.read_entry(path) for path in cache_store.entry_files("tiny")]
    return {texts[entry.reads["data/a.txt"]] for entry in entries}


@pytest.fixture
def four(small):
    """A cache of four runs, of which the oldest would be served, and was not since."""
    for number in (0, 1, 2, 3):
        write("data/a.txt", str(number))(small)
        enter(small)
    write("data/a.txt", "0")(small)
    return small


def test_beyond_a_size_what_was_not_used_for_longest_goes_first(four):
    write("data/a.txt", "1")(four)
    cache.serve(prepare(find_chapter("tiny")), answer())
    one = cache_store.size_bytes() / 4
    assert cache_store.collect(20, limit=2.5 * one).removed == 2
    assert numbers() == {"1", "3"}


def test_what_a_build_would_be_served_from_stays_whatever_the_size(four):
    swept = cache_bound.tidy(20, limit=0)
    assert (swept.removed, swept.kept) == (3, 1)
    assert numbers() == {"0"}
    assert isinstance(answer(), Hit)


def test_a_run_of_other_parameters_does_not_count_as_what_a_build_needs(four):
    enter(four, ["rate=0.3"])
    cache_bound.tidy(20, limit=0)
    assert isinstance(answer(["rate=0.3"]), Miss)
    assert isinstance(answer(), Hit)


def test_the_files_that_are_left_fit_the_limit_and_a_cache_that_fits_is_left_alone(four):
    size = cache_store.size_bytes()
    assert cache_bound.keep_within(size) is None
    swept = cache_bound.keep_within(size - 1)
    assert swept.removed > 0
    assert swept.freed_bytes == size - cache_store.size_bytes()
    assert cache_store.size_bytes() <= size - 1
    assert len(list((cache_store.folder() / "notebooks").iterdir())) == swept.kept


def test_a_notebook_that_two_runs_share_is_removed_with_the_second_only(small):
    for assignments in ([], ["rate=0.3"], ["rate=0.4"]):
        job = prepare(find_chapter("tiny"), assignments)
        about = {"parameters": job.values, "seconds": 1.0, "started": "2026-01-01T00:00:00+00:00"}
        cache.enter(job, cache.key(job), {}, b"{}" * 5000, [], about)
    (blob,) = (cache_store.folder() / "notebooks").iterdir()
    entry = cache_store.entry_files("tiny")[0].stat().st_size
    swept = cache_store.collect(20, limit=10000 + 1.5 * entry)
    assert (swept.removed, blob.exists()) == (2, True)
    assert cache_store.collect(20, limit=0).removed == 1
    assert not blob.exists()


def test_a_served_result_has_the_prose_as_it_stands_and_the_outputs_as_they_were(small):
    shown = enter(small)
    BESIDE["prose"](small)
    BESIDE["a new text cell"](small)
    job = prepare(find_chapter("tiny"))
    folder = cache.serve(job, cache.lookup(job))
    assert sorted(path.name for path in folder.iterdir()) == ["notebook.ipynb", "provenance.json", "verdicts.json"]
    notebook = nbformat.read(folder / "notebook.ipynb", 4)
    nbformat.validate(notebook)
    assert "Other prose." in notebook.cells[0].source
    assert notebook.cells[2].source == "more"
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.outputs[0].text for cell in cells[:-1]] == shown
