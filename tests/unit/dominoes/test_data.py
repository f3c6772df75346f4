"""Solved endgames as data: the same for any number of workers, guarded by a checksum, deals never on two sides."""

import json
import shutil
from itertools import islice

import numpy as np
import pytest
import torch

from casestudies_lib import paths
from casestudies_lib.tasks.dominoes import data as domino_data
from casestudies_lib.tasks.dominoes.data import ILLEGAL, EndgameDataError, Settings, checksum, generate, load, save
from casestudies_lib.tasks.dominoes.examples import POINTS, examples
from casestudies_lib.tasks.dominoes.game import NAMES, Position, count, deal, random_game, solve
from casestudies_lib.tasks.dominoes.tokens import FEATURES, NOBODY, OWN_HAND, Positions, tokens

SMALL = Settings(train_deals=4, valid_deals=3, train_positions=3, valid_positions=2, seed=5)


@pytest.fixture(scope="module")
def committed():
    return load()


@pytest.fixture(scope="module")
def small():
    return generate(SMALL)


def position_of(endgames, row) -> Position:
    where = endgames.positions
    left = {int(piece) for piece in np.flatnonzero(where.remaining[row])}
    hands = tuple(tuple(int(piece) for piece in hand if int(piece) in left) for hand in where.hands[row])
    trick = tuple(int(piece) for piece in where.trick[row] if piece != NOBODY)
    return Position(int(where.declaration[row]), int(where.leader[row]), hands, trick)


def test_the_committed_data_are_what_their_one_command_makes():
    settings = json.loads((paths.root() / "data/dominoes/endgames.json").read_text("utf-8"))["settings"]
    assert Settings(**settings) == domino_data.COMMITTED
    fewer = domino_data.COMMITTED._replace(train_deals=2, valid_deals=1)
    made, kept = generate(fewer), load()
    for split, deals in (("train", 2), ("valid", 1)):
        rows = kept[split].deal < deals
        assert (kept[split].by_slot[rows] == made[split].by_slot).all()
        assert (kept[split].positions.remaining[rows] == made[split].positions.remaining).all()


def test_committed_values_are_those_that_the_solver_gives(committed):
    for split, endgames in committed.items():
        for row in range(0, len(endgames), 997):
            position = position_of(endgames, row)
            values = solve(position)
            own = endgames.positions.own_hand[row]
            assert endgames.value[row] == values.value, split
            stored = {int(p): int(q) for p, q in zip(own, endgames.by_slot[row]) if q != ILLEGAL}
            assert stored == values.by_play


def test_no_deal_is_in_train_and_in_valid_and_every_declaration_is_in_both(committed):
    hands = {split: {e.positions.hands[row].tobytes() for row in range(len(e))} for split, e in committed.items()}
    assert {split: len(deals) for split, deals in hands.items()} == {"train": 600, "valid": 50}
    assert not hands["train"] & hands["valid"]
    assert all(set(e.positions.declaration.tolist()) == set(range(10)) for e in committed.values())


def test_any_number_of_workers_makes_the_same_rows(small):
    assert checksum(generate(SMALL, workers=2)) == checksum(small)


def test_another_seed_makes_other_rows_and_a_larger_set_begins_with_the_smaller(small):
    assert checksum(generate(SMALL._replace(seed=6))) != checksum(small)
    larger = generate(SMALL._replace(train_deals=6))["train"]
    assert (larger.by_slot[: len(small["train"])] == small["train"].by_slot).all()


def test_what_is_saved_is_loaded_again(small, tmp_path):
    save(small, SMALL, tmp_path)
    assert checksum(load(tmp_path)) == checksum(small)


def test_the_command_writes_data_and_what_they_are(tmp_path, small):
    sizes = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL._asdict().items()]
    domino_data.main(["--out", str(tmp_path / "new"), *sizes])
    about = json.loads((tmp_path / "new/endgames.json").read_text("utf-8"))
    assert about["sha256_of_columns"] == checksum(small)
    assert about["rows"] == {"train": 12, "valid": 6}


