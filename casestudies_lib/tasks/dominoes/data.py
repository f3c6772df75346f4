"""Solved endgames as data: one command makes them, a checksum guards them, and deals never cross from train to valid.

    python -m casestudies_lib.tasks.dominoes.data --out data/dominoes

Every deal has a random stream of its own, so any number of workers gives the same rows.
"""

import argparse
import hashlib
import json
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from casestudies_lib import paths
from casestudies_lib.tasks.dominoes.game import DECLARATIONS, HAND, NAMES, PLAYERS, Position, deal, random_game, solve
from casestudies_lib.tasks.dominoes.tokens import NOBODY, Positions

DATA_FILES = ("data/dominoes/endgames.json", "data/dominoes/endgames.npz")
VERSION = 1  # raise it whenever the same settings would give other rows
SPLITS = ("train", "valid")
TRICKS_LEFT = (2, 3, 4)
ILLEGAL = -128  # in the place of a value, where a slot has no legal play


class EndgameDataError(ValueError):
    """A data file is missing, damaged or of another version; the message says what to do."""


@dataclass(frozen=True)
class Endgames:
    """Solved positions, one row each; values are points to go, team 0 minus team 1, as the solver gives them."""

    deal: Int[np.ndarray, " rows"]
    positions: Positions
    value: Int[np.ndarray, " rows"]
    by_slot: Int[np.ndarray, "rows 7"]

    def __len__(self) -> int:
        """Return the number of positions."""
        return len(self.value)

    @property
    def legal(self) -> Bool[np.ndarray, "rows 7"]:
        """Return which slots of the mover's hand hold a legal play."""
        return self.by_slot != ILLEGAL


class Settings(NamedTuple):
    """What decides every row: how many deals, how many positions a deal, and the first seed."""

    train_deals: int
    valid_deals: int
    train_positions: int
    valid_positions: int
    seed: int


COMMITTED = Settings(train_deals=600, valid_deals=50, train_positions=40, valid_positions=400, seed=0)


def solved_deal(seed: int, split: str, number: int, positions: int) -> dict[str, np.ndarray]:
    """Return one deal's columns: a declaration by turns, and positions from as many random games.

    Each game is played at random until 2, 3 or 4 tricks are left and 0 to 3 dominoes lie on the table, both drawn
    evenly; what is left is solved.
    """
    generator = np.random.default_rng([VERSION, seed, SPLITS.index(split), number])
    start = deal(generator, number % len(DECLARATIONS), int(generator.integers(PLAYERS)))
    rows = [_solved_row(start, _stop(start, generator)) for _ in range(positions)]
    columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    hands = np.broadcast_to(np.array(start.hands, dtype=np.int8), (positions, PLAYERS, HAND))
    where = {"deal": np.full(positions, number, dtype=np.int32), "hands": hands}
    return where | {"declaration": np.full(positions, start.declaration, dtype=np.int8)} | columns


def _stop(start: Position, generator: np.random.Generator) -> Position:
    tricks, played = int(generator.choice(TRICKS_LEFT)), int(generator.integers(PLAYERS))
    skipped = PLAYERS * (HAND - tricks) + played
    return next(islice(random_game(start, generator), skipped, None))


def _solved_row(start: Position, position: Position) -> dict[str, np.ndarray | np.integer]:
    values = solve(position)
    own = start.hands[position.player]
    table = (*position.trick, *[NOBODY] * (PLAYERS - 1 - len(position.trick)))
    return {
        "leader": np.int8(position.leader),
        "remaining": np.isin(np.arange(len(NAMES)), [piece for hand in position.hands for piece in hand]),
        "trick": np.array(table, dtype=np.int8),
        "value": np.int8(values.value),
        "by_slot": np.array([values.by_play.get(piece, ILLEGAL) for piece in own], dtype=np.int8),
    }


def generate(settings: Settings, workers: int = 1) -> dict[str, Endgames]:
    """Return solved endgames for training and for validation; no deal is in both.

    Args:
        settings: how many, and the seed.
        workers: processes to share the deals among; the rows do not depend on it.

    Raises:
        ValueError: a count below one.
    """
    if min(*settings[:4], workers) < 1:
        raise ValueError(f"{settings}, workers={workers}; every count must be at least 1")
    counts = {"train": settings[0::2][:2], "valid": settings[1::2][:2]}
    jobs = [(settings.seed, split, number, n) for split, (deals, n) in counts.items() for number in range(deals)]
    if workers == 1:
        columns = [solved_deal(*job) for job in jobs]
    else:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            columns = list(pool.map(solved_deal, *zip(*jobs), chunksize=8))
    return {split: _joined([c for job, c in zip(jobs, columns) if job[1] == split]) for split in SPLITS}


