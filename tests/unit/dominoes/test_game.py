"""Rules, dealing and the endgame solver, against hand-made tricks, brute force and what symmetry demands."""

import dataclasses
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casestudies_lib.tasks.dominoes.game import (
    DECLARATIONS,
    DOUBLES,
    DOUBLES_A_SUIT,
    NAMES,
    NO_TRUMP,
    Position,
    brute_force,
    count,
    deal,
    domino,
    legal,
    play,
    random_game,
    solve,
    trick_points,
    trick_winner,
)

FIVES = 5
seeds = st.integers(0, 2**32 - 1)


def pieces(*names: str) -> tuple[int, ...]:
    return tuple(domino(int(name[0]), int(name[2])) for name in names)


def endgame(seed: int, tricks: int, played: int = 0, declaration: int | None = None) -> Position:
    generator = np.random.default_rng(seed)
    called = seed % len(DECLARATIONS) if declaration is None else declaration
    start = deal(generator, called, int(generator.integers(4)))
    return next(islice(random_game(start, generator), 4 * (7 - tricks) + played, None))


# The rules, by hand.


def test_the_counts_of_a_full_set_and_the_seven_tricks_make_forty_two():
    assert {NAMES[piece]: count(piece) for piece in range(28) if count(piece)} == {
        (5, 0): 5, (4, 1): 5, (3, 2): 5, (5, 5): 10, (6, 4): 10,
    }  # fmt: skip
    assert sum(map(count, range(28))) + 7 == 42
    assert trick_points(pieces("5-5", "6-4", "0-0", "1-0")) == 21


@pytest.mark.parametrize(
    ("declaration", "trick", "winner"),
    [
        (NO_TRUMP, ("6-2", "6-5", "6-6", "5-5"), 2),  # the double is the highest of its suit
        (NO_TRUMP, ("6-2", "5-5", "4-4", "3-3"), 0),  # who does not follow cannot win
        (NO_TRUMP, ("4-2", "4-0", "6-4", "2-2"), 2),  # the high pip of the lead asks for fours; 6-4 is one
        (FIVES, ("6-2", "6-6", "5-0", "5-1"), 3),  # trumps beat the double of the suit, the higher trump wins
        (FIVES, ("6-2", "6-5", "6-4", "6-3"), 1),  # 6-5 is a trump, not a six
        (FIVES, ("6-5", "5-5", "6-6", "5-4"), 1),  # a trump lead asks for trumps
        (DOUBLES, ("6-5", "0-0", "6-6", "6-4"), 2),  # doubles are trumps, the pips decide between them
        (DOUBLES_A_SUIT, ("6-5", "6-6", "6-4", "5-5"), 0),  # doubles are a suit and beat nothing else
        (DOUBLES_A_SUIT, ("1-1", "6-6", "6-5", "2-2"), 1),
    ],
)
def test_a_trick_is_won_by_the_highest_trump_or_the_highest_of_the_suit(declaration, trick, winner):
    assert trick_winner(pieces(*trick), 0, declaration) == winner
    assert trick_winner(pieces(*trick), 3, declaration) == (winner + 3) % 4


@pytest.mark.parametrize(
    ("declaration", "lead", "hand", "allowed"),
    [
        (NO_TRUMP, "6-2", ("6-0", "2-1", "5-5"), ("6-0",)),
        (FIVES, "6-2", ("6-5", "2-1", "6-0"), ("6-0",)),  # 6-5 belongs to the trumps alone
        (FIVES, "6-5", ("6-0", "5-2", "1-1"), ("5-2",)),
        (FIVES, "6-2", ("6-5", "2-1", "4-0"), ("6-5", "2-1", "4-0")),  # nothing follows, so anything goes
        (DOUBLES, "6-2", ("6-6", "2-1", "4-0"), ("6-6", "2-1", "4-0")),
        (DOUBLES_A_SUIT, "3-3", ("6-6", "6-3", "3-1"), ("6-6",)),
    ],
)
def test_who_can_follow_suit_must(declaration, lead, hand, allowed):
    others = [piece for piece in range(28) if piece not in (*pieces(*hand), *pieces(lead))]
    hands = (tuple(others[:2]), pieces(*hand), tuple(others[2:5]), tuple(others[5:8]))
    position = Position(declaration, 0, hands, pieces(lead))
    assert set(legal(position)) == set(pieces(*allowed))


