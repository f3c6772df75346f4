"""A result folder is whole or absent, and is shown only while everything it follows from is unchanged."""

import errno
import json
import shutil
from pathlib import Path

import pytest

import casestudies_lib
from casestudies_lib.runner import results
from casestudies_lib.runner.cache_key import changes, parts
from casestudies_lib.runner.chapters import find_chapter, read_notebook
from casestudies_lib.runner.parameters import read_parameters
from casestudies_lib.runner.results import ResultError, read_result, write_result

OLD = (b"old notebook", [{"id": "T1", "value": 1}], {"chapter": "tiny"})
NEW = (b"new notebook", [{"id": "T1", "value": 2}], {"chapter": "tiny"})


@pytest.fixture
def folder(tmp_path):
    destination = tmp_path / "out"
    with results.scratch_folder(destination) as scratch:
        write_result(destination, scratch, *OLD)
    return destination


def write_new(folder):
    with results.scratch_folder(folder) as scratch:
        write_result(folder, scratch, *NEW)


def test_what_was_written_is_read_back(folder):
    write_new(folder)
    result = read_result(folder)
    assert (result.folder / "notebook.ipynb").read_bytes() == NEW[0]
    assert result.verdicts == NEW[1]
    assert result.provenance["chapter"] == "tiny"
    assert sorted(path.name for path in folder.iterdir()) == ["notebook.ipynb", "provenance.json", "verdicts.json"]


@pytest.mark.parametrize("name", ["notebook.ipynb", "verdicts.json"])
@pytest.mark.parametrize("damage", ["edited", "missing"])
def test_a_file_that_does_not_match_the_seal_is_no_result(folder, name, damage):
    (folder / name).unlink() if damage == "missing" else (folder / name).write_bytes(b"[]")
    with pytest.raises(ResultError, match=name.replace(".", r"\.")):
        read_result(folder)


@pytest.mark.parametrize("seal", [None, "", "[]", "{}", '{"files": {}}'])
def test_a_folder_without_its_seal_is_no_result(folder, seal):
    (folder / "provenance.json").unlink() if seal is None else (folder / "provenance.json").write_text(seal)
    with pytest.raises(ResultError):
        read_result(folder)


def interrupted_at(monkeypatch, step, error):
    """Let the n-th change of the destination fail: three files are written aside, then three are moved in."""
    steps = iter(range(1000))

    def counted(real):
        def change(*arguments, **options):
            if next(steps) == step:
                raise error
            return real(*arguments, **options)

        return change

    monkeypatch.setattr(results, "_write_through", counted(results._write_through))
    monkeypatch.setattr(Path, "replace", counted(Path.replace))


