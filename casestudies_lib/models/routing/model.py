"""A causal language model whose attention heads are routed: which head serves a token, and with what weight.

Grouped key/value heads, RMS norms, SwiGLU. Routers, and the backward passes under trial, have files of their own.
Explained in chapter `head_routing`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from casestudies_lib.models.blocks import check_sizes, initialise, merge_heads, split_heads
from casestudies_lib.models.routing.backwards import SHARING, WEIGHING, named
from casestudies_lib.models.routing.routers import RouterSettings, Routing, draw_router, make_router


@dataclass(frozen=True)
class Sizes:
    """The shape of a routed language model: vocabulary, longest text, width, heads that ask and heads that answer."""

    vocab: int
    tokens: int = 32
    dim: int = 32
    heads: int = 8
    kv_heads: int = 4
    blocks: int = 3
    hidden: int = 64

    def __post_init__(self) -> None:
        """Refuse sizes that no model has, with a ValueError."""
        check_sizes(self, {"vocab": 2, "tokens": 2, "dim": 1, "heads": 1, "kv_heads": 1, "blocks": 1, "hidden": 1})
        if self.heads % self.kv_heads:
            raise ValueError(
                f"{self.heads} heads cannot share {self.kv_heads} key/value heads evenly; choose kv_heads so that it "
                "divides heads"
            )


@dataclass(frozen=True)
class Wiring:
    """What differs between the runs: the router, and what the hand-written backward passes send back."""

    router: str = "all heads"
    settings: RouterSettings = field(default_factory=RouterSettings)
    weighing: str = "exact"
    sharing: str = "exact"


class Reading(NamedTuple):
    """What the model makes of a text: logits of the next token, and each block's routing and head outputs."""

    logits: Float[Tensor, "batch tokens vocab"]
    routings: tuple[Routing, ...]
    heads: tuple[Float[Tensor, "batch heads tokens head_dim"], ...]


