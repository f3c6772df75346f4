"""What a computation costs: operations, memory kept for the backward pass, and time against a twin."""

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode


class ForwardBackward(NamedTuple):
    """One number for each of the two passes."""

    forward: float
    backward: float

    @property
    def total(self) -> float:
        """Return both passes together."""
        return self.forward + self.backward


def operations(loss: Callable[[], Tensor]) -> ForwardBackward:
    """Return the floating-point operations of a loss and of its gradient.

    Matrix products, convolutions and attention are counted; element-wise operations, sorts and scans count as none.

    Args:
        loss: runs the forward pass and returns one number.

    Source: torch.utils.flop_counter, which counts a multiply-add as two.
    """
    with FlopCounterMode(display=False) as forward:
        total = loss()
    with FlopCounterMode(display=False) as backward:
        total.backward()
    return ForwardBackward(forward.get_total_flops(), backward.get_total_flops())


def saved_bytes(loss: Callable[[], Tensor], parameters: list[Tensor]) -> int:
    """Return how many bytes autograd keeps between the passes, parameters aside, each storage counted once."""
    kept = {}

    def keep(saved: Tensor) -> Tensor:
        kept[saved.untyped_storage().data_ptr()] = saved
        return saved

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
        loss()
    own = {value.untyped_storage().data_ptr() for value in parameters}
    return sum(saved.untyped_storage().nbytes() for place, saved in kept.items() if place not in own)


def extra_time(lean: Callable[[], Tensor], heavy: Callable[[], Tensor], turns: int = 7) -> ForwardBackward:
    """Return by what share the second computation is slower than the first: the median over turns taken side by side.

    The two take turns, so that a machine that slows down slows both.
    """
    taken = np.array([[_seconds(lean), _seconds(heavy)] for _ in range(turns)])
    return ForwardBackward(*(np.median(taken[:, 1] / taken[:, 0], axis=0) - 1).tolist())


def _seconds(loss: Callable[[], Tensor]) -> tuple[float, float]:
    begin = time.perf_counter()
    total = loss()
    middle = time.perf_counter()
    total.backward()
    return middle - begin, time.perf_counter() - middle
