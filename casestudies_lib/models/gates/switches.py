"""What a gated model is made of: its sizes, and one named switch for each mechanism."""

import math
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

from casestudies_lib.models.blocks import check_sizes

RATIOS = (2.0, 4.0, 6.0)  # the feed-forward widths, in model widths, that a learnable ratio chooses from
ALPHAS = {
    "reciprocal_alpha": 0.3,
    "gate_alpha": 0.1,
    "cross_alpha": 0.3,
    "to_mlp_alpha": 0.2,
    "to_attention_alpha": 0.2,
    "planted_alpha": 0.3,
}  # where the mixing weights start; the first five as the report's defaults have them
ALLOWED = {
    "reciprocal": ("off", "rank_one", "repeat", "transpose", "transpose_after_mask", "transpose_over_mask"),
    "head_gate": ("off", "previous_batch", "all_tokens", "past_tokens"),
    "row_gate": ("off", "output", "output_in_full", "weights", "entropy", "entropy_in_full"),
    "reciprocal_mlp": ("off", "to_mlp", "to_attention", "both"),
    "reciprocal_from": ("previous_batch", "previous_block"),
    "coupler": ("untied", "tied_transpose", "per_head_scalar"),
    "mixing": ("as_run", "additive", "convex"),
    "expansion_form": ("fixed", "interpolated", "discrete", "masked"),
    "planted": ("off", "useful", "useless", "harmful", "redundant"),
}


class SwitchError(ValueError):
    """Switches that no model has, or that exclude each other; the message says which and why."""


@dataclass(frozen=True)
class Sizes:
    """The shape of a model: vocabulary, longest text in tokens, width, heads, depth, and widths of two mechanisms.

    `gate_dim` is the width of the head gate's context, `window` the reach of reciprocal attention in tokens.
    """

    vocab: int
    tokens: int
    dim: int = 48
    heads: int = 4
    blocks: int = 2
    gate_dim: int = 8
    window: int = 16

    def __post_init__(self) -> None:
        """Refuse sizes that no model has, with a ValueError."""
        check_sizes(self, {"vocab": 2, "tokens": 1, "dim": 1, "heads": 1, "blocks": 1, "gate_dim": 1, "window": 0})


@dataclass(frozen=True)
class Switches:
    """One switch a mechanism; the defaults build a plain GPT-2.

    Attributes:
        reciprocal: what is added to the attention scores S within a causal band. `rank_one` is (sum of the query) times
            (sum of the key), as published; `repeat` adds S again; `transpose` adds its transpose;
            `transpose_after_mask` adds that to scores that are masked already; `transpose_over_mask` forgets the
            causal half of the band and so writes over the mask.
        latent: width of the latent that keys and values pass through; 0 is none.
        head_gate: where a block's gates on its heads come from: its own feed-forward in the previous batch (as
            published), or the block before it, averaged over all tokens or over those up to now.
        row_gate: gates from the shape of each attention row, on the heads' output or weights; `entropy` gates the
            output by the row's entropy instead of its largest weights. `in_full` ignores the mixing weight of .2, as
            the published code does on outputs.
        cross_token: the feed-forward also reads its hidden values of the 8 tokens most attended to.
        reciprocal_mlp: attention's latent keys feed the feed-forward, its hidden values feed the keys, or both.
        reciprocal_from: which hidden values feed the keys: this block's in the previous batch (as published; then the
            keys reach the feed-forward without a gradient too), or those of the block before.
        coupler: how the two directions of `reciprocal_mlp` share weights.
        coupler_zeros: the bug: a per-head-scalar coupler that returns zeros.
        mixing: how a branch joins: base + alpha * branch, or (1 - alpha) * base + alpha * branch. `as_run` is convex
            for the head gate and additive elsewhere.
        learnable: whether the mixing weights are parameters.
        guard: a branch is computed only if its mixing weight is above zero.
        gate_bias: where the bias of every gate starts.
        force_open: all gates are 1.
        expansion: width of the feed-forward in model widths.
        expansion_form: fixed, or one of three forms that learn it.
        planted: a branch of known worth in every block: the token before, zeros, noise, or the token itself again.
        pruned: share of the smallest weights in every matrix of the blocks that is fixed at zero.
    """

    reciprocal: str = "off"
    latent: int = 0
    head_gate: str = "off"
    row_gate: str = "off"
    cross_token: bool = False
    reciprocal_mlp: str = "off"
    reciprocal_from: str = "previous_block"
    coupler: str = "tied_transpose"
    coupler_zeros: bool = False
    mixing: str = "as_run"
    learnable: bool = True
    guard: bool = False
    gate_bias: float = 2.0
    force_open: bool = False
    expansion: float = 4.0
    expansion_form: str = "fixed"
    planted: str = "off"
    pruned: float = 0.0

    def __post_init__(self) -> None:
        """Refuse values that are not allowed and switches that exclude each other.

        Raises:
            SwitchError: names the switch, what came, what is allowed, or which two switches clash and why.
        """
        for name, allowed in ALLOWED.items():
            if getattr(self, name) not in allowed:
                raise SwitchError(f"{name}={getattr(self, name)!r}; allowed are {', '.join(allowed)}")
        if not 0 <= self.pruned < 1:
            raise SwitchError(f"pruned={self.pruned}; a share of at least 0 and below 1 is needed")
        if self.latent < 0 or not 0 < self.expansion < math.inf:
            raise SwitchError(
                f"latent={self.latent}, expansion={self.expansion}; a width of at least 0 and a finite ratio above 0 "
                "are needed"
            )
        for both_set, pair, why in _clashes(self):
            if both_set:
                raise SwitchError(f"{pair} exclude each other: {why}")


