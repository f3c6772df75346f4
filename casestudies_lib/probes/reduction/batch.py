"""Name the axes of a reader's tensors, and call the loss on pieces cut and repeated along them."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from casestudies_lib.probes.inputs import kind_of
from casestudies_lib.probes.result import ProbeInputError

# Axes along which one answer is spread out, so that a slice of them is no answer: cut last, judged by nobody.
CLASS_AXES = ("classes", "vocab")

EXPECTATIONS = ("mean", "sum")


@dataclass(frozen=True)
class Batch:
    """What a loss is called with (prediction, target and perhaps a mask) and the name of each tensor's every axis."""

    tensors: tuple[Tensor, ...]
    axes: tuple[tuple[str, ...], ...]

    @property
    def prediction(self) -> Tensor:
        """Return the first tensor."""
        return self.tensors[0]

    @property
    def target(self) -> Tensor:
        """Return the second tensor."""
        return self.tensors[1]

    @property
    def mask(self) -> Tensor | None:
        """Return the third tensor, True where a position is real, or None."""
        return self.tensors[2] if len(self.tensors) == 3 else None

    @property
    def sizes(self) -> dict[str, int]:
        """Return the size of the prediction along each of its axes."""
        return dict(zip(self.axes[0], self.prediction.shape))

    def each(self, axis: str, change: Callable[[Tensor, int], Tensor]) -> "Batch":
        """Return the batch with `change(tensor, dimension)` applied to every tensor that has the axis.

        An axis of size 1 that the loss broadcasts is left alone.
        """
        size = self.sizes[axis]
        changed = []
        for tensor, names in zip(self.tensors, self.axes):
            dimension = names.index(axis) if axis in names else None
            has_it = dimension is not None and tensor.shape[dimension] == size
            changed.append(change(tensor, dimension) if has_it else tensor)
        return replace(self, tensors=tuple(changed))

    def cut(self, starts: Mapping[str, int], sizes: Mapping[str, int]) -> "Batch":
        """Return the contiguous block that begins at `starts`; no values are copied."""
        return reduce(lambda batch, axis: batch._narrowed(axis, starts[axis], sizes[axis]), sizes, self)

    def _narrowed(self, axis: str, start: int, size: int) -> "Batch":
        return self.each(axis, lambda tensor, dimension: tensor.narrow(dimension, start, size))

    def picked(self, axis: str, index: Tensor) -> "Batch":
        """Return the slots of one axis that `index` lists, repeated as listed."""
        return self.each(axis, lambda tensor, dimension: tensor.index_select(dimension, index.to(tensor.device)))

    def to(self, dtype: torch.dtype) -> "Batch":
        """Return the batch with prediction and target, if that is floating, in another precision."""
        target = self.target.to(dtype) if self.target.is_floating_point() else self.target
        return replace(self, tensors=(self.prediction.to(dtype), target, *self.tensors[2:]))


@dataclass(frozen=True)
class Answer:
    """A loss and its gradient with respect to the prediction (None where none was asked for)."""

    value: float
    gradient: Tensor | None

    @property
    def norm(self) -> float:
        """Return the Euclidean norm of the gradient."""
        return torch.linalg.vector_norm(self.gradient.double()).item()


