"""Did anything move since N batches, and did the optimiser step as often as it should?"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from casestudies_lib.probes.inputs import check_module, check_whole_number, kind_of, optimisers_of
from casestudies_lib.probes.result import ProbeInputError, ProbeResult
from casestudies_lib.probes.steps.answer import answer
from casestudies_lib.probes.steps.evidence import Evidence, Rate, note_rates
from casestudies_lib.probes.steps.traces import (
    Averaged,
    Gradients,
    Trail,
    average_move,
    listen,
    moves,
    pile_counters,
    read_counters,
    read_gradients,
    read_start,
    steps_between,
    trainable,
)


def stepping(
    module: nn.Module,
    optimiser: Optimizer | Sequence[Optimizer],
    *,
    accumulation: int,
    scheduler: Any = None,
    ema: Averaged | None = None,
    ema_decay: float | None = None,
    every: int = 100,
) -> "Watch":
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


class Watch:
    """Watches a training loop; made by `stepping`."""

    def __init__(
        self,
        module: nn.Module,
        optimisers: list[Optimizer],
        scheduler: Any,
        average: Averaged | None,
        decay: float | None,
        accumulation: int,
        every: int,
    ):
        """Note where everything stands; see `stepping` for the arguments."""
        self._module, self._optimisers, self._scheduler = module, optimisers, scheduler
        self._average, self._decay = average, decay
        self._accumulation, self._every = accumulation, every
        self._start = read_start(module, optimisers, scheduler, average)
        self._rates: list[Rate] = []
        note_rates(self._rates, optimisers, wait=True)
        self._lengths: list[int] = []
        self._unfinished: list[int] = []
        self._calls: list[int] | None = None
        self._step_rate: float | None = None
        self._pile_counters = pile_counters(self._start.objects, optimisers)
        self._looks: list[Gradients] = []
        self._trail: Trail | None = None
        self._next_sample, self._look_at_next_step = 1, True
        self._depth, self._hooks = 0, ExitStack()

    def __call__(self, batches: Iterable[Any]) -> "WatchedBatches":
        """Return the batches, unchanged and in order, and watch what happens between them.

        Raises:
            ProbeInputError: nothing to loop over.
        """
        if not isinstance(batches, Iterable):
            raise ProbeInputError(f"batches is {kind_of(batches)}; give what your loop runs over, such as a DataLoader")
        return WatchedBatches(self, batches)

    def __enter__(self) -> "Watch":
        """Start to count the optimiser's steps."""
        if not self._depth:
            self._put_hooks()
        self._depth += 1
        return self

    def __exit__(self, *error: object) -> None:
        """Take all hooks away."""
        self._depth -= 1
        if not self._depth:
            self._hooks.close()

    def batch(self) -> None:
        """Say that a batch is done; only for a loop inside `with watch:` that is not wrapped."""
        if not self._lengths:
            self._epoch()
        self._lengths[-1] += 1
        done = sum(self._lengths)
        if self._trail is not None:
            self._trail.note_frozen(done)
        if done >= self._next_sample:
            self._sample(done)
            self._next_sample = done + max(1, min(self._every, done // 8))

    def result(self, batches: int | None = None) -> ProbeResult:
        """Return the answer for what has happened so far; ask as often as you like.

        Args:
            batches: how many there were, if the watch has not counted them.

        Raises:
            ProbeInputError: not a whole number, or not what the watch has counted.
        """
        return answer(self._evidence(self._checked(batches)))

    def _epoch(self) -> None:
        self._lengths.append(0)
        self._unfinished.append(0)

    def _put_hooks(self) -> None:
        self._calls = self._calls or [0] * len(self._optimisers)
        self._trail = self._trail or Trail(self._start.objects)
        with ExitStack() as hooks:
            for number, optimiser in enumerate(self._optimisers):
                if "_optimizer_step_post_hooks" in vars(optimiser):
                    hooks.callback(optimiser.register_step_post_hook(partial(self._stepped, number)).remove)
                else:
                    # A wrapper that never called Optimizer.__init__ has no hooks; its state may still count.
                    self._calls = None
            for counter in self._pile_counters:
                # One that was frozen since takes no hook.
                if counter.parameter.requires_grad:
                    hooks.callback(listen(counter))
            self._hooks = hooks.pop_all()

    def _stepped(self, number: int, *call: object) -> None:
        if self._calls is not None:
            self._calls[number] += 1
        note_rates(self._rates, self._optimisers, wait=False)
        rates = [rate.last for rate in self._rates if rate.last is not None]
        self._step_rate = max([*rates, self._step_rate or 0.0]) if rates else self._step_rate
        if self._look_at_next_step:
            self._look_at_next_step = False
            self._looks.append(read_gradients(self._start.objects, sum(self._lengths)))

    def _sample(self, batch: int) -> None:
        note_rates(self._rates, self._optimisers, wait=True)
        if self._look_at_next_step:
            # No step has come since the last sample, so the gradients are seen only here.
            self._looks.append(read_gradients(self._start.objects, batch))
        self._look_at_next_step = True
        if self._trail is not None:
            self._trail.sample(batch)

    def _checked(self, batches: int | None) -> list[int] | None:
        """Return the finished batches of each epoch."""
        if batches is None:
            return self._lengths
        check_whole_number("batches", batches, 0)
        counted = sum(self._lengths) + sum(self._unfinished)
        if counted and counted != batches:
            raise ProbeInputError(f"batches is {batches}, yet the watch has counted {counted}; leave batches out")
        return self._lengths if counted else [batches]

    @torch.no_grad()
    def _evidence(self, lengths: list[int]) -> Evidence:
        note_rates(self._rates, self._optimisers, wait=True)
        start, before, trail = self._start, self._start.counters, self._trail
        after = read_counters(start.objects, self._optimisers, self._scheduler, self._average)
        counted = steps_between(before, after)
        steps = max(self._calls or [0]) or counted
        average = None
        if self._average is not None and start.objects:
            average = average_move(self._module, start, self._average, self._decay, after, steps)
        held = {id(p) for optimiser in self._optimisers for group in optimiser.param_groups for p in group["params"]}
        now = trainable(self._module).items()
        return Evidence(
            optimiser=" and ".join(dict.fromkeys(type(optimiser).__name__ for optimiser in self._optimisers)),
            accumulation=self._accumulation,
            lengths=tuple(lengths),
            unfinished=sum(self._unfinished),
            calls=None if self._calls is None else tuple(self._calls),
            owners=tuple(number for number, one in enumerate(self._optimisers) for _ in one.param_groups),
            counted=counted,
            moves=tuple(moves(self._module, self._optimisers, start)),
            rates=tuple(self._rates),
            step_rate=self._step_rate,
            scheduled=self._scheduler is not None,
            schedule=None if after.schedule is None else after.schedule - (before.schedule or 0),
            average=average,
            decay=self._decay,
            looks=(*self._looks, read_gradients(start.objects, sum(lengths))),
            passes=max((counter.passes for counter in self._pile_counters), default=0),
            pile=max((int(counter.longest) for counter in self._pile_counters), default=0),
            broken=max((int(counter.broken) for counter in self._pile_counters), default=0),
            stopped={} if trail is None else trail.stopped(),
            frozen={} if trail is None else trail.frozen_since(),
            thawed={name: id(parameter) in held for name, parameter in now if name in start.frozen},
        )


class WatchedBatches:
    """The batches of a loop, unchanged; made by calling a watch."""

    def __init__(self, watch: Watch, batches: Iterable[Any]):
        """Watch these batches whenever they are looped over."""
        self._watch, self._batches = watch, batches

    def __len__(self) -> int:
        """Return how many there are, if the batches know."""
        return len(self._batches)

    def __iter__(self) -> Iterator[Any]:
        """Hand out every batch; the hooks leave with the loop, however it ends."""
        watch = self._watch
        with watch:
            watch._epoch()
            for batch in self._batches:
                # A loop that breaks may or may not have finished the batch in hand.
                watch._unfinished[-1] = 1
                yield batch
                watch._unfinished[-1] = 0
                watch.batch()


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
