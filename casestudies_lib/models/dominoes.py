"""A value head beside seven Q heads: one number for the position, one for each domino in hand.

Several trunks carry the same two heads, so that a measurement on the published one can be tried on others. Explained
in chapter `value_head_spillover`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from casestudies_lib.models.blocks import Dropout, check_sizes, feed_forward, initialise, merge_heads, split_heads

Features = Int[Tensor, "batch tokens features"]
Present = Bool[Tensor, "batch tokens"]
Tokens = Float[Tensor, "batch tokens dim"]
REMAINING, TYPE = 8, 9  # the features that say whether a token still holds something, and what it is


class Answers(NamedTuple):
    """What a network says of a position: the value, and one Q a slot of the mover's hand."""

    q: Float[Tensor, "batch slots"]
    value: Float[Tensor, " batch"]


@dataclass(frozen=True)
class Sizes:
    """The shape of a network.

    `features` holds how many values each feature of a token takes; `tokens` are there, the first for the value head and
    `slots` after it for the Q head; `embedding` is the width of one feature, `dim` of a token, `hidden` inside
    feed-forwards; `dropout` is the share dropped in training.
    """

    features: tuple[int, ...]
    tokens: int = 32
    slots: int = 7
    embedding: int = 4
    dim: int = 32
    heads: int = 4
    layers: int = 3
    hidden: int = 64
    dropout: float = 0.0

    def __post_init__(self) -> None:
        """Refuse sizes that no network has, with a ValueError."""
        check_sizes(self, dict.fromkeys(("tokens", "slots", "embedding", "dim", "heads", "layers", "hidden"), 1))
        if len(self.features) <= TYPE or min(self.features) < 1:
            raise ValueError(f"features are {self.features}; at least {TYPE + 1} sizes of 1 or more are needed")
        if self.slots >= self.tokens:
            raise ValueError(f"{self.slots} slots and a context token do not fit into {self.tokens} tokens")


class FeatureEmbedding(nn.Module):
    """One small embedding a feature, side by side, projected to the width of a token.

    All embeddings lie in one table, a feature after the other: one look-up instead of twelve.
    """

    def __init__(self, sizes: Sizes, positions: bool) -> None:
        super().__init__()
        self.features = nn.Embedding(sum(sizes.features), sizes.embedding)
        starts = torch.tensor((0, *sizes.features[:-1])).cumsum(0)
        self.register_buffer("starts", starts, persistent=False)
        self.project = nn.Linear(len(sizes.features) * sizes.embedding, sizes.dim)
        self.positions = nn.Embedding(sizes.tokens, sizes.dim) if positions else None

    def forward(self, tokens: Features) -> Tokens:
        """Return one vector a token."""
        vectors = self.project(self.features(tokens + self.starts).flatten(2))
        return vectors if self.positions is None else vectors + self.positions.weight


