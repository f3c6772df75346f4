"""Whatever a chapter's outcome can follow from is recorded; what cannot be followed is a doubt."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import casestudies_lib
from casestudies_lib.runner.cache_states import Places, state

RUN = """
import json, sys
from casestudies_lib.runner import cache_recorder
cache_recorder.start(sys.argv[1], [sys.argv[1] + "/scratch"])
exec(compile(open(sys.argv[2]).read(), "cells", "exec"), {"__name__": "__main__"})
sys.stdout.write("\\n" + json.dumps(cache_recorder.finish()))
"""


@pytest.fixture
def root(tmp_path):
    for name in ("data/deep", "notebooks", "scratch", "lib"):
        (tmp_path / "book" / name).mkdir(parents=True)
    return tmp_path / "book"


def recorded(root: Path, cells: str, **environment: str) -> dict:
    """Run cells in the notebooks folder under the recorder, with `lib` and the package on the path."""
    script = root.parent / "cells.py"
    script.write_text(cells)
    library = Path(casestudies_lib.__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": f"{library}:{root / 'lib'}", **environment}
    command = [sys.executable, "-c", RUN, str(root), str(script)]
    done = subprocess.run(command, cwd=root / "notebooks", env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def places_of(root: Path) -> Places:
    return Places(root, Path(casestudies_lib.__file__).parent.parent)


READERS = {
    "open": "open('../data/a.txt').read()",
    "pathlib": "import pathlib; pathlib.Path('../data/a.txt').read_bytes()",
    "low level": "import os; os.read(os.open('../data/a.txt', os.O_RDONLY), 9)",
    "bytes": "open(b'../data/a.txt').read()",
    "after chdir": "import os; os.chdir('../data'); open('a.txt').read()",
    "numpy": "import numpy; numpy.fromfile('../data/a.txt', dtype='u1')",
    "memory map": "import numpy; numpy.memmap('../data/a.txt', dtype='u1', mode='r')[0]",
    "append": "open('../data/a.txt', 'a')",
    "size only": "import os; os.path.getsize('../data/a.txt')",
    "declared": "import sys; sys.audit('casebook.input', '../data/a.txt')",
    "executed": "exec(open('../data/a.txt').read())",
    "in a thread": "import threading as t; w = t.Thread(target=lambda: open('../data/a.txt')); w.start(); w.join()",
}


@pytest.mark.parametrize("how", READERS)
def test_a_file_that_is_read_is_recorded_and_a_change_of_it_is_seen(root, how):
    (root / "data" / "a.txt").write_text("1")
    found = recorded(root, READERS[how])["reads"]
    assert found["data/a.txt"] == state("data/a.txt", places_of(root))
    (root / "data" / "a.txt").write_text("2")
    assert found["data/a.txt"] != state("data/a.txt", places_of(root))


def test_a_file_that_is_not_read_is_not_recorded(root):
    (root / "data" / "a.txt").write_text("1")
    assert not [name for name in recorded(root, "1 + 1")["reads"] if name.startswith("data")]


LOOKERS = {
    "exists": "import os; os.path.exists('../data/b.txt')",
    "is_file": "import pathlib; pathlib.Path('../data/b.txt').is_file()",
    "failed open": "try: open('../data/b.txt')\nexcept OSError: pass",
    "access": "import os; os.access('../data/b.txt', os.R_OK)",
    "listdir": "import os; os.listdir('../data')",
    "glob": "import glob; glob.glob('../data/*.txt')",
    "pathlib glob": "import pathlib; list(pathlib.Path('../data').glob('*.txt'))",
    "walk": "import os; list(os.walk('../data'))",
    "declared folder": "import sys; sys.audit('casebook.input', '../data')",
}


@pytest.mark.parametrize("how", LOOKERS)
def test_a_file_that_was_looked_for_is_noticed_once_it_appears(root, how):
    found = recorded(root, LOOKERS[how])
    assert found["doubts"] == []
    assert unchanged(root, found)
    (root / "data" / "b.txt").write_text("1")
    assert not unchanged(root, found)


def unchanged(root: Path, found: dict) -> bool:
    return all(state(name, places_of(root)) == before for name, before in found["reads"].items())


def test_a_name_that_a_listing_shows_deeper_down_is_noticed(root):
    found = recorded(root, "import pathlib; list(pathlib.Path('../data').rglob('*'))")
    (root / "data" / "deep" / "c.txt").write_text("")
    assert not unchanged(root, found)


MODULES = {
    "itself": "lib/direct.py",
    "one that it imports": "lib/pack/below.py",
    "its package": "lib/pack/__init__.py",
    "a file beside the notebook that hides it": "notebooks/direct.py",
    "a package that hides it": "lib/pack/below/__init__.py",
    "a standard module hidden": "lib/fractions.py",
    "an optional one that was missing": "lib/pack/optional.py",
}


@pytest.mark.parametrize("which", MODULES)
def test_a_module_that_is_imported_or_could_come_in_its_place_is_noticed(root, which):
    (root / "lib" / "pack").mkdir()
    (root / "lib" / "pack" / "__init__.py").write_text("")
    (root / "lib" / "pack" / "below.py").write_text(
        "try:\n    from pack import optional\nexcept ImportError:\n    pass"
    )
    (root / "lib" / "direct.py").write_text("import fractions\nfrom pack import below")
    (root / "lib" / "unused.py").write_text("")
    found = recorded(root, "import direct")
    assert found["doubts"] == []
    (root / "lib" / "unused.py").write_text("x = 1")
    assert unchanged(root, found)
    edited = root / MODULES[which]
    edited.parent.mkdir(exist_ok=True)
    edited.write_text("x = 1")
    assert not unchanged(root, found)


def test_an_edit_of_the_same_length_within_a_second_runs_the_new_source(root):
    module = root / "lib" / "direct.py"
    for value in "12":
        module.write_text(f"x = {value}")
        os.utime(module, (10**9, 10**9))
        cells = "import direct; open('../scratch/x', 'w').write(str(direct.x))"
        recorded(root, cells, PYTHONDONTWRITEBYTECODE="")
        assert (root / "scratch" / "x").read_text() == value


def test_an_environment_variable_that_our_code_reads_is_recorded_as_it_was_given_and_its_value_is_not(root):
    cells = "import os; os.environ['SIZE'] = '9'; os.environ.get('SIZE'); 'GONE' in os.environ"
    found = recorded(root, cells, SIZE="s3cret")
    assert found["reads"]["environment GONE"] == "absent"
    assert "s3cret" not in json.dumps(found)
    assert found["reads"]["environment SIZE"] == recorded(root, cells, SIZE="s3cret")["reads"]["environment SIZE"]
    assert found["reads"]["environment SIZE"] != recorded(root, cells, SIZE="other")["reads"]["environment SIZE"]


def test_what_libraries_read_from_the_environment_is_no_input(root):
    found = recorded(root, "import tempfile; tempfile.gettempdir(); import pathlib; pathlib.Path.home()")["reads"]
    assert not [name for name in found if name.startswith("environment")]


DOUBTS = {
    "a child process": ("import subprocess; subprocess.run(['true'])", "it starts another process (true)"),
    "a shell": ("import os; os.system('true')", "it starts another process (true)"),
    "a fork": ("import os\nif not os.fork(): os._exit(0)", "it starts another process (a copy of itself)"),
    "a file written": ("open('../data/new.txt', 'w')", "it writes data/new.txt"),
    "a file moved": ("import os; os.rename('../data/a.txt', '../data/z.txt')", "it writes data/a.txt"),
    "a file removed": ("import os; os.remove('../data/a.txt')", "it writes data/a.txt"),
    "a file written and read": ("open('../data/a.txt', 'w'); open('../data/a.txt')", "it writes data/a.txt"),
    "a change meanwhile": (
        "open('../data/a.txt').read(); import ctypes\n"
        "fd = ctypes.CDLL(None).creat(b'../data/a.txt', 0o644); ctypes.CDLL(None).write(fd, b'22', 2)",
        "data/a.txt changed while it ran",
    ),
    "the network": (
        "import socket\ntry: socket.create_connection(('127.0.0.1', 1), 1)\nexcept OSError: pass",
        "it uses the network (('127.0.0.1', 1))",
    ),
    "a descriptor": (
        "import os; os.open('a.txt', os.O_RDONLY, dir_fd=os.open('../data', os.O_RDONLY))",
        "a.txt was opened relative to a folder's descriptor",
    ),
}


@pytest.mark.parametrize("what", DOUBTS)
def test_what_cannot_be_followed_or_repeated_is_a_doubt(root, what):
    (root / "data" / "a.txt").write_text("1")
    cells, doubt = DOUBTS[what]
    assert doubt in recorded(root, cells)["doubts"]


def test_a_file_restored_to_its_content_while_the_run_lasts_is_a_doubt(root):
    (root / "data" / "a.txt").write_text("1")
    write = "fd = libc.creat(b'../data/a.txt', 0o644); libc.write(fd, b'{}', 1); libc.close(fd); time.sleep(0.02)\n"
    cells = "import ctypes, time; libc = ctypes.CDLL(None)\nopen('../data/a.txt').read(); time.sleep(0.02)\n"
    assert recorded(root, cells)["doubts"] == []
    assert recorded(root, cells + write.format(2) + write.format(1))["doubts"] == ["data/a.txt changed while it ran"]


def test_what_a_run_makes_for_itself_elsewhere_is_no_input(root):
    cells = "import tempfile, pathlib\nwith tempfile.TemporaryDirectory() as t:\n"
    cells += "    p = pathlib.Path(t, 'x'); p.write_text('1'); p.read_text(); list(pathlib.Path(t).iterdir())"
    found = recorded(root, cells)
    assert found["doubts"] == []
    assert [name for name in found["reads"] if name.startswith("/")] == [str(root.parent / "cells.py")]


def test_files_elsewhere_are_inputs(root, tmp_path):
    (tmp_path / "records.csv").write_text("1")
    found = recorded(root, f"open({str(tmp_path / 'records.csv')!r}).read()")
    assert unchanged(root, found)
    (tmp_path / "records.csv").write_text("2")
    assert not unchanged(root, found)


def test_a_text_that_is_displayed_is_no_file_that_was_looked_for(root):
    found = recorded(root, "from IPython.display import Markdown; Markdown('It is **4.2**.')")["reads"]
    assert not [name for name in found if "4.2" in name]


def test_recording_leaves_the_questions_to_the_system_as_they_were(root):
    cells = "import os\nassert os.stat in os.supports_dir_fd and os.stat in os.supports_follow_symlinks\n"
    assert recorded(root, cells + "assert os.stat('.').st_ino == os.stat(os.open('.', os.O_RDONLY)).st_ino")


def test_asking_what_has_changed_records_nothing(root):
    """A warm process asks before each fork; names that came up while it asked have ended it."""
    (root / "lib" / "ours.py").write_text("")
    cells = (
        "import os, ours\nfrom casestudies_lib.runner import cache_recorder\nos.path.exists('../data/deep/none/x')\n"
    )
    cells += "recorder = cache_recorder._running[0]; recorder.note(os.path.abspath('../data/deep'))\n"
    cells += "before = dict(recorder.states)\n"
    cells += "assert cache_recorder.changed() == [] and recorder.states == before, set(recorder.states) - set(before)"
    recorded(root, cells)