def test_a_deal_gives_each_of_the_28_dominoes_once_and_the_same_seed_gives_it_again():
    one, again = (deal(np.random.default_rng(3), 4) for _ in range(2))
    assert one == again
    assert sorted(piece for hand in one.hands for piece in hand) == list(range(28))
    assert all(list(hand) == sorted(hand) for hand in one.hands)
    assert deal(np.random.default_rng(4), 4) != one


@settings(max_examples=40)
@given(seeds)
def test_every_game_of_legal_plays_hands_out_forty_two_points(seed):
    generator = np.random.default_rng(seed)
    position = deal(generator, seed % 10, seed % 4)
    won, plays = 0, 0
    while any(position.hands):
        position, points = play(position, int(generator.choice(legal(position))))
        won, plays = won + abs(points), plays + 1
    assert (won, plays) == (42, 28)


# The solver against brute force, and against symmetry.


@pytest.mark.parametrize("declaration", range(len(DECLARATIONS)))
@pytest.mark.parametrize(("tricks", "games"), [(1, 9), (2, 9), (3, 1)])  # 190 in all: brute force is slow
def test_every_play_of_an_endgame_has_the_value_that_brute_force_finds(declaration, tricks, games):
    for place in range(games):
        position = endgame(1000 * declaration + 10 * tricks + place, tricks, place % 4, declaration)
        assert solve(position) == brute_force(position)


@settings(max_examples=40)
@given(seeds, st.integers(1, 4), st.integers(0, 3), st.integers(1, 3))
def test_players_who_all_move_on_by_a_chair_swap_teams(seed, tricks, played, chairs):
    position = endgame(seed, tricks, played)
    hands = tuple(position.hands[(player - chairs) % 4] for player in range(4))
    turned = dataclasses.replace(position, hands=hands, leader=(position.leader + chairs) % 4)
    sign = -1 if chairs % 2 else 1
    assert solve(turned).by_play == {piece: sign * value for piece, value in solve(position).by_play.items()}


@settings(max_examples=40)
@given(seeds, st.integers(0, 5), st.integers(1, 2), st.sampled_from(range(10)))
def test_pips_that_keep_their_order_and_touch_no_count_may_be_renamed(seed, gap, tricks, declaration):
    def renamed(piece):
        return domino(*(pip + (pip >= gap) for pip in NAMES[piece]))

    plain = [p for p in range(21) if not count(p) and not count(renamed(p))]
    generator = np.random.default_rng(seed)
    hands = generator.permutation(plain)[: 4 * tricks].reshape(4, tricks).tolist()
    trumps = min(declaration, 5) if declaration < 7 else declaration
    moved = trumps + (trumps >= gap) if trumps < 7 else trumps
    before = solve(Position(trumps, seed % 4, tuple(map(tuple, hands))))
    after = solve(Position(moved, seed % 4, tuple(tuple(map(renamed, hand)) for hand in hands)))
    assert after.by_play == {renamed(piece): value for piece, value in before.by_play.items()}


def test_a_hand_made_endgame_is_worth_what_a_player_counts():
    # Fives are trumps. Player 0 holds the two highest, so team 0 takes both tricks: 2 points and the 10 of 6-4.
    position = Position(
        FIVES, 0, (pieces("5-5", "6-5"), pieces("6-4", "2-0"), pieces("1-0", "1-1"), pieces("3-0", "3-3"))
    )
    assert solve(position).value == 2 + 10 + 10
    assert solve(position).by_play[domino(6, 5)] == 22


# What no game holds is refused.

OKAY = (pieces("0-0"), pieces("1-0"), pieces("1-1"), pieces("2-0"))
