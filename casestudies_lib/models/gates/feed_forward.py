"""The feed-forward and what the report couples to it: head gates, other tokens' hidden values, attention's keys."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from casestudies_lib.models.gates.mixing import computed, hold_alphas, linear, mix, running_mean, strongest
from casestudies_lib.models.gates.switches import RATIOS, Links, Sizes, Switches

Scores = Float[Tensor, "batch heads tokens tokens"]
Stream = Float[Tensor, "batch tokens dim"]
CROSS_KEPT = 8  # tokens whose hidden values a token reads
BELL = 1.5  # width, in ratios, of the bell that a learnable ratio starts from
MASK_SOFTNESS = 0.25  # in model widths: over how many units a learnable mask fades out

Hidden = Float[Tensor, "batch tokens hidden_dim"]
Keys = Float[Tensor, "batch tokens key_dim"]


class Coupler(nn.Module):
    """Two linear maps between the feed-forward's hidden values and attention's latent keys, with three tyings.

    Source: the report's repository, gpt2/ra_mla_gpt2.py, before and after the fix of its per-head-scalar mode.
    """

    def __init__(self, hidden: int, sizes: Sizes, switches: Switches, to_attention: bool) -> None:
        """Declare one shared matrix, or one a direction in use; where the tying has them, a scalar a head too."""
        super().__init__()
        self.heads, self.tying, self.zeros = sizes.heads, switches.coupler, switches.coupler_zeros
        widths = {"to_mlp": (switches.latent, hidden)} if switches.reciprocal_mlp in ("to_mlp", "both") else {}
        widths |= {"to_attention": (hidden, switches.latent)} if to_attention else {}
        if self.tying == "tied_transpose":
            self.shared = nn.Parameter(torch.empty(hidden, switches.latent))
            return
        for name, (fan_in, fan_out) in widths.items():
            self.add_module(name, nn.Linear(fan_in, fan_out, bias=False))
            if self.tying == "per_head_scalar":
                self.register_parameter(f"{name}_scalars", nn.Parameter(torch.ones(sizes.heads)))

    def draw(self, generator: torch.Generator) -> None:
        """Draw the shared matrix, uniform within one over the root of the hidden width."""
        if self.tying == "tied_transpose":
            limit = self.shared.shape[0] ** -0.5
            nn.init.uniform_(self.shared, -limit, limit, generator=generator)

    def for_mlp(self, keys: Keys) -> Hidden:
        """Return what attention's keys add to the hidden values."""
        if self.tying == "tied_transpose":
            return keys @ self.shared.mT
        return self._scaled(self.to_mlp(keys), "to_mlp_scalars")

    def for_attention(self, hidden: Hidden) -> Keys:
        """Return what the hidden values add to attention's keys."""
        if self.tying == "tied_transpose":
            return hidden @ self.shared
        return self._scaled(self.to_attention(hidden), "to_attention_scalars")

    def _scaled(self, values: Tensor, name: str) -> Tensor:
        if self.zeros:  # as published before the fix: scaled, then dropped
            return torch.zeros_like(values)
        if self.tying != "per_head_scalar":
            return values
        return (values.unflatten(-1, (self.heads, -1)) * getattr(self, name)[:, None]).flatten(-2)


class HeadGate(nn.Module):
    """One gate a head: a sigmoid of the hidden values' mean over tokens, through a narrow context."""

    def __init__(self, hidden: int, sizes: Sizes, switches: Switches) -> None:
        """Declare context and gate; `draw` sets the gate's bias."""
        super().__init__()
        self.bias, self.past_only = switches.gate_bias, switches.head_gate == "past_tokens"
        self.context, self.to_heads = nn.Linear(hidden, sizes.gate_dim), nn.Linear(sizes.gate_dim, sizes.heads)

    def draw(self) -> None:
        """Set the bias that every gate starts from."""
        nn.init.constant_(self.to_heads.bias, self.bias)

    def forward(self, hidden: Hidden) -> Float[Tensor, "batch places heads"]:
        """Return one gate a head for each token, from those up to it, or one for all tokens, from all of them."""
        context = self.context(hidden)
        context = running_mean(context) if self.past_only else context.mean(1, keepdim=True)
        return torch.sigmoid(self.to_heads(context))


class Fed(NamedTuple):
    """What a feed-forward adds to the stream, and what it hands to an attention: gates and context for its keys."""

    added: Stream
    gates: Float[Tensor, "batch places heads"] | None
    context: Float[Tensor, "batch tokens key_dim"] | None


