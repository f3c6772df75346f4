"""Run two models on the same input with the same shared weights, and note what ran, what counted and what came out."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from casestudies_lib.probes.copies import (
    double_by_default,
    double_twin_of,
    in_double,
    jittered_twin_of,
    reseed_all,
    twin_of,
)
from casestudies_lib.probes.guard import random_left_as_found
from casestudies_lib.probes.result import ProbeInputError

Call = Callable[[nn.Module, Any], Any]
ROUNDING_IN_DOUBLE = 1e-10
ROUNDING_IN_EPSILONS = 64


@dataclass(frozen=True)
class Ran:
    """One model's pass.

    Attributes:
        outputs: the floating-point tensors that it returned.
        active: the submodules that ran, by path.
        used: the parameters of which some output depends, to first order, by name.
        calls: for each submodule its first call: arguments, keyword arguments, what it returned.
    """

    outputs: list[Tensor]
    active: frozenset[str]
    used: frozenset[str]
    calls: dict[str, tuple[tuple, dict, Any]]


@dataclass(frozen=True)
class Compared:
    """Both passes.

    Attributes:
        first, second: what each did.
        gap: largest difference of outputs relative to their root mean square; infinite if shapes differ.
        behaving: shared submodules that return something else for the same arguments, the innermost alone.
        random: whether a forward pass draws random numbers, so that `gap` and `behaving` mean nothing.
    """

    first: Ran
    second: Ran
    gap: float
    behaving: tuple[str, ...]
    random: bool


def compared(first: nn.Module, second: nn.Module, inputs: Any, call: Call) -> Compared:
    """Run both, the second with the first's values in every parameter and buffer that has the same name and shape.

    Raises:
        ProbeInputError: a model cannot be copied, or returned no floating-point tensor.
        Exception: whatever the reader's own code raises.
    """
    try:
        with double_by_default():
            twins = double_twin_of(first), double_twin_of(second)
            return _compared(*twins, in_double(inputs), call, ROUNDING_IN_DOUBLE)
    except Exception:
        # Code may insist on its own precision; then it is compared there.
        pass
    try:
        twins = twin_of(first), twin_of(second)
    except Exception as error:
        raise ProbeInputError(f"a model cannot be copied ({type(error).__name__}: {error})") from error
    return _compared(*twins, inputs, call, ROUNDING_IN_EPSILONS * torch.finfo(torch.float32).eps)


def _compared(first: nn.Module, second: nn.Module, inputs: Any, call: Call, rounding: float) -> Compared:
    share(first, second)
    passes = [_ran(twin_of(module), inputs, call) for module in (first, second)]
    again = [_ran(twin_of(module), inputs, call, other_seed=True) for module in (first, second)]
    random = any(_gap(one.outputs, other.outputs) > rounding for one, other in zip(passes, again))
    differ = [] if random else [path for path in passes[0].calls if _behaves(path, second, passes, rounding)]
    innermost = [path for path in differ if not any(_inside(other, path) for other in differ)]
    gap = _gap(passes[0].outputs, passes[1].outputs)
    passes = [_woken(ran, module, inputs, call) for ran, module in zip(passes, (first, second))]
    return Compared(*passes, gap if gap > rounding else 0.0, tuple(innermost), random)


def _woken(ran: Ran, module: nn.Module, inputs: Any, call: Call) -> Ran:
    """Return the same, the parameters that noise on the weights wakes (behind a gate at zero) among the used."""
    try:
        noisy = _ran(jittered_twin_of(module), inputs, call)
    except Exception:
        # Other weights can leave the domain of the reader's own code.
        return ran
    return replace(ran, used=ran.used | noisy.used)


def share(first: nn.Module, second: nn.Module) -> None:
    """Copy the first's values into the second's parameters and buffers of the same name and shape."""
    values = {**dict(first.named_parameters()), **dict(first.named_buffers())}
    with torch.no_grad():
        for name, own in (*second.named_parameters(), *second.named_buffers()):
            if name in values and values[name].shape == own.shape and values[name].dtype == own.dtype:
                own.copy_(values[name])


def _ran(module: nn.Module, inputs: Any, call: Call, other_seed: bool = False) -> Ran:
    calls: dict[str, tuple[tuple, dict, Any]] = {}
    with random_left_as_found(), torch.inference_mode(False), torch.enable_grad(), ExitStack() as hooks:
        if other_seed:
            reseed_all(module)
        for path, part in module.named_modules():
            hooks.enter_context(_removed(part.register_forward_pre_hook(_before(calls, path), with_kwargs=True)))
            hooks.enter_context(_removed(part.register_forward_hook(_after(calls, path), with_kwargs=True)))
        outputs = [leaf for leaf in tree_leaves(call(module, _frozen(inputs))) if _floating(leaf)]
        if not outputs:
            raise ProbeInputError("the model returned no floating-point tensor; give call=lambda model, inputs: …")
        used = _used(module, outputs)
    return Ran(
        [leaf.detach() for leaf in outputs], frozenset(calls), used, {p: c for p, c in calls.items() if len(c) == 3}
    )


def _used(module: nn.Module, outputs: list[Tensor]) -> frozenset[str]:
    """Return the parameters that get a gradient from some output, by a sum with random weights that cancels nothing."""
    parameters = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    generator = torch.Generator().manual_seed(0)
    with_graph = [leaf for leaf in outputs if leaf.requires_grad]
    if not parameters or not with_graph:
        return frozenset()
    total = sum((leaf * torch.randn(leaf.shape, generator=generator).to(leaf)).sum() for leaf in with_graph)
    found = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    return frozenset(name for name, g in zip(parameters, found) if g is not None and bool(g.any()))


def _behaves(path: str, second: nn.Module, passes: list[Ran], rounding: float) -> bool:
    """Return whether the second's submodule of this path returns something else for the first's arguments."""
    if not path or path not in passes[1].calls:
        return False
    arguments, keywords, returned = passes[0].calls[path]
    with random_left_as_found(), torch.inference_mode(False), torch.enable_grad():
        try:
            other = twin_of(second.get_submodule(path))(*_frozen(arguments), **_frozen(keywords))
        except Exception:
            # What does not take the same arguments is not the same.
            return True
    gap = _gap(*([leaf.detach() for leaf in tree_leaves(value) if _floating(leaf)] for value in (returned, other)))
    return gap > rounding


def _gap(first: list[Tensor], second: list[Tensor]) -> float:
    if [leaf.shape for leaf in first] != [leaf.shape for leaf in second]:
        return float("inf")
    largest = 0.0
    for one, other in zip(first, second):
        same = (one == other) | (one.isnan() & other.isnan())
        apart = torch.where(same, 0.0, (one - other).abs()).nan_to_num(nan=torch.inf)
        finite = one[one.isfinite()].double()
        size = finite.square().mean().sqrt().item() if finite.numel() else 0.0
        largest = max(largest, apart.max().item() / (size or 1.0)) if apart.numel() else largest
    return largest


def _inside(path: str, owner: str) -> bool:
    return path != owner and (not owner or path.startswith(f"{owner}."))


def _floating(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


def _frozen(values: Any) -> Any:
    """Return nested arguments with copies of their tensors, which nothing later can change."""
    return tree_map(lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf, values)


def _before(calls: dict, path: str) -> Callable:
    def keep(_part: nn.Module, arguments: tuple, keywords: Mapping) -> None:
        if path not in calls:
            calls[path] = (_frozen(arguments), _frozen(dict(keywords)))

    return keep


def _after(calls: dict, path: str) -> Callable:
    def keep(_part: nn.Module, _arguments: tuple, _keywords: Mapping, out: Any) -> None:
        if len(calls[path]) == 2:
            calls[path] = (*calls[path], _frozen(out))

    return keep


def _removed(handle: Any) -> ExitStack:
    stack = ExitStack()
    stack.callback(handle.remove)
    return stack