def _clashes(switches: Switches) -> list[tuple[bool, str, str]]:
    """Return every pair of switches that cannot both be set: whether both are, their names, and why."""
    hidden = [name for name in ("head_gate", "reciprocal_mlp") if getattr(switches, name) != "off"]
    hidden += ["cross_token"] if switches.cross_token else []
    form = switches.expansion_form
    return [
        (
            switches.reciprocal_mlp != "off" and not switches.latent,
            f"reciprocal_mlp={switches.reciprocal_mlp} and latent=0",
            "the coupler joins the feed-forward to the latent keys; set latent to a width",
        ),
        (
            switches.coupler_zeros and (switches.coupler != "per_head_scalar" or switches.reciprocal_mlp == "off"),
            f"coupler_zeros and coupler={switches.coupler}, reciprocal_mlp={switches.reciprocal_mlp}",
            "the bug sits in the per-head-scalar coupler of a reciprocal feed-forward; choose both",
        ),
        (
            switches.force_open and switches.head_gate == "off" and switches.row_gate == "off",
            "force_open and head_gate=off, row_gate=off",
            "there is no gate to hold open; choose one",
        ),
        (
            form != "fixed" and bool(hidden),
            f"expansion_form={form} and {', '.join(hidden)}",
            "these read one hidden layer of the feed-forward, which a learnable width does not have",
        ),
        (
            form != "fixed" and not RATIOS[0] <= switches.expansion <= RATIOS[-1],
            f"expansion_form={form} and expansion={switches.expansion}",
            f"a learnable ratio starts between {RATIOS[0]:g} and {RATIOS[-1]:g}",
        ),
    ]


def switched(switches: Switches, **changes: object) -> Switches:
    """Return the switches with some of them changed.

    Raises:
        SwitchError: there is no such switch, its value is not allowed, or two exclude each other.
    """
    known = [field.name for field in fields(Switches)]
    if unknown := [name for name in changes if name not in known]:
        raise SwitchError(f"unknown switch {unknown[0]!r}; known are {', '.join(known)}")
    return replace(switches, **changes)


def check_fit(sizes: Sizes, switches: Switches) -> None:
    """Refuse switches that a model of these sizes cannot have.

    Raises:
        SwitchError: a latent wider than the model, a hidden layer without units, or a per-head-scalar coupler whose
            widths the heads do not divide.
    """
    if switches.latent > sizes.dim:
        raise SwitchError(
            f"latent={switches.latent} is above the model's width of {sizes.dim}; a latent compresses, so lower it"
        )
    hidden = round(switches.expansion * sizes.dim)
    if hidden < 1:
        raise SwitchError(f"expansion={switches.expansion} of width {sizes.dim} leaves no hidden unit; raise it")
    if switches.reciprocal_mlp != "off" and switches.coupler == "per_head_scalar":
        for name, width in {"latent": switches.latent, "hidden width": hidden}.items():
            if width % sizes.heads:
                raise SwitchError(
                    f"{name} {width} is not a multiple of {sizes.heads} heads, as coupler=per_head_scalar needs; "
                    "choose widths that are, or another coupler"
                )


class Links(NamedTuple):
    """What passes between a block's parts and others': gates and key contexts, coming in and going out."""

    gates_in: bool
    gates_out: bool
    context_in: bool
    context_out: bool


def links(switches: Switches, place: int, blocks: int) -> Links:
    """Return what a block reads and hands over: from and to its neighbours, or its own previous batch.

    Between neighbours the first block reads nothing and the last hands nothing over, so that they hold no parts for it.
    """
    gated, coupled = switches.head_gate != "off", switches.reciprocal_mlp in ("to_attention", "both")
    own_gates, own_context = switches.head_gate == "previous_batch", switches.reciprocal_from == "previous_batch"
    first, last = place == 0, place == blocks - 1
    return Links(
        gated and (own_gates or not first),
        gated and (own_gates or not last),
        coupled and (own_context or not first),
        coupled and (own_context or not last),
    )