@dataclass(frozen=True)
class Caller:
    """The reader's loss, whether it takes the mask as third argument, and the precision to ask in (None: as given)."""

    loss: Callable[..., Any]
    takes_mask: bool
    dtype: torch.dtype | None = None

    def __call__(self, batch: Batch, *, gradient: bool = True) -> Answer:
        """Return the loss of a batch, computed on copies, so that a loss that writes into its arguments does no harm.

        Raises:
            ProbeInputError: the loss raised, or returned anything but one real number that depends on the prediction.
        """
        batch = batch if self.dtype is None else batch.to(self.dtype)
        prediction = batch.prediction.detach().clone().requires_grad_(gradient)
        others = [tensor.detach().clone() for tensor in batch.tensors[1 : 2 + self.takes_mask]]
        with torch.set_grad_enabled(gradient):
            value = _one_number(self._called(prediction, others))
        if not gradient:
            return Answer(value.item(), None)
        slope = torch.autograd.grad(value, prediction, allow_unused=True)[0] if value.requires_grad else None
        if slope is None:
            raise ProbeInputError(
                "loss returned a number without a graph to the prediction; remove detach(), item(), argmax() or "
                "no_grad() from its path, and let it use the prediction that it is given"
            )
        return Answer(value.item(), slope)

    def _called(self, prediction: Tensor, others: list[Tensor]) -> object:
        shapes = [tuple(tensor.shape) for tensor in (prediction, *others)]
        try:
            return self.loss(prediction, *others)
        except Exception as error:
            names = ("prediction", "target", "mask")[: len(shapes)]
            given = ", ".join(f"{name} {shape}" for name, shape in zip(names, shapes))
            raise ProbeInputError(
                f"loss raised {type(error).__name__}: {error}; it was called as loss({', '.join(names)}) with shapes "
                f"{given}; give tensors and a loss that fit"
            ) from error


def caller(loss: object, mask: Tensor | None, loss_takes_mask: bool | None) -> Caller:
    """Return the loss with the way to call it.

    Raises:
        ProbeInputError: not callable, a class instead of an instance, or a mask is wanted and none was given.
    """
    if not callable(loss) or isinstance(loss, type):
        raise ProbeInputError(
            f"loss is {kind_of(loss)}; give a function of (prediction, target) that returns one number, such as "
            "torch.nn.functional.mse_loss or an instance nn.MSELoss()"
        )
    if loss_takes_mask is not None and not isinstance(loss_takes_mask, bool):
        raise ProbeInputError(f"loss_takes_mask is {loss_takes_mask!r}; give True, False or None")
    if loss_takes_mask and mask is None:
        raise ProbeInputError("loss_takes_mask is True, yet mask is None; give the mask")
    return Caller(loss, mask is not None and (_wants_mask(loss) if loss_takes_mask is None else loss_takes_mask))


