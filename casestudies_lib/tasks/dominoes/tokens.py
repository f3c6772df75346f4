"""What a network reads of a game: 32 tokens of 12 features, seen from the player who is to move.

Token 0 is context, tokens 1 to 7 are the mover's hand, 8 to 28 the hands of the players after the mover, 29 to 31 what
lies on the table. A hand keeps its seven tokens; what has been played is marked as gone.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int, UInt8

from casestudies_lib.tasks.dominoes.game import (
    DECLARATIONS,
    DOUBLES_A_SUIT,
    HAND,
    NAMES,
    PLAYERS,
    DominoError,
    count,
    is_called,
    strength,
)

FEATURES = {
    "high": 7, "low": 7, "double": 2, "count": 3, "trump rank": 8, "player": 4, "is current": 2, "is partner": 2,
    "remaining": 2, "token type": 7, "declaration": 10, "leader": 4,
}  # fmt: skip
TOKENS = 32
CONTEXT, TABLE, EMPTY = 0, 5, 6  # token types; 1 to 4 are the hands, the mover's first
OWN_HAND = slice(1, 1 + HAND)
ON_TABLE = slice(1 + PLAYERS * HAND, TOKENS)
NOBODY = -1  # where nothing has been played to the trick yet


@dataclass(frozen=True)
class Positions:
    """Positions as arrays, one row each.

    `hands` are the hands as dealt, `remaining` what of them is left, `trick` what lies on the table (NOBODY where
    nothing does), the leader's domino first.
    """

    hands: Int[np.ndarray, "rows 4 7"]
    declaration: Int[np.ndarray, " rows"]
    leader: Int[np.ndarray, " rows"]
    remaining: Bool[np.ndarray, "rows 28"]
    trick: Int[np.ndarray, "rows 3"]

    def __post_init__(self) -> None:
        """Refuse rows that no game holds.

        Raises:
            DominoError: a declaration or a leader out of range, or hands that are no deal of the 28 dominoes.
        """
        for name, values, limit in (
            ("declaration", self.declaration, len(DECLARATIONS)),
            ("leader", self.leader, PLAYERS),
        ):
            if strange := values[(values < 0) | (values >= limit)].tolist():
                raise DominoError(f"{name} {strange[0]}; allowed are 0 to {limit - 1}")
        if (np.sort(self.hands.reshape(len(self.hands), -1)) != np.arange(len(NAMES))).any():
            raise DominoError("a row's hands are no deal: each of the 28 dominoes must be there once")

    @property
    def player(self) -> Int[np.ndarray, " rows"]:
        """Return who moves."""
        return (self.leader + (self.trick != NOBODY).sum(axis=1)) % PLAYERS

    @property
    def own_hand(self) -> Int[np.ndarray, "rows 7"]:
        """Return the mover's hand as dealt."""
        return self.hands[np.arange(len(self.hands)), self.player]

    @property
    def sides(self) -> Int[np.ndarray, " rows"]:
        """Return 1 where a player of team 0 moves and -1 where one of team 1 does."""
        return 1 - 2 * (self.player % 2)


def tokens(positions: Positions) -> UInt8[np.ndarray, "rows 32 12"]:
    """Return the features of every token, in the order of FEATURES; each is a number from 0 to its size less 1."""
    rows = len(positions.hands)
    seats = (positions.player[:, None] + np.arange(PLAYERS)) % PLAYERS
    out = np.zeros((rows, TOKENS, len(FEATURES)), dtype=np.uint8)
    pieces = np.take_along_axis(positions.hands, seats[:, :, None], axis=1).reshape(rows, -1)
    seat = np.repeat(np.arange(PLAYERS), HAND)[None].repeat(rows, axis=0)
    held = np.take_along_axis(positions.remaining, pieces, axis=1)
    out[:, 1 : ON_TABLE.start] = _features(pieces, positions.declaration, seat, held, 1 + seat)
    out[:, ON_TABLE] = _table_tokens(positions)
    out[..., -2] = positions.declaration[:, None]
    out[..., -1] = ((positions.leader - positions.player) % PLAYERS)[:, None]
    return out


def _table_tokens(positions: Positions) -> UInt8[np.ndarray, "rows 3 12"]:
    seat = (positions.leader[:, None] + np.arange(PLAYERS - 1) - positions.player[:, None]) % PLAYERS
    there = positions.trick != NOBODY
    kind = np.where(there, TABLE, EMPTY)
    features = _features(np.where(there, positions.trick, 0), positions.declaration, seat, there, kind)
    features[~there] = 0
    features[..., 9] = kind
    return features


def _features(pieces, declaration, seat, held, kind) -> UInt8[np.ndarray, "rows some 12"]:
    high, low, double, counts, trump = _domino_tables()
    nothing = np.zeros_like(pieces)
    columns = [high[pieces], low[pieces], double[pieces], counts[pieces], trump[declaration[:, None], pieces]]
    columns += [seat, seat == 0, seat == 2, held, kind, nothing, nothing]
    return np.stack(columns, axis=-1).astype(np.uint8)


def _domino_tables() -> tuple[np.ndarray, ...]:
    high, low = np.array(NAMES).T
    counts = np.array([count(piece) // 5 for piece in range(len(NAMES))])
    trump = np.array([_trump_ranks(declaration) for declaration in range(len(DECLARATIONS))])
    return high, low, high == low, counts, trump


def _trump_ranks(declaration: int) -> list[int]:
    """Return 0 for a domino that is no trump, else 1 (lowest trump) to 7."""
    ranks = [0] * len(NAMES)
    trumps = [p for p in range(len(NAMES)) if is_called(p, declaration) and declaration != DOUBLES_A_SUIT]
    for rank, piece in enumerate(sorted(trumps, key=lambda piece: strength(piece, 7, declaration)), start=1):
        ranks[piece] = rank
    return ranks
