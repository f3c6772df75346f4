"""Did anything move since N batches, and did the optimiser step as often as it should?"""

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from casestudies_lib.probes.inputs import check_module, check_whole_number, kind_of, optimisers_of
from casestudies_lib.probes.result import ProbeInputError
from casestudies_lib.probes.steps.traces import Averaged
from casestudies_lib.probes.steps.watch import Watch


def stepping(
    module: nn.Module,
    optimiser: Optimizer | Sequence[Optimizer],
    *,
    accumulation: int,
    scheduler: Any = None,
    ema: Averaged | None = None,
    ema_decay: float | None = None,
    every: int = 100,
) -> Watch:
    """Remember where training stands, to tell later whether it moved.

    Wrap your loop, which stays as it is::

        watch = stepping(model, optimiser, accumulation=16)
        for batch in watch(loader):
            ...
        watch.result()

    or, where the loop is out of reach, ask before and after: `watch.result(batches=2000)`. Between the two stands
    `with watch:`, with `watch.batch()` once a batch or `batches` at the end. An optimiser that keeps no step counter
    (SGD) can only be counted inside the first or the last.

    The optimiser's steps are counted by a hook, which leaves when the loop ends or breaks. "Moved" is an exact
    comparison of every value. Nothing of yours is changed, and no random number is drawn.

    Cost: one copy of the trainable parameters (and one of `ema` where it differs from them); two passes over parameters
    and gradients at each sample. Samples are dense at first and `every` batches apart later: below 2 % of the time.

    Args:
        module: the model that should move.
        optimiser: the one that should move it, or a list of all that do. A trainable parameter that gets a gradient and
            that none of them holds is a fault.
        accumulation: batches a step, 1 without gradient accumulation.
        scheduler: the learning-rate scheduler, with a `last_epoch` that it counts in.
        ema: averaged weights: an AveragedModel, a module with the same parameter names, or a mapping name to tensor.
        ema_decay: the average's decay a step, such as 0.999.
        every: most batches between two samples of learning rates, gradients and parameters.

    Returns:
        A watch; its `result()` is the answer.

    Raises:
        ProbeInputError: names the argument, what came and what to give.

    Source: the chapter distillation_loss.
    """
    check_module(module)
    optimisers = optimisers_of(optimiser)
    if not optimisers:
        raise ProbeInputError(f"optimiser is {optimiser}; give the torch.optim.Optimizer that should move the module")
    check_whole_number("accumulation", accumulation, 1)
    check_whole_number("every", every, 1)
    scheduler = _checked_scheduler(scheduler, optimisers)
    _check_decay(ema_decay)
    return Watch(module, optimisers, scheduler, ema, ema_decay, accumulation, every)


def _checked_scheduler(scheduler: Any, optimisers: list[Optimizer]) -> Any:
    """Return the scheduler, out of the wrapper that accelerate puts around it."""
    inner = getattr(scheduler, "scheduler", None)
    scheduler = inner if callable(getattr(inner, "step", None)) else scheduler
    if scheduler is not None and not callable(getattr(scheduler, "step", None)):
        raise ProbeInputError(
            f"scheduler is {kind_of(scheduler)}; give a learning-rate scheduler with a step(), or None"
        )
    driven = getattr(scheduler, "optimizer", None)
    if isinstance(driven, Optimizer) and not any(one is optimisers_of(driven)[0] for one in optimisers):
        raise ProbeInputError(
            f"scheduler drives another optimiser (a {type(driven).__name__}) than the one given; build the scheduler "
            "after the optimiser and over it"
        )
    return scheduler


def _check_decay(decay: object) -> None:
    if decay is None:
        return
    if isinstance(decay, bool) or not isinstance(decay, int | float) or not 0 <= decay <= 1:
        raise ProbeInputError(f"ema_decay is {decay!r}; give the decay a step, from 0 to 1, such as 0.999, or None")
