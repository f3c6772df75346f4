"""Parts that several systems share; every draw that counts comes from a generator that the caller hands over."""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn


class Dropout(nn.Module):
    """Zero a share of the entries in training and scale up the rest, drawing from its own generator.

    `torch.nn.Dropout` draws from the process-wide stream, where one more layer anywhere shifts every later draw. Here
    the caller decides who shares a stream with whom.

    Source: Srivastava et al., "Dropout", JMLR 15, 2014 (inverted form).
    """

    def __init__(self, rate: float, generator: torch.Generator) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"dropout rate is {rate}; it must be at least 0 and below 1")
        self.rate = rate
        self.generator = generator

    def forward(self, values: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return the values, thinned out in training mode and untouched in evaluation mode."""
        if not self.training or not self.rate:
            return values
        draws = torch.rand(values.shape, generator=self.generator, device=values.device)
        return values * (draws >= self.rate).to(values.dtype) / (1 - self.rate)


def initialise(module: nn.Module, generator: torch.Generator) -> None:
    """Draw all weights of linear and embedding layers from `generator`, in the order in which they were declared.

    Linear layers get PyTorch's own default (uniform within one over the root of the fan-in), embeddings a standard
    normal; layer norms keep ones and zeros.

    Source: torch.nn.Linear and torch.nn.Embedding, `reset_parameters`.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.kaiming_uniform_(part.weight, a=math.sqrt(5), generator=generator)
            if part.bias is not None:
                limit = 1 / math.sqrt(part.in_features)
                nn.init.uniform_(part.bias, -limit, limit, generator=generator)
        elif isinstance(part, nn.Embedding):
            nn.init.normal_(part.weight, generator=generator)


def check_sizes(sizes: object, least: Mapping[str, int]) -> None:
    """Refuse sizes that no model has; `sizes` has a field for each name, and `dim` and `heads`.

    Raises:
        ValueError: a size below its least value, or a width that the heads do not divide.
    """
    for name, low in least.items():
        if getattr(sizes, name) < low:
            raise ValueError(f"{name} is {getattr(sizes, name)}; at least {low} is needed")
    if sizes.dim % sizes.heads:
        raise ValueError(f"width {sizes.dim} is not a multiple of {sizes.heads} heads; choose dim = heads * head_dim")


def split_heads(values: Float[Tensor, "batch tokens dim"], heads: int) -> Float[Tensor, "batch heads tokens head_dim"]:
    """Return the last axis cut into heads.

    Raises:
        ValueError: the width is not a multiple of the number of heads.
    """
    batch, tokens, dim = values.shape
    if dim % heads:
        raise ValueError(f"width {dim} is not a multiple of {heads} heads; choose dim = heads * head_dim")
    return values.reshape(batch, tokens, heads, dim // heads).transpose(1, 2)


def merge_heads(values: Float[Tensor, "batch heads tokens head_dim"]) -> Float[Tensor, "batch tokens dim"]:
    """Return the heads side by side on one axis; undoes `split_heads`."""
    return values.transpose(1, 2).flatten(2)


def causal_mask(tokens: int, device: torch.device | None = None) -> Bool[Tensor, "tokens tokens"]:
    """Return where a query (row) may look at a key (column): itself and everything before."""
    return torch.ones(tokens, tokens, dtype=torch.bool, device=device).tril()


def feed_forward(dim: int, hidden: int, out: int, rate: float, generator: torch.Generator) -> nn.Sequential:
    """Return linear, ReLU, dropout, linear."""
    return nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), Dropout(rate, generator), nn.Linear(hidden, out))
