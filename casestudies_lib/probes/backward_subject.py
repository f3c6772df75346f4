"""A function under test: run in float64 at its own point and near it, and left as it was found."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_leaves, tree_map

from casestudies_lib.probes.guard import left_as_found
from casestudies_lib.probes.inputs import kind_of
from casestudies_lib.probes.result import ProbeInputError

# Two runs of one function that differ by more than this share of its largest output are not one function.
SAME = 1e-6


class CannotTell(Exception):
    """The function is of a kind that finite differences cannot judge; the message says why and what to do."""


@dataclass(frozen=True)
class Subject:
    """A function, what it is called with, and the tensors whose gradients are in question.

    Attributes:
        call: takes the arguments.
        holder: the module whose tensors and state are restored after every run.
        arguments: a pytree; tensors in it are copied before every run.
        inputs: the tensors among the arguments that ask for a gradient, by name.
        parameters: the tensors of the holder that ask for one, by name.
        scratch: memory for moved parameters.
    """

    call: Callable[..., Any]
    holder: nn.Module
    arguments: Sequence[Any]
    inputs: Mapping[str, Tensor]
    parameters: Mapping[str, Tensor]
    scratch: dict[str, Tensor] = field(default_factory=dict)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Return everything whose gradient is in question, inputs first."""
        return {**self.inputs, **self.parameters}

    @contextmanager
    def at_start(self) -> Iterator[None]:
        """Put the holder and all random generators back when the block ends.

        Values that the function itself writes into a parameter stay; `check_unwritten` finds them.
        """
        with left_as_found(self.holder, uncopied=self.parameters.values()):
            yield

    def run(self, moves: Mapping[str, Tensor] | None = None, step: float = 0.0) -> list[Tensor]:
        """Return the outputs with `step * moves` added to the tensors; use it inside `at_start`."""
        moves = moves or {}
        for name in moves.keys() & self.parameters.keys():
            parameter = self.parameters[name]
            if name not in self.scratch:
                self.scratch[name] = torch.empty_like(parameter.data)
            # Into memory that is there already: fetching fresh pages costs more than the sum.
            parameter.data = torch.add(parameter.data, moves[name], alpha=step, out=self.scratch[name])
        moved = {id(self.inputs[name]): step * moves[name] for name in moves.keys() & self.inputs.keys()}
        handed = tree_map(lambda leaf: _handed(leaf, moved), self.arguments)
        return outputs_of(self._called(handed))

    def _called(self, handed: Sequence[Any]) -> Any:
        versions = [(leaf, leaf._version) for leaf in tree_leaves(handed) if isinstance(leaf, Tensor)]
        returned = self.call(*handed)
        for leaf, version in versions:
            if leaf._version != version:
                raise CannotTell(
                    f"the function changes an input of shape {tuple(leaf.shape)} in place, so that its point moves "
                    "while it is measured; let it work on input.clone()"
                )
        return returned


def subject_of(function: object, inputs: object, parameters: object) -> Subject:
    """Return what the reader gave, sorted.

    Raises:
        ProbeInputError: names the argument, what came and what to give.
    """
    call = function.apply if isinstance(function, type) and issubclass(function, torch.autograd.Function) else function
    if not callable(call) or isinstance(call, type):
        raise ProbeInputError(
            f"function is {kind_of(function)}; give a module, a function of tensors, or an autograd.Function"
        )
    arguments = list(inputs) if isinstance(inputs, list | tuple) else [inputs]
    holder, named = _held(call, parameters)
    asking = _asking(arguments)
    for name, tensor in {**asking, **named}.items():
        if not tensor.is_floating_point():
            raise ProbeInputError(f"{name} is of type {tensor.dtype}; only real floating-point tensors are compared")
    return Subject(call, holder, arguments, asking, named)


@contextmanager
def in_precision(subject: Subject, dtype: torch.dtype | None) -> Iterator[Subject]:
    """Hand out the same subject over copies of its inputs, everything cast to `dtype` (None: as it is) meanwhile."""
    with left_as_found(subject.holder), torch.inference_mode(False), torch.enable_grad():
        for tensor in _floating(subject.holder) if dtype else ():
            # A gradient must have its tensor's type; the guard brings the old one back.
            tensor.grad = None
            tensor.data = tensor.data.to(dtype)
        arguments = tree_map(lambda leaf: _private(leaf, dtype), subject.arguments)
        yield Subject(subject.call, subject.holder, arguments, _asking(arguments), subject.parameters)


def _floating(holder: nn.Module) -> list[Tensor]:
    held = [*holder.parameters(), *holder.buffers()]
    held += [value for part in holder.modules() for value in vars(part).values() if isinstance(value, Tensor)]
    return [tensor for tensor in held if tensor.is_floating_point() and tensor.grad_fn is None]


