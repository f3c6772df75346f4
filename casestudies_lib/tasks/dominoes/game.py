"""Texas 42: the rules, dealing, token features, and the exact value of every play in an endgame.

Four players sit in a ring, 0 and 2 against 1 and 3. A declaration names the trumps. Explained in chapter
`value_head_spillover`.

Source: the usual rules of Texas 42, in the form that repository jasonyandell/mk5-main states them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from casestudies_lib.tasks.dominoes.search import UNKNOWN, points_to_go

PLAYERS, HAND = 4, 7
PIPS = 7
DECLARATIONS = ("blanks", "ones", "twos", "threes", "fours", "fives", "sixes", "doubles", "doubles a suit", "none")
DOUBLES, DOUBLES_A_SUIT, NO_TRUMP = 7, 8, 9
CALLED = 7  # the suit of trumps, or of doubles where they are a suit of their own
MOST_TRICKS = 6  # the table of known values takes 4 ** (2 * tricks + 1) bytes
NAMES = tuple((high, low) for high in range(PIPS) for low in range(high + 1))


class DominoError(ValueError):
    """A position or a play breaks the rules; the message says what came and what is allowed."""


def domino(high: int, low: int) -> int:
    """Return the number of a domino, 0 (0-0) to 27 (6-6), in the order 0-0, 1-0, 1-1, 2-0 …

    Raises:
        DominoError: a pip below 0 or above 6.
    """
    high, low = max(high, low), min(high, low)
    if not 0 <= low <= high < PIPS:
        raise DominoError(f"domino {high}-{low}; pips are 0 to {PIPS - 1}")
    return high * (high + 1) // 2 + low


def _within(value: object, choices: int) -> bool:
    """Return whether a value is a whole number from 0 on, below `choices`; True and False are none."""
    whole = type(value) is int or isinstance(value, np.integer)  # brute force asks often, so the usual type comes first
    return whole and 0 <= value < choices


def _check_declaration(declaration: object) -> None:
    if not _within(declaration, len(DECLARATIONS)):
        raise DominoError(f"declaration {declaration}; allowed are 0 to {len(DECLARATIONS) - 1}, whole numbers")


def _check_leader(leader: object) -> None:
    if not _within(leader, PLAYERS):
        raise DominoError(f"leader {leader}; players are 0 to {PLAYERS - 1}, whole numbers")


def _pips(piece: int) -> tuple[int, int]:
    if not _within(piece, len(NAMES)):
        raise DominoError(f"domino number {piece}; allowed are 0 (0-0) to {len(NAMES) - 1} (6-6), whole numbers")
    return NAMES[piece]


def count(piece: int) -> int:
    """Return the points that a domino adds to its trick: 10 for 5-5 and 6-4, 5 for 5-0, 4-1 and 3-2, else 0.

    Raises:
        DominoError: no domino has this number.
    """
    total = sum(_pips(piece))
    return total if total in (5, 10) else 0


def is_called(piece: int, declaration: int) -> bool:
    """Return whether a domino belongs to the called suit: trumps, or doubles as a suit of their own.

    Raises:
        DominoError: no such declaration or domino; so too in `led_suit`, `follows` and `strength`, which ask here.
    """
    _check_declaration(declaration)
    high, low = _pips(piece)
    return declaration in (high, low) if declaration < PIPS else declaration != NO_TRUMP and high == low


def led_suit(piece: int, declaration: int) -> int:
    """Return the suit that a lead asks for: the called suit (7) if the domino belongs to it, else its high pip."""
    return CALLED if is_called(piece, declaration) else NAMES[piece][0]


def follows(piece: int, suit: int, declaration: int) -> bool:
    """Return whether a domino belongs to a suit; a called domino belongs to the called suit alone."""
    if is_called(piece, declaration):
        return suit == CALLED
    return suit in NAMES[piece]


def strength(piece: int, suit: int, declaration: int) -> int:
    """Return how high a domino stands in a trick of this suit, higher wins; 0 cannot win.

    Trumps beat the suit led. Within a suit the double is highest, then the pip sum; among doubles as trumps or as a
    suit, the pips decide.

    Raises:
        DominoError: no such declaration or domino.
    """
    high, low = _pips(piece)
    within = 1 + high + low + 14 * (high == low and declaration not in (DOUBLES, DOUBLES_A_SUIT))
    if is_called(piece, declaration) and declaration != DOUBLES_A_SUIT:
        return 100 + within
    return within if follows(piece, suit, declaration) else 0


@dataclass(frozen=True)
class Position:
    """Where a game stands: who holds what, and what lies on the table.

    `hands` holds the dominoes left to players 0 to 3; `trick` what has been played to the present trick, the leader's
    domino first. The next to play is `player`.
    """

    declaration: int
    leader: int
    hands: tuple[tuple[int, ...], ...]
    trick: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Refuse positions that no game reaches.

        Raises:
            DominoError: declaration or leader out of range or not whole, a domino twice or unknown, or hand sizes that
                do not match.
        """
        _check_declaration(self.declaration)
        _check_leader(self.leader)
        _check_hands(self.hands, self.trick, self.leader)

    @property
    def player(self) -> int:
        """Return who plays next."""
        return (self.leader + len(self.trick)) % PLAYERS

    @property
    def tricks(self) -> int:
        """Return how many tricks are left, the present one included."""
        return max(map(len, self.hands)) if not self.trick else len(self.hands[self.leader]) + 1