class FeedForward(nn.Module):
    """Widen, GELU, narrow, with the report's couplings in between."""

    def __init__(self, sizes: Sizes, switches: Switches, links: Links) -> None:
        super().__init__()
        self.switches, self.links, self.heads = switches, links, sizes.heads
        to_mlp = switches.reciprocal_mlp in ("to_mlp", "both")
        hidden = round(switches.expansion * sizes.dim)
        self.widen = linear(sizes.dim, hidden, switches.pruned)
        self.narrow = linear(hidden, sizes.dim, switches.pruned)
        if to_mlp or links.context_out:
            self.coupler = Coupler(hidden, sizes, switches, links.context_out)
        if switches.cross_token:
            self.cross = linear(hidden, hidden, switches.pruned, bias=False)
        if links.gates_out and not switches.force_open:
            self.gate = HeadGate(hidden, sizes, switches)
        hold_alphas(self, {"cross_alpha": switches.cross_token, "to_mlp_alpha": to_mlp}, switches.learnable)

    def forward(self, stream: Stream, weights: Scores, keys: Keys) -> Fed:
        """Feed each token forward; `weights` and `keys` are those of the attention before it."""
        switches, convex = self.switches, self.switches.mixing == "convex"
        hidden = functional.gelu(self.widen(stream))
        context = self.coupler.for_attention(hidden) if self.links.context_out else None
        if switches.reciprocal_mlp in ("to_mlp", "both") and computed(self.to_mlp_alpha, switches.guard):
            keys = keys.detach() if switches.reciprocal_from == "previous_batch" else keys
            hidden = mix(hidden, self.coupler.for_mlp(keys), self.to_mlp_alpha, convex)
        if switches.cross_token and computed(self.cross_alpha, switches.guard):
            others = self.cross(strongest(weights, CROSS_KEPT) @ hidden)
            hidden = mix(hidden, others, self.cross_alpha, convex)
        return Fed(self.narrow(hidden), self._gates(hidden), context)

    def _gates(self, hidden: Hidden) -> Float[Tensor, "batch places heads"] | None:
        if not self.links.gates_out:
            return None
        if self.switches.force_open:
            return hidden.new_ones(len(hidden), 1, self.heads)
        return self.gate(hidden)


class LearnedWidth(nn.Module):
    """A feed-forward whose expansion ratio is learned, in one of the report's three ways.

    `interpolated` keeps one feed-forward for each ratio and mixes their outputs; `discrete` uses the likeliest of them
    and passes the gradient on as if it mixed; `masked` keeps the widest and fades out units beyond a learnable edge.
    """

    def __init__(self, sizes: Sizes, switches: Switches) -> None:
        """Declare the layers, and the ratio's parameters such that it starts at `switches.expansion`."""
        super().__init__()
        self.form, dim = switches.expansion_form, sizes.dim
        widths = RATIOS[-1:] if self.form == "masked" else RATIOS
        self.widen = nn.ModuleList(linear(dim, round(ratio * dim), switches.pruned) for ratio in widths)
        self.narrow = nn.ModuleList(linear(round(ratio * dim), dim, switches.pruned) for ratio in widths)
        if self.form == "masked":
            self.edge = nn.Parameter(torch.tensor(switches.expansion))
        else:
            self.preference = nn.Parameter(_preference(switches.expansion))

    def forward(self, stream: Stream, weights: Scores, keys: Keys) -> Fed:
        """Feed each token forward; what attention hands over is not read."""
        if self.form == "masked":
            hidden = functional.gelu(self.widen[0](stream)) * self.mask()
            return Fed(self.narrow[0](hidden), None, None)
        outputs = [narrow(functional.gelu(widen(stream))) for widen, narrow in zip(self.widen, self.narrow)]
        shares = self.preference.softmax(-1)
        if self.form == "discrete":
            likeliest = torch.zeros_like(shares).scatter(-1, shares.argmax(-1, keepdim=True), 1.0)
            shares = likeliest + shares - shares.detach()
        return Fed(sum(share * output for share, output in zip(shares, outputs)), None, None)

    def mask(self) -> Float[Tensor, " hidden_dim"]:
        """Return how far each hidden unit is open: those below the edge are, those above fade out."""
        units = self.widen[0].out_features
        places = torch.arange(units, device=self.edge.device, dtype=self.edge.dtype) * (RATIOS[-1] / units)
        return torch.sigmoid((self.edge - places) / MASK_SOFTNESS)

    def ratio(self) -> Float[Tensor, ""]:
        """Return the expansion ratio in use: the mean of the mixed ones, the chosen one, or the open units'."""
        if self.form == "masked":
            return self.mask().mean() * RATIOS[-1]
        ratios = torch.tensor(RATIOS, dtype=self.preference.dtype)
        if self.form == "discrete":
            return ratios[self.preference.argmax()]
        return (self.preference.softmax(-1) * ratios).sum()


def _preference(ratio: float) -> Float[Tensor, " ratios"]:
    """Return log shares whose mean ratio is the wanted one: a bell over the ratios, moved until its mean fits.

    No share starts below a hundredth, or its feed-forward would hardly be taught.
    """
    ratios = torch.tensor(RATIOS, dtype=torch.float64)
    low, high = -20.0, 20.0
    for _ in range(60):
        centre = (low + high) / 2
        logits = -((ratios - centre) ** 2) / (2 * BELL**2)
        low, high = (centre, high) if (logits.softmax(-1) * ratios).sum() < ratio else (low, centre)
    return logits.log_softmax(-1).clamp_min(math.log(0.01)).float()
