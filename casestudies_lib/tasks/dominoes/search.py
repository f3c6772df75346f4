"""The inner loop of the endgame solver: minimax over plays, memoised where a trick begins, compiled by numba.

It knows no rules of its own: what follows suit, what wins and what a domino is worth come in as small tables. A domino
is a bit here; the bits from `player * size` on, `size` of them, belong to a player, so a set of dominoes is one number.
"""

from typing import no_type_check

import numba
import numpy as np

UNKNOWN = np.int8(127)  # no value lies there: 42 points are all there are


@numba.njit  # not cached on disk: loading this recursive function from numba 0.68's cache crashes the process
@no_type_check  # numba compiles the plain function, not one that checks its arguments
def points_to_go(
    follow, strength, worth, suit_led, size, memo, mask, leader, played, suit, best, winner, points, allowed
):
    """Return the points to go, team 0 minus team 1, under best play of both teams.

    Args:
        follow: for each suit, the set of dominoes that follow it.
        strength: for each suit led, how high each domino stands; 0 cannot win.
        worth: the count of each domino.
        suit_led: the suit that each domino leads.
        size: bits a player.
        memo: value by set of dominoes left and leader where a trick begins; UNKNOWN where not yet known.
        mask: the set of dominoes still in hands.
        leader: who led this trick, or leads the next.
        played: how many have played to this trick.
        suit, best, winner, points: the suit led, the strength to beat, who holds it, and the counts on the table.
        allowed: the plays to choose from now; 0 for all legal ones. Later plays are free.
    """
    if played == 0 and allowed == 0:
        if mask == 0:
            return 0
        if memo[mask, leader] != UNKNOWN:
            return np.int64(memo[mask, leader])
    player = (leader + played) & 3
    own = mask & (((1 << size) - 1) << (player * size))
    legal = own & follow[suit] if played else own
    if legal == 0:
        legal = own
    if allowed:
        legal = legal & allowed
    team = 1 if player & 1 == 0 else -1
    value = -100 * team
    for bit in range(player * size, player * size + size):
        if legal >> bit & 1 == 0:
            continue
        asked = suit if played else suit_led[bit]
        stands = strength[asked, bit]
        beats = played == 0 or stands > best
        taker, height, table = player if beats else winner, stands if beats else best, points + worth[bit]
        left = mask & ~(1 << bit)
        if played < 3:
            after = points_to_go(
                follow, strength, worth, suit_led, size, memo, left, leader, played + 1, asked, height, taker, table, 0
            )
        else:
            after = points_to_go(follow, strength, worth, suit_led, size, memo, left, taker, 0, 0, 0, 0, 0, 0)
            after += table + 1 if taker & 1 == 0 else -table - 1
        if team * after > team * value:
            value = after
    if played == 0 and allowed == 0:
        memo[mask, leader] = value
    return value
