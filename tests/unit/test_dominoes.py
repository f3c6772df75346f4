"""Rules, dealing and the endgame solver, against hand-made tricks, brute force and what symmetry demands."""

import dataclasses
from itertools import islice

import jaxtyping
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
    DominoError,
    Position,
    Solver,
    brute_force,
    count,
    deal,
    domino,
    follows,
    is_called,
    led_suit,
    legal,
    play,
    random_game,
    shown,
    solve,
    strength,
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
@pytest.mark.parametrize(("tricks", "games"), [(1, 9), (2, 9), (3, 4)])  # 220 in all: brute force is slow
def test_every_play_of_an_endgame_has_the_value_that_brute_force_finds(declaration, tricks, games):
    for place in range(games):
        position = endgame(1000 * declaration + 10 * tricks + place, tricks, place % 4, declaration)
        assert solve(position) == brute_force(position)


@settings(max_examples=40)
@given(seeds, st.integers(1, 4), st.integers(0, 3))
def test_the_value_is_that_of_the_best_play_and_play_by_play_points_add_up(seed, tricks, played):
    position = endgame(seed, tricks, played)
    value, total = solve(position).value, 0
    while any(position.hands):
        values = solve(position)
        assert set(values.by_play) == set(legal(position))
        assert values.value == value - total
        best = max if position.player % 2 == 0 else min
        position, points = play(position, best(values.by_play, key=values.by_play.get))
        total += points
    assert total == value


@settings(max_examples=40)
@given(seeds, st.integers(1, 4), st.integers(0, 3))
def test_no_value_exceeds_the_points_that_are_left(seed, tricks, played):
    position = endgame(seed, tricks, played)
    left = position.tricks + sum(count(piece) for hand in (*position.hands, position.trick) for piece in hand)
    values = solve(position).by_play.values()
    assert all(abs(value) <= left and (value - left) % 2 == 0 for value in values)


@settings(max_examples=40)
@given(seeds, st.integers(1, 4), st.randoms(use_true_random=False))
def test_the_order_of_a_hand_does_not_matter(seed, tricks, random):
    position = endgame(seed, tricks, 1)
    shuffled = tuple(tuple(random.sample(hand, len(hand))) for hand in position.hands)
    assert solve(dataclasses.replace(position, hands=shuffled)) == solve(position)


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


@pytest.mark.parametrize(("seed", "played"), [(7, 0), (91, 0), (106, 0), (106, 1), (106, 2)])
def test_positions_that_differ_only_in_who_leads_are_kept_apart(seed, played):
    position = endgame(seed, 3, played)
    assert solve(position) == brute_force(position)


def test_a_play_is_worth_its_points_and_what_a_fresh_solver_says_of_the_rest():
    for seed in range(60):
        position = endgame(seed, 4, seed % 4)
        for piece, value in solve(position).by_play.items():
            after, points = play(position, piece)
            assert value == points + solve(after).value


def test_one_solver_values_every_position_of_its_game_as_a_fresh_one_does():
    start = endgame(7, 4)
    solver = Solver(start.hands, start.declaration)
    for position in random_game(start, np.random.default_rng(1)):
        assert solver.solve(position) == solve(position)


def test_a_hand_made_endgame_is_worth_what_a_player_counts():
    # Fives are trumps. Player 0 holds the two highest, so team 0 takes both tricks: 2 points and the 10 of 6-4.
    position = Position(
        FIVES, 0, (pieces("5-5", "6-5"), pieces("6-4", "2-0"), pieces("1-0", "1-1"), pieces("3-0", "3-3"))
    )
    assert solve(position).value == 2 + 10 + 10
    assert solve(position).of(domino(6, 5)) == 22


# What no game holds is refused.

OKAY = (pieces("0-0"), pieces("1-0"), pieces("1-1"), pieces("2-0"))


@pytest.mark.parametrize(
    ("declaration", "leader", "hands", "trick", "complaint"),
    [
        (10, 0, OKAY, (), "declaration 10; allowed are 0 to 9"),
        (-1, 0, OKAY, (), "declaration -1"),
        (True, 0, OKAY, (), "declaration True; allowed are 0 to 9, whole numbers"),
        (0, True, OKAY, (), "leader True; players are 0 to 3, whole numbers"),
        (0, 0, (*OKAY[:3], (True,)), (), "domino number True"),
        (0, 4, OKAY, (), "leader 4"),
        (0, 0, (*OKAY[:3], pieces("0-0")), (), "domino 0-0 stands twice"),
        (0, 0, OKAY, pieces("0-0"), "stands twice"),
        (0, 0, (*OKAY[:3], (28,)), (), "domino number 28"),
        (0, 0, (*OKAY[:3], ()), (), r"hands of \[1, 1, 1, 0\] with 0 on the table, led by player 0; that takes"),
        (0, 0, OKAY, pieces("5-5"), "that takes"),
        (0, 0, OKAY[:3], (), "3 hands"),
        (0, 0, OKAY, pieces("5-5", "6-6", "6-5", "6-4"), "4 dominoes on the table"),
    ],
)
def test_a_position_that_no_game_reaches_is_refused(declaration, leader, hands, trick, complaint):
    with pytest.raises(DominoError, match=complaint):
        Position(declaration, leader, hands, trick)