def _check_hands(hands: Sequence[Sequence[int]], trick: Sequence[int], leader: int) -> None:
    if len(hands) != PLAYERS or len(trick) >= PLAYERS:
        raise DominoError(f"{len(hands)} hands and {len(trick)} dominoes on the table; allowed are 4, and 0 to 3")
    seen = [piece for hand in hands for piece in hand] + list(trick)
    for piece in seen:
        _pips(piece)
    if doubled := sorted({piece for piece in seen if seen.count(piece) > 1}):
        raise DominoError(f"domino {shown(doubled[0])} stands twice; each of the 28 is there once")
    sizes = [len(hand) for hand in hands]
    tricks = sizes[leader] + bool(trick)
    wanted = [tricks - ((seat - leader) % PLAYERS < len(trick)) for seat in range(PLAYERS)]
    if sizes != wanted or tricks > HAND:
        raise DominoError(
            f"hands of {sizes} with {len(trick)} on the table, led by player {leader}; that takes {wanted}, "
            f"and at most {HAND} tricks"
        )


def shown(piece: int) -> str:
    """Return a domino as players write it, the high pip first.

    Raises:
        DominoError: no domino has this number.
    """
    return "{}-{}".format(*_pips(piece))


def deal(generator: np.random.Generator, declaration: int, leader: int = 0) -> Position:
    """Return the start of a game: seven dominoes each, in ascending order, as the published data hold them.

    Raises:
        DominoError: declaration or leader out of range, or not a whole number.
    """
    _check_declaration(declaration)
    order = generator.permutation(len(NAMES)).reshape(PLAYERS, HAND)
    return Position(declaration, leader, tuple(tuple(sorted(hand.tolist())) for hand in order))


def legal(position: Position) -> tuple[int, ...]:
    """Return what the next player may play: what follows suit, or anything if nothing does."""
    own = position.hands[position.player]
    if not position.trick:
        return own
    suit = led_suit(position.trick[0], position.declaration)
    return tuple(piece for piece in own if follows(piece, suit, position.declaration)) or own


def trick_winner(trick: Sequence[int], leader: int, declaration: int) -> int:
    """Return who wins a trick of four dominoes, the leader's first.

    Raises:
        DominoError: not four dominoes, or no such declaration, leader or domino.
    """
    _check_leader(leader)
    if len(trick) != PLAYERS:
        raise DominoError(f"a trick of {len(trick)} dominoes has no winner yet; {PLAYERS} are needed")
    suit = led_suit(trick[0], declaration)
    best = max(range(PLAYERS), key=lambda place: strength(trick[place], suit, declaration))
    return (leader + best) % PLAYERS


def trick_points(trick: Sequence[int]) -> int:
    """Return what a trick is worth: 1 and the counts of its dominoes."""
    return 1 + sum(map(count, trick))


class Outcome(NamedTuple):
    """What a play leads to: the next position, and the points it won, team 0 minus team 1."""

    position: Position
    points: int


def play(position: Position, piece: int) -> Outcome:
    """Return what follows when the next player plays a domino.

    Raises:
        DominoError: the play is illegal.
    """
    _check_legal(position, piece)
    hands = tuple(tuple(own for own in hand if own != piece) for hand in position.hands)
    trick = (*position.trick, piece)
    if len(trick) < PLAYERS:
        return Outcome(replace(position, hands=hands, trick=trick), 0)
    winner = trick_winner(trick, position.leader, position.declaration)
    points = trick_points(trick) * (1 if winner % 2 == 0 else -1)
    return Outcome(replace(position, leader=winner, hands=hands, trick=()), points)


