"""A function under test in float64, and its directional derivatives from differences with their bounds of error."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_leaves, tree_map

from casestudies_lib.probes.copies import CastsInDouble, double_by_default
from casestudies_lib.probes.guard import left_as_found
from casestudies_lib.probes.inputs import kind_of
from casestudies_lib.probes.result import ProbeInputError

# Two runs of one function that differ by more than this share of its largest output are not one function.
SAME = 1e-6

# Noise is estimated from three differences of one draw, so that it may well be several times what they show.
SURE = 10.0
# Steps to try, relative to each tensor's root mean square. A step that crosses a kink (ReLU, top-k) measures neither
# side, and a million units are near one somewhere: so the first is the smallest that rounding allows. The larger ones
# are for functions that compute in less than float64.
STEPS = (3e-9, 1e-7, 1e-6, 1e-3, 3e-2)
COARSE_STEPS = (3e-3, 3e-2, 3e-4)


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
        return self.outputs_for(tree_map(lambda leaf: _handed(leaf, moved), self.arguments))

    def outputs_for(self, handed: Sequence[Any]) -> list[Tensor]:
        """Return the outputs for some arguments.

        Raises:
            CannotTell: the function has changed one of them in place.
        """
        versions = [(leaf, leaf._version) for leaf in tree_leaves(handed) if isinstance(leaf, Tensor)]
        returned = self.call(*handed)
        for leaf, version in versions:
            if leaf._version != version:
                raise CannotTell(
                    f"the function changes an input of shape {tuple(leaf.shape)} in place, so that its point moves "
                    "while it is measured; let it work on input.clone()"
                )
        return outputs_of(returned)

    def handed(self) -> list[Any]:
        """Return copies of the arguments that are no leaves, as a function meets its inputs inside a network."""
        return tree_map(lambda leaf: _handed(leaf, {}), self.arguments)


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
    """Hand out the same subject over copies of its inputs, everything cast to `dtype` (None: as it is) meanwhile.

    In float64, what the function casts to float32 itself, such as the scores of a softmax, stays in float64 too.
    """
    with ExitStack() as stack:
        for context in (left_as_found(subject.holder), torch.inference_mode(False), torch.enable_grad()):
            stack.enter_context(context)
        if dtype is torch.float64:
            stack.enter_context(double_by_default())
            stack.enter_context(CastsInDouble())
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


def values_of(handed: Sequence[Any]) -> dict[str, Tensor]:
    """Return copies of the tensors among some arguments, by name."""
    return {name: leaf.detach().clone() for name, leaf in _tensors(handed).items()}


def overwritten(handed: Sequence[Any], before: Mapping[str, Tensor]) -> list[str]:
    """Return the tensors among some arguments that have other values than before, by name."""
    return [name for name, leaf in _tensors(handed).items() if not _equal(leaf.detach(), before[name])]


def _equal(first: Tensor, second: Tensor) -> bool:
    return bool(((first == second) | ((first != first) & (second != second))).all())


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
    return {name: leaf for name, leaf in _tensors(arguments).items() if leaf.requires_grad and leaf.numel()}


def _tensors(arguments: Sequence[Any]) -> dict[str, Tensor]:
    flat, _ = tree_flatten_with_path(list(arguments))
    return {f"input {path[0].idx}{keystr(path[1:])}": leaf for path, leaf in flat if isinstance(leaf, Tensor)}


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


Upstream = Sequence[Tensor]
Profile = Callable[[float], list[Tensor]]


@dataclass(frozen=True)
class Slope:
    """Derivatives along one direction, one an upstream gradient.

    Attributes:
        values: the derivatives.
        doubts: how far each may be off.
        noise: how far one evaluation may be off, in units of the projected output.
        bend: what the third derivative adds to a difference of two points.
    """

    values: Tensor
    doubts: Tensor
    noise: Tensor
    bend: Tensor


def profile(subject: Subject, centre: Sequence[Tensor], moves: Mapping[str, Tensor]) -> Profile:
    """Return how the outputs change with the step along a direction."""

    def change(step: float) -> list[Tensor]:
        with subject.at_start(), torch.no_grad():
            outputs = subject.run(moves, step)
        # The difference first, the projection after: so the sum does not round what they have in common.
        return [near.double() - start.double() for near, start in zip(outputs, centre)]

    return change


def careful_slope(change: Profile, step: float, upstreams: Sequence[Upstream], floor: Tensor) -> Slope:
    """Return the slope from four points around the centre, and its doubt from how little they lie on a parabola.

    Third and fourth differences of a smooth function vanish at such steps; what is left of them is rounding, or a kink.
    They are squared output by output before they are summed, so that kinks of opposite sign do not hide each other.

    Source: the five-point stencil; noise from difference tables: Moré and Wild, "Estimating computational noise", 2011.
    """
    points = zip(*(change(place * step) for place in (-2, -1, 1, 2)))
    tables = [_table(*four, step) for four in points]
    near, far, *spreads = ([table[place] for table in tables] for place in range(5))
    noise = torch.stack([*(_spread(each, upstreams) for each in spreads), floor]).amax(0)
    near, far = _projected(near, upstreams), _projected(far, upstreams)
    values = (4 * near - far) / 3
    return Slope(values, _doubts(values, SURE * noise / step), noise, (near - far).abs() / 3)


def quick_slope(change: Profile, step: float, upstreams: Sequence[Upstream], model: Slope) -> Slope:
    """Return the slope from two points, with the doubt that a careful one found at the same step."""
    above, below = change(step), change(-step)
    values = _projected([(high - low) / (2 * step) for high, low in zip(above, below)], upstreams)
    return Slope(values, _doubts(values, SURE * model.noise / step + model.bend), model.noise, model.bend)


def floor_of(centre: Sequence[Tensor], upstreams: Sequence[Upstream]) -> Tensor:
    """Return what rounding alone does to a projected output, one number an upstream gradient."""
    eps = max(torch.finfo(out.dtype).eps for out in centre)
    return eps * _spread([out.double() for out in centre], upstreams)


def _table(far_below: Tensor, below: Tensor, above: Tensor, far_above: Tensor, step: float) -> tuple[Tensor, ...]:
    """Return two slopes, and three differences scaled to the noise of one evaluation; the centre is zero."""
    return (
        (above - below) / (2 * step),
        (far_above - far_below) / (4 * step),
        (far_below - 4 * below - 4 * above + far_above) / math.sqrt(70),
        (above + 3 * below - far_below) / math.sqrt(20),
        (far_above - 3 * above - below) / math.sqrt(20),
    )


def _projected(values: Sequence[Tensor], upstreams: Sequence[Upstream]) -> Tensor:
    """Return the sums of products; elements with an upstream gradient of zero count as zero, infinite ones too."""
    products = [[_product(value, weight).sum() for value, weight in zip(values, upstream)] for upstream in upstreams]
    return torch.stack([torch.stack(each).sum() for each in products]).cpu()


def _spread(values: Sequence[Tensor], upstreams: Sequence[Upstream]) -> Tensor:
    return _projected([value.square() for value in values], [[w.square() for w in each] for each in upstreams]).sqrt()


def _product(value: Tensor, weight: Tensor) -> Tensor:
    return torch.where(weight == 0, 0.0, value * weight)


def _doubts(values: Tensor, doubts: Tensor) -> Tensor:
    """Return the doubts, without limit where the slope is no number: a step has left the function's domain."""
    return torch.where(values.isfinite(), doubts, math.inf).nan_to_num(nan=math.inf)
