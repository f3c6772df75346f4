"""One forward and backward pass of a reader's loss: the gradient of each parameter and the FLOPs of each operation."""

import math
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from casestudies_lib.probes.guard import left_as_found
from casestudies_lib.probes.inputs import Loss, checked_loss
from casestudies_lib.probes.result import ProbeInputError


@dataclass(frozen=True)
class Work:
    """FLOPs of one operation (multiplications and additions), as torch's own counter counts them.

    Attributes:
        flops: matrix products, convolutions, attention and recurrent layers; everything else counts as zero.
        backward: whether it ran in the backward pass.
        module: the innermost submodule it belongs to; "" is the whole module.
        node: the number of its node in the autograd graph; None where nothing was recorded for a backward pass.
    """

    flops: int
    backward: bool
    module: str
    node: int | None


class WorkRecorder(TorchDispatchMode):
    """Watch one forward and backward pass without touching the module.

    A node of the autograd graph is numbered when it is made, just before its operation runs; the number leads from the
    operation to its node. An operation carries a signal if the gradient that comes back to its node is not all zero.

    Attributes:
        works: the FLOPs, operation by operation.
        read: the parameters that any forward operation was given, by the names in `parameters`, with the graph nodes
            of these operations.
        nodes_of: for each parameter the graph nodes of the FLOP operations that were given it.
        leaves: the tensors with requires_grad that the loss's graph ends in.
    """

    def __init__(self, module: nn.Module, parameters: Mapping[str, Tensor]) -> None:
        """Prepare to watch `module`; `parameters` are the tensors whose use is recorded."""
        super().__init__()
        self.works: list[Work] = []
        self.read: dict[str, set[int]] = {}
        self.leaves: list[Tensor] = []
        self.nodes_of: dict[str, set[int]] = {name: set() for name in parameters}
        self._names = {part: name for name, part in module.named_modules()}
        self._owners: dict[int, set[str]] = {}
        for name, parameter in parameters.items():
            self._owners.setdefault(_storage(parameter), set()).add(name)
        self._path = [""]
        self._module_of_node: dict[int, str] = {}
        self._live: set[int] = set()
        # CUDA's backward pass runs in threads of its own.
        self._backward = threading.local()

    def carries_signal(self, work: Work) -> bool:
        """Return whether a non-zero gradient came back through this operation's node."""
        return work.node is None or work.node in self._live

    def on_path(self, name: str) -> bool:
        """Return whether a gradient came back through an operation that was given the parameter, frozen or not."""
        return not self._live.isdisjoint(self.read.get(name, ()))

    @contextmanager
    def watching_modules(self) -> Iterator[None]:
        """Follow which submodule is running, by hooks that are gone when the block ends."""
        with ExitStack() as hooks:
            for part in self._names:
                hooks.callback(part.register_forward_pre_hook(self._enter, prepend=True).remove)
                hooks.callback(part.register_forward_hook(self._leave, always_call=True).remove)
            yield

    @contextmanager
    def watching_backward(self, value: Tensor) -> Iterator[None]:
        """Follow which graph node is running and whether its incoming gradient is zero."""
        self.leaves = leaves(value)
        with ExitStack() as hooks:
            for node in graph(value):
                hooks.callback(node.register_prehook(self._before(node._sequence_nr())).remove)
            yield

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Run the operation as it is and note what it was."""
        kwargs = kwargs or {}
        node = getattr(self._backward, "node", None)
        backward = node is not None
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if not backward and torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
            node = torch.autograd._get_sequence_nr() - 1
            self._module_of_node[node] = self._path[-1]
        result = func(*args, **kwargs)
        flops = _flops(func, args, kwargs, result)
        if not backward:
            self._note_reads(tensors, node, counted=bool(flops))
        if flops:
            module = self._module_of_node.get(node, "") if backward else self._path[-1]
            self.works.append(Work(flops, backward, module, node))
        return result

    def _note_reads(self, tensors: list[Tensor], node: int | None, counted: bool) -> None:
        for tensor in tensors:
            for name in self._owners.get(_storage(tensor), ()):
                nodes = {node} - {None}
                self.read.setdefault(name, set()).update(nodes)
                self.nodes_of[name].update(nodes if counted else ())

    def _enter(self, part: nn.Module, _: Any) -> None:
        self._path.append(self._names[part])

    def _leave(self, *_: Any) -> None:
        if len(self._path) > 1:
            self._path.pop()

    def _before(self, number: int) -> Any:
        def note(gradients: tuple[Tensor | None, ...]) -> None:
            self._backward.node = number
            if any(gradient is not None and nonzero(gradient) for gradient in gradients):
                self._live.add(number)

        return note


def nonzero(gradient: Tensor) -> bool:
    """Return whether any element differs from zero (NaN does)."""
    return bool(torch.count_nonzero(values_of(gradient)))


def values_of(gradient: Tensor) -> Tensor:
    """Return the stored values of a sparse gradient, or the dense gradient as it is."""
    return gradient.coalesce().values() if gradient.is_sparse else gradient


def graph(value: Tensor) -> list[Any]:
    """Return the nodes of the autograd graph behind a value, without those that only hand gradients to leaves."""
    seen, waiting = [], [value.grad_fn]
    known = set()
    while waiting:
        node = waiting.pop()
        # A leaf's AccumulateGrad node has no operation; its gradient is captured before it runs.
        if node is None or node in known or hasattr(node, "variable"):
            continue
        known.add(node)
        seen.append(node)
        waiting += [following for following, _ in node.next_functions]
    return seen


def leaves(value: Tensor) -> list[Tensor]:
    """Return the tensors with requires_grad that the autograd graph behind a value ends in, each once."""
    ends = [following for node in graph(value) for following, _ in node.next_functions]
    found = [value] if value.is_leaf else [node.variable for node in ends if hasattr(node, "variable")]
    return list({id(leaf): leaf for leaf in found}.values())


def _storage(tensor: Tensor) -> int:
    """Return what tensors that share memory have in common; 0 for tensors without plain memory."""
    try:
        return tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):
        return 0


def _flops(func: Any, args: tuple, kwargs: dict, result: Any) -> int:
    operation = getattr(func, "_overloadpacket", func)
    if operation in flop_registry:
        return int(flop_registry[operation](*args, **kwargs, out_val=result))
    return int(_UNCOUNTED[operation](*args)) if operation in _UNCOUNTED else 0


def _recurrent_flops(inputs: Tensor, *rest: Any) -> int:
    """Return the FLOPs of a fused recurrent layer: every weight matrix meets every position once."""
    matrices = [leaf for leaf in tree_leaves(rest[:4]) if isinstance(leaf, Tensor) and leaf.dim() == 2]
    return 2 * prod(inputs.shape[:2]) * sum(matrix.numel() for matrix in matrices)


# Fused operations that torch's counter leaves out. The backward pass of a product costs twice the forward.
_UNCOUNTED = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda query, key, value, *_: sdpa_flop_count(
        query.shape, key.shape, value.shape
    ),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda gradient, query, key, value, *_: (
        sdpa_backward_flop_count(gradient.shape, query.shape, key.shape, value.shape)
    ),
    torch.ops.aten.mkldnn_rnn_layer: _recurrent_flops,
    torch.ops.aten.mkldnn_rnn_layer_backward: lambda *args: 2 * _recurrent_flops(*args),
    torch.ops.aten._cudnn_rnn: lambda inputs, weights, *_: _recurrent_flops(inputs, weights),
    torch.ops.aten._cudnn_rnn_backward: lambda inputs, weights, *_: 2 * _recurrent_flops(inputs, weights),
}


# A tensor of zeros has no size of its own to scale its jitter by; this is that of a common initialisation.
SIZE_OF_ZEROS = 0.1


# The spacing of float32 at 1: a gradient smaller than this next to the largest is rounding.
ROUNDING = 2.0**-23


def below_rounding(size: float, largest: float) -> bool:
    """Return whether a gradient teaches nothing: it is zero, or no more than rounding next to the largest."""
    return size <= ROUNDING * largest


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