class Attention(nn.Module):
    """Multi-head self-attention in two steps, so that the weights can be looked at, or held fixed.

    Source: Vaswani et al., "Attention is all you need", NeurIPS 2017, section 3.2.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim) for _ in range(4))

    def weights(
        self,
        asking: Float[Tensor, "batch queries dim"],
        asked: Float[Tensor, "batch keys dim"],
        present: Bool[Tensor, "batch keys"] | None,
    ) -> Float[Tensor, "batch heads queries keys"]:
        """Return how much each query attends to each key; a row sums to one, and absent keys get nothing."""
        queries, keys = split_heads(self.query(asking), self.heads), split_heads(self.key(asked), self.heads)
        scores = queries @ keys.transpose(-1, -2) / math.sqrt(queries.shape[-1])
        if present is not None:
            scores = scores.masked_fill(~present[:, None, None, :], -math.inf)
        return scores.softmax(-1)

    def mix(
        self, weights: Float[Tensor, "batch heads queries keys"], asked: Float[Tensor, "batch keys dim"]
    ) -> Float[Tensor, "batch queries dim"]:
        """Return the values mixed by the weights and projected."""
        return self.out(merge_heads(weights @ split_heads(self.value(asked), self.heads)))

    def forward(
        self,
        asking: Float[Tensor, "batch queries dim"],
        asked: Float[Tensor, "batch keys dim"],
        present: Bool[Tensor, "batch keys"] | None = None,
    ) -> Float[Tensor, "batch queries dim"]:
        """Return what each query collects from the keys that are present: `mix` of `weights`, by a fused kernel."""
        parts = (self.query(asking), self.key(asked), self.value(asked))
        queries, keys, values = (split_heads(part, self.heads) for part in parts)
        mask = None if present is None else present[:, None, None, :]
        return self.out(merge_heads(functional.scaled_dot_product_attention(queries, keys, values, mask)))


class AttentionBlock(nn.Module):
    """Attention and a feed-forward, each added to its input and normalised after it, as torch's own encoder does.

    Source: torch.nn.TransformerEncoderLayer (norm_first=False).
    """

    def __init__(self, sizes: Sizes, generator: torch.Generator) -> None:
        super().__init__()
        self.attention = Attention(sizes.dim, sizes.heads)
        self.feed_forward = feed_forward(sizes.dim, sizes.hidden, sizes.dim, sizes.dropout, generator)
        self.attention_norm, self.forward_norm = nn.LayerNorm(sizes.dim), nn.LayerNorm(sizes.dim)
        self.dropout = Dropout(sizes.dropout, generator)

    def forward(
        self,
        asking: Float[Tensor, "batch queries dim"],
        asked: Float[Tensor, "batch keys dim"],
        present: Bool[Tensor, "batch keys"] | None = None,
    ) -> Float[Tensor, "batch queries dim"]:
        """Return the queries after one round."""
        mixed = self.attention_norm(asking + self.dropout(self.attention(asking, asked, present)))
        return self.forward_norm(mixed + self.dropout(self.feed_forward(mixed)))


class SelfAttentionLayer(AttentionBlock):
    """One layer of the published trunk: tokens attend to tokens."""

    def forward(self, values: Tokens, present: Present) -> Tokens:
        """Return the tokens after one round."""
        return super().forward(values, values, present)


class InducedLayer(nn.Module):
    """A Set-Transformer layer: a few learned points attend to the tokens, then the tokens to the points.

    Source: Lee et al., "Set Transformer", ICML 2019 (induced set attention block).
    """

    def __init__(self, sizes: Sizes, generator: torch.Generator) -> None:
        super().__init__()
        self.points = nn.Embedding(8, sizes.dim)
        self.gather, self.spread = AttentionBlock(sizes, generator), AttentionBlock(sizes, generator)

    def forward(self, values: Tokens, present: Present) -> Tokens:
        """Return the tokens after one round."""
        points = self.points.weight.expand(len(values), -1, -1)
        return self.spread(values, self.gather(points, values, present))


class DeepSetsLayer(nn.Module):
    """A permutation-equivariant layer: each token sees itself and the mean of all.

    Source: Zaheer et al., "Deep Sets", NeurIPS 2017, section 3.
    """

    def __init__(self, sizes: Sizes, generator: torch.Generator) -> None:
        super().__init__()
        self.feed_forward = feed_forward(2 * sizes.dim, sizes.hidden, sizes.dim, sizes.dropout, generator)
        self.norm = nn.LayerNorm(sizes.dim)

    def forward(self, values: Tokens, present: Present) -> Tokens:
        """Return the tokens after one round."""
        there = present[..., None].to(values.dtype)
        mean = (values * there).sum(dim=1, keepdim=True) / there.sum(dim=1, keepdim=True)
        return self.norm(values + self.feed_forward(torch.cat([values, mean.expand_as(values)], dim=-1)))


class MixerLayer(nn.Module):
    """Tokens mixed by one feed-forward across positions, then features by another.

    Source: Tolstikhin et al., "MLP-Mixer", NeurIPS 2021.
    """

    def __init__(self, sizes: Sizes, generator: torch.Generator) -> None:
        super().__init__()
        self.across = feed_forward(sizes.tokens, sizes.hidden, sizes.tokens, sizes.dropout, generator)
        self.within = feed_forward(sizes.dim, sizes.hidden, sizes.dim, sizes.dropout, generator)
        self.across_norm, self.within_norm = nn.LayerNorm(sizes.dim), nn.LayerNorm(sizes.dim)

    def forward(self, values: Tokens, present: Present) -> Tokens:
        """Return the tokens after one round."""
        there = values * present[..., None].to(values.dtype)
        mixed = self.across_norm(values + self.across(there.transpose(1, 2)).transpose(1, 2))
        return self.within_norm(mixed + self.within(mixed))


class RecurrentLayer(nn.Module):
    """A gated recurrent unit that reads from the last token to the first, so that the first has seen all.

    Source: Cho et al., EMNLP 2014 (torch.nn.GRU).
    """

    def __init__(self, sizes: Sizes, generator: torch.Generator) -> None:
        """Declare the unit and draw its weights, which `initialise` does not know."""
        super().__init__()
        self.unit = nn.GRU(sizes.dim, sizes.dim, batch_first=True)
        for parameter in self.unit.parameters():
            nn.init.uniform_(parameter, -1 / math.sqrt(sizes.dim), 1 / math.sqrt(sizes.dim), generator=generator)

    def forward(self, values: Tokens, present: Present) -> Tokens:
        """Return the tokens after one reading."""
        return self.unit((values * present[..., None].to(values.dtype)).flip(1))[0].flip(1)


LAYERS = {
    "transformer": SelfAttentionLayer,
    "deep sets": DeepSetsLayer,
    "set transformer": InducedLayer,
    "recurrent": RecurrentLayer,
    "mixer": MixerLayer,
}


class DominoNet(nn.Module):
    """Feature embedding, a trunk of equal layers, a value head on token 0 and one shared Q head on the slots after it.

    Source: jasonyandell/mk5-main, as its report describes the network.
    """

    def __init__(
        self,
        sizes: Sizes,
        generator: torch.Generator,
        *,
        trunk: str = "transformer",
        positions: bool = False,
        stop_gradient: bool = False,
    ) -> None:
        """Declare everything and draw the weights.

        Args:
            sizes: the shape.
            generator: the source of weights and dropout masks.
            trunk: what connects the tokens, one of LAYERS.
            positions: whether a token knows its place; the published network's does not.
            stop_gradient: whether the value head reads the trunk without teaching it.

        Raises:
            ValueError: an unknown trunk.
        """
        super().__init__()
        if trunk not in LAYERS:
            raise ValueError(f"trunk is {trunk!r}; allowed are {', '.join(LAYERS)}")
        self.slots, self.stop_gradient = sizes.slots, stop_gradient
        self.embedding = FeatureEmbedding(sizes, positions)
        self.layers = nn.ModuleList(LAYERS[trunk](sizes, generator) for _ in range(sizes.layers))
        self.value_head, self.q_head = nn.Linear(sizes.dim, 1), nn.Linear(sizes.dim, 1)
        initialise(self, generator)

    def forward(self, tokens: Features) -> Answers:
        """Return the value and one Q a slot, in the unit of the targets."""
        present = present_tokens(tokens)
        values = self.embedding(tokens)
        for layer in self.layers:
            values = layer(values, present)
        context, hand = values[:, 0], values[:, 1 : 1 + self.slots]
        value = self.value_head(context.detach() if self.stop_gradient else context)
        return Answers(self.q_head(hand).squeeze(-1), value.squeeze(-1))


def present_tokens(tokens: Features) -> Present:
    """Return which tokens others read: the context, dominoes still in hands, and those on the table."""
    return (tokens[..., TYPE] == 0) | (tokens[..., REMAINING] == 1)


class Recorded(NamedTuple):
    """Answers, and the tokens between the layers: the embedding's first, the trunk's output last."""

    answers: Answers
    between: Sequence[Tokens]


def record(model: DominoNet, tokens: Features) -> Recorded:
    """Return what a forward pass answers and the tokens before, between and after the layers."""
    between: list[Tensor] = []
    keep = [part.register_forward_hook(lambda _part, _into, out: between.append(out)) for part in _stages(model)]
    try:
        answers = model(tokens)
    finally:
        for handle in keep:
            handle.remove()
    return Recorded(answers, between)


def _stages(model: DominoNet) -> list[nn.Module]:
    return [model.embedding, *model.layers]
