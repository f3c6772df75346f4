"""Solved endgames as tensors to train on, seen from the player who is to move."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from casestudies_lib.tasks.dominoes.data import Endgames
from casestudies_lib.tasks.dominoes.game import HAND
from casestudies_lib.tasks.dominoes.tokens import OWN_HAND, tokens

POINTS = 10.0  # targets are in tens of points, so that they vary by about one


class Examples(NamedTuple):
    """What goes in and what should come out, one row a position.

    `q` and `value` are in tens of points to go, the mover's team minus the other; `q` is 0 where `legal` is False.
    `rank` is the place that a slot's domino has in the sorted hand: equal to the slot until hands are shuffled.
    """

    tokens: Int[Tensor, "rows 32 12"]
    q: Float[Tensor, "rows 7"]
    value: Float[Tensor, " rows"]
    legal: Bool[Tensor, "rows 7"]
    rank: Int[Tensor, "rows 7"]
    deal: Int[Tensor, " rows"]

    def take(self, rows: Int[Tensor, " some"] | slice) -> "Examples":
        """Return the chosen rows."""
        return Examples(*(column[rows] for column in self))

    def shuffled(self, generator: torch.Generator) -> "Examples":
        """Return the same positions with the slots of the mover's hand in random order, labels and ranks with them."""
        order = torch.rand(self.q.shape, generator=generator).argsort(dim=1)
        hand = self.tokens[:, OWN_HAND].gather(1, order[:, :, None].expand(-1, -1, self.tokens.shape[2]))
        mixed = torch.cat([self.tokens[:, : OWN_HAND.start], hand, self.tokens[:, OWN_HAND.stop :]], dim=1)
        q, legal, rank = (column.gather(1, order) for column in (self.q, self.legal, self.rank))
        return self._replace(tokens=mixed, q=q, legal=legal, rank=rank)


def examples(endgames: Endgames) -> Examples:
    """Return endgames as examples: tokens, and values turned to the side of the mover."""
    sides = torch.from_numpy(endgames.positions.sides.astype(np.float32))
    legal = torch.from_numpy(endgames.legal)
    by_slot = torch.from_numpy(np.where(endgames.legal, endgames.by_slot, 0).astype(np.float32))
    value = torch.from_numpy(endgames.value.astype(np.float32))
    rank = torch.arange(HAND).expand(len(endgames), -1)
    seen, deal = torch.from_numpy(tokens(endgames.positions)).long(), torch.from_numpy(endgames.deal.astype(np.int64))
    # Adding zero turns the -0.0 of a mirrored zero into 0.0: a label of zero has one form.
    return Examples(seen, by_slot * sides[:, None] / POINTS + 0.0, value * sides / POINTS + 0.0, legal, rank, deal)
