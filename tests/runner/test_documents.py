"""What README, pages, chapters and `--help` tell a reader to type is typed, what they tell to paste is run."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from casestudies_lib.runner.chapters import all_chapters, read_notebook, source_of

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "book").glob("*.md"))]
TEXTS = {path.name: path.read_text(encoding="utf-8") for path in PAGES}
CHAPTERS = {
    chapter.slug: "\n\n".join(
        source_of(cell) for cell in read_notebook(chapter.path)["cells"] if cell["cell_type"] == "markdown"
    )
    for chapter in all_chapters()
}


def blocks(text: str, language: str) -> list[str]:
    """Return the fenced blocks of a language, without the indentation that a list gives them."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
    return [re.sub(rf"^{indent}", "", body, flags=re.MULTILINE) for indent, body in found]


def typed(text: str) -> list[str]:
    """Return what follows a prompt, and the commands that stand in a sentence."""
    joined = [re.sub(r" *\\\n *", " ", block) for block in blocks(text, "console")]
    prompted = [line[2:].split("  #")[0].strip() for block in joined for line in block.splitlines() if line[:2] == "$ "]
    return prompted + re.findall(r"`((?:\.venv/bin/)?casebook [a-z][^`]*|make [a-z-]+(?: [A-Z_]+=[^`]*)?)`", text)


EVERYWHERE = "\n\n".join([*TEXTS.values(), *CHAPTERS.values()])
COMMANDS = sorted({line.removeprefix(".venv/bin/") for line in typed(EVERYWHERE)})
CASEBOOK = [shlex.split(line)[1:] for line in COMMANDS if line.startswith("casebook ")]
MAKE = [shlex.split(line)[1:] for line in COMMANDS if line.startswith("make ")]


