"""Causal self-attention with the report's additions: latent keys and values, a reciprocal term, two kinds of gates."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from casestudies_lib.models.blocks import causal_mask, merge_heads, split_heads
from casestudies_lib.models.gates.mixing import band, computed, hold_alphas, linear, mix
from casestudies_lib.models.gates.switches import Links, Sizes, Switches

Keys = Float[Tensor, "batch tokens key_dim"]
Stream = Float[Tensor, "batch tokens dim"]
ROW_GATE_ALPHA = 0.2  # fixed in the report's ladder
ROW_GATE_KEPT = 8  # how many of a row's largest weights its gate adds up

Scores = Float[Tensor, "batch heads tokens tokens"]


class Attended(NamedTuple):
    """What attention adds to the stream, its weights, and the keys that a coupler may read."""

    added: Stream
    weights: Scores
    keys: Keys


class Attention(nn.Module):
    """Multi-head causal attention.

    Source: Vaswani et al., "Attention Is All You Need", 2017, section 3.2; latent keys and values: DeepSeek-AI,
        "DeepSeek-V2", 2024, section 2.1, without its rotary part; the additions: the report's repository.
    """

    def __init__(self, sizes: Sizes, switches: Switches, links: Links) -> None:
        super().__init__()
        dim, self.heads, self.window, self.switches = sizes.dim, sizes.heads, sizes.window, switches
        width, pruned, latent = dim // sizes.heads, switches.pruned, switches.latent
        self.query = linear(dim, dim, pruned)
        if latent:
            self.key, self.value = linear(dim, latent, pruned, bias=False), linear(dim, latent, pruned, bias=False)
            self.query_to_latent = nn.Parameter(torch.empty(self.heads, width, latent))
            self.value_up = nn.Parameter(torch.empty(self.heads, latent, width))
        else:
            self.key, self.value = linear(dim, dim, pruned), linear(dim, dim, pruned)
        self.out = linear(dim, dim, pruned)
        present = {
            "reciprocal_alpha": switches.reciprocal != "off",
            "gate_alpha": links.gates_in,
            "to_attention_alpha": links.context_in,
        }
        hold_alphas(self, present, switches.learnable)
        if switches.row_gate != "off" and not switches.force_open:
            self.row_scale = nn.Parameter(torch.ones(self.heads))
            self.row_bias = nn.Parameter(torch.full((self.heads,), switches.gate_bias))

    def draw(self, generator: torch.Generator) -> None:
        """Draw the weights that are no linear layer: uniform within one over the root of what they sum over."""
        if self.switches.latent:
            for weight in (self.query_to_latent, self.value_up):
                limit = weight.shape[1] ** -0.5
                nn.init.uniform_(weight, -limit, limit, generator=generator)

    def forward(
        self, hidden: Stream, gates: Float[Tensor, "batch places heads"] | None = None, context: Keys | None = None
    ) -> Attended:
        """Attend; `gates`, one a head and token or one a head, and `context` for the keys come from a feed-forward."""
        keys = self.key(hidden)
        if context is not None and computed(self.to_attention_alpha, self.switches.guard):
            keys = mix(keys, context, self.to_attention_alpha, self.switches.mixing == "convex")
        scores = self.scores(hidden, keys)
        weights = self.with_reciprocal(scores, hidden, keys).softmax(-1)
        if gates is not None and computed(self.gate_alpha, self.switches.guard):
            gated = weights * gates.transpose(1, 2).unsqueeze(-1)
            weights = mix(weights, gated, self.gate_alpha, self.switches.mixing != "additive")
        rows = self.row_gates(weights)
        if rows is not None:
            closed = self.row_share() * (1 - rows)
            weights = weights * (1 - closed) if self.switches.row_gate == "weights" else weights
        heads = weights @ self.values(hidden)
        if rows is not None and self.switches.row_gate != "weights":
            heads = heads * (1 - closed)
        return Attended(self.out(merge_heads(heads)), weights, keys)

    def queries_keys(
        self, hidden: Stream, keys: Keys
    ) -> tuple[Float[Tensor, "batch heads tokens width"], Float[Tensor, "batch groups tokens width"]]:
        """Return queries and keys as they meet: by head, or all heads' queries against the one latent key."""
        queries = split_heads(self.query(hidden), self.heads)
        if not self.switches.latent:
            return queries, split_heads(keys, self.heads)
        return torch.einsum("bhtd,hdl->bhtl", queries, self.query_to_latent), keys.unsqueeze(1)

    def scores(self, hidden: Stream, keys: Keys) -> Scores:
        """Return S, query times key over the root of their width, before any mask."""
        queries, keys = self.queries_keys(hidden, keys)
        return queries @ keys.mT / math.sqrt(queries.shape[-1])

    def reciprocal(self, scores: Scores, hidden: Stream, keys: Keys) -> Scores:
        """Return what the reciprocal switch adds to the scores, before mixing weight, band and mask."""
        kind = self.switches.reciprocal
        if kind == "rank_one":  # "bthd,bsl->bhts": d and l are different letters, so each is summed on its own
            queries, keys = self.queries_keys(hidden, keys)
            return queries.sum(-1, keepdim=True) * keys.sum(-1).unsqueeze(-2) / math.sqrt(queries.shape[-1])
        return scores if kind == "repeat" else scores.mT

    def with_reciprocal(self, scores: Scores, hidden: Stream, keys: Keys) -> Scores:
        """Return the masked scores with the reciprocal term in its band."""
        kind, convex = self.switches.reciprocal, self.switches.mixing == "convex"
        causal = causal_mask(scores.shape[-1], scores.device)
        masked = scores.masked_fill(~causal, -math.inf)
        if kind == "off" or not computed(self.reciprocal_alpha, self.switches.guard):
            return masked
        term = self.reciprocal(scores, hidden, keys)
        near = band(scores.shape[-1], self.window, scores.device)
        if kind == "transpose_after_mask":  # minus infinity plus anything stays what it is
            return torch.where(near, mix(masked, term, self.reciprocal_alpha, convex), masked)
        if kind != "transpose_over_mask":
            near = near & causal
        return torch.where(near, mix(scores, term, self.reciprocal_alpha, convex), masked)

    def row_share(self) -> float:
        """Return how much of a row's gate counts: all of it where the published code forgets its mixing weight."""
        return 1.0 if self.switches.row_gate.endswith("in_full") else ROW_GATE_ALPHA

    def row_gates(self, weights: Scores) -> Float[Tensor, "batch heads tokens 1"] | None:
        """Return one gate a row: a sigmoid of the sum of its largest weights, or of its entropy."""
        if self.switches.row_gate == "off":
            return None
        if self.switches.force_open:
            return torch.ones_like(weights[..., :1])
        if self.switches.row_gate.startswith("entropy"):
            statistic = -torch.special.xlogy(weights, weights.clamp_min(1e-12)).sum(-1, keepdim=True)
        else:
            statistic = weights.topk(min(ROW_GATE_KEPT, weights.shape[-1]), dim=-1).values.sum(-1, keepdim=True)
        return torch.sigmoid(statistic * self.row_scale[:, None, None] + self.row_bias[:, None, None])

    def values(self, hidden: Stream) -> Float[Tensor, "batch heads tokens head_dim"]:
        """Return the values of each head, out of the latent where there is one."""
        values = self.value(hidden)
        if not self.switches.latent:
            return split_heads(values, self.heads)
        return torch.einsum("btl,hld->bhtd", values, self.value_up)
