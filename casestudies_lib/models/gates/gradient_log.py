"""Log the norms of chosen parameters' gradients while a training loop runs, and leave no hook behind."""

import fnmatch
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import pandas as pd
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook


class GradientLog:
    """The norms logged so far; made by `log_gradient_norms`."""

    def __init__(self, module: nn.Module, names: str | Iterable[str], every: int) -> None:
        known, patterns = dict(module.named_parameters()), [names] if isinstance(names, str) else names
        self._named = {name: known[name] for pattern in patterns for name in _matching(pattern, known)}
        self._every, self._step = every, 0
        self._own = set(map(id, known.values()))
        self._rows: list[tuple[int, str, Tensor]] = []

    def table(self) -> pd.DataFrame:
        """Return one row a logged step and parameter: step (from 0), name, norm.

        The norm is Euclidean, of the gradient that the optimiser was about to use (after clipping, before weight
        decay); NaN is none at all (`.grad` was None), and 0 is a gradient of zeros.
        """
        rows = [(step, name, float(norm)) for step, name, norm in self._rows]
        return pd.DataFrame(rows, columns=["step", "name", "norm"])

    def _about_to_step(self, optimiser: Optimizer, *_: object) -> None:
        held = (id(parameter) for group in optimiser.param_groups for parameter in group["params"])
        if self._own.isdisjoint(held):
            return  # another model's optimiser: the hook stands on all of them
        if self._step % self._every == 0:
            self._rows += [(self._step, name, _norm(parameter)) for name, parameter in self._named.items()]
        self._step += 1


@contextmanager
def log_gradient_norms(module: nn.Module, names: str | Iterable[str], every: int = 1) -> Iterator[GradientLog]:
    """Log gradient norms of named parameters at every N-th step of the one optimiser that trains the module.

    Wrap the training loop, which stays as it is::

        with log_gradient_norms(model, ["blocks.*.alpha"], every=100) as log:
            train(model)
        log.table()

    Steps are those of the optimiser, so gradient accumulation counts as one. The hook stands on optimisers, reads
    gradients only, and leaves with the block, also after an error; the log can still be read then.

    Args:
        module: the model that is trained.
        names: names of its parameters, or patterns such as `"*alpha"`; one, or several.
        every: steps between two logged ones, the first being step 0.

    Raises:
        ValueError: a name or pattern that matches no parameter.
    """
    log = GradientLog(module, names, every)
    handle = register_optimizer_step_pre_hook(log._about_to_step)
    try:
        yield log
    finally:
        handle.remove()


def _matching(pattern: str, known: Iterable[str]) -> list[str]:
    if not (found := fnmatch.filter(known, pattern)):
        raise ValueError(f"{pattern!r} matches no parameter; there are {', '.join(known)}")
    return found


@torch.no_grad()
def _norm(parameter: Tensor) -> Tensor:
    if parameter.grad is None:
        return torch.tensor(torch.nan)
    # In double precision, where the square of a tiny gradient does not vanish: zero must mean zero.
    return torch.linalg.vector_norm(parameter.grad, dtype=torch.float64)