def outputs_of(returned: Any) -> list[Tensor]:
    """Return the real floating-point tensors that a function returned, complex ones as pairs.

    Raises:
        ProbeInputError: there is none.
    """
    values = returned if isinstance(returned, Tensor | Mapping | list | tuple) else getattr(returned, "__dict__", None)
    leaves = tree_leaves(dict(values) if isinstance(values, Mapping) else values)
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    tensors = [torch.view_as_real(tensor) if tensor.is_complex() else tensor for tensor in tensors]
    found = [tensor for tensor in tensors if tensor.is_floating_point() and tensor.numel()]
    if not found:
        raise ProbeInputError(
            f"function returned {kind_of(returned)} without a floating-point tensor; return the tensor, or a tuple, "
            "list or mapping that holds it"
        )
    return found


def check_repeatable(subject: Subject, first: Sequence[Tensor], replay: bool) -> list[Tensor]:
    """Return the outputs without a graph, if a second and a third run give the first one's.

    The second starts from the same generators and state as the first, the third from where the second left them.

    Raises:
        CannotTell: they differ.
    """
    with subject.at_start(), torch.no_grad():
        second = subject.run()
        third = second if replay else subject.run()
    if not _same(first, second):
        raise CannotTell(
            "a second run from the same state and the same random generators gives other outputs: the function draws "
            "from a generator of its own, keeps state outside the module, or asks whether gradients are enabled"
        )
    if not _same(second, third):
        raise CannotTell(
            "two runs in a row give different outputs: the function is random (dropout?) or keeps state; call eval() "
            "first, or give replay=True to judge one draw of the random numbers"
        )
    return second


def check_unwritten(subject: Subject, start: Mapping[str, tuple[float, float]]) -> None:
    """Refuse a function that has changed its parameters since they had the `marks` of `start`.

    Raises:
        CannotTell: names the first that changed.
    """
    for name, mark in marks(subject).items():
        if mark != start[name]:
            raise CannotTell(f"the function changes {name} in place while it runs; take that out of the forward pass")


def marks(subject: Subject) -> dict[str, tuple[float, float]]:
    """Return sum and norm of every parameter: cheaper to keep than a copy, and one of them moves with any change."""
    held = {name: tensor.data for name, tensor in subject.parameters.items()}
    return {name: (float(tensor.sum()), float(torch.linalg.vector_norm(tensor))) for name, tensor in held.items()}


def _same(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    if [tensor.shape for tensor in first] != [tensor.shape for tensor in second]:
        return False
    return all(_close(a.detach(), b.detach()) for a, b in zip(first, second))


def _close(first: Tensor, second: Tensor) -> bool:
    finite = first[torch.isfinite(first)]
    size = finite.abs().max().item() if finite.numel() else 0.0
    return torch.allclose(first, second, rtol=0.0, atol=SAME * size, equal_nan=True)


def _held(call: Callable[..., Any], parameters: object) -> tuple[nn.Module, dict[str, Tensor]]:
    if isinstance(call, nn.Module) and parameters is not None:
        raise ProbeInputError("parameters are given beside a module; leave them out, they are the module's own")
    if isinstance(call, nn.Module) or isinstance(parameters, nn.Module):
        holder = call if isinstance(call, nn.Module) else parameters
        named = {f"parameter {name}": value for name, value in holder.named_parameters()}
    elif parameters is None or isinstance(parameters, Mapping):
        holder = nn.Module()
        named = {f"parameter {name}": value for name, value in (parameters or {}).items()}
        for place, (name, value) in enumerate(named.items()):
            if not isinstance(value, Tensor) or not value.is_leaf:
                raise ProbeInputError(f"{name} is {kind_of(value)}; give leaf tensors that the function reads")
            setattr(holder, f"tensor_{place}", value)
    else:
        raise ProbeInputError(
            f"parameters is {kind_of(parameters)}; give a module, or a mapping such as {{'weight': weight}}"
        )
    return holder, {name: value for name, value in named.items() if value.requires_grad and value.numel()}


def _asking(arguments: Sequence[Any]) -> dict[str, Tensor]:
    flat, _ = tree_flatten_with_path(list(arguments))
    tensors = [(path, leaf) for path, leaf in flat if isinstance(leaf, Tensor) and leaf.requires_grad and leaf.numel()]
    return {f"input {path[0].idx}{keystr(path[1:])}": leaf for path, leaf in tensors}


def _private(leaf: Any, dtype: torch.dtype | None) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    own = leaf.detach().clone()
    return (own.to(dtype) if dtype and own.is_floating_point() else own).requires_grad_(leaf.requires_grad)


def _handed(leaf: Any, moved: Mapping[int, Tensor]) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    # A copy that is no leaf may be changed in place, which then is seen by its version.
    return leaf + moved[id(leaf)] if id(leaf) in moved else leaf.clone()