def _joined(parts: list[dict[str, np.ndarray]]) -> Endgames:
    return _from_columns({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})


def _from_columns(columns: dict[str, np.ndarray]) -> Endgames:
    positions = Positions(**{field.name: columns[field.name] for field in fields(Positions)})
    return Endgames(columns["deal"], positions, columns["value"], columns["by_slot"])


def _to_columns(endgames: Endgames) -> dict[str, np.ndarray]:
    columns = {"deal": endgames.deal, "value": endgames.value, "by_slot": endgames.by_slot}
    return columns | {field.name: getattr(endgames.positions, field.name) for field in fields(Positions)}


def checksum(data: dict[str, Endgames]) -> str:
    """Return the SHA-256 of all columns with names, types and shapes; how they are compressed does not matter."""
    digest = hashlib.sha256()
    for split in SPLITS:
        for name, column in sorted(_to_columns(data[split]).items()):
            digest.update(f"{split} {name} {column.dtype} {column.shape}".encode())
            digest.update(np.ascontiguousarray(column).tobytes())
    return digest.hexdigest()


def save(data: dict[str, Endgames], settings: Settings, folder: Path) -> None:
    """Write `endgames.npz` and, beside it, `endgames.json` with version, settings, sizes and checksum."""
    folder.mkdir(parents=True, exist_ok=True)
    columns = {f"{split} {name}": column for split in SPLITS for name, column in _packed(data[split]).items()}
    np.savez_compressed(folder / "endgames.npz", **columns)
    about = {"generator_version": VERSION, "settings": settings._asdict(), "sha256_of_columns": checksum(data)}
    about |= {"rows": {split: len(data[split]) for split in SPLITS}}
    (folder / "endgames.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def _packed(endgames: Endgames) -> dict[str, np.ndarray]:
    """Return the columns as the file holds them: hands once a deal, what remains as bits."""
    columns = _to_columns(endgames)
    _, first = np.unique(columns["deal"], return_index=True)
    return columns | {"hands": columns["hands"][first], "remaining": np.packbits(columns["remaining"], axis=1)}


def _unpacked(columns: dict[str, np.ndarray]) -> Endgames:
    _, place = np.unique(columns["deal"], return_inverse=True)
    remaining = np.unpackbits(columns["remaining"], axis=1, count=len(NAMES)).astype(bool)
    return _from_columns(columns | {"hands": columns["hands"][place], "remaining": remaining})


def load(folder: Path | None = None) -> dict[str, Endgames]:
    """Return the endgames of a folder, the committed ones by default, after checking version and checksum.

    Raises:
        EndgameDataError: a file is missing or damaged, or another generator version made it.
    """
    about_file, columns_file = (
        paths.data_file(name) if folder is None else folder / Path(name).name for name in DATA_FILES
    )
    folder = about_file.parent
    remedy = f"make it again: python -m casestudies_lib.tasks.dominoes.data --out {folder.name}"
    try:
        about = json.loads(about_file.read_text(encoding="utf-8"))
        with np.load(columns_file, allow_pickle=False) as file:
            stored = dict(file)
        data = {split: _unpacked(_columns_of(stored, split)) for split in SPLITS}
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise EndgameDataError(f"{folder}: the endgames cannot be read ({error}); {remedy}") from error
    if about.get("generator_version") != VERSION:
        raise EndgameDataError(f"{folder}: generator version {about.get('generator_version')}, not {VERSION}; {remedy}")
    if about.get("sha256_of_columns") != checksum(data):
        raise EndgameDataError(f"{folder}: the checksum differs from the one in endgames.json; {remedy}")
    return data


def _columns_of(stored: dict[str, np.ndarray], split: str) -> dict[str, np.ndarray]:
    return {name.split()[1]: column for name, column in stored.items() if name.startswith(f"{split} ")}


def main(arguments: list[str]) -> None:
    """Generate and save; the options are the fields of `Settings`, the folder, and the number of workers."""
    parser = argparse.ArgumentParser(description="Deal, play at random, solve the endgames exactly, and save them.")
    parser.add_argument("--out", type=Path, required=True, help="folder for endgames.npz and endgames.json")
    parser.add_argument("--workers", type=int, default=1, help="processes; the rows do not depend on it")
    for name, value in COMMITTED._asdict().items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value)
    given = vars(parser.parse_args(arguments))
    settings = Settings(**{name: given[name] for name in Settings._fields})
    save(generate(settings, given["workers"]), settings, given["out"])


if __name__ == "__main__":
    main(sys.argv[1:])
