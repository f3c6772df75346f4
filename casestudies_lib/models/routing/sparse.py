"""Attention that really leaves out the heads a token did not select, beside one that computes all of them.

Both give the same output; they differ in arithmetic. Explained in chapter `head_routing`.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from casestudies_lib.models.blocks import causal_mask, merge_heads, split_heads
from casestudies_lib.models.routing.model import RoutedAttention

Hidden = Float[Tensor, "batch tokens dim"]
Selected = Bool[Tensor, "batch tokens heads"]
Weights = Float[Tensor, "batch tokens heads"]


def dense(attention: RoutedAttention, hidden: Hidden, weights: Selected | Weights) -> Hidden:
    """Return what the weighted heads add; all heads are computed, as in the published code.

    Every product is written out, so that each is counted where operations are counted.
    """
    group = attention.heads // attention.kv_heads
    queries = split_heads(attention.query(hidden), attention.heads)
    shared = (split_heads(project(hidden), attention.kv_heads) for project in (attention.key, attention.value))
    keys, values = (each.repeat_interleave(group, dim=1) for each in shared)
    scores = queries @ keys.transpose(-1, -2) / math.sqrt(queries.shape[-1])
    attended = scores.masked_fill(~causal_mask(scores.shape[-1], scores.device), -math.inf).softmax(-1) @ values
    kept = attended * weights.transpose(1, 2).unsqueeze(-1)
    return attention.out(merge_heads(kept))


def sparse(attention: RoutedAttention, hidden: Hidden, selected: Selected) -> Hidden:
    """Return the same, but query, scores, mixing and output only for the tokens that selected a head.

    Keys and values stay dense, because any later token may ask for them.

    Raises:
        ValueError: the choice is not one of these heads for each token.
    """
    expected = (*hidden.shape[:2], attention.heads)
    if selected.shape != expected:
        raise ValueError(f"selected has shape {tuple(selected.shape)}; one choice a token and head is {expected}")
    shared = (split_heads(project(hidden), attention.kv_heads) for project in (attention.key, attention.value))
    keys, values = shared
    rows = []
    for number, (text, chosen) in enumerate(zip(hidden, selected)):
        rows.append(_one_text(attention, text, chosen, keys[number], values[number]))
    return torch.stack(rows)


def _one_text(
    attention: RoutedAttention,
    text: Float[Tensor, "tokens dim"],
    chosen: Bool[Tensor, "tokens heads"],
    keys: Float[Tensor, "kv_heads tokens head_dim"],
    values: Float[Tensor, "kv_heads tokens head_dim"],
) -> Float[Tensor, "tokens dim"]:
    head_dim = text.shape[-1] // attention.heads
    group = attention.heads // attention.kv_heads
    queries, outputs = attention.query.weight.split(head_dim), attention.out.weight.split(head_dim, dim=1)
    added = torch.zeros_like(text)
    for head in range(attention.heads):
        places = chosen[:, head].nonzero().squeeze(-1)
        if len(places) == 0:
            continue
        scores = functional.linear(text[places], queries[head]) @ keys[head // group].T / math.sqrt(head_dim)
        later = torch.arange(len(text), device=text.device) > places.unsqueeze(-1)
        mixed = scores.masked_fill(later, -math.inf).softmax(-1) @ values[head // group]
        added = added.index_add(0, places, functional.linear(mixed, outputs[head]))
    return added
