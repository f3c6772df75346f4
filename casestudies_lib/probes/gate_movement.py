"""Train copies for some steps, with and without decay on the gates, to tell what moves them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from casestudies_lib.probes.guard import random_left_as_found
from casestudies_lib.probes.inputs import Loss, checked_loss
from casestudies_lib.probes.movement import twin_optimiser
from casestudies_lib.probes.twins import twin_of

# Without an optimiser of the reader's, this one tells whether a silent gate wakes up.
STAND_IN_RATE = 1e-4


@dataclass(frozen=True)
class Path:
    """Where one gate goes in some steps.

    Attributes:
        end: its values after the last step, flat.
        pulled: for each entry, whether it had a gradient other than zero in any step.
    """

    end: Tensor
    pulled: Tensor


@dataclass(frozen=True)
class Motion:
    """What some steps do to the gates; `unknown` says why where that could not be tried.

    Attributes:
        steps: how many were taken.
        decayed: each gate's path under the optimiser as it is.
        free: the same with weight decay off for the gates alone; None where the optimiser has no setting of that name.
        stand_in: whether the optimiser is not the reader's, so that only `pulled` means anything.
    """

    steps: int
    decayed: dict[str, Path]
    free: dict[str, Path] | None
    stand_in: bool
    unknown: str = ""


def motion_of(
    module: nn.Module, loss: Loss, batches: Sequence[Any], optimiser: Optimizer | None, names: list[str], steps: int
) -> Motion:
    """Return where the gates go in some steps over these batches, taken in turn; the module and optimiser are read."""
    try:
        decayed = _path(module, loss, batches, optimiser, names, steps, decay=True)
        has_decay = optimiser is not None and any("weight_decay" in group for group in optimiser.param_groups)
        free = _path(module, loss, batches, optimiser, names, steps, decay=False) if has_decay else None
    except Exception as error:
        # An optimiser of the reader's own may want a closure, and a loss may break after a step.
        kind = "the stand-in Adam" if optimiser is None else f"a copy of {type(optimiser).__name__}"
        return Motion(steps, {}, None, optimiser is None, f"{kind} could not step ({type(error).__name__}: {error})")
    return Motion(steps, decayed, free, optimiser is None)


def _path(
    module: nn.Module,
    loss: Loss,
    batches: Sequence[Any],
    optimiser: Optimizer | None,
    names: list[str],
    steps: int,
    decay: bool,
) -> dict[str, Path]:
    with random_left_as_found(), torch.inference_mode(False), torch.enable_grad():
        twin = twin_of(module)
        twin.zero_grad(set_to_none=True)
        gates = {name: twin.get_parameter(name) for name in names}
        stepper = _stepper(module, twin, optimiser, gates, decay)
        pulled = {name: torch.zeros(gate.numel(), dtype=torch.bool) for name, gate in gates.items()}
        for step in range(steps):
            checked_loss(loss(twin, batches[step % len(batches)])).backward()
            for name, gate in gates.items():
                if gate.grad is not None:
                    pulled[name] |= (gate.grad != 0).flatten().cpu()
            stepper.step()
            twin.zero_grad(set_to_none=True)
        return {name: Path(gate.detach().double().cpu().flatten(), pulled[name]) for name, gate in gates.items()}


def _stepper(
    module: nn.Module, twin: nn.Module, optimiser: Optimizer | None, gates: dict[str, nn.Parameter], decay: bool
) -> Optimizer:
    if optimiser is None:
        return torch.optim.Adam([p for p in twin.parameters() if p.requires_grad], lr=STAND_IN_RATE)
    copied = twin_optimiser(optimiser, dict(zip(module.parameters(), twin.parameters())))
    if not decay:
        _without_decay(copied, list(gates.values()))
    return copied


def _without_decay(optimiser: Optimizer, gates: list[Tensor]) -> None:
    """Move the gates into groups of their own, like those that they stood in, but without weight decay."""
    chosen = {id(gate) for gate in gates}
    split = []
    for group in optimiser.param_groups:
        own = [parameter for parameter in group["params"] if id(parameter) in chosen]
        if own and "weight_decay" in group:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in chosen]
            split.append({**group, "params": own, "weight_decay": 0.0})
    optimiser.param_groups = [group for group in optimiser.param_groups if group["params"]] + split