class RoutedAttention(nn.Module):
    """Causal attention with fewer key/value heads than heads, each head's output weighted by the router.

    Source: Ainslie et al., "GQA", EMNLP 2023 (shared key/value heads).
    """

    def __init__(self, sizes: Sizes, wiring: Wiring) -> None:
        """Declare the projections.

        Raises:
            ValueError: an unknown backward pass.
        """
        super().__init__()
        head_dim = sizes.dim // sizes.heads
        self.heads, self.kv_heads = sizes.heads, sizes.kv_heads
        self.query = nn.Linear(sizes.dim, sizes.dim, bias=False)
        self.key, self.value = (nn.Linear(sizes.dim, sizes.kv_heads * head_dim, bias=False) for _ in range(2))
        self.out = nn.Linear(sizes.dim, sizes.dim, bias=False)
        self.outputs = nn.Identity()  # a place to look at the heads, before they are weighted
        self.weigh = named(WEIGHING, wiring.weighing, "weighing")
        self.share = named(SHARING, wiring.sharing, "sharing")

    def forward(
        self, hidden: Float[Tensor, "batch tokens dim"], weights: Float[Tensor, "batch tokens heads"]
    ) -> tuple[Float[Tensor, "batch tokens dim"], Float[Tensor, "batch heads tokens head_dim"]]:
        """Return what the weighted heads add, and their outputs before weighting."""
        queries = split_heads(self.query(hidden), self.heads)
        shared = (split_heads(project(hidden), self.kv_heads) for project in (self.key, self.value))
        keys, values = (self.share(each, self.heads // self.kv_heads) for each in shared)
        attended = functional.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        heads = self.outputs(attended)
        return self.out(merge_heads(self.weigh(heads, weights))), heads


class SwiGLU(nn.Module):
    """A feed-forward whose hidden layer is gated by a swish.

    Source: Shazeer, "GLU Variants Improve Transformer", 2020.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.gate, self.value = (nn.Linear(dim, hidden, bias=False) for _ in range(2))
        self.out = nn.Linear(hidden, dim, bias=False)

    def forward(self, hidden: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """Return one vector a token."""
        return self.out(functional.silu(self.gate(hidden)) * self.value(hidden))


class Block(nn.Module):
    """A pre-norm block: routed attention, then SwiGLU."""

    def __init__(self, sizes: Sizes, wiring: Wiring) -> None:
        super().__init__()
        self.norm, self.forward_norm = nn.RMSNorm(sizes.dim), nn.RMSNorm(sizes.dim)
        self.attention = RoutedAttention(sizes, wiring)
        self.feed_forward = SwiGLU(sizes.dim, sizes.hidden)

    def forward(
        self, hidden: Float[Tensor, "batch tokens dim"], router: nn.Module
    ) -> tuple[Float[Tensor, "batch tokens dim"], Routing, Float[Tensor, "batch heads tokens head_dim"]]:
        """Return the residual stream after the block, with the routing and the head outputs."""
        normed = self.norm(hidden)
        routing = router(normed)
        added, heads = self.attention(normed, routing.weights)
        hidden = hidden + added
        return hidden + self.feed_forward(self.forward_norm(hidden)), routing, heads


class LanguageModel(nn.Module):
    """A causal language model of routed blocks with learned positions and an output layer of its own."""

    def __init__(self, sizes: Sizes, wiring: Wiring, generator: torch.Generator) -> None:
        """Declare the parts and draw their weights from `generator`.

        Routers come last, so that every wiring of one seed starts from the same attention and feed-forward.

        Raises:
            ValueError: an unknown router or backward pass, or settings that do not fit the heads.
        """
        super().__init__()
        self.sizes = sizes
        self.embedding, self.positions = nn.Embedding(sizes.vocab, sizes.dim), nn.Embedding(sizes.tokens, sizes.dim)
        self.blocks = nn.ModuleList(Block(sizes, wiring) for _ in range(sizes.blocks))
        self.norm, self.logits = nn.RMSNorm(sizes.dim), nn.Linear(sizes.dim, sizes.vocab, bias=False)
        self.routers = nn.ModuleList(
            make_router(wiring.router, sizes.dim, sizes.heads, wiring.settings, generator) for _ in range(sizes.blocks)
        )
        initialise(self, generator)
        draw_router(self.routers, generator)

    def forward(self, ids: Int[Tensor, "batch tokens"]) -> Reading:
        """Return the reading of a batch of texts."""
        hidden = self.embedding(ids) + self.positions.weight[: ids.shape[-1]]
        routings, heads = [], []
        for block, router in zip(self.blocks, self.routers):
            hidden, routing, outputs = block(hidden, router)
            routings.append(routing)
            heads.append(outputs)
        return Reading(self.logits(self.norm(hidden)), tuple(routings), tuple(heads))


def next_token_loss(
    logits: Float[Tensor, "batch tokens vocab"],
    ids: Int[Tensor, "batch longer"],
    real: Bool[Tensor, "batch longer"] | Float[Tensor, "batch longer"],
) -> Float[Tensor, ""]:
    """Return the cross-entropy of each token after the first, nats a token, mean over real tokens."""
    wanted = ids[:, 1:].flatten()
    entropy = functional.cross_entropy(logits.flatten(0, 1), wanted, reduction="none")  # rows of logits lie together
    counted = real[:, 1:].flatten().to(entropy.dtype)
    return (entropy * counted).sum() / counted.sum()


def greedy(model: nn.Module, prompt: Sequence[int], end: int, limit: int) -> list[int]:
    """Return the prompt's continuation by the most probable token each time, until `end` or `limit` tokens.

    Raises:
        ValueError: an empty prompt, or a limit that leaves the model's longest text.
    """
    longest = model.sizes.tokens
    if not prompt or len(prompt) + limit > longest:
        raise ValueError(f"a prompt of {len(prompt)} and {limit} new tokens; at least 1 and at most {longest} in all")
    text = list(prompt)
    training = model.training
    model.eval()
    with torch.no_grad():
        for _ in range(limit):
            text.append(int(model(torch.tensor([text])).logits[0, -1].argmax()))
            if text[-1] == end:
                break
    model.train(training)
    return text[len(prompt) :]
