"""Run two models on the same input with the same shared weights, and note what ran, what counted and what came out."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import keystr, tree_flatten_with_path

from casestudies_lib.probes.copies import (
    CastsInDouble,
    double_by_default,
    double_twin_of,
    fresh_copy,
    in_double,
    jittered_twin_of,
    reseed_all,
    twin_of,
)
from casestudies_lib.probes.guard import random_left_as_found
from casestudies_lib.probes.inputs import Loss, checked_loss
from casestudies_lib.probes.result import ProbeInputError

Call = Callable[[nn.Module, Any], Any]
Outputs = Mapping[str, Tensor]
ROUNDING_IN_DOUBLE = 1e-10
ROUNDING_IN_EPSILONS = 64


@dataclass(frozen=True)
class Ran:
    """One model's pass.

    Attributes:
        outputs: the floating-point tensors that it returned, by their place.
        active: the submodules that ran, by path.
        used: the parameters of which some output depends, to first order, by name.
        calls: for each submodule its first call: arguments, keyword arguments, what it returned.
    """

    outputs: Outputs
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
        changes: whether any output differs, also in training mode and with noise on the shared weights.
        buffers: those with other values that no training writes, with the norm of either, by name.
        training: where the loss in training mode differs (as "") or a gradient does, either's number, by parameter;
            None if no loss was given.
    """

    first: Ran
    second: Ran
    gap: float
    behaving: tuple[str, ...]
    random: bool
    changes: bool
    buffers: Mapping[str, tuple[float, float]]
    training: Mapping[str, tuple[float, float]] | None


def compared(first: nn.Module, second: nn.Module, inputs: Any, call: Call, loss: Loss | None) -> Compared:
    """Run both, the second with the first's values in every parameter that has the same name and shape.

    Raises:
        ProbeInputError: a model cannot be copied, or returned no floating-point tensor.
        Exception: whatever the reader's own code raises.
    """
    try:
        with double_by_default(), CastsInDouble():
            twins = double_twin_of(first), double_twin_of(second)
            return _compared(*twins, in_double(inputs), call, loss, ROUNDING_IN_DOUBLE)
    except Exception:
        # Code may insist on its own precision; then it is compared there.
        pass
    try:
        twins = twin_of(first), twin_of(second)
    except Exception as error:
        raise ProbeInputError(f"a model cannot be copied ({type(error).__name__}: {error})") from error
    return _compared(*twins, inputs, call, loss, ROUNDING_IN_EPSILONS * torch.finfo(torch.float32).eps)


def _compared(
    first: nn.Module, second: nn.Module, inputs: Any, call: Call, loss: Loss | None, rounding: float
) -> Compared:
    models = first, second
    share(first, second)
    buffers = _buffers_apart(first, second)
    for name in _written(second, buffers, inputs, call):
        second.get_buffer(name).copy_(first.get_buffer(name))
        del buffers[name]
    passes = [_ran(twin_of(module), inputs, call) for module in models]
    again = [_ran(twin_of(module), inputs, call, other_seed=True) for module in models]
    random = any(_gap(one.outputs, other.outputs) > rounding for one, other in zip(passes, again))
    differ = [] if random else [path for path in passes[0].calls if _behaves(path, models, passes, rounding)]
    innermost = [path for path in differ if not any(_inside(other, path) for other in differ)]
    gap = _gap(passes[0].outputs, passes[1].outputs)
    gap = gap if gap > rounding else 0.0
    passes = [_woken(ran, module, inputs, call) for ran, module in zip(passes, models)]
    changes = bool(gap) or _changes(*models, inputs, call, rounding)
    training = None if loss is None else _training(models, inputs, loss, rounding)
    return Compared(*passes, gap, tuple(innermost), random, changes, buffers, training)


