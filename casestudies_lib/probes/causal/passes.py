"""Run a sequence model from the state in which it was found, as often as asked, and compare outputs by position."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from casestudies_lib.probes.copies import (
    Precision,
    double_by_default,
    double_twin_of,
    in_double,
    jittered_twin_of,
    reseed_all,
    twin_of,
)
from casestudies_lib.probes.guard import left_as_found, random_left_as_found
from casestudies_lib.probes.inputs import kind_of
from casestudies_lib.probes.result import ProbeInputError

# Enough for sums in another order, and for transforms that spread rounding over all positions.
ROUNDING_IN_DOUBLE = 1e-10
ROUNDING_IN_EPSILONS = 16


@dataclass(frozen=True)
class Axes:
    """Which axis counts what, in the tokens and in the output; `batch` is None without one."""

    position: int
    output: int
    batch: int | None


@dataclass(frozen=True)
class Difference:
    """How far outputs moved: the largest difference in units of the outputs' root mean square, and where it is not 0.

    Attributes:
        largest: relative; infinite where a number became none, or the reverse.
        places: index of every compared position or row that moved.
        compared: how many were.
    """

    largest: float
    places: tuple[int, ...]
    compared: int


class Passes:
    """Forward passes of one model, each from the same start; made by `prepare`."""

    def __init__(self, module: nn.Module, call: Callable[[nn.Module, Tensor], Any], axes: Axes, copied: bool):
        """Keep what to run and how to read it."""
        self.module, self.axes, self.copied = module, axes, copied
        self._call = call
        self.lowest = torch.float64

    def run(self, inputs: Sequence[Tensor], *, reseed: bool = False, watch: bool = False) -> list[Tensor]:
        """Return the outputs for these inputs, given one after the other, positions first and rows second.

        Args:
            inputs: token tensors of one shape.
            reseed: whether to start the random generators elsewhere than they were found.
            watch: whether to note the lowest precision that an operation returns.
        """
        with random_left_as_found(), ExitStack() as stack:
            if self.copied:
                module = twin_of(self.module)
            else:
                stack.enter_context(left_as_found(self.module))
                module = self.module
            if reseed:
                reseed_all(module)
            if next(module.parameters()).dtype == torch.float64:
                stack.enter_context(double_by_default())
                inputs = in_double(list(inputs))
            # Training computes with a graph, and some layers take another path without one.
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            precision = stack.enter_context(Precision()) if watch else None
            outputs = [self._read(self._call(module, values.clone()), values) for values in inputs]
        if precision is not None:
            self.lowest = max([precision.lowest, outputs[0].dtype], key=lambda dtype: torch.finfo(dtype).eps)
        return outputs

    @property
    def rounding(self) -> float:
        """Return the relative difference that rounding may explain."""
        if self.lowest == torch.float64:
            return ROUNDING_IN_DOUBLE
        return ROUNDING_IN_EPSILONS * torch.finfo(self.lowest).eps

    def jittered(self, jitter: float) -> "Passes":
        """Return the same with noise on every trainable weight."""
        module = jittered_twin_of(self.module, jitter)
        passes = Passes(module, self._call, self.axes, copied=True)
        passes.lowest = self.lowest
        return passes

    def _read(self, value: Any, tokens: Tensor) -> Tensor:
        length = tokens.shape[self.axes.position]
        rows = None if self.axes.batch is None else tokens.shape[self.axes.batch]
        found = [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
        for leaf in found:
            if _fits(leaf, self.axes.output, length) and (rows is None or _fits(leaf, self.axes.batch, rows)):
                first = (self.axes.output,) if rows is None else (self.axes.output, self.axes.batch)
                return leaf.detach().movedim(first, tuple(range(len(first)))).clone()
        shapes = [tuple(leaf.shape) for leaf in found][:4] or f"none (it returned {kind_of(value)})"
        raise ProbeInputError(
            f"the model returned no floating-point tensor with {length} positions on axis {self.axes.output}"
            f"{'' if rows is None else f' and {rows} rows on axis {self.axes.batch}'}; shapes are {shapes}. Give "
            "output_axis, or call=lambda module, tokens: … that returns one output a token"
        )


def prepare(module: nn.Module, call: Callable[[nn.Module, Tensor], Any], axes: Axes, tokens: Tensor) -> Passes:
    """Return passes over a copy in double precision if that runs, else over a plain copy, else over the module.

    Raises:
        ProbeInputError: no output has one entry a token.
        Exception: whatever the reader's own code raises on the module as it is.
    """
    for build in (double_twin_of, twin_of):
        try:
            passes = Passes(build(module), call, axes, copied=True)
            passes.run([tokens], watch=True)
        except ProbeInputError:
            raise
        except Exception:
            # Code may insist on its own precision, and attributes on not being copied; the next way is tried.
            continue
        return passes
    passes = Passes(module, call, axes, copied=False)
    passes.run([tokens], watch=True)
    return passes


def compare(base: Tensor, other: Tensor, places: slice | Tensor, by_row: bool = False) -> Difference:
    """Return how far two outputs are apart at some positions, tokens (by a mask), or rows (on the second axis)."""
    scale = base[base.isfinite()].double().square().mean().sqrt().item()
    if by_row:
        base, other = base.movedim(1, 0), other.movedim(1, 0)
    base, other = (each[places].unsqueeze(-1).flatten(1).double() for each in (base, other))
    same = (base == other) | (base.isnan() & other.isnan())
    gaps = torch.where(same, 0.0, (base - other).abs()).nan_to_num(nan=torch.inf).amax(1)
    return Difference(
        largest=gaps.max().item() / (scale or 1.0),
        places=tuple(gaps.nonzero().flatten().tolist()),
        compared=len(gaps),
    )


def _fits(tensor: Tensor, axis: int, length: int) -> bool:
    return tensor.dim() > axis and tensor.shape[axis] == length
