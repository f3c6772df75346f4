"""Let copies of parameters take steps under a copy of the reader's optimiser."""

import copy
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer


@dataclass(frozen=True)
class Movement:
    """What some steps with a fixed gradient do to one parameter.

    Attributes:
        start: Euclidean norm before.
        end: Euclidean norm after.
        change: Euclidean norm of the difference.
        state_bytes: memory that the optimiser keeps for it, bytes.
    """

    start: float
    end: float
    change: float
    state_bytes: int


def simulate(optimiser: Optimizer, gradients: Mapping[Tensor, Tensor | None], steps: int) -> dict[Tensor, Movement]:
    """Return how far each parameter moves in some steps with the same gradient (None: no gradient) every time.

    The reader's parameters and optimiser are only read. Copied are the parameters asked for, their group's settings
    (learning rate, weight decay and the rest as they stand now) and their state (momentum, moments, counts).

    Raises:
        Exception: whatever the optimiser's own step raises, such as a demand for a closure.
    """
    held = {parameter for group in optimiser.param_groups for parameter in group["params"]}
    twins = {parameter: parameter.detach().clone().requires_grad_() for parameter in gradients if parameter in held}
    if not twins:
        return {}
    twin = twin_optimiser(optimiser, twins)
    for _ in range(steps):
        for parameter, copied in twins.items():
            gradient = gradients[parameter]
            copied.grad = None if gradient is None else gradient.detach().clone()
        twin.step()
    return {
        parameter: _movement(parameter.detach(), copied.detach(), state_bytes(twin, copied))
        for parameter, copied in twins.items()
    }


def twin_optimiser(optimiser: Optimizer, twins: dict[Tensor, Tensor]) -> Optimizer:
    """Return an optimiser of the same class with the same settings and state, over the twins alone.

    Built by the protocol that pickling uses, so that no constructor has to be guessed; the reader's step hooks and the
    wrapper that a learning-rate scheduler puts around `step` stay behind.
    """
    memo = {id(parameter): twin for parameter, twin in twins.items()}
    groups = [_twin_group(group, twins) for group in optimiser.param_groups]
    state = {twin: copy.deepcopy(optimiser.state[p], memo) for p, twin in twins.items() if p in optimiser.state}
    twin = object.__new__(type(optimiser))
    twin.__setstate__(
        {
            "defaults": copy.deepcopy(optimiser.defaults),
            "state": defaultdict(dict, state),
            "param_groups": [group for group in groups if group["params"]],
        }
    )
    return twin


def state_bytes(optimiser: Optimizer, parameter: Tensor) -> int:
    """Return the bytes of the tensors that the optimiser keeps for a parameter."""
    state = optimiser.state.get(parameter, {})
    return sum(value.numel() * value.element_size() for value in state.values() if isinstance(value, Tensor))


def _twin_group(group: dict, twins: dict[Tensor, Tensor]) -> dict:
    settings = {name: copy.deepcopy(value) for name, value in group.items() if name != "params"}
    return {**settings, "params": [twins[parameter] for parameter in group["params"] if parameter in twins]}


def _movement(before: Tensor, after: Tensor, kept: int) -> Movement:
    start, end = (_real(value).to("cpu", torch.float64) for value in (before, after))
    norms = [torch.linalg.vector_norm(value).item() for value in (start, end, end - start)]
    return Movement(*norms, state_bytes=kept)


def _real(value: Tensor) -> Tensor:
    return torch.view_as_real(value) if value.is_complex() else value
