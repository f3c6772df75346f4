"""Check what a reader hands to a probe; every error says what came and what to give instead."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from casestudies_lib.probes.result import ProbeInputError

Loss = Callable[[nn.Module, Any], Tensor]


def check_module(module: object) -> None:
    """Refuse what is not a module with parameters.

    Raises:
        ProbeInputError: not a module, no parameters, or parameters that have no shape yet.
    """
    if not isinstance(module, nn.Module):
        raise ProbeInputError(f"module is {kind_of(module)}; give the torch.nn.Module that the loss trains")
    parameters = list(module.parameters())
    if not parameters:
        raise ProbeInputError(f"module {type(module).__name__} has no parameters; give the one that the loss trains")
    if any(is_lazy(parameter) for parameter in parameters):
        raise ProbeInputError("module has lazy parameters without a shape; run one batch through it first")


def check_loss(loss: object) -> None:
    """Refuse what cannot be called as `loss(module, batch)`.

    Raises:
        ProbeInputError: not a function; a criterion such as nn.MSELoss is none of (module, batch).
    """
    if not callable(loss) or isinstance(loss, nn.Module | type):
        raise ProbeInputError(
            f"loss is {kind_of(loss)}; give a function of (module, batch) that returns one number, such as "
            "lambda module, batch: criterion(module(batch[0]), batch[1])"
        )


def check_optimiser(module: nn.Module, optimiser: object) -> None:
    """Refuse what is neither None nor an optimiser over the module's parameters.

    Raises:
        ProbeInputError: another type, or parameters that are not the module's.
    """
    if optimiser is None:
        return
    if not isinstance(optimiser, Optimizer):
        raise ProbeInputError(
            f"optimiser is {kind_of(optimiser)}; give one torch.optim.Optimizer or None (with several, ask for each)"
        )
    own = {id(parameter) for parameter in module.parameters()}
    held = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    foreign = [tuple(parameter.shape) for parameter in held if id(parameter) not in own]
    if foreign:
        raise ProbeInputError(
            f"optimiser holds {len(foreign)} of {len(held)} parameters that are not in module "
            f"{type(module).__name__} (the first has shape {foreign[0]}); give the module that holds them all, and "
            "build the optimiser when the module is complete and on its device"
        )


def optimisers_of(given: object) -> list[Optimizer]:
    """Return the optimisers that were given: none, one or several, out of the wrappers that trainers put around them.

    They may hold parameters outside the module, such as those of a criterion.

    Raises:
        ProbeInputError: something that is not an optimiser.
    """
    several = [] if given is None else list(given) if isinstance(given, list | tuple) else [given]
    found = [_unwrapped(one, Optimizer, "optimizer") for one in several]
    for optimiser in found:
        if not isinstance(optimiser, Optimizer):
            raise ProbeInputError(
                f"optimiser is {kind_of(optimiser)}; give one torch.optim.Optimizer, a list of all that train, or None"
            )
    return found


def _unwrapped(value: Any, kind: type, name: str) -> Any:
    """Return what wrappers such as those of accelerate hold under a name, as long as it is of a kind."""
    while isinstance(inner := getattr(value, name, None), kind):
        value = inner
    return value


def check_whole_number(name: str, value: object, least: int) -> None:
    """Refuse what is not a whole number of at least `least`.

    Raises:
        ProbeInputError: names the argument.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ProbeInputError(f"{name} is {value!r}; give a whole number, {least} or more")


def check_share(name: str, value: object) -> None:
    """Refuse what is not a number from 0 to 1.

    Raises:
        ProbeInputError: names the argument.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ProbeInputError(f"{name} is {value!r}; give a number from 0 to 1")


def checked_loss(value: object) -> Tensor:
    """Return the loss if it is one finite number with a graph.

    Raises:
        ProbeInputError: says what the loss function returned instead.
    """
    if not isinstance(value, Tensor):
        raise ProbeInputError(f"loss returned {kind_of(value)}; return the loss as a tensor of one number")
    if value.numel() != 1:
        raise ProbeInputError(f"loss returned a tensor of shape {tuple(value.shape)}; reduce it, such as by .mean()")
    if not value.is_floating_point():
        raise ProbeInputError(f"loss returned a number of type {value.dtype}; return a real floating-point number")
    if not value.requires_grad:
        raise ProbeInputError(
            "loss returned a number without a graph: it depends on no trainable parameter; remove detach(), item() or "
            "no_grad() from its path, and let it use the module that it is given"
        )
    if not torch.isfinite(value):
        raise ProbeInputError(
            f"loss is {value.item()}; give a batch on which it is finite. If a term has weight zero, look there first: "
            "0 * inf and 0 * nan are nan, so such a term must be skipped, not multiplied"
        )
    return value


def kind_of(value: object) -> str:
    """Return what a value is, in words for an error message."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return "None" if value is None else f"a {type(value).__name__}"
