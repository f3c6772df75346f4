"""Record the floating-point work of a pass: which submodule did it, and whether a gradient came back through it."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count


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
        read: the parameters that any forward operation was given, by the names in `parameters`.
        nodes_of: for each parameter the graph nodes of the FLOP operations that were given it.
    """

    def __init__(self, module: nn.Module, parameters: Mapping[str, Tensor]) -> None:
        """Prepare to watch `module`; `parameters` are the tensors whose use is recorded."""
        super().__init__()
        self.works: list[Work] = []
        self.read: set[str] = set()
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
            self._note_reads(tensors, node if flops else None)
        if flops:
            module = self._module_of_node.get(node, "") if backward else self._path[-1]
            self.works.append(Work(flops, backward, module, node))
        return result

    def _note_reads(self, tensors: list[Tensor], node: int | None) -> None:
        for tensor in tensors:
            owners = self._owners.get(_storage(tensor), ())
            self.read.update(owners)
            for name in owners if node is not None else ():
                self.nodes_of[name].add(node)

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