@pytest.mark.parametrize("step", range(6))
def test_an_interruption_at_any_step_leaves_the_old_result_or_none_but_never_a_mixture(folder, monkeypatch, step):
    with monkeypatch.context() as patched:
        interrupted_at(patched, step, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            write_new(folder)
    if step < 3:
        assert read_result(folder).verdicts == OLD[1]
        assert (folder / "notebook.ipynb").read_bytes() == OLD[0]
    else:
        with pytest.raises(ResultError, match=r"provenance\.json is missing"):
            read_result(folder)
    assert not list(folder.glob(".casebook-*"))


def test_without_an_interruption_the_new_result_stands(folder, monkeypatch):
    """The control of the test above: it has found all steps."""
    with monkeypatch.context() as patched:
        interrupted_at(patched, 6, KeyboardInterrupt())
        write_new(folder)
    assert read_result(folder).verdicts == NEW[1]


@pytest.mark.parametrize("step", range(3))
def test_a_full_disk_at_any_file_is_one_line_and_spares_the_old_result(folder, monkeypatch, step):
    with monkeypatch.context() as patched:
        interrupted_at(patched, step, OSError(errno.ENOSPC, "No space left on device"))
        with pytest.raises(ResultError, match=r"the disk of .* is full; nothing was stored"):
            write_new(folder)
    assert read_result(folder).verdicts == OLD[1]


def test_a_number_that_json_cannot_hold_spares_the_old_result(folder):
    with pytest.raises(ValueError, match="not JSON compliant"), results.scratch_folder(folder) as scratch:
        write_result(folder, scratch, b"x", [{"value": float("nan")}], {})
    assert read_result(folder).verdicts == OLD[1]


def test_scratch_that_a_killed_run_left_behind_goes_with_the_next_run_and_scratch_in_use_stays(folder):
    (folder / ".casebook-abandoned").mkdir()
    with results.scratch_folder(folder) as first, results.scratch_folder(folder) as second:
        assert sorted(folder.glob(".casebook-*")) == sorted([first, second])
    assert not list(folder.glob(".casebook-*"))


def test_an_empty_folder_does_not_stay_behind(tmp_path):
    with results.scratch_folder(tmp_path / "out"):
        pass
    assert not (tmp_path / "out").exists()


def test_a_replaced_file_is_whole_or_unchanged(tmp_path, monkeypatch):
    path = tmp_path / "1_tiny.ipynb"
    path.write_bytes(b"old")
    path.chmod(0o640)
    with monkeypatch.context() as patched:
        interrupted_at(patched, 1, OSError(errno.ENOSPC, "No space left on device"))
        with pytest.raises(OSError, match="No space"):
            results.replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    results.replace_file(path, b"new")
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o640
    assert [entry.name for entry in tmp_path.iterdir()] == ["1_tiny.ipynb"]


def changes_of(book):
    chapter = find_chapter("tiny")
    parameters = read_parameters(read_notebook(chapter.path), chapter.path.name)
    return results.staleness(read_result(book.runs / "tiny"), chapter, parameters)


def edit_notebook(book, edit):
    path = book.root / "notebooks" / "1_tiny.ipynb"
    notebook = json.loads(path.read_text())
    edit(notebook["cells"])
    path.write_text(json.dumps(notebook))


def append(book, name, text="\n# more"):
    path = book.root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text((path.read_text() if path.exists() else "") + text)


def other_default(cells):
    cells[1]["source"] = "".join(cells[1]["source"]).replace("seed = 0 ", "seed = 1 ")


EDITS = {
    "code": (lambda b: edit_notebook(b, lambda c: c[2].update(source="print(2)")), ["code cells changed"]),
    "default": (lambda b: edit_notebook(b, other_default), ["code cells changed"]),
    "order": (lambda b: edit_notebook(b, lambda c: c.insert(2, c.pop(3))), ["code cells changed"]),
    "prose": (lambda b: edit_notebook(b, lambda c: c[0].update(source="# Another title")), []),
    "nothing": (lambda b: None, []),
    "report": (lambda b: append(b, "data/reports/tiny.toml"), ["data/reports/tiny.toml changed"]),
    "another report": (lambda b: append(b, "data/reports/other.toml"), []),
    "lock": (lambda b: append(b, "requirements.lock"), ["requirements.lock changed"]),
    "no lock": (lambda b: (b.root / "requirements.lock").unlink(), ["requirements.lock is gone"]),
    "data that it does not read": (lambda b: append(b, "data/evidence/a.csv"), []),
}


@pytest.mark.parametrize("edit", EDITS)
def test_staleness_names_exactly_what_changed(ran, edit):
    assert changes_of(ran) == []
    change, expected = EDITS[edit]
    change(ran)
    assert changes_of(ran) == expected


def test_an_edited_module_makes_a_result_stale_when_the_run_depends_on_it(ran, tmp_path, monkeypatch):
    library = tmp_path / "casestudies_lib"
    shutil.copytree(Path(casestudies_lib.__file__).parent, library)
    monkeypatch.setattr(casestudies_lib, "__file__", str(library / "__init__.py"))
    assert changes_of(ran) == []
    for name in ("paths.py", "runner/worker.py", "runner/facts.py"):
        (library / name).write_text((library / name).read_text() + "\n")
    assert changes_of(ran) == [f"casestudies_lib/runner/{name} changed" for name in ("facts.py", "worker.py")]


def test_a_run_that_could_not_be_followed_is_stale_after_any_edit_of_modules_or_data(book):
    book.write_chapter("tiny", ("import os; os.system('true')",))
    assert book.casebook("run", "tiny").returncode == 0
    assert changes_of(book) == []
    append(book, "data/evidence/a.csv")
    assert changes_of(book) == ["data/evidence/a.csv is new"]


def test_the_content_behind_a_path_parameter_is_an_input(book, tmp_path):
    chapter = find_chapter("tiny")
    notebook = read_notebook(chapter.path)
    parameters = read_parameters(notebook, "n")
    values = {p.name: p.default for p in parameters} | {"records": str(tmp_path / "records")}
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "a.csv").write_text("1")
    before = parts("tiny", notebook, parameters, values)
    (tmp_path / "records" / "a.csv").write_text("2")
    after = parts("tiny", notebook, parameters, values)
    assert changes(before, after) == ["files of parameter records changed"]


def test_a_stale_run_is_said_and_the_stored_outputs_are_shown_instead(ran):
    fresh = ran.casebook("verdicts", "tiny", "--json")
    assert [(r["id"], r["from"]) for r in json.loads(fresh.stdout)] == [("T1", "run"), ("T2", "run")]
    assert fresh.stderr == ""
    shutil.copy(ran.runs / "tiny" / "notebook.ipynb", ran.root / "notebooks" / "1_tiny.ipynb")
    append(ran, "data/reports/tiny.toml")
    stale = ran.casebook("verdicts", "tiny", "--json")
    assert stale.returncode == 0
    assert [(r["id"], r["from"]) for r in json.loads(stale.stdout)] == [("T1", "stored"), ("T2", "stored")]
    assert "stale, not shown: data/reports/tiny.toml changed; run: casebook run tiny" in stale.stderr


def test_an_edited_verdict_is_not_shown(ran):
    path = ran.runs / "tiny" / "verdicts.json"
    path.write_text(path.read_text().replace("upheld", "refuted", 1))
    done = ran.casebook("verdicts", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout) == []
    assert "verdicts.json" in done.stderr
    assert "does not match its seal" in done.stderr
