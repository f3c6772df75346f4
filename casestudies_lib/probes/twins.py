"""Copies of a reader's model that may be run, trained and broken, while the original is left alone."""

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from casestudies_lib.probes.signals import SIZE_OF_ZEROS


def twin_of(module: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """Return a deep copy, also of a module that keeps tensors with a graph from an earlier pass.

    Raises:
        Exception: whatever the module's own attributes raise when they are copied.
    """
    memo = {} if memo is None else memo
    for part in module.modules():
        for value in tree_leaves(dict(vars(part))):
            if isinstance(value, Tensor) and not value.is_leaf:
                # Deep copies refuse tensors with a history; a copy needs their values alone.
                memo[id(value)] = value.detach().clone()
    return copy.deepcopy(module, memo)


def jittered_twin_of(module: nn.Module, jitter: float = 1.0) -> nn.Module:
    """Return a deep copy with relative noise on every trainable weight; a tensor of zeros gets some of its own.

    Zeros in a tensor that has other values stay, for a mask may be kept in the weights that way.

    Raises:
        Exception: whatever the module's own attributes raise when they are copied.
    """
    twin, generator = twin_of(module), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in twin.parameters():
            if parameter.requires_grad and parameter.is_floating_point():
                noise = torch.randn(parameter.shape, generator=generator).to(parameter) * jitter
                parameter.copy_(parameter * (1 + noise) if parameter.any() else SIZE_OF_ZEROS * noise)
    return twin


def in_double(value: Any) -> Any:
    """Return nested containers with every real floating-point tensor in double precision; parameters stay."""
    return tree_map(lambda leaf: leaf.double() if _is_plain_float(leaf) else leaf, value)


def double_twin_of(module: nn.Module) -> nn.Module:
    """Return a deep copy in double precision, without gradients; tensors among its attributes are converted too.

    Raises:
        Exception: whatever the module's own attributes raise when they are copied.
    """
    twin = twin_of(module)
    twin.zero_grad(set_to_none=True)
    twin.double()
    for part in twin.modules():
        for name, value in vars(part).items():
            if any(map(_is_plain_float, tree_leaves(value))) and name != "_buffers":
                vars(part)[name] = in_double(value)
    return twin


def _is_plain_float(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and not isinstance(leaf, nn.Parameter) and leaf.is_floating_point()


@contextmanager
def double_by_default() -> Iterator[None]:
    """Let tensors that a forward pass makes, such as masks, be double; the usual default comes back after."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(usual)


class Precision(TorchDispatchMode):
    """Note the lowest floating-point precision among the results of all operations."""

    def __init__(self) -> None:
        """Start from double precision."""
        super().__init__()
        self.lowest = torch.float64

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Run the operation as it is and look at its results."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.is_floating_point():
                self.lowest = max([self.lowest, leaf.dtype], key=lambda dtype: torch.finfo(dtype).eps)
        return result


def reseed_all(module: nn.Module, seed: int = 20_011) -> None:
    """Start random numbers elsewhere: the global generators, and those among the module's attributes."""
    torch.manual_seed(seed)
    random.seed(seed)
    numpy.random.seed(seed)
    for part in module.modules():
        for value in tree_leaves(dict(vars(part))):
            if isinstance(value, torch.Generator):
                value.manual_seed(seed)
            elif isinstance(value, random.Random):
                value.seed(seed)
            elif isinstance(value, numpy.random.Generator):
                value.bit_generator.state = type(value.bit_generator)(seed).state