def test_an_illegal_play_is_refused_and_has_no_value():
    position = Position(
        NO_TRUMP, 0, (pieces("1-0"), pieces("6-0", "2-1"), *(pieces("2-0", "3-0"), pieces("4-0", "5-1"))), pieces("6-2")
    )
    with pytest.raises(DominoError, match="player 1 may not play domino 2-1; allowed are 6-0"):
        play(position, domino(2, 1))
    with pytest.raises(DominoError, match="domino 2-1 has no value; legal here are 6-0"):
        solve(position).of(domino(2, 1))
    with pytest.raises(DominoError, match="number 99"):
        solve(position).of(99)
    with pytest.raises(DominoError, match="pips are 0 to 6"):
        domino(7, 0)


def test_a_solver_refuses_what_it_was_not_made_for():
    position = endgame(1, 2)
    with pytest.raises(DominoError, match="endgames of 1 to 6 tricks"):
        Solver(deal(np.random.default_rng(0), 0).hands, 0)
    with pytest.raises(DominoError, match="each domino once"):
        Solver((*position.hands[:3], position.hands[0]), 0)
    with pytest.raises(DominoError, match="four hands"):
        Solver(position.hands[:3], 0)
    with pytest.raises(DominoError, match="declaration 1; this solver was made for 2"):
        Solver(position.hands, 2).solve(position)
    with pytest.raises(DominoError, match="declaration 11"):
        Solver(position.hands, 11)
    with pytest.raises(DominoError, match="does not"):
        Solver((position.hands[1], position.hands[0], *position.hands[2:]), 1).solve(position)
    with pytest.raises(DominoError, match="finished game"):
        Solver(position.hands, 1).solve(Position(1, 0, ((), (), (), ())))


def test_a_trick_needs_four_dominoes_to_have_a_winner():
    with pytest.raises(DominoError, match="a trick of 2 dominoes"):
        trick_winner(pieces("1-0", "1-1"), 0, 0)


@pytest.mark.parametrize("declaration", [-1, 10, True])
def test_a_declaration_that_is_none_is_refused_wherever_the_rules_are_asked(declaration):
    asked = [
        lambda: strength(3, 2, declaration),
        lambda: follows(3, 2, declaration),
        lambda: led_suit(3, declaration),
        lambda: is_called(3, declaration),
        lambda: trick_winner((0, 1, 2, 3), 0, declaration),
        lambda: Solver(OKAY, declaration),
        lambda: deal(np.random.default_rng(0), declaration),
    ]
    for ask in asked:
        with pytest.raises(DominoError, match=f"declaration {declaration}; allowed are 0 to 9, whole numbers"):
            ask()


def test_a_declaration_between_two_numbers_is_refused_also_where_no_checker_reads_the_annotations():
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        for ask in (lambda: Position(2.5, 0, OKAY), lambda: deal(np.random.default_rng(0), 2.5)):
            with pytest.raises(DominoError, match=r"declaration 2\.5; allowed are 0 to 9, whole numbers"):
                ask()
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)


def test_a_deal_that_is_refused_draws_nothing():
    generator, fresh = (np.random.default_rng(3) for _ in range(2))
    with pytest.raises(DominoError, match="declaration 12"):
        deal(generator, 12)
    assert generator.random() == fresh.random()


@pytest.mark.parametrize("number", [-1, 28, True])
def test_a_number_that_no_domino_has_is_refused(number):
    asked = [
        lambda: shown(number),
        lambda: count(number),
        lambda: strength(number, 2, 3),
        lambda: is_called(number, NO_TRUMP),
        lambda: trick_winner((0, 1, 2, number), 0, 3),
    ]
    for ask in asked:
        with pytest.raises(DominoError, match=rf"domino number {number}; allowed are 0 \(0-0\) to 27 \(6-6\)"):
            ask()
    assert [shown(0), shown(27)] == ["0-0", "6-6"]


def test_a_trick_is_led_by_one_of_four_players():
    with pytest.raises(DominoError, match="leader 4; players are 0 to 3"):
        trick_winner((0, 1, 2, 3), 4, 3)


@pytest.mark.parametrize("find", [solve, brute_force])
def test_a_game_that_is_over_has_no_values_and_the_message_says_what_to_give(find):
    with pytest.raises(DominoError, match=r"the game is over.*give a position with dominoes left in the hands"):
        find(Position(1, 0, ((), (), (), ())))