def share(first: nn.Module, second: nn.Module) -> None:
    """Copy the first's values into the second's parameters of the same name and shape.

    A parameter with two names gets the values of the first one.
    """
    values = dict(first.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, own in second.named_parameters():
            if name in values and values[name].shape == own.shape and values[name].dtype == own.dtype:
                own.copy_(values[name])


def _buffers_apart(first: nn.Module, second: nn.Module) -> dict[str, tuple[float, float]]:
    """Return the shared buffers of the same shape with other values, with the norm of either."""
    others, found = dict(second.named_buffers()), {}
    for name, one in first.named_buffers():
        other = others.get(name)
        if other is not None and one.shape == other.shape and not torch.equal(one, other.to(one)):
            found[name] = tuple(each.double().norm().item() for each in (one, other))
    return found


def _written(module: nn.Module, names: Mapping[str, Any], inputs: Any, call: Call) -> list[str]:
    """Return those of the buffers that a pass in training mode writes: they are state, such as running statistics."""
    if not names:
        return []
    twin = twin_of(module).train()
    before = {name: twin.get_buffer(name).clone() for name in names}
    try:
        with _watched():
            call(twin, fresh_copy(inputs))
    except Exception:
        # A model may need more than its inputs to be trained.
        return []
    return [name for name in names if not torch.equal(twin.get_buffer(name), before[name])]


def _woken(ran: Ran, module: nn.Module, inputs: Any, call: Call) -> Ran:
    """Return the same, the parameters that noise on the weights wakes (behind a gate at zero) among the used."""
    try:
        noisy = _ran(jittered_twin_of(module), inputs, call)
    except Exception:
        # Other weights can leave the domain of the reader's own code.
        return ran
    return replace(ran, used=ran.used | noisy.used)


def _changes(first: nn.Module, second: nn.Module, inputs: Any, call: Call, rounding: float) -> bool:
    """Return whether the outputs differ with the same noise on shared weights, in training mode, or that is unknown."""
    twins = [jittered_twin_of(module).train() for module in (first, second)]
    share(*twins)
    try:
        outputs = [_ran(twin, inputs, call, other_seed=True).outputs for twin in twins]
    except Exception:
        return True
    return _gap(*outputs) > rounding


def _training(models: tuple[nn.Module, ...], inputs: Any, loss: Loss, rounding: float) -> dict[str, tuple]:
    """Return the loss (as "") and the norms of gradients that differ in training mode under the same random numbers."""
    values, gradients = zip(*[_taught(twin_of(module).train(), inputs, loss) for module in models])
    found = {"": values} if abs(values[0] - values[1]) > rounding * max(map(abs, values)) else {}
    sizes = [gradient.square().mean().sqrt().item() for each in gradients for gradient in each.values()]
    for name in gradients[0].keys() & gradients[1].keys():
        one, other = gradients[0][name], gradients[1][name]
        if one.shape == other.shape and (one - other).abs().max().item() > rounding * max(sizes):
            found[name] = one.norm().item(), other.norm().item()
    return {name: found[name] for name in ["", *gradients[0]] if name in found}


def _taught(module: nn.Module, inputs: Any, loss: Loss) -> tuple[float, dict[str, Tensor]]:
    named = {name: value for name, value in module.named_parameters() if value.requires_grad and value.numel()}
    with _watched():
        reseed_all(module)
        value = checked_loss(loss(module, fresh_copy(inputs)))
        found = torch.autograd.grad(value, list(named.values()), allow_unused=True, materialize_grads=True)
    return value.item(), dict(zip(named, (gradient.detach().to_dense() for gradient in found)))


@contextmanager
def _watched() -> Iterator[None]:
    """Build graphs, leave the generators alone, and call submodules rather than the fused kernel of a whole layer."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with random_left_as_found(), torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def _ran(module: nn.Module, inputs: Any, call: Call, other_seed: bool = False) -> Ran:
    calls: dict[str, tuple[tuple, dict, Any]] = {}
    with _watched(), ExitStack() as hooks:
        if other_seed:
            reseed_all(module)
        for path, part in module.named_modules():
            hooks.callback(part.register_forward_pre_hook(_before(calls, path), with_kwargs=True).remove)
            hooks.callback(part.register_forward_hook(_after(calls, path), with_kwargs=True).remove)
        outputs = _tensors(call(module, fresh_copy(inputs)))
        if not outputs:
            raise ProbeInputError("the model returned no floating-point tensor; give call=lambda model, inputs: …")
        used = _used(module, list(outputs.values()))
    complete = {path: each for path, each in calls.items() if len(each) == 3}
    return Ran({place: leaf.detach() for place, leaf in outputs.items()}, frozenset(calls), used, complete)


def _used(module: nn.Module, outputs: list[Tensor]) -> frozenset[str]:
    """Return the parameters that get a gradient from some output, by a sum with random weights that cancels nothing."""
    named = module.named_parameters(remove_duplicate=False)
    parameters = {name: parameter for name, parameter in named if parameter.requires_grad}
    generator = torch.Generator().manual_seed(0)
    with_graph = [leaf for leaf in outputs if leaf.requires_grad]
    if not parameters or not with_graph:
        return frozenset()
    total = sum((leaf * torch.randn(leaf.shape, generator=generator).to(leaf)).sum() for leaf in with_graph)
    found = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    return frozenset(name for name, g in zip(parameters, found) if g is not None and bool(g.any()))


def _behaves(path: str, models: tuple[nn.Module, ...], passes: list[Ran], rounding: float) -> bool:
    """Return whether the two submodules of a path return something else for the same arguments, the other's both times.

    One that does not repeat its own output when it is called alone cannot be compared so.
    """
    if not path or path not in passes[1].calls:
        return False
    returned = [_tensors(ran.calls[path][2]) for ran in passes]
    if _gap(*returned) <= rounding:
        return False

    def repeats(place: int, caller: int) -> bool:
        arguments, keywords, _ = fresh_copy(passes[caller].calls[path])
        try:
            with _watched():
                again = twin_of(models[place].get_submodule(path))(*arguments, **keywords)
        except Exception:
            # What does not take the same arguments is not the same.
            return False
        return _gap(returned[caller], {where: leaf.detach() for where, leaf in _tensors(again).items()}) <= rounding

    if any(repeats(place, caller) for place, caller in permutations(range(2))):
        return False
    return all(repeats(place, place) for place in range(2))


def _gap(first: Outputs, second: Outputs) -> float:
    """Return the largest difference next to the first's size, of what both return: one may return more (weights)."""
    places = [place for place in first if place in second]
    pairs = [(first[place], second[place]) for place in places]
    pairs = pairs or list(zip(list(first.values())[:1], list(second.values())[:1]))
    if any(one.shape != other.shape for one, other in pairs) or bool(first) != bool(second):
        return float("inf")
    largest = 0.0
    for one, other in pairs:
        same = (one == other) | (one.isnan() & other.isnan())
        apart = torch.where(same, 0.0, (one - other).abs()).nan_to_num(nan=torch.inf)
        finite = one[one.isfinite()].double()
        size = finite.square().mean().sqrt().item() if finite.numel() else 0.0
        largest = max(largest, apart.max().item() / (size or 1.0)) if apart.numel() else largest
    return largest


def _inside(path: str, owner: str) -> bool:
    return path != owner and (not owner or path.startswith(f"{owner}."))


def _tensors(returned: Any) -> dict[str, Tensor]:
    """Return the floating-point tensors of nested containers, by their place."""
    leaves = tree_flatten_with_path(returned)[0]
    return {keystr(path): leaf for path, leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()}


def _before(calls: dict, path: str) -> Callable:
    def keep(_part: nn.Module, arguments: tuple, keywords: Mapping) -> None:
        if path not in calls:
            calls[path] = (fresh_copy(arguments), fresh_copy(dict(keywords)))

    return keep


def _after(calls: dict, path: str) -> Callable:
    def keep(_part: nn.Module, _arguments: tuple, _keywords: Mapping, out: Any) -> None:
        if len(calls[path]) == 2:
            calls[path] = (*calls[path], fresh_copy(out))

    return keep
