"""How a branch joins the stream, and the small parts that several mechanisms share."""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from casestudies_lib.models.gates.switches import ALPHAS


def mix(base: Tensor, branch: Tensor, alpha: Tensor, convex: bool) -> Tensor:
    """Return the base with `alpha` of the branch: added to it, or in place of as much of it."""
    return (1 - alpha) * base + alpha * branch if convex else base + alpha * branch


def computed(alpha: Tensor, guard: bool) -> bool:
    """Return whether a branch takes part. The published guard asks this of the mixing weight, so that none below zero
    ever gets a gradient again."""
    return not guard or bool(alpha > 0)


def hold_alphas(module: nn.Module, present: Mapping[str, bool], learnable: bool) -> None:
    """Give a module the mixing weights that are present, each at its start: parameters if learnable, else buffers."""
    for name in (name for name, there in present.items() if there):
        value = torch.tensor(ALPHAS[name])
        if learnable:
            module.register_parameter(name, nn.Parameter(value))
        else:
            module.register_buffer(name, value)


def running_mean(values: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
    """Return, for each token, the mean over it and all before: an average that knows nothing of the future."""
    counts = torch.arange(1, values.shape[1] + 1, device=values.device, dtype=values.dtype)
    return values.cumsum(1) / counts[:, None]


def band(tokens: int, window: int, device: torch.device | None = None) -> Bool[Tensor, "tokens tokens"]:
    """Return which pairs of tokens stand at most `window` apart, in either direction."""
    places = torch.arange(tokens, device=device)
    return (places[:, None] - places).abs() <= window


def strongest(weights: Float[Tensor, "batch heads tokens tokens"], kept: int) -> Float[Tensor, "batch tokens tokens"]:
    """Return the attention of the heads' mean with only the `kept` largest of each row, scaled to sum to one.

    No gradient passes, as published: the routing is borrowed, not taught.
    """
    mean = weights.detach().mean(1)
    top = mean.topk(min(kept, mean.shape[-1]), dim=-1)
    sparse = torch.zeros_like(mean).scatter(-1, top.indices, top.values)
    return sparse / sparse.sum(-1, keepdim=True)


class PrunedLinear(nn.Linear):
    """A linear layer in which a share of the weights, the smallest as drawn, is fixed at zero."""

    def __init__(self, fan_in: int, fan_out: int, pruned: float, bias: bool = True) -> None:
        """Declare the layer; `prune` chooses the weights once they are drawn."""
        super().__init__(fan_in, fan_out, bias)
        self.pruned = pruned
        self.register_buffer("kept", torch.ones(fan_out, fan_in))

    def prune(self) -> None:
        """Fix the smallest weights at zero, as many as the share says, rounded down."""
        count = math.floor(self.pruned * self.weight.numel())
        smallest = self.weight.detach().abs().flatten().argsort()[:count]
        self.kept.fill_(1.0).view(-1)[smallest] = 0.0

    def forward(self, values: Float[Tensor, "... fan_in"]) -> Float[Tensor, "... fan_out"]:
        """Apply the layer with the pruned weights at zero."""
        return functional.linear(values, self.weight * self.kept, self.bias)


def linear(fan_in: int, fan_out: int, pruned: float, bias: bool = True) -> nn.Linear:
    """Return a linear layer, pruned if a share is given."""
    return PrunedLinear(fan_in, fan_out, pruned, bias) if pruned else nn.Linear(fan_in, fan_out, bias)
