"""One forward and backward pass of a reader's loss: the gradient of every parameter in brief, and nothing changed."""

import math
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from casestudies_lib.probes.guard import left_as_found
from casestudies_lib.probes.inputs import Loss, checked_loss
from casestudies_lib.probes.result import ProbeInputError
from casestudies_lib.probes.work import WorkRecorder, graph, nonzero, values_of

# A tensor of zeros has no size of its own to scale its jitter by; this is that of a common initialisation.
SIZE_OF_ZEROS = 0.1


@dataclass(frozen=True)
class Signal:
    """The gradient of one parameter in brief.

    Attributes:
        exists: whether there is a gradient; False is `None`, no path from the loss.
        finite: whether it holds neither NaN nor infinity.
        size: root mean square over the parameter's elements; 0 if and only if every element is exactly zero.
        rows: length of the first axis of a matrix or more; 0 for vectors.
        zero_rows: how many of these rows have no gradient.
    """

    exists: bool
    finite: bool
    size: float
    rows: int
    zero_rows: int

    @property
    def teaches(self) -> bool:
        """Return whether the gradient is finite and somewhere not zero."""
        return self.finite and self.size > 0


def signals(
    module: nn.Module,
    loss: Loss,
    batch: Any,
    parameters: Mapping[str, Tensor],
    recorder: WorkRecorder | None = None,
) -> dict[str, Signal]:
    """Return the gradient of the loss in brief, by parameter; the recorder, if given, watches the pass.

    Raises:
        ProbeInputError: the loss is not one finite number with a graph.
        Exception: whatever the reader's own code raises; the module is left as found then too.
    """
    with left_as_found(module), torch.inference_mode(False), torch.enable_grad():
        gradients = _gradients(module, loss, batch, list(parameters.values()), recorder)
        return {
            name: _signal(parameter, gradient) for (name, parameter), gradient in zip(parameters.items(), gradients)
        }


def jittered_signals(
    module: nn.Module, loss: Loss, batch: Any, parameters: Mapping[str, Tensor], jitter: float
) -> dict[str, Signal] | None:
    """Return the same with noise on every parameter, `jitter` times its root mean square; None if that cannot run."""
    with left_as_found(module):
        with torch.no_grad():
            for parameter in parameters.values():
                size = parameter.detach().abs().square().mean().sqrt().item()
                parameter.data.add_(torch.randn_like(parameter), alpha=jitter * (size or SIZE_OF_ZEROS))
        try:
            return signals(module, loss, batch, parameters)
        except Exception:
            # Jittered weights can leave the domain of the reader's own code, which says nothing about the weights.
            return None


def first_tensor(out: Any) -> Tensor | None:
    """Return the first floating-point tensor of what a submodule returned, nested or not; None if there is none."""
    if isinstance(out, Tensor):
        return out if out.is_floating_point() else None
    values = out.values() if isinstance(out, Mapping) else out if isinstance(out, list | tuple) else ()
    return next((found for value in values if (found := first_tensor(value)) is not None), None)


def _gradients(
    module: nn.Module, loss: Loss, batch: Any, parameters: list[Tensor], recorder: WorkRecorder | None
) -> tuple[Tensor | None, ...]:
    with recorder or nullcontext():
        with recorder.watching_modules() if recorder else nullcontext():
            value = checked_loss(loss(module, batch))
        _check_graph(value)
        with recorder.watching_backward(value) if recorder else nullcontext():
            # Leaves every .grad alone; the graph is kept, for a part of it may be the reader's and still needed.
            return torch.autograd.grad(value, parameters, allow_unused=True, retain_graph=True)


def _check_graph(value: Tensor) -> None:
    if any(node.name() == "CheckpointFunctionBackward" for node in graph(value)):
        raise ProbeInputError(
            "loss uses torch.utils.checkpoint with use_reentrant=True, which hides the parameters inside from "
            "autograd; give use_reentrant=False"
        )


def _signal(parameter: Tensor, gradient: Tensor | None) -> Signal:
    rows = len(parameter) if parameter.dim() > 1 else 0
    if gradient is None:
        return Signal(exists=False, finite=True, size=0.0, rows=rows, zero_rows=rows)
    values = values_of(gradient.detach()).abs()
    if not nonzero(values):
        return Signal(exists=True, finite=True, size=0.0, rows=rows, zero_rows=rows)
    finite = bool(torch.isfinite(values).all())
    # Squares of small numbers vanish; a gradient that is there must not read as zero, so the largest is divided out.
    top = values.max().item()
    size = top * math.sqrt((values / top).float().square().sum().item() / parameter.numel()) if finite else math.nan
    touched = int((values.reshape(len(values), -1) != 0).any(dim=1).sum()) if rows else 0
    return Signal(exists=True, finite=finite, size=size, rows=rows, zero_rows=rows - touched)