def block(batch: Batch, wanted: Mapping[str, int], anchor: Mapping[str, int], budget: int) -> Batch:
    """Return a block around `anchor` with the wanted sizes, its other axes halved until it holds `budget` values.

    Axes of classes are never halved: a softmax or a table of class weights must see them whole. No other axis gets
    smaller than 2, where it has 2.
    """
    sizes = {**batch.sizes, **wanted}
    free = [axis for axis in sizes if axis not in wanted and axis not in CLASS_AXES]
    while math.prod(sizes.values()) > budget and any(sizes[axis] > 2 for axis in free):
        widest = max(free, key=lambda axis: sizes[axis])
        sizes[widest] = (sizes[widest] + 1) // 2
    whole = batch.sizes
    # The slot after the anchor is inside too: an edge between real and masked positions needs both of its sides.
    starts = {axis: min(max(anchor[axis] + 1 - size // 2, 0), whole[axis] - size) for axis, size in sizes.items()}
    return batch.cut(starts, sizes)


def random_anchor(batch: Batch, generator: torch.Generator) -> dict[str, int]:
    """Return a random position, a real one if there is a mask, as one slot number an axis."""
    anchor = {axis: int(torch.randint(size, (), generator=generator)) for axis, size in batch.sizes.items()}
    if batch.mask is None:
        return anchor
    flat = batch.mask.flatten()
    tries = torch.randint(flat.numel(), (64,), generator=generator).to(flat.device)
    hits = tries[flat[tries]]
    place = hits[0] if hits.numel() else flat.nonzero()[0, 0]
    return {**anchor, **place_of(int(place), batch)}


def place_of(flat: int, batch: Batch) -> dict[str, int]:
    """Return which slot of each of the mask's axes an index into the flattened mask stands for."""
    place = {}
    for axis, size in reversed(list(zip(batch.axes[2], batch.mask.shape))):
        flat, place[axis] = divmod(flat, size)
    return place


def _one_number(value: object) -> Tensor:
    if not isinstance(value, Tensor):
        raise ProbeInputError(f"loss returned {kind_of(value)}; return the loss as a tensor of one number")
    if value.numel() != 1:
        raise ProbeInputError(f"loss returned a tensor of shape {tuple(value.shape)}; reduce it, such as by .mean()")
    if not value.is_floating_point():
        raise ProbeInputError(f"loss returned a number of type {value.dtype}; return a real floating-point number")
    return value.reshape(())


def _wants_mask(loss: Callable[..., Any]) -> bool:
    """Return whether the third argument is required, or is a mask by its name."""
    try:
        # nn.Module.__call__ takes anything; its forward says what.
        parameters = inspect.signature(loss.forward if isinstance(loss, nn.Module) else loss).parameters.values()
    except (TypeError, ValueError):
        return False
    positional = [each for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    if any(each.kind == each.VAR_POSITIONAL for each in parameters):
        return len(positional) < 3
    return len(positional) > 2 and (positional[2].default is inspect.Parameter.empty or "mask" in positional[2].name)


Axes = Sequence[str] | Mapping[str, int]


def named_batch(
    prediction: Tensor,
    target: Tensor,
    mask: Tensor | None,
    axes: Axes,
    target_axes: Axes | None,
    mask_axes: Axes | None,
) -> tuple[Batch, tuple[str, ...]]:
    """Return the tensors with a name for every axis, and those names that the reader gave.

    Raises:
        ProbeInputError: a tensor of the wrong kind, or axes that are unknown, out of range or of different sizes.
    """
    for name, tensor in (("prediction", prediction), ("target", target)):
        _check_tensor(name, tensor)
    if not prediction.is_floating_point():
        raise ProbeInputError(f"prediction is of type {prediction.dtype}; give real floating-point numbers, not labels")
    names = _named("axes", axes, prediction, "axis")
    asked = tuple(axes)
    if target_axes is None:
        target_names = _matching("target", target, prediction, names)
    else:
        target_names = _named("target_axes", target_axes, target, "target axis")
    _check_shared("target", target, target_names, prediction, names)
    if mask is None:
        return Batch((prediction, target), (names, target_names)), asked
    _check_mask(mask)
    if mask_axes is not None:
        mask_names = _named("mask_axes", mask_axes, mask, "mask axis")
    elif mask.shape == target.shape and set(target_names) <= set(names):
        mask_names = target_names
    elif mask.shape == prediction.shape[: mask.ndim]:
        mask_names = names[: mask.ndim]
    else:
        mask_names = _matching("mask", mask, prediction, names)
    _check_shared("mask", mask, mask_names, prediction, names, broadcast=False)
    return Batch((prediction, target, mask), (names, target_names, mask_names)), asked


def expectations(expected: object, asked: Sequence[str]) -> dict[str, str | None]:
    """Return what the reader expects of each axis; by default a mean, and nothing of an axis of classes.

    Raises:
        ProbeInputError: an axis that has no name here, or an expectation that is not known.
    """
    if expected is None:
        return {axis: None if axis in CLASS_AXES else "mean" for axis in asked}
    if not isinstance(expected, Mapping):
        raise ProbeInputError(f"expected is {kind_of(expected)}; give a mapping such as {{'length': 'mean'}}")
    for axis, kind in expected.items():
        if axis not in asked:
            raise ProbeInputError(f"expected names the axis {axis!r}; axes names {', '.join(asked)}")
        if kind is not None and kind not in EXPECTATIONS:
            raise ProbeInputError(f"expected[{axis!r}] is {kind!r}; allowed are 'mean', 'sum' and None")
    return {axis: expected.get(axis) for axis in asked}


def _check_tensor(name: str, tensor: object) -> None:
    if not isinstance(tensor, Tensor):
        raise ProbeInputError(f"{name} is {kind_of(tensor)}; give a tensor")
    if not tensor.ndim or not tensor.numel():
        raise ProbeInputError(f"{name} has shape {tuple(tensor.shape)}; give a batch with at least one axis and value")
    if tensor.is_complex():
        raise ProbeInputError(f"{name} is of type {tensor.dtype}; give real numbers")


def _check_mask(mask: object) -> None:
    _check_tensor("mask", mask)
    if mask.dtype != torch.bool:
        raise ProbeInputError(
            f"mask is of type {mask.dtype}; give booleans, True where a position is real: mask.bool()"
        )
    if not mask.any():
        raise ProbeInputError(
            f"mask of shape {tuple(mask.shape)} is False everywhere; give a batch with real positions"
        )


def _named(argument: str, axes: object, tensor: Tensor, filler: str) -> tuple[str, ...]:
    """Return one name a dimension; those that a mapping leaves out are called by their number."""
    shape = tuple(tensor.shape)
    if isinstance(axes, str) or not isinstance(axes, Sequence | Mapping):
        raise ProbeInputError(f"{argument} is {axes!r}; give one name for each dimension of shape {shape}")
    if not axes or any(not isinstance(name, str) for name in axes) or len(set(axes)) < len(axes):
        raise ProbeInputError(f"{argument} is {axes!r}; give different names, as text, for dimensions of shape {shape}")
    if not isinstance(axes, Mapping):
        if len(axes) != tensor.ndim:
            raise ProbeInputError(f"{argument} has {len(axes)} names for {tensor.ndim} dimensions of shape {shape}")
        return tuple(axes)
    names = [f"{filler} {number}" for number in range(tensor.ndim)]
    for name, number in axes.items():
        whole = isinstance(number, int) and not isinstance(number, bool)
        if not whole or not -tensor.ndim <= number < tensor.ndim:
            raise ProbeInputError(
                f"{argument}[{name!r}] is {number!r}; shape {shape} has dimensions 0…{tensor.ndim - 1}"
            )
        names[number] = name
    if len(set(names) & set(axes)) < len(axes):
        raise ProbeInputError(f"{argument} is {axes!r}: two names for one dimension of shape {shape}; give one each")
    return tuple(names)


def _matching(what: str, tensor: Tensor, prediction: Tensor, names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the tensor's axes, found by leaving out some of the prediction's, those of classes by preference."""
    if tensor.ndim == prediction.ndim:
        return names
    fitting = [
        kept
        for kept in combinations(range(prediction.ndim), min(tensor.ndim, prediction.ndim))
        if tuple(prediction.shape[number] for number in kept) == tuple(tensor.shape)
    ]
    found = [tuple(names[number] for number in kept) for kept in fitting]
    found = [kept for kept in found if not set(kept) & set(CLASS_AXES)] or found
    if len(found) == 1:
        return found[0]
    trouble = "fits several axes" if found else "does not fit"
    raise ProbeInputError(
        f"{what} of shape {tuple(tensor.shape)} {trouble} of a prediction of shape {tuple(prediction.shape)} with axes "
        f"{', '.join(names)}; name the {what}'s axes in {what}_axes"
    )


def _check_shared(
    what: str,
    tensor: Tensor,
    own: tuple[str, ...],
    prediction: Tensor,
    names: tuple[str, ...],
    *,
    broadcast: bool = True,
) -> None:
    wide = dict(zip(names, prediction.shape))
    for axis, size in zip(own, tensor.shape):
        if axis not in wide and not broadcast:
            raise ProbeInputError(f"{what}_axes names {axis!r}; the prediction's axes are {', '.join(names)}")
        if axis in wide and size != wide[axis] and not (broadcast and size == 1):
            raise ProbeInputError(
                f"axis {axis!r} has {wide[axis]} slots in the prediction and {size} in the {what}: shapes "
                f"{tuple(prediction.shape)} and {tuple(tensor.shape)}; give tensors of the same {axis}, or name the "
                f"{what}'s axes in {what}_axes"
            )
