"""What leaving out unselected heads saves, against computing all of them in the same run; part of `make bench`."""

import torch
from torch import nn

from casestudies_lib.models import cost
from casestudies_lib.models.routing.model import RoutedAttention, Sizes, Wiring
from casestudies_lib.models.routing.sparse import dense, sparse

Row = tuple[str, str, str]


def routing_rows(dim: int = 512, tokens: int = 512, selected: int = 2) -> list[Row]:
    """Return time and operations of all eight heads against `selected` of them."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    attention = RoutedAttention(Sizes(2, tokens, dim, 8, 4, 1, 8), Wiring())
    for weight in attention.parameters():
        nn.init.normal_(weight, std=dim**-0.5, generator=generator)
    chosen = torch.rand(1, tokens, 8, generator=generator).argsort(-1) < selected
    hidden = torch.randn(1, tokens, dim, generator=generator)
    whole, part = (lambda way=way: way(attention, hidden, chosen).sum() for way in (dense, sparse))
    counted = cost.operations(whole).total / cost.operations(part).total
    slower = cost.extra_time(part, whole)
    measured = f"{1 + slower.forward:.2f} × forward, {1 + slower.backward:.2f} × backward, {counted:.1f} × operations"
    return [(f"all heads ÷ {selected} of 8 heads, width {dim}", measured, "≥ 1.3 ×")]
