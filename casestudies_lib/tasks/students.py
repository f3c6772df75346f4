"""Students who practise: simulated ones whose learning is known, and the published ASSISTments records.

Both come as `Students`, padded to a common number of slots the way the reported run padded them: concept 0, response 0.
"""

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

Histories = list[tuple[list[int], list[int]]]  # a student's concepts and responses
SHORTEST = 3  # responses in the shortest history kept, as the published pipeline does
PADDING = 0  # the reported run padded with 0, which is also a real concept and a real response


class RecordError(ValueError):
    """A record file is missing, cut short or laid out otherwise; the message names file, line and what is allowed."""


@dataclass(frozen=True)
class Students:
    """Practice histories, one row a student, padded at the end.

    `real` is True where a slot holds a response and False where it is padding.
    """

    concepts: Int[Tensor, "students slots"]
    responses: Int[Tensor, "students slots"]
    real: Bool[Tensor, "students slots"]

    def __len__(self) -> int:
        """Return the number of students."""
        return self.real.shape[0]

    @property
    def n_responses(self) -> int:
        """Return the number of real responses."""
        return int(self.real.sum())

    @property
    def padding_share(self) -> float:
        """Return the share of all slots that hold padding."""
        return 1 - self.n_responses / self.real.numel()

    @property
    def share_right(self) -> float:
        """Return the share of real responses that are right."""
        return float(self.responses[self.real].float().mean())

    def take(self, rows: Int[Tensor, " rows"] | Bool[Tensor, " students"] | slice) -> "Students":
        """Return the chosen students."""
        return Students(self.concepts[rows], self.responses[rows], self.real[rows])


def simulate_students(
    generator: torch.Generator, students: int, concepts: int = 20, slots: int = 60, mean_length: float = 10.0
) -> Students:
    """Draw students with known ability, learning and forgetting, who practise one concept a few times in a row.

    The chance of a right response is the logistic of ability + skill − difficulty. Skill in a concept starts at zero,
    rises by the student's learning rate with each practice, and fades towards zero while other concepts are practised.
    Lengths are geometric, so that most slots are padding, as in the published records.

    Args:
        generator: the source of all draws.
        students: how many rows.
        concepts: how many concepts there are to practise.
        slots: longest history; longer ones are cut.
        mean_length: mean number of responses before the cut; at least 3, the shortest history kept.

    Raises:
        ValueError: a count below one, fewer than 3 slots, or a mean length below 3 or not finite.

    Source: one-parameter logistic (Rasch) response with a practice term, as in Pavlik, Cen and Koedinger,
        "Performance Factors Analysis", AIED 2009; sizes chosen for this book.
    """
    if students < 1 or concepts < 1 or slots < 3 or not 3 <= mean_length < math.inf:
        raise ValueError(
            f"students={students}, concepts={concepts}, slots={slots}, mean_length={mean_length}; "
            "at least 1, 1, 3 and 3 are needed, all finite"
        )
    lengths = _draw_lengths(generator, students, slots, mean_length)
    sequence = _draw_practice(generator, students, concepts, slots)
    ability = torch.randn(students, generator=generator) * 0.8 + 0.9
    learning = torch.rand(students, generator=generator) * 0.5
    difficulty = torch.randn(concepts, generator=generator)
    draws = torch.rand(students, slots, generator=generator)
    skill, responses, rows = torch.zeros(students, concepts), torch.zeros_like(sequence), torch.arange(students)
    for slot in range(slots):
        asked = sequence[:, slot]
        logit = ability + skill[rows, asked] - difficulty[asked]
        responses[:, slot] = (draws[:, slot] < logit.sigmoid()).long()
        skill *= 0.97
        skill[rows, asked] += learning
    real = torch.arange(slots) < lengths[:, None]
    return Students(sequence * real, responses * real, real)


def _draw_lengths(
    generator: torch.Generator, students: int, slots: int, mean_length: float
) -> Int[Tensor, " students"]:
    stop = 1 / (mean_length - 2)
    uniform = torch.rand(students, generator=generator).clamp(min=1e-9)
    beyond = (uniform.log() / torch.log1p(torch.tensor(-stop))).floor() if stop < 1 else torch.zeros(students)
    return (3 + beyond).clamp(max=slots).long()


