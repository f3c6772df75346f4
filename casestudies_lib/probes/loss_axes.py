"""Which axis of a prediction is which axis of its target and its mask? Every error names both shapes."""

from collections.abc import Mapping, Sequence
from itertools import combinations

import torch
from torch import Tensor

from casestudies_lib.probes.inputs import kind_of
from casestudies_lib.probes.loss_slices import CLASS_AXES, Batch
from casestudies_lib.probes.result import ProbeInputError

Axes = Sequence[str] | Mapping[str, int]
EXPECTATIONS = ("mean", "sum")


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