@pytest.mark.parametrize(
    ("name", "change", "complaint"),
    [
        ("endgames.json", lambda text: text.replace('version": 1', 'version": 0'), "version 0, not 1"),
        ("endgames.json", lambda text: text.replace('columns": "', 'columns": "0'), "checksum"),
        ("endgames.json", lambda text: text[:30], "cannot be read"),
        ("endgames.json", None, "cannot be read"),
        ("endgames.npz", None, "cannot be read"),
    ],
)
def test_damaged_data_are_refused_with_the_command_that_makes_them_again(small, tmp_path, name, change, complaint):
    save(small, SMALL, tmp_path)
    path = tmp_path / name
    if change is None:
        path.unlink()
    else:
        path.write_text(change(path.read_text("utf-8")), "utf-8")
    with pytest.raises(EndgameDataError, match=complaint) as refused:
        load(tmp_path)
    assert "python -m casestudies_lib.tasks.dominoes.data" in str(refused.value)


def test_a_value_changed_by_hand_is_noticed(small, tmp_path):
    save(small, SMALL, tmp_path)
    shutil.copy(tmp_path / "endgames.json", tmp_path / "kept")
    small["train"].value[0] += 1
    try:
        save(small, SMALL, tmp_path)
    finally:
        small["train"].value[0] -= 1
    shutil.copy(tmp_path / "kept", tmp_path / "endgames.json")
    with pytest.raises(EndgameDataError, match="checksum"):
        load(tmp_path)


# Tokens.


def test_tokens_say_of_each_domino_what_the_rules_say(small):
    endgames = small["train"]
    for row, features in enumerate(tokens(endgames.positions)):
        position = position_of(endgames, row)
        names = list(FEATURES)
        columns = {name: features[:, names.index(name)] for name in names}
        own = [tuple(pair) for pair in features[OWN_HAND, :2].tolist()]
        assert own == [NAMES[piece] for piece in endgames.positions.own_hand[row]]
        held = [piece for piece, left in zip(own, columns["remaining"][OWN_HAND]) if left]
        assert held == [NAMES[piece] for piece in position.hands[position.player]]
        assert columns["remaining"].sum() == sum(map(len, position.hands)) + len(position.trick)
        assert columns["count"][1:29].sum() * 5 == sum(count(piece) for piece in range(28))
        assert (columns["double"][1:29]).sum() == 7
        table = [5] * len(position.trick) + [6] * (3 - len(position.trick))
        assert columns["token type"].tolist() == [0, *sorted([1, 2, 3, 4] * 7), *table]
        assert set(columns["declaration"].tolist()) == {position.declaration}
        assert set(columns["leader"].tolist()) == {(position.leader - position.player) % 4}
        assert columns["player"][1:29].tolist() == sorted([0, 1, 2, 3] * 7)
        assert (columns["is current"][1:8] == 1).all()
        assert (columns["is partner"][15:22] == 1).all()


def test_trumps_are_ranked_from_one_to_seven_and_no_others_are():
    start = deal(np.random.default_rng(0), 5)
    position = next(islice(random_game(start, np.random.default_rng(1)), 16, None))
    hands = np.array(start.hands)[None]
    remaining = np.isin(np.arange(28), [p for hand in position.hands for p in hand])[None]
    seen = tokens(Positions(hands, np.array([5]), np.array([position.leader]), remaining, np.full((1, 3), NOBODY)))[0]
    ranks = {tuple(row[:2].tolist()): int(row[4]) for row in seen[1:29]}
    assert sorted((rank, name) for name, rank in ranks.items() if rank) == [
        (1, (5, 0)), (2, (5, 1)), (3, (5, 2)), (4, (5, 3)), (5, (5, 4)), (6, (6, 5)), (7, (5, 5)),
    ]  # fmt: skip


# Examples.


def test_examples_turn_values_to_the_side_of_the_mover_and_v_is_the_best_q(committed):
    part = examples(committed["valid"])
    best = part.q.masked_fill(~part.legal, -99).amax(dim=1)
    assert torch.equal(best, part.value)
    first = committed["valid"]
    assert float(part.value[0]) * POINTS == pytest.approx(first.value[0] * first.positions.sides[0])
    assert set(np.unique(first.positions.sides)) == {-1, 1}


def test_shuffling_moves_tokens_labels_and_ranks_together(committed):
    part = examples(committed["valid"]).take(slice(200))
    mixed = part.shuffled(torch.Generator().manual_seed(0))
    assert not torch.equal(mixed.rank, part.rank)
    assert torch.equal(mixed.q, part.q.gather(1, mixed.rank))
    assert torch.equal(mixed.legal, part.legal.gather(1, mixed.rank))
    row, slot = 7, 3
    assert torch.equal(mixed.tokens[row, 1 + slot], part.tokens[row, 1 + int(mixed.rank[row, slot])])
    assert torch.equal(mixed.tokens[:, 8:], part.tokens[:, 8:])
    assert torch.equal(mixed.value, part.value)