def _draw_practice(
    generator: torch.Generator, students: int, concepts: int, slots: int
) -> Int[Tensor, "students slots"]:
    """Return concept ids in runs: with chance 2/3 a student stays on the concept."""
    fresh = torch.randint(concepts, (students, slots), generator=generator)
    moves = torch.rand(students, slots, generator=generator) > 2 / 3
    moves[:, 0] = True
    last_move = torch.where(moves, torch.arange(slots), 0).cummax(dim=1).values
    return fresh.gather(1, last_move)


def _cut_and_pad(histories: Histories, slots: int) -> Students:
    if slots < SHORTEST:
        raise ValueError(f"slots={slots}; at least {SHORTEST} are needed, the shortest history kept")
    pieces = [
        (asked[start : start + slots], answered[start : start + slots])
        for asked, answered in histories
        for start in range(0, len(asked), slots)
    ]
    return _pad([piece for piece in pieces if len(piece[0]) >= SHORTEST], slots)


def _split_histories(path: str | Path, concepts: int) -> tuple[Histories, Histories]:
    path = Path(path)
    if path.is_dir():
        train, test = _read_histories([path / "train.csv", path / "test.csv"], concepts)
        return train, test
    [histories] = _read_histories([path], concepts)
    if len(histories) < 10:
        raise RecordError(f"{path}: {len(histories)} students cannot be split; at least 10 are needed")
    return [history for place, history in enumerate(histories) if place % 5 != 4], histories[4::5]


def _read_histories(files: Sequence[Path], concepts: int) -> list[Histories]:
    """Return each file's histories of 3 responses or more, in one numbering of concepts."""
    parsed = _parse(files, concepts)
    kept = [[history for history in histories if len(history[0]) >= SHORTEST] for histories in parsed]
    for path, histories in zip(files, kept):
        if not histories:
            raise RecordError(f"{path}: no student has {SHORTEST} responses or more; is this the right file?")
    return kept


def _parse(files: Sequence[Path], concepts: int) -> list[Histories]:
    contents = {path: _read_lines(path) for path in files}
    tables = {path: _rows(path, lines) for path, lines in contents.items() if "user_id" in lines[0]}
    if tables and len(tables) < len(contents):
        raise RecordError(f"{files[0].parent}: train.csv and test.csv have different layouts; give both the same one")
    if not tables:
        return [_from_triples(path, lines, concepts) for path, lines in contents.items()]
    numbering = {name: place for place, name in enumerate(sorted({row[2] for rows in tables.values() for row in rows}))}
    if len(numbering) > concepts:
        where = ", ".join(str(path) for path in tables)
        raise RecordError(f"{where}: {len(numbering)} different sequence_id; at most {concepts} concepts are allowed")
    return [_group_by_student(rows, numbering) for rows in tables.values()]


def _read_lines(path: Path) -> list[str]:
    if not Path(path).is_file():
        raise RecordError(f"{path}: no such file; give a record file, or a folder that holds train.csv and test.csv")
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise RecordError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); export it as CSV") from error
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise RecordError(f"{path}: the file is empty")
    return lines


def _from_triples(path: Path, lines: list[str], concepts: int) -> Histories:
    if len(lines) % 3:
        raise RecordError(
            f"{path}: {len(lines)} lines are not a multiple of three (student and id; concepts; responses); "
            "the file is cut short or in another layout (the other one starts with user_id,log_id,sequence_id,correct)"
        )
    histories = []
    for start in range(0, len(lines), 3):
        asked = _whole_numbers(path, start + 2, lines[start + 1])
        answered = _whole_numbers(path, start + 3, lines[start + 2])
        if not asked or len(asked) != len(answered):
            raise RecordError(
                f"{path}, line {start + 2}: {len(asked)} concepts for {len(answered)} responses; "
                "each student needs one response a concept, and at least one"
            )
        _check_values(path, start + 2, asked, 1, concepts, "concept")
        _check_values(path, start + 3, answered, 0, 1, "response")
        histories.append(([concept - 1 for concept in asked], answered))
    return histories


def _rows(path: Path, lines: list[str]) -> list[list[int]]:
    """Return student, log, sequence and response of each line of the CSV layout."""
    reader = csv.DictReader(lines)
    wanted = ("user_id", "log_id", "sequence_id", "correct")
    if missing := [name for name in wanted if name not in (reader.fieldnames or [])]:
        raise RecordError(f"{path}: column {missing[0]} is missing; the CSV layout needs {', '.join(wanted)}")
    rows = []
    for row in reader:
        cells = [row[name] for name in wanted]
        if any(not cell for cell in cells):
            raise RecordError(f"{path}, line {reader.line_num}: a cell is empty; the file is cut short or damaged")
        numbers = [_number(path, reader.line_num, cell) for cell in cells]
        _check_values(path, reader.line_num, numbers[3:], 0, 1, "response")
        rows.append(numbers)
    if not rows:
        raise RecordError(f"{path}: only a header; no student has a response")
    return rows