def casebook(*arguments: str, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "casestudies_lib.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **options)


def help_of(*command: str) -> list[str]:
    """Return the subcommands that a help page lists."""
    done = casebook(*command, "--help", env={"COLUMNS": "200", "TERM": "dumb"})
    assert done.returncode == 0, done.stderr
    _, _, listed = done.stdout.partition("Commands")
    return re.findall(r"^│ ([a-z]+) ", listed, re.MULTILINE)


def test_every_command_answers_help_and_stands_on_a_page():
    commands = [(name, *rest) for name in help_of() for rest in ([(sub,) for sub in help_of(name)] or [()])]
    assert ("teach",) in commands
    assert ("evidence", "check") in commands
    for command in commands:
        help_of(*command)
    named = {tuple(arguments[: len(command)]) for arguments in CASEBOOK for command in commands}
    assert set(commands) - named == set(), "no page tells a reader to type these"


def test_the_page_of_faults_names_tests_that_exist_and_words_that_they_look_for():
    rows = [line.split(" | ") for line in TEXTS["faults.md"].splitlines() if "`test_" in line]
    sources = [path.read_text(encoding="utf-8") for path in (REPOSITORY / "tests").rglob("test_*.py")]
    assert len(rows) > 20
    for fault, words, _status, test in rows:
        name = re.search(r"`(test_\w+)`", test)[1]
        (source,) = [text for text in sources if f"def {name}(" in text]
        for quoted in re.findall(r'"(.+)"', words):
            assert quoted in source.replace("{name}", "SIGTERM"), f"{fault}: {name} does not look for {quoted!r}"


def test_make_knows_every_target_that_a_page_names():
    assert {("book",), ("test",)} <= {tuple(arguments) for arguments in MAKE}
    for arguments in MAKE:
        done = subprocess.run(["make", "-n", *arguments], cwd=REPOSITORY, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


SMALL = """\
seed = 0  # first seed [seed: 0 to 1000]
n_seeds = 5  # paired seeds [seeds: 2 to 64]
steps = 120  # of training [steps: 1 to 1000]
epochs = 22  # of training [epochs: 1 to 1000]
records = ""  # folder of records [path: any]
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory, new_book):
    """A book whose chapters bear the names that the pages use and need no training."""
    book = new_book(tmp_path_factory.mktemp("documents") / "a book")
    for name in ("notebooks/_template.ipynb", "data/reports/_template.toml"):
        shutil.copy(REPOSITORY / name, book.root / name)
    (book.root / "tests").mkdir()
    (book.root / "tests" / "test_notebook_contract.py").write_text("def test_my_incident(): pass\n")
    book.write_chapter("zero_weight_head", number=1, parameters=SMALL)
    book.write_chapter("head_routing", number=5, parameters=SMALL)
    return book


def prepared(book, arguments: list[str]) -> list[str]:
    """Return the arguments as a reader completes them, after doing what the page takes for done."""
    if "PATH" in " ".join(arguments):
        (book.root / "records").mkdir(exist_ok=True)
    arguments = [word.replace("PATH", "records") for word in arguments]
    if arguments[0] == "new":
        for path in book.root.rglob(f"*{arguments[1]}*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    elif "my_incident" in arguments and not list(book.root.glob("notebooks/*my_incident*")):
        assert book.casebook("new", "my_incident").returncode == 0
    if arguments[0] == "evidence":
        assert book.casebook("sweep", "zero_weight_head", "--n-seeds", "5").returncode == 0
        if arguments[1] == "check":
            assert book.casebook("evidence", "update", "zero_weight_head").returncode == 0
    # In a sentence a command may stand without its chapter.
    bare = arguments in (["run"], ["sweep"], ["evidence", "update"])
    return [*arguments, "zero_weight_head"] if bare else arguments


TEACH = ["teach", "zero_weight_head"]
ELSEWHERE = [arguments for arguments in CASEBOOK if "--scheduler" in arguments]
SITE = [arguments for arguments in CASEBOOK if arguments[0] in ("build", "serve", "pdf", "slides")]
READ = [
    arguments for arguments in CASEBOOK if arguments[0] in ("list", "verdicts") or "zero_weight_head" in arguments[1:2]
]
READ = [arguments for arguments in READ if arguments[0] not in ("run", "sweep", "slides")]
HERE = [arguments for arguments in CASEBOOK if arguments not in ELSEWHERE + SITE + READ]


@pytest.mark.parametrize("arguments", READ, ids=" ".join)
def test_a_command_that_only_reads_does_what_it_says_on_the_real_chapters(arguments, tmp_path):
    done = casebook(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", HERE, ids=" ".join)
def test_a_command_that_a_page_names_does_what_it_says(library, arguments):
    done = library.casebook(*prepared(library, arguments))
    doctor = arguments[0] == "doctor"  # the small book's lock asks for a version that never was
    assert done.returncode == (1 if doctor else 0), done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", ELSEWHERE, ids=" ".join)
def test_a_command_for_other_machines_is_understood_up_to_the_machine(library, arguments):
    """Nobody listens on that port of this machine."""
    place = arguments.index("--scheduler") + 1
    done = library.casebook(*arguments[:place], "tcp://127.0.0.1:9", *arguments[place + 1 :])
    assert done.returncode == 1
    assert "no Dask scheduler at tcp://127.0.0.1:9" in done.stderr


def test_build_serve_slides_and_pdf_do_what_the_pages_say(published_book, tmp_path):
    """The book is built already: a second build finds that nothing changed, a fresh one starts all chapters again."""
    book = type(published_book)(tmp_path / "a book")
    shutil.copytree(published_book.root, book.root)
    named = {arguments[0] for arguments in SITE}
    assert named == {"build", "serve", "slides", "pdf"}
    again = book.casebook("build")
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("nothing changed, its last run stays") == len(CHAPTERS)
    fresh = book.casebook("build", "--fresh", "--time-limit", "0.01")
    assert "time limit of 0.01 s reached" in fresh.stderr
    assert book.casebook("build").returncode == 0
    slides = [arguments for arguments in SITE if arguments[0] == "slides"]
    for arguments in slides:
        done = book.casebook(*arguments)
        assert done.returncode == 0, done.stderr
    assert list((book.root / "class").glob("*.slides.html"))


class Small(nn.Module):
    """A language model with a gated branch and a router, as small as the probes need."""

    def __init__(self, mlp: bool = True) -> None:
        super().__init__()
        self.embedding = nn.Embedding(12, 8)
        self.blocks = nn.ModuleList([nn.ModuleDict({"mlp": nn.Linear(8, 8) if mlp else nn.Identity()})])
        self.alpha = nn.Parameter(torch.tensor(0.5))
        self.head = nn.Linear(8, 12)

    def forward(self, tokens):
        state = self.embedding(tokens)
        state = state + torch.sigmoid(self.alpha) * torch.tanh(self.blocks[0]["mlp"](state))
        return self.head(state)


def language_loss(model, batch):
    return nn.functional.cross_entropy(model(batch).flatten(0, 1), batch.roll(-1, 1).flatten())


class Doubled(torch.autograd.Function):
    """A hand-written backward pass that is right."""

    @staticmethod
    def forward(context, inputs, weights):
        context.save_for_backward(inputs, weights)
        return inputs * weights

    @staticmethod
    def backward(context, gradient):
        inputs, weights = context.saved_tensors
        return gradient * weights, gradient * inputs


def surroundings() -> dict:
    """Return what the pasted lines take for granted: a reader's model, loss, data and optimiser."""
    from types import SimpleNamespace

    model, batch = Small(), torch.randint(12, (4, 6))
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    offsets = [(0, 3), (4, 7), (8, 11)]
    return {
        "torch": torch, "model": model, "baseline": model, "variant": Small(mlp=False), "batch": batch, "tokens": batch,
        "loss": language_loss, "my_loss": language_loss, "optimiser": optimiser, "loader": [batch] * 48,
        "scheduler": torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1.0),
        "prediction": torch.randn(4, 6, 12), "target": torch.randint(12, (4, 6)),
        "teacher_encoding": SimpleNamespace(offsets=offsets), "student_encoding": SimpleNamespace(offsets=offsets),
        "text": "one two six", "MyFunction": Doubled,
        "inputs": torch.randn(3, 4, requires_grad=True), "weights": torch.randn(3, 4, requires_grad=True),
    }  # fmt: skip


def accumulated(given: dict, batches: int):
    """Return a reader's loop body: gradients of so many batches, then one step of optimiser and schedule."""
    seen = []

    def one_step(batch):
        (language_loss(given["model"], batch) / batches).backward()
        seen.append(batch)
        if len(seen) % batches == 0:
            given["optimiser"].step()
            given["scheduler"].step()
            given["optimiser"].zero_grad()

    return one_step


class Routed(nn.Module):
    """Two experts behind a soft router."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.layer = nn.Embedding(12, 8), nn.Module()
        self.layer.router = nn.Linear(8, 2)
        self.experts, self.head = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)]), nn.Linear(8, 12)

    def forward(self, tokens):
        state = self.embedding(tokens)
        weights = self.layer.router(state).softmax(-1)
        mixed = sum(weights[..., [place]] * torch.tanh(expert(state)) for place, expert in enumerate(self.experts))
        return self.head(state + mixed)


def special(name: str) -> dict:
    """Return what one document's lines mean by a name that others use otherwise."""
    if name == "head_routing":
        return {"model": Routed()}
    if name == "distillation_loss":
        return {"my_loss": lambda prediction, target: nn.functional.cross_entropy(prediction.transpose(1, 2), target)}
    if name == "value_head_spillover":
        rows = torch.arange(300)
        return {
            "losses": lambda model, batch: {
                "a": model(batch)[:, 0].square().mean(), "b": (model(batch)[:, 1:] - 1).square().mean()
            },
            "predicted": torch.sin(rows * 1.0) + 0.1 * torch.cos(rows * 7.0), "target": torch.sin(rows * 1.0),
            "file_of_each_row": rows % 10,
        }  # fmt: skip
    return {}


PASTED = {name: blocks(text, "python") for name, text in (TEXTS | CHAPTERS).items()}
OTHERS_CLUSTERS = ("dask_jobqueue", "dask_kubernetes")  # not installed: they need a cluster to talk to


@pytest.mark.parametrize(("name", "code"), [(name, code) for name in PASTED for code in PASTED[name]])
def test_a_block_that_a_page_tells_a_reader_to_paste_runs(name, code):
    if any(module in code for module in OTHERS_CLUSTERS):
        pytest.skip(f"{name}: needs a cluster of somebody's own")
    given = surroundings() | special(name)
    given["one_step"] = accumulated(given, 16)
    exec(compile(code.replace("    ...", "    one_step(batch)"), name, "exec"), given)
