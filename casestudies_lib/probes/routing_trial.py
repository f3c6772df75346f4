"""Train copies of a reader's model for a few steps to see what of its router moves, and what moves it."""

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from casestudies_lib.probes.guard import random_left_as_found
from casestudies_lib.probes.inputs import Loss, kind_of
from casestudies_lib.probes.result import ProbeInputError
from casestudies_lib.probes.routing_passes import Parts, parts_of, slot_means, watched

Factory = Callable[[list[nn.Parameter]], Optimizer]


@dataclass(frozen=True)
class Move:
    """How far one statistic of a router moves in a trial.

    Attributes:
        whole: change over the size before, everything training (the change itself where the size is 0).
        held: the same with the router's own parameters held still: what the drift of its input does.
        task: the same on the task loss alone; None without an auxiliary loss.
    """

    whole: float
    held: float
    task: float | None


def trial(
    module: nn.Module,
    loss: Loss,
    auxiliary: Loss | None,
    batch: Any,
    names: Mapping[str, Any],
    factory: Factory,
    steps: int,
) -> dict[str, Move]:
    """Return how far the routers' outputs, parameters and buffers move in copies that train.

    Raises:
        ProbeInputError: the factory returns no optimiser.
        Exception: whatever copying the module or training the copy raises.
    """

    def both(twin: nn.Module, given: Any) -> Tensor:
        extra = auxiliary(twin, given)
        # A loss that is only printed has no graph, and adds nothing to the gradient.
        return loss(twin, given) + extra

    objective = loss if auxiliary is None else both
    before, whole = _trained(module, objective, batch, names, factory, steps, hold=False)
    _, held = _trained(module, objective, batch, names, factory, steps, hold=True)
    task = None if auxiliary is None else _trained(module, loss, batch, names, factory, steps, hold=False)[1]
    return {
        name: Move(
            _change(start, whole[name]),
            _change(start, held[name]),
            None if task is None else _change(start, task[name]),
        )
        for name, start in before.items()
    }


def _trained(
    module: nn.Module,
    objective: Loss,
    batch: Any,
    names: Mapping[str, Any],
    factory: Factory,
    steps: int,
    hold: bool,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the statistics before and after some steps of a copy."""
    twin = copy.deepcopy(module)
    parts = parts_of(twin, **names)
    own = {id(parameter) for part in parts.routers.values() for parameter in part.parameters()}
    with random_left_as_found(), torch.inference_mode(False), torch.enable_grad():
        before = _statistics(twin, objective, batch, parts)
        trained = [p for p in twin.parameters() if p.requires_grad and not (hold and id(p) in own)]
        optimiser = _optimiser(factory, trained) if trained else None
        for _ in range(steps if optimiser else 0):
            optimiser.zero_grad()
            objective(twin, batch).backward()
            optimiser.step()
        return before, _statistics(twin, objective, batch, parts)


def _optimiser(factory: Factory, trained: Iterable[nn.Parameter]) -> Optimizer:
    optimiser = factory(list(trained))
    if not isinstance(optimiser, Optimizer):
        raise ProbeInputError(
            f"optimiser returned {kind_of(optimiser)}; give a function of parameters that returns an Optimizer"
        )
    return optimiser


def _statistics(module: nn.Module, objective: Loss, batch: Any, parts: Parts) -> dict[str, Tensor]:
    with torch.no_grad(), random_left_as_found(), watched(parts.observed) as outputs:
        objective(module, batch)
    found = {
        f"{name}, mean output": slot_means([out for out, _ in kept], parts.observed[name][1])
        for name, kept in outputs.items()
        if kept
    }
    for name, part in parts.routers.items():
        for kind, tensors in (("parameter", part.named_parameters()), ("buffer", part.named_buffers())):
            found |= {f"{name}.{own}, {kind}": tensor.detach().double().clone() for own, tensor in tensors}
    return found


def _change(start: Tensor, end: Tensor) -> float:
    size = float(torch.linalg.vector_norm(start))
    return float(torch.linalg.vector_norm(end - start)) / (size or 1.0)
