"""Leave a reader's model as it was found: what every probe runs inside."""

import random
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import numpy
import torch
from torch import Tensor, nn


@contextmanager
def left_as_found(module: nn.Module, *, uncopied: Iterable[Tensor] = ()) -> Iterator[None]:
    """Restore the module and the random generators when the block ends, also after an error.

    Covers parameters, gradients (the objects and their values), buffers, `requires_grad`, train/eval mode, hooks,
    submodules and plain attributes of every submodule (a list or dictionary among them is restored one level deep, a
    random generator rewound), and what `random_left_as_found` covers. Nothing outside the module is: a loss that writes
    to a file has written, and a generator that only the loss knows has moved on.
    Costs one copy of parameters, gradients and buffers in memory.

    Args:
        module: what to restore.
        uncopied: tensors of it that nobody writes into meanwhile, though their `data` may be exchanged; saves a copy.
    """
    trusted = {id(tensor) for tensor in uncopied}
    with ExitStack() as restored:
        restored.enter_context(random_left_as_found())
        # Callbacks run last in, first out, and all of them even if one raises: first what the names point at,
        # then the values behind them.
        for tensor in _tensors(module):
            _keep_tensor(restored, tensor, copied=id(tensor) not in trusted)
        for submodule in module.modules():
            _keep_generators(restored, submodule)
            _keep_attributes(restored, submodule)
        yield


@contextmanager
def random_left_as_found() -> Iterator[None]:
    """Restore the global generators of Python, NumPy and torch (CPU and every CUDA device) when the block ends."""
    python, legacy, cpu = random.getstate(), numpy.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    try:
        yield
    finally:
        random.setstate(python)
        numpy.random.set_state(legacy)
        torch.set_rng_state(cpu)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)


def _tensors(module: nn.Module) -> list[Tensor]:
    """Return every parameter, buffer and tensor attribute once, tied ones too."""
    found = [*module.parameters(), *module.buffers()]
    found += [value for part in module.modules() for value in vars(part).values() if isinstance(value, Tensor)]
    return list({id(tensor): tensor for tensor in found}.values())


def _keep_tensor(restored: ExitStack, tensor: Tensor, copied: bool) -> None:
    storage, wanted = tensor.data, tensor.requires_grad
    values = tensor.detach().clone() if copied else storage
    grad = tensor.grad if tensor.is_leaf else None
    grad_values = None if grad is None else grad.detach().clone()

    def restore() -> None:
        # Through .data, so that no version counter moves: a backward pass of the reader's that is
        # still to come must not be refused.
        tensor.data = storage
        if copied:
            storage.copy_(values)
        if not tensor.is_leaf:
            return
        tensor.requires_grad_(wanted)
        tensor.grad = grad
        if grad is not None:
            grad.data.copy_(grad_values)

    restored.callback(restore)


def _keep_generators(restored: ExitStack, submodule: nn.Module) -> None:
    for value in vars(submodule).values():
        if isinstance(value, torch.Generator):
            restored.callback(value.set_state, value.get_state())
        elif isinstance(value, random.Random):
            restored.callback(value.setstate, value.getstate())
        elif isinstance(value, numpy.random.Generator):
            restored.callback(setattr, value.bit_generator, "state", value.bit_generator.state)


def _keep_attributes(restored: ExitStack, submodule: nn.Module) -> None:
    attributes = dict(vars(submodule))
    containers = [(value, value.copy()) for value in attributes.values() if isinstance(value, dict | list | set)]

    def restore() -> None:
        vars(submodule).clear()
        vars(submodule).update(attributes)
        for container, content in containers:
            container.clear()
            (container.extend if isinstance(container, list) else container.update)(content)

    restored.callback(restore)
