"""What `stepping` notes while a loop runs: learning rates, gradients that pile up, parameters that stir."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from casestudies_lib.probes.stepping_state import fingerprint

CANARIES = 4


@dataclass
class Rate:
    """The learning rates of one parameter group that were in force: lowest, highest and last; None before the first."""

    lowest: float | None = None
    highest: float | None = None
    last: float | None = None

    def note(self, rate: float) -> None:
        """Take one more rate into account."""
        self.lowest = rate if self.lowest is None else min(self.lowest, rate)
        self.highest = rate if self.highest is None else max(self.highest, rate)
        self.last = rate


def note_rates(rates: list[Rate], optimiser: Optimizer, *, wait: bool) -> None:
    """Note every group's learning rate; one that an accelerator holds only if we may wait for it."""
    rates += [Rate() for _ in optimiser.param_groups[len(rates) :]]
    for rate, group in zip(rates, optimiser.param_groups):
        value = group.get("lr")
        if value is not None and (wait or not isinstance(value, Tensor) or value.device.type == "cpu"):
            rate.note(float(value))


@dataclass(frozen=True)
class Gradients:
    """All gradients at one moment.

    Attributes:
        existing: how many tensors have one.
        largest: the largest absolute value; inf if one is not finite, 0 if none exists.
    """

    batch: int
    existing: int
    largest: float


@torch.no_grad()
def read_gradients(parameters: Mapping[str, Tensor], batch: int) -> Gradients:
    """Return what there is of gradients now."""
    found = [parameter.grad for parameter in parameters.values() if parameter.grad is not None]
    dense = [gradient.coalesce().values() if gradient.is_sparse else gradient for gradient in found]
    sizes = [torch.linalg.vector_norm(values, math.inf).to("cpu", torch.float64) for values in dense if values.numel()]
    largest = torch.stack(sizes).max().item() if sizes else 0.0
    return Gradients(batch, len(found), largest if math.isfinite(largest) else math.inf)


class Canary:
    """Watches one small parameter's gradient: how many backward passes fell on top of it since it was last cleared.

    A hook sees the gradient that is about to be added; what `.grad` holds at that moment was not cleared. The counts
    stay on the parameter's device, so that no accelerator has to be waited for.
    """

    def __init__(self, parameter: Tensor):
        """Count from nothing."""
        self.parameter, self.passes = parameter, 0
        self.pile = self.longest = self.broken = torch.zeros((), dtype=torch.int64, device=parameter.device)
        self.one = torch.ones_like(self.pile)

    @torch.no_grad()
    def hear(self, gradient: Tensor) -> None:
        """Take one backward pass into account."""
        self.passes += 1
        old, new = (_values(tensor) for tensor in (self.parameter.grad, gradient))
        self.pile = self.one if old is None else self.pile * (old != 0).any() + 1
        self.longest = torch.maximum(self.longest, self.pile)
        self.broken = self.broken + ~torch.isfinite(new).all()


def canaries(parameters: Mapping[str, Tensor], optimiser: Optimizer) -> list[Canary]:
    """Return watchers of the smallest parameters that the optimiser holds, whose gradients it should clear."""
    held = {id(p) for group in optimiser.param_groups for p in group["params"]}
    small = sorted((p for p in parameters.values() if id(p) in held), key=lambda p: p.numel())
    return [Canary(parameter) for parameter in small[:CANARIES]]


def listen(canary: Canary) -> Callable[[], None]:
    """Hook a canary to its parameter and return what takes the hook away without a trace."""
    parameter, before = canary.parameter, canary.parameter._backward_hooks
    handle = parameter.register_hook(canary.hear)

    def leave() -> None:
        handle.remove()
        if before is None and not parameter._backward_hooks:
            parameter._backward_hooks = None

    return leave


class Stir:
    """Tells between which samples any parameter changed."""

    def __init__(self, parameters: Mapping[str, Tensor]):
        """Take the first sample, at batch 0."""
        self.parameters, self.last = parameters, fingerprint(parameters)
        self.samples: list[tuple[int, bool]] = []

    @torch.no_grad()
    def sample(self, batch: int) -> None:
        """Compare with the sample before."""
        current = fingerprint(self.parameters)
        self.samples.append((batch, current != self.last))
        self.last = current

    def still_since(self) -> int | None:
        """Return the batch since which nothing stirs, if that spans two samples and a quarter of the batches."""
        if not any(moved for _, moved in self.samples):
            return None
        since = max(batch for batch, moved in self.samples if moved)
        quiet = [batch for batch, _ in self.samples if batch > since]
        return since if len(quiet) >= 2 and 4 * (quiet[-1] - since) >= quiet[-1] else None


def _values(gradient: Any) -> Tensor | None:
    if gradient is None:
        return None
    return gradient.detach()._values() if gradient.is_sparse else gradient.detach()
