"""Log the norms of chosen parameters' gradients while a training loop runs, and leave no hook behind."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from casestudies_lib.probes.names import matching

if TYPE_CHECKING:
    import pandas

# Where single precision is worth its care: double takes five times as long on a CPU.
LARGE = 2**14
# Elements below this have squares at the bottom of single precision's range.
SQUARES_VANISH = 1e-15


class GradientLog:
    """The norms logged so far; made by `log_gradient_norms`."""

    def __init__(self, module: nn.Module, names: Iterable[str], every: int | None):
        """Prepare to log these parameters."""
        self._own = {id(parameter) for parameter in module.parameters()}
        self._named = {name: module.get_parameter(name) for name in names}
        self._every = every
        # None marks an optimiser that has nothing to do with the module.
        self._steps: dict[Optimizer, int | None] = {}
        self._logged: list[tuple[Optimizer, int, Tensor]] = []

    def table(self) -> "pandas.DataFrame":
        """Return one row a logged step and parameter: step (from 0), name, norm.

        The norm is Euclidean, of the gradient that the optimiser was about to use (after clipping, before weight
        decay); NaN is none at all (`.grad` was None), and 0 is a gradient of zeros.
        """
        import pandas

        held = self._held_by_any()
        rows = [
            (step, name, norm)
            for optimiser, step, norms in self._logged
            for (name, parameter), norm in zip(self._named.items(), norms.tolist(), strict=True)
            if id(parameter) in _held(optimiser) or (optimiser is self._first and id(parameter) not in held)
        ]
        frame = pandas.DataFrame(rows, columns=["step", "name", "norm"])
        return frame.astype({"step": "int64", "name": object, "norm": "float64"})

    @property
    def _first(self) -> Optimizer:
        return next(optimiser for optimiser, steps in self._steps.items() if steps is not None)

    def _held_by_any(self) -> set[int]:
        return set().union(*(_held(optimiser) for optimiser, steps in self._steps.items() if steps is not None))

    def _about_to_step(self, optimiser: Optimizer, *_: Any) -> None:
        if optimiser not in self._steps:
            self._steps[optimiser] = 0 if self._own & _held(optimiser) else None
        step = self._steps[optimiser]
        if step is None:
            return
        self._steps[optimiser] = step + 1
        if step % self._every == 0:
            # Numbers stay on their device until the table is asked for, so that logging never waits for it.
            norms = [_norm(parameter) for parameter in self._named.values()]
            self._logged.append((optimiser, step, torch.stack([norm.to(norms[0].device) for norm in norms])))


@contextmanager
def log_gradient_norms(module: nn.Module, names: str | Iterable[str], every: int | None = 1) -> Iterator[GradientLog]:
    """Log gradient norms of named parameters at every N-th step of the optimiser that holds them.

    Wrap the training loop, which stays as it is::

        with log_gradient_norms(model, ["blocks.*.alpha"], every=100) as log:
            train(model)
        log.table()

    Steps are those of the optimiser, so gradient accumulation counts as one, and each optimiser counts its own. A
    parameter that no optimiser holds is logged with the steps of the first. The one hook stands on optimisers, reads
    gradients only, and leaves with the block, also after an error; the log can still be read then. LBFGS, which
    computes gradients inside its step, shows those of the step before.

    Args:
        module: the model that is trained.
        names: parameter names or patterns such as `"*alpha"`.
        every: steps between two logged ones, the first being step 0; None logs nothing and sets no hook.

    Raises:
        UnknownName: a name or pattern that matches no parameter; lists near ones.
        ValueError: `every` is neither None nor a whole number from 1 on.
    """
    if every is not None and (isinstance(every, bool) or not isinstance(every, int) or every < 1):
        raise ValueError(f"every is {every!r}; give a whole number of steps, 1 or more, or None for no logging")
    known = [name for name, _ in module.named_parameters(remove_duplicate=False)]
    log = GradientLog(module, matching(names, known), every)
    if every is None:
        yield log
        return
    handle = register_optimizer_step_pre_hook(log._about_to_step)
    try:
        yield log
    finally:
        handle.remove()


def _held(optimiser: Optimizer) -> set[int]:
    return {id(parameter) for group in optimiser.param_groups for parameter in group["params"]}


@torch.no_grad()
def _norm(parameter: Tensor) -> Tensor:
    gradient = parameter.grad
    if gradient is None:
        return torch.full((), torch.nan, dtype=torch.float64, device=parameter.device)
    values = gradient.coalesce().values() if gradient.is_sparse else gradient
    values = torch.view_as_real(values) if values.is_complex() else values
    if values.numel() > LARGE and values.device.type == "cpu" and values.dtype != torch.float64:
        norm = torch.linalg.vector_norm(values, dtype=torch.float32)
        if SQUARES_VANISH < norm < torch.inf:
            return norm.double()
    # In double precision, where the square of a tiny gradient does not vanish: zero must mean zero.
    return torch.linalg.vector_norm(values, dtype=torch.float64)