def _check_legal(position: Position, piece: int) -> None:
    allowed = legal(position)
    if piece not in allowed:
        name = shown(piece) if 0 <= piece < len(NAMES) else f"number {piece}"
        raise DominoError(
            f"player {position.player} may not play domino {name}; allowed are "
            f"{', '.join(map(shown, allowed)) or 'none: the game is over'}"
        )


def random_game(position: Position, generator: np.random.Generator) -> Iterator[Position]:
    """Yield every position of a game of random legal plays, the given one first."""
    while any(position.hands):
        yield position
        position = play(position, int(generator.choice(legal(position)))).position


@lru_cache(maxsize=len(DECLARATIONS))
def _rule_tables(declaration: int) -> tuple[np.ndarray, ...]:
    """Return who follows which suit, strengths by suit led, counts, and the suit each leads: the rules as arrays."""
    suits, pieces = range(CALLED + 1), range(len(NAMES))
    member = np.array([[follows(piece, suit, declaration) for piece in pieces] for suit in suits])
    high = np.array([[strength(piece, suit, declaration) for piece in pieces] for suit in suits], dtype=np.int64)
    return member, high, np.array([count(p) for p in pieces]), np.array([led_suit(p, declaration) for p in pieces])


class Values(NamedTuple):
    """Exact values in points to go, team 0 minus team 1: of the position, and of each legal play."""

    value: int
    by_play: dict[int, int]


def solve(position: Position) -> Values:
    """Return the exact values of a position and of every legal play.

    Raises:
        DominoError: the game is over, or a hand is larger than the memory table allows.
    """
    _check_unfinished(position)
    if (size := max(map(len, position.hands))) > MOST_TRICKS:
        raise DominoError(f"the largest hand has {size}; endgames of 1 to {MOST_TRICKS} tricks are solved")
    bits = {
        piece: player * size + place for player, hand in enumerate(position.hands) for place, piece in enumerate(hand)
    }
    memo = np.full((1 << (PLAYERS * size), PLAYERS), UNKNOWN, dtype=np.int8)
    everything = sum(1 << bit for bit in bits.values())
    state = (everything, position.leader, len(position.trick), *_table_state(position))
    tables = _local_tables(position.declaration, bits, PLAYERS * size)
    by_play = {piece: points_to_go(*tables, size, memo, *state, 1 << bits[piece]) for piece in legal(position)}
    return Values((max if position.player % 2 == 0 else min)(by_play.values()), by_play)


def _local_tables(declaration: int, bits: dict[int, int], width: int) -> tuple[np.ndarray, ...]:
    """Return the rules for the dominoes in hands, one column a bit: who follows, strength, counts, suit led."""
    member, high, worth, suit = _rule_tables(declaration)
    pieces, places = list(bits), list(bits.values())
    local_high = np.zeros((len(high), width), dtype=np.int64)
    local_worth, local_suit = np.zeros(width, dtype=np.int64), np.zeros(width, dtype=np.int64)
    local_high[:, places], local_worth[places], local_suit[places] = high[:, pieces], worth[pieces], suit[pieces]
    return (member[:, pieces].astype(np.int64) << np.array(places)).sum(axis=1), local_high, local_worth, local_suit


def _table_state(position: Position) -> tuple[int, int, int, int]:
    """Return suit led, strength to beat, who holds it, and counts on the table."""
    if not position.trick:
        return 0, 0, 0, 0
    suit = led_suit(position.trick[0], position.declaration)
    heights = [strength(piece, suit, position.declaration) for piece in position.trick]
    best = max(heights)
    winner = (position.leader + heights.index(best)) % PLAYERS
    return suit, best, winner, sum(map(count, position.trick))


def _check_unfinished(position: Position) -> None:
    if not any(position.hands):
        raise DominoError("every hand is empty: the game is over; give a position with dominoes left in the hands")


def brute_force(position: Position) -> Values:
    """Return what `solve` returns, by playing out every continuation: slow, obvious, and the solver's oracle.

    Raises:
        DominoError: the game is over.
    """
    _check_unfinished(position)
    team = 1 if position.player % 2 == 0 else -1
    by_play = {}
    for piece in legal(position):
        after, points = play(position, piece)
        by_play[piece] = points + (brute_force(after).value if any(after.hands) else 0)
    return Values(team * max(team * value for value in by_play.values()), by_play)
