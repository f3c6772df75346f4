"""The ablation ladder, steps 0 to 24, as one table: what each row's name says, and what its published code builds.

Widths are GPT-2's, of a model 768 wide; `switches_of` scales them to any other. In rows as run the mixing
weights are fixed, as they were when the finished steps ran.

Source: mcgrof/AdamWPrune, TODO.md for steps 19 to 24, which were only planned; gpt2/train_ra_mla.py for what the steps
    ask for; gpt2/ra_mla_gpt2.py for what is built: attention passes through a latent 64 wide as soon as a row changes
    anything, and the feed-forward is rebuilt, at its own width, only beside head gates or cross-token reading.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Int
from torch import Tensor

from casestudies_lib.models.gates.mixing import PrunedLinear
from casestudies_lib.models.gates.model import GatedModel
from casestudies_lib.models.gates.switches import Sizes, SwitchError, Switches, switched

GPT2 = Sizes(vocab=50257, tokens=1024, dim=768, heads=12, blocks=12, gate_dim=64, window=64)
Changes = Mapping[str, str | float | bool]


@dataclass(frozen=True)
class Row:
    """One step: its name, the step it follows, the parts and switches that its name changes, and what the code builds.

    `named` holds changes against the step it follows, `run` changes against a plain GPT-2.
    """

    step: int
    name: str
    after: int
    parts: frozenset[str]
    named: Changes
    run: Changes = field(default_factory=dict)


def _row(step: int, name: str, after: int, parts: str, named: Changes, run: Changes) -> Row:
    return Row(step, name, after, frozenset(part.strip() for part in parts.split(",") if part.strip()), named, run)


_GATED = {"head_gate": "past_tokens", "cross_token": True}
_GATED_RUN = {"head_gate": "previous_batch", "cross_token": True, "latent": 64, "learnable": False}
_GATED_3 = {"latent": 64, "learnable": False, "head_gate": "previous_batch", "expansion": 4.25}
_RANK_ONE = {"latent": 64, "reciprocal": "rank_one", "guard": True, "learnable": False}
_GATES = "head gates, cross-token reading, feed-forward width"

LADDER = (
    _row(0, "baseline", 0, "", {}, {}),
    _row(1, "baseline and 50 % pruning", 0, "pruning", {"pruned": 0.5}, {}),
    _row(2, "golden ratio by a wider feed-forward", 0, "feed-forward width", {"expansion": 5.0}, {"latent": 64}),
    _row(3, "step 2 and head gates", 2, "head gates, feed-forward width",
         {"head_gate": "past_tokens", "expansion": 4.25},
         _GATED_3),
    _row(4, "step 3 and cross-token reading", 3, "cross-token reading, feed-forward width",
         {"cross_token": True, "expansion": 4.0}, {**_GATED_RUN, "expansion": 4.0}),
    _row(5, "baseline and reciprocal attention", 0, "reciprocal attention", {"reciprocal": "transpose"}, _RANK_ONE),
    _row(6, "reciprocal attention and golden ratio", 5, "feed-forward width", {"expansion": 5.0}, _RANK_ONE),
    _row(7, "step 6 and both couplings", 6, _GATES, {**_GATED, "expansion": 4.0}, {**_GATED_RUN, **_RANK_ONE}),
    _row(8, "baseline and latent attention", 0, "latent attention", {"latent": 128}, {"latent": 64}),
    _row(9, "latent attention and golden ratio", 8, "feed-forward width", {"expansion": 10 / 3}, {"latent": 64}),
    _row(10, "step 9 and both couplings", 9, _GATES,
         {**_GATED, "expansion": 8 / 3}, {**_GATED_RUN, "expansion": 8 / 3}),
    _row(11, "step 9 and reciprocal attention", 9, "reciprocal attention", {"reciprocal": "transpose"}, _RANK_ONE),
    _row(12, "step 11 and both couplings", 11, _GATES,
         {**_GATED, "expansion": 8 / 3}, {**_GATED_RUN, **_RANK_ONE, "expansion": 8 / 3}),
    _row(13, "baseline and row gates", 0, "row gates",
         {"row_gate": "output"}, {"latent": 64, "row_gate": "output_in_full"}),
    _row(14, "step 9 and row gates", 9, "row gates",
         {"row_gate": "output"}, {"latent": 64, "row_gate": "output_in_full"}),
    _row(15, "step 11 and row gates", 11, "row gates",
         {"row_gate": "output"}, {**_RANK_ONE, "row_gate": "output_in_full"}),
    _row(16, "step 12 and row gates: everything", 12, "row gates",
         {"row_gate": "output"}, {**_GATED_RUN, **_RANK_ONE, "expansion": 8 / 3, "row_gate": "output_in_full"}),
    _row(17, "step 13 with gates on the weights", 13, "row gates",
         {"row_gate": "weights"}, {"latent": 64, "row_gate": "weights"}),
    _row(18, "step 13 with gates from entropy", 13, "row gates",
         {"row_gate": "entropy"}, {"latent": 64, "row_gate": "entropy_in_full"}),
    _row(19, "step 3, gates forced open", 3, "head gates",
         {"force_open": True}, {**_GATED_3, "force_open": True}),
    _row(20, "step 4, gates forced open", 4, "head gates",
         {"force_open": True}, {**_GATED_RUN, "expansion": 4.0, "force_open": True}),
    _row(21, "step 7, gates forced open", 7, "head gates",
         {"force_open": True}, {**_GATED_RUN, **_RANK_ONE, "force_open": True}),
    _row(22, "step 10, gates forced open", 10, "head gates",
         {"force_open": True}, {**_GATED_RUN, "expansion": 8 / 3, "force_open": True}),
    _row(23, "step 12, gates forced open", 12, "head gates",
         {"force_open": True}, {**_GATED_RUN, **_RANK_ONE, "expansion": 8 / 3, "force_open": True}),
    _row(24, "step 16, gates forced open", 16, "head gates, row gates",
         {"force_open": True},
         {**_GATED_RUN, **_RANK_ONE, "expansion": 8 / 3, "row_gate": "output_in_full", "force_open": True}),
)  # fmt: skip


def row_of(step: int) -> Row:
    """Return a step's row.

    Raises:
        SwitchError: the ladder has no such step.
    """
    if step not in (known := {row.step: row for row in LADDER}):
        raise SwitchError(f"unknown step {step!r}; the ladder has steps {min(known)} to {max(known)}")
    return known[step]


def switches_of(step: int, as_run: bool, dim: int) -> Switches:
    """Return the switches of a step as named or as run, with latents scaled to a model of width `dim`.

    Raises:
        SwitchError: the ladder has no such step.
    """
    row = row_of(step)
    if as_run:
        changes = dict(row.run)
    else:
        changes, below = {}, row
        while below.named:
            changes = {**below.named, **changes}
            below = row_of(below.after)
    if "latent" in changes:
        changes["latent"] = max(1, round(changes["latent"] * dim / GPT2.dim))
    return switched(Switches(), **changes)


def build(step: int, as_run: bool, sizes: Sizes, generator: torch.Generator) -> GatedModel:
    """Return the model of a step, as named or as run.

    Raises:
        SwitchError: the ladder has no such step, or its switches do not fit the sizes.
    """
    return GatedModel(sizes, switches_of(step, as_run, sizes.dim), generator)


def parts_of(model: GatedModel, ids: Int[Tensor, "batch tokens"]) -> dict[str, str]:
    """Return what is found in a model, part by part, read off its layers and what they compute, not off its switches.

    Args:
        model: its first block is looked at.
        ids: a text to compute something on.
    """
    return {name: look(model, ids) for name, look in _LOOKS.items()}


def changed_parts(first: Mapping[str, str], second: Mapping[str, str]) -> frozenset[str]:
    """Return the parts that two models have in different forms."""
    return frozenset(name for name in first if first[name] != second[name])


def _pruning(model: GatedModel, ids: Tensor) -> str:
    kept = [part.kept.mean() for part in model.modules() if isinstance(part, PrunedLinear)]
    return f"{1 - sum(map(float, kept)) / len(kept):.0%} pruned" if kept else "none"


def _width(model: GatedModel, ids: Tensor) -> str:
    return f"{model.blocks[0].feed_forward.widen.out_features} units"


def _latent(model: GatedModel, ids: Tensor) -> str:
    attention = model.blocks[0].attention
    return f"through {attention.key.out_features}" if hasattr(attention, "query_to_latent") else "none"


def _reciprocal(model: GatedModel, ids: Tensor) -> str:
    """Compare the term with what it may be, on what the first block reads."""
    block = model.blocks[0]
    if not hasattr(block.attention, "reciprocal_alpha"):
        return "none"
    with torch.no_grad():
        hidden = block.norm(model.embedding(ids))
        keys = block.attention.key(hidden)
        scores = block.attention.scores(hidden, keys)
        term = block.attention.reciprocal(scores, hidden, keys)
    if torch.linalg.matrix_rank(term).max() <= 1:
        return "rank one"
    return "transpose" if torch.allclose(term, scores.mT) else "something else"


def _head_gates(model: GatedModel, ids: Tensor) -> str:
    """Run two batches, because gates may come from the one before."""
    model.forget()
    with torch.no_grad():
        model(ids)
        kept = model.kept[0].gates
        block, stream = model.blocks[0], model.embedding(ids) + model.positions.weight[: ids.shape[1]]
        gates = block(stream, model.kept[0], None)[1].gates
    model.forget()
    if gates is None:
        return "none"
    if bool((gates == 1).all()):
        return "held open"
    return "from the previous batch" if kept is not None else "from this batch"


def _cross(model: GatedModel, ids: Tensor) -> str:
    return "reads others" if hasattr(model.blocks[0].feed_forward, "cross") else "none"


def _row_gates(model: GatedModel, ids: Tensor) -> str:
    """Tell the gates apart by what they make of uniform attention: an entropy rises along the text, a top sum falls."""
    attention = model.blocks[0].attention
    tokens = model.sizes.tokens
    uniform = torch.ones(1, attention.heads, tokens, tokens).tril()
    with torch.no_grad():
        gates = attention.row_gates(uniform / uniform.sum(-1, keepdim=True))
    if gates is None:
        return "none"
    if bool((gates == 1).all()):
        return "held open"
    by = "entropy" if gates[0, 0, -1] > gates[0, 0, 0] else "largest weights"
    on = "weights" if attention.switches.row_gate == "weights" else "output"
    return f"by {by}, on {on}, {attention.row_share():.0%} of the gate"


_LOOKS: dict[str, Callable[[GatedModel, Tensor], str]] = {
    "pruning": _pruning,
    "feed-forward width": _width,
    "latent attention": _latent,
    "reciprocal attention": _reciprocal,
    "head gates": _head_gates,
    "cross-token reading": _cross,
    "row gates": _row_gates,
}
