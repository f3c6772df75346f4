"""Hand-written backward passes of routed attention: the exact ones, and the wrong ones that are on trial.

Each is a `torch.autograd.Function` whose forward pass is right; only what it sends back differs. Explained in chapter
`head_routing`. Source of the wrong ones: repository ryancinsight/RustGPT, `src/self_attention.rs` (mask-blind, sharing
ignored) and `src/head_router.rs` (heuristic); the others are hypotheses of its report, made true.
"""

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function

Heads = Float[Tensor, "batch heads tokens head_dim"]
Weights = Float[Tensor, "batch tokens heads"]
Weigh = Callable[[Heads, Weights], Heads]
Choice = TypeVar("Choice")
WRONG_SCALE = 8.0  # a sum where a mean over eight heads was meant


def _over_heads(weights: Tensor) -> Tensor:
    return weights.transpose(-1, -2).unsqueeze(-1)


class _Weigh(Function):
    """Multiply each head's output by its weight; the subclasses say what goes back."""

    generate_vmap_rule = True

    @staticmethod
    def forward(heads: Tensor, weights: Tensor) -> Tensor:
        return heads * _over_heads(weights)

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)


class Exact(_Weigh):
    """Both partial derivatives of the product."""

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weight times what comes, and each head's share in it."""
        heads, weights = ctx.saved_tensors
        return gradient * _over_heads(weights), (gradient * heads).sum(-1).transpose(-1, -2)


class MaskBlind(_Weigh):
    """As if every weight were one: an unselected head learns too, and the router hears nothing of the task."""

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Return what comes, unweighted, and nothing for the weights."""
        return gradient.clone(), torch.zeros_like(ctx.saved_tensors[1])


class Blocked(_Weigh):
    """What the report believes: nothing passes the mask in either direction."""

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Return zeros."""
        heads, weights = ctx.saved_tensors
        return torch.zeros_like(heads), torch.zeros_like(weights)


class WrongScale(_Weigh):
    """The exact direction, `WRONG_SCALE` times too long."""

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Return the exact gradients times the scale."""
        to_heads, to_weights = Exact.backward(ctx, gradient)
        return WRONG_SCALE * to_heads, WRONG_SCALE * to_weights


class _Share(Function):
    """Let `group` query heads read the same key or value head; the subclasses say what goes back."""

    generate_vmap_rule = True

    @staticmethod
    def forward(shared: Tensor, group: int) -> Tensor:
        return shared.repeat_interleave(group, dim=-3)

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor, int], output: Tensor) -> None:
        ctx.group = inputs[1]


class SharedExact(_Share):
    """A shared head collects the gradient of every head that read it."""

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        """Return the sum over each group."""
        return gradient.unflatten(-3, (-1, ctx.group)).sum(-3), None


class SharingIgnored(_Share):
    """A shared head hears of the first head of its group only, as if the others read a copy of their own."""

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        """Return the first head's gradient of each group."""
        return gradient.unflatten(-3, (-1, ctx.group)).select(-3, 0).clone(), None


class Heuristic(Function):
    """Return the weights as they are; send the router's logits a rule of thumb in place of a derivative.

    The rule is weight minus probability, whatever the loss: descent on it pushes the probability of a selected head
    down, the opposite of what its author describes. The logits' own backward pass carries it on into the router, and
    into the router's input unless that is detached.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(logits: Tensor, weights: Tensor, strength: float) -> Tensor:
        """Return the weights."""
        return weights.clone()

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor, Tensor, float], output: Tensor) -> None:
        """Keep what the rule needs."""
        ctx.save_for_backward(*inputs[:2])
        ctx.strength = inputs[2]

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        """Return weight minus probability, mean over tokens, and nothing for the weights."""
        logits, weights = ctx.saved_tensors
        return ctx.strength * (weights - logits.softmax(-1)) / logits[..., 0].numel(), None, None


WEIGHING: dict[str, Weigh] = {
    "exact": Exact.apply,
    "mask-blind": MaskBlind.apply,
    "blocked": Blocked.apply,
    "wrong scale": WrongScale.apply,
}
SHARING: dict[str, Callable[[Tensor, int], Tensor]] = {
    "exact": SharedExact.apply,
    "sharing ignored": SharingIgnored.apply,
}


def named(table: Mapping[str, Choice], name: str, what: str) -> Choice:
    """Return the entry of a table of choices.

    Raises:
        ValueError: the name is not in the table; lists those that are.
    """
    if name not in table:
        raise ValueError(f"{what} is {name!r}; allowed are {', '.join(table)}")
    return table[name]