def _group_by_student(rows: list[list[int]], numbering: dict[int, int]) -> Histories:
    by_student: dict[int, list[list[int]]] = {}
    for row in sorted(rows, key=lambda row: (row[0], row[1])):
        by_student.setdefault(row[0], []).append(row)
    return [([numbering[row[2]] for row in own], [row[3] for row in own]) for own in by_student.values()]


def _whole_numbers(path: Path, line: int, text: str) -> list[int]:
    row = text.strip().removesuffix(",")
    cells = row.split(",") if row else []
    try:
        return list(map(int, cells))  # a file holds half a million: name the culprit only where there is one
    except ValueError:
        return [_number(path, line, cell) for cell in cells]


def _number(path: Path, line: int, cell: str) -> int:
    try:
        value = float(cell)
    except ValueError as error:
        raise RecordError(
            f"{path}, line {line}: {cell.strip()!r} is not a number; this layout holds ids and 0/1"
        ) from error
    if not value.is_integer():
        raise RecordError(f"{path}, line {line}: {cell.strip()} is not whole; ids are whole and responses 0 or 1")
    return int(value)


def _check_values(path: Path, line: int, values: Iterable[int], low: int, high: int, what: str) -> None:
    for value in values:
        if not low <= value <= high:
            raise RecordError(f"{path}, line {line}: {what} {value}; allowed is {low} to {high}")


def _pad(histories: Sequence[tuple[list[int], list[int]]], slots: int) -> Students:
    shape = (len(histories), slots)
    concepts, responses = torch.full(shape, PADDING), torch.full(shape, PADDING)
    real = torch.zeros(shape, dtype=torch.bool)
    for row, (asked, answered) in enumerate(histories):
        concepts[row, : len(asked)] = torch.tensor(asked)
        responses[row, : len(answered)] = torch.tensor(answered)
        real[row, : len(asked)] = True
    return Students(concepts, responses, real)


class Classroom(NamedTuple):
    """Students to learn from, to choose a checkpoint on, and to be judged on; no student is in two of them."""

    train: Students
    valid: Students
    test: Students


def simulated_classroom(seed: int, students: int, concepts: int, slots: int, mean_length: float) -> Classroom:
    """Return simulated students: as many to train as to test on, and half as many to choose a checkpoint on."""
    generator = torch.Generator().manual_seed(seed)
    valid = students // 2
    everyone = simulate_students(generator, 2 * students + valid, concepts, slots, mean_length)
    parts = slice(students), slice(students, students + valid), slice(students + valid, None)
    return Classroom(*(everyone.take(part) for part in parts))


def recorded_classroom(path: str | Path, seed: int, students: int, concepts: int, slots: int) -> Classroom:
    """Return real students: a random draw of the training part, the first of the test part.

    `path` is a folder with train.csv and test.csv, which share one numbering of concepts, or one file: of every five of
    its students four train and one tests. A file has either published layout of ASSISTments 2015: three lines a student
    ("student, id"; concept ids from 1; responses), or a CSV with user_id, log_id, sequence_id and correct, whose
    sequence ids are numbered in rising order. Students are drawn before their histories are cut to pieces of `slots`,
    so that no student's pieces are on two sides; pieces of fewer than 3 responses are dropped, as the published
    pipeline does. At most `students` rows are returned a part, and fewer where the records hold fewer.

    Raises:
        RecordError: a file is missing, empty, cut short, laid out otherwise, holds a response other than 0 or 1, a
            concept out of range, a student without responses, or too few students.
        ValueError: fewer than 3 slots.

    Source: arghosh/AKT (three-line layout, fold 1); ASSISTments 2015 skill-builder data set (CSV layout); the cut to
        pieces and the minimum of 3: pykt-toolkit data configuration (`maxlen`, `min_seq_len`).
    """
    learners, test = _split_histories(path, concepts)
    order = torch.randperm(len(learners), generator=torch.Generator().manual_seed(seed)).tolist()
    learners = [learners[place] for place in order]
    valid = min(students // 2, len(learners) // 4)
    parts = [(learners[valid:], students), (learners[:valid], valid), (test, students)]
    return Classroom(*(_cut_and_pad(part[:rows], slots).take(slice(rows)) for part, rows in parts))
