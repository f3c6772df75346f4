"""Many seeds at once against a loop, at the chapters' own sizes; part of `make bench`.

Chapter 3 trains a cohort; it is measured with the texts, seeds and optimiser of its own parameters cell. In the others
a batch holds so much arithmetic that a cohort wins little or loses; they train seed by seed.

Random dropout cannot run under `vmap`, so chapter 1's models are measured at rate 0, and a mean over a boolean mask is
written with the mask as factor, in both ways alike. CPU seconds, not the clock: the ratio is for one thread, and the
machine may be busy.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from casestudies_lib import cohort
from casestudies_lib.models import distillation, dominoes, tracing
from casestudies_lib.models.gates import switches as gates
from casestudies_lib.models.gates.model import GatedModel
from casestudies_lib.runner.chapters import find_chapter, read_notebook
from casestudies_lib.runner.parameters import read_parameters
from casestudies_lib.tasks.dominoes import data as domino_data
from casestudies_lib.tasks.dominoes.examples import Examples, examples
from casestudies_lib.tasks.dominoes.tokens import FEATURES
from casestudies_lib.tasks.students import Students, simulated_classroom

Row = tuple[str, str, str]
SEEDS = (5, 16)  # what a chapter runs with, and what a sweep's block may hold
FUSED = partial(torch.optim.AdamW, lr=3e-3, fused=True)  # the fastest that a loop can have


def cohort_rows(steps: int = 8) -> list[Row]:
    """Return what was measured, the measurement, and the figure to reach."""
    torch.set_num_threads(1)
    name, *parts, adamw, seeds = chapter_3()
    wins = ratio(*parts, seeds, 2 * steps, 6, adamw)
    rows = [(f"loop ÷ cohort, CPU, {name}", f"{wins:.1f} with {seeds} seeds", "≥ 4")]
    for name, build, loss, draw in (chapter_1("GainAKT4"), chapter_1("AKT"), chapter_2(), chapter_4(8), chapter_4(2)):
        faster = [ratio(build, loss, draw, seeds, steps) for seeds in SEEDS]
        shown = ", ".join(f"{value:.1f} with {seeds} seeds" for value, seeds in zip(faster, SEEDS))
        rows.append((f"loop ÷ cohort, CPU, {name} (loops)", shown, ""))
    return rows


def ratio(
    build: Callable, loss: Callable, draw: Callable, seeds: int, steps: int, turns: int = 2, adamw: Callable = FUSED
) -> float:
    """Return the CPU seconds of a loop over the seeds by those of the cohort: the smallest of turns side by side."""
    batches = [
        [draw(torch.Generator().manual_seed(97 * step + seed)) for seed in range(seeds)] for step in range(steps)
    ]
    taken = {cohort.train: [], cohort.train_one_by_one: []}
    for _ in range(turns):
        for way, seconds in taken.items():
            models = [build(seed) for seed in range(seeds)]
            begin = time.process_time()
            way(models, loss, batches, adamw)
            seconds.append(time.process_time() - begin)
    return min(taken[cohort.train_one_by_one]) / min(taken[cohort.train])


def chapter_1(system: str) -> tuple[str, Callable, Callable, Callable]:
    room = simulated_classroom(1000, 2000, 100, 32, mean_length=6.0).train
    sizes = tracing.Sizes(concepts=100, slots=32, blocks=1, dropout=0.0)

    def build(seed: int) -> nn.Module:
        streams = tracing.isolated_streams(seed)
        return tracing.AKT(sizes, streams) if system == "AKT" else tracing.GainAKT4(sizes, streams, build_mastery=False)

    def draw(generator: torch.Generator) -> Students:
        return room.take(torch.randint(len(room), (32,), generator=generator))

    return f"chapter 1, {system}, 32 students", build, masked_loss, draw


def masked_loss(model: nn.Module, batch: Students) -> Tensor:
    real = batch.real[:, 1:].float()
    logits = tracing.predict(model, batch).response_logits
    each = functional.binary_cross_entropy_with_logits(logits, batch.responses[:, 1:].float(), reduction="none")
    return (each * real).sum() / real.sum()


def chapter_2() -> tuple[str, Callable, Callable, Callable]:
    train = examples(domino_data.load()["train"])
    sizes = dominoes.Sizes(tuple(FEATURES.values()), dim=32, heads=2, layers=2, hidden=64)

    def draw(generator: torch.Generator) -> Examples:
        return train.take(torch.randint(len(train.deal), (32,), generator=generator))

    return "chapter 2, DominoNet, 32 positions", lambda seed: dominoes.DominoNet(sizes, seeded(seed)), domino_loss, draw


def domino_loss(model: nn.Module, batch: Examples) -> Tensor:
    answers, legal = model(batch.tokens), batch.legal.float()
    q_loss = ((answers.q - batch.q).square() * legal).sum() / legal.sum()
    return q_loss + 0.5 * (answers.value - batch.value).square().mean()


def chapter_3() -> tuple[str, Callable, Callable, Callable, Callable, int]:
    """Return what the chapter trains, as in the other chapters, and its optimiser and seeds."""
    chapter = find_chapter("mixing_gates")
    set_to = {each.name: each.default for each in read_parameters(read_notebook(chapter.path), chapter.slug)}
    texts = set_to["batch"]
    sizes = gates.Sizes(vocab=60, tokens=32, dim=32, heads=4, blocks=2)

    def build(seed: int) -> nn.Module:
        return GatedModel(sizes, gates.Switches(), seeded(seed))

    def draw(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        window = torch.randint(sizes.vocab, (texts, 33), generator=generator)
        return window, torch.randn(texts, 32, sizes.dim, generator=generator)

    adamw = partial(torch.optim.AdamW, lr=set_to["learning_rate"], weight_decay=set_to["weight_decay"])
    return f"chapter 3, texts of 32 characters: {texts}", build, gated_loss, draw, adamw, set_to["n_seeds"]


def gated_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    window, noise = batch
    return functional.cross_entropy(model(window[:, :-1], noise).mT, window[:, 1:])


def chapter_4(texts: int) -> tuple[str, Callable, Callable, Callable]:
    teacher = texts == 8  # the teacher learns from eight windows a step, the student from two texts
    width = {"dim": 48, "blocks": 3, "vocab": 1024} if teacher else {"dim": 32, "heads": 2, "blocks": 2, "vocab": 512}
    sizes = distillation.Sizes(tokens=256, **width)

    def draw(generator: torch.Generator) -> Tensor:
        return torch.randint(sizes.vocab, (texts, 65 if teacher else 40), generator=generator)

    name = f"chapter 4, {'teacher' if teacher else 'student'} alone, {texts} texts"
    return name, lambda seed: distillation.LanguageModel(sizes, seeded(seed)), next_token_loss, draw


def next_token_loss(model: nn.Module, ids: Tensor) -> Tensor:
    return functional.cross_entropy(model(ids[:, :-1]).logits.transpose(1, 2), ids[:, 1:])


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def print_rows(rows: Sequence[Row]) -> None:
    for row in rows:
        print(*row, sep=" | ")


if __name__ == "__main__":
    print_rows(cohort_rows())
