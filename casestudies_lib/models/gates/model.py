"""The model: GPT-2's blocks with the mechanisms that the switches ask for, and planted branches of known worth."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from casestudies_lib.models.blocks import initialise
from casestudies_lib.models.gates.attention import Attention
from casestudies_lib.models.gates.feed_forward import Coupler, FeedForward, HeadGate, LearnedWidth
from casestudies_lib.models.gates.mixing import PrunedLinear, computed, hold_alphas, mix
from casestudies_lib.models.gates.switches import Links, Sizes, Switches, check_fit, links

Stream = Float[Tensor, "batch tokens dim"]


class Handed(NamedTuple):
    """What a feed-forward hands to an attention."""

    gates: Float[Tensor, "batch places heads"] | None = None
    context: Float[Tensor, "batch tokens key_dim"] | None = None


class Planted(nn.Module):
    """A branch whose worth is known beforehand.

    `useful` is a linear map of the token before, which no feed-forward can see; `redundant` is one of the token itself,
    which the feed-forward sees anyway; `useless` is zero; `harmful` is noise that the caller draws.
    """

    def __init__(self, kind: str, dim: int) -> None:
        super().__init__()
        self.kind = kind
        if kind in ("useful", "redundant"):
            self.map = nn.Linear(dim, dim, bias=False)

    def forward(self, stream: Stream, noise: Stream | None) -> Stream:
        """Return the branch's output.

        Raises:
            ValueError: the branch is noise and none came.
        """
        if self.kind == "useless":
            return torch.zeros_like(stream)
        if self.kind == "harmful":
            if noise is None:
                raise ValueError("planted='harmful' mixes in noise; draw it and hand it over as noise=")
            return noise
        if self.kind == "useful":
            stream = functional.pad(stream, (0, 0, 1, 0))[:, :-1]
        return self.map(stream)


class Block(nn.Module):
    """A pre-norm transformer block.

    Source: Radford et al., "Language Models are Unsupervised Multitask Learners", 2019 (norm before each part).
    """

    def __init__(self, sizes: Sizes, switches: Switches, links: Links) -> None:
        super().__init__()
        self.switches = switches
        self.norm, self.forward_norm = nn.LayerNorm(sizes.dim), nn.LayerNorm(sizes.dim)
        self.attention = Attention(sizes, switches, links)
        fixed = switches.expansion_form == "fixed"
        self.feed_forward = FeedForward(sizes, switches, links) if fixed else LearnedWidth(sizes, switches)
        if switches.planted != "off":
            self.planted_norm, self.planted = nn.LayerNorm(sizes.dim), Planted(switches.planted, sizes.dim)
            hold_alphas(self, {"planted_alpha": True}, switches.learnable)

    def forward(self, stream: Stream, handed: Handed, noise: Stream | None) -> tuple[Stream, Handed]:
        """Return the stream after the block, and what its feed-forward hands over."""
        if self.switches.planted != "off" and computed(self.planted_alpha, self.switches.guard):
            branch = self.planted(self.planted_norm(stream), noise)
            stream = mix(stream, branch, self.planted_alpha, self.switches.mixing == "convex")
        attended = self.attention(self.norm(stream), handed.gates, handed.context)
        stream = stream + attended.added
        fed = self.feed_forward(self.forward_norm(stream), attended.weights, attended.keys)
        return stream + fed.added, Handed(fed.gates, fed.context)


class GatedModel(nn.Module):
    """A causal language model with learned positions and an output layer tied to the embedding.

    Where a switch says `previous_batch`, the model keeps what its feed-forwards handed over for the next batch, without
    a gradient: with one, the next backward pass would reach into a graph that is gone.
    """

    def __init__(self, sizes: Sizes, switches: Switches, generator: torch.Generator) -> None:
        """Declare the parts and draw their weights from `generator`.

        Raises:
            SwitchError: switches that a model of these sizes cannot have.
        """
        super().__init__()
        check_fit(sizes, switches)
        self.sizes, self.switches = sizes, switches
        self.embedding, self.positions = nn.Embedding(sizes.vocab, sizes.dim), nn.Embedding(sizes.tokens, sizes.dim)
        joined = [links(switches, place, sizes.blocks) for place in range(sizes.blocks)]
        self.blocks = nn.ModuleList(Block(sizes, switches, each) for each in joined)
        self.norm = nn.LayerNorm(sizes.dim)
        self.kept: list[Handed] = [Handed()] * sizes.blocks
        self._draw(generator)

    def _draw(self, generator: torch.Generator) -> None:
        initialise(self, generator)
        with torch.no_grad():  # tied weights: a standard normal would make the first logits as large as the root of dim
            self.embedding.weight.mul_(self.sizes.dim**-0.5)
            self.positions.weight.mul_(self.sizes.dim**-0.5)
        for part in self.modules():
            if isinstance(part, Attention | Coupler):
                part.draw(generator)
            elif isinstance(part, HeadGate):
                part.draw()
            elif isinstance(part, PrunedLinear):
                part.prune()

    def forward(
        self, ids: Int[Tensor, "batch tokens"], noise: Stream | None = None
    ) -> Float[Tensor, "batch tokens vocab"]:
        """Return the logits of each token's successor.

        Raises:
            ValueError: the text is empty or longer than the model's positions, a planted noise is missing, or a gate
                kept from the previous batch does not fit this one.
        """
        if not 1 <= ids.shape[1] <= self.sizes.tokens:
            raise ValueError(f"{ids.shape[1]} tokens for a model of {self.sizes.tokens} positions; give 1 to that many")
        stream = self.embedding(ids) + self.positions.weight[: ids.shape[1]]
        handed, kept = Handed(), []
        for block, before in zip(self.blocks, self.kept):
            stream, fresh = block(stream, self._chosen(handed, before, ids), noise)
            kept.append(self._stale(fresh))
            handed = fresh
        self.kept = kept
        return functional.linear(self.norm(stream), self.embedding.weight)

    def forget(self) -> None:
        """Drop what is kept from the previous batch."""
        self.kept = [Handed()] * self.sizes.blocks

    def _stale(self, fresh: Handed) -> Handed:
        gates = (
            fresh.gates.detach() if self.switches.head_gate == "previous_batch" and fresh.gates is not None else None
        )
        keep = self.switches.reciprocal_from == "previous_batch" and fresh.context is not None
        return Handed(gates, fresh.context.detach() if keep else None)

    def _chosen(self, handed: Handed, before: Handed, ids: Int[Tensor, "batch tokens"]) -> Handed:
        """Return what this block's attention reads: from the block before, or from its own previous batch."""
        for kept in before:
            if kept is not None and len(kept) not in (1, len(ids)):
                raise ValueError(f"{len(ids)} texts after a batch of {len(kept)}; call forget() between them")
        gates = before.gates if self.switches.head_gate == "previous_batch" else handed.gates
        context = before.context if self.switches.reciprocal_from == "previous_batch" else handed.context
        return Handed(gates, context)
