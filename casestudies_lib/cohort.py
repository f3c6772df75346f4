"""The same small model under many seeds at once, with a plain loop as its oracle.

A step of a small model is mostly Python and dispatch, not arithmetic. `train` stacks the weights of all seeds and takes
every step once (`torch.func.vmap`); `train_one_by_one` takes the same arguments and does what you would write by hand.
They agree to rounding. The gain grows with the seeds and shrinks as batches grow, and the first call costs a second of
imports: measure at your own sizes before you choose.

Source: torch.func, "Model ensembling".
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

Batch = Any  # a tensor, or tuples, named tuples, lists, dictionaries and dataclasses of tensors
Loss = Callable[[nn.Module, Batch], Tensor]
MakeOptimiser = Callable[[list[Tensor]], torch.optim.Optimizer]
Watch = Callable[[int, Tensor, Sequence[nn.Module]], None]
_ELEMENT_WISE = ("SGD", "Adam", "AdamW", "Adagrad", "Adamax", "NAdam", "RAdam", "RMSprop", "Adadelta")


class CohortError(ValueError):
    """These models cannot run side by side; the message says why, and what to do."""


@dataclass(frozen=True)
class Cohort:
    """Models whose weights lie side by side, the seed on the first axis.

    Each model's own parameters and buffers are views into `parameters` and `buffers`: what changes here changes there.
    """

    models: Sequence[nn.Module]
    parameters: dict[str, Tensor]
    buffers: dict[str, Tensor]

    @property
    def trainable(self) -> list[Tensor]:
        """Return the stacked parameters that take gradients, in the order in which the model declares them."""
        return [value for value in self.parameters.values() if value.requires_grad]


class _WithLoss(nn.Module):
    """A model and its loss as one module, so that the loss may use the model in whatever way it likes."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, batch: Batch) -> Tensor:
        return self.loss(self.model, batch)


def stack(models: Sequence[nn.Module]) -> Cohort:
    """Put the weights of several models side by side.

    Args:
        models: one a seed, equal in all but the values of their parameters and buffers.

    Raises:
        CohortError: no model, one model twice, or models that differ in structure, in settings or in what is frozen.
    """
    models = list(models)
    _check_alike(models)
    parameters, buffers = stack_module_state(models)
    for place, model in enumerate(models):
        for own, stacked in ((model.named_parameters(), parameters), (model.named_buffers(), buffers)):
            for name, value in own:
                value.data = stacked[name].data[place]
    return Cohort(models, parameters, buffers)


def _check_alike(models: list[nn.Module]) -> None:
    if not models:
        raise CohortError("no model; give one for each seed")
    if len({id(model) for model in models}) < len(models):
        raise CohortError("one model stands twice in the cohort; build one for each seed")
    first = dict(_traits(models[0]))
    for place, model in enumerate(models[1:], start=1):
        traits = dict(_traits(model))
        for name in sorted(first.keys() | traits.keys()):
            here, there = first.get(name, "absent"), traits.get(name, "absent")
            if not _same(here, there):
                raise CohortError(
                    f"model {place} differs from model 0 in {name}: {_short(there)} instead of {_short(here)}; only "
                    "values of parameters and buffers may differ, so train such models one by one or as two cohorts"
                )


def _traits(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield all that makes a model what it is, values of parameters and buffers aside."""
    for path, part in model.named_modules():
        prefix = f"{path}." if path else ""
        yield f"the type of {path or 'the model'}", type(part)
        for name, value in vars(part).items():
            if isinstance(value, bool | int | float | str | Tensor) and name != "call_super_init":
                yield prefix + name, value
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        kind = "frozen" if isinstance(value, nn.Parameter) and not value.requires_grad else "trained"
        yield f"the shape of {name}", (tuple(value.shape), value.dtype, value.device, kind)


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return first.shape == second.shape and torch.equal(first, second)
    return type(first) is type(second) and first == second


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def losses(cohort: Cohort, loss: Loss, batches: Sequence[Batch]) -> Float[Tensor, " seeds"]:
    """Return the loss of each model on its own batch, all in one pass.

    The sum's gradient is, for each model, the gradient of its own loss: no model's weights appear in another's.

    Args:
        cohort: the models.
        loss: takes a model and a batch and returns one number.
        batches: one a seed, equal in structure and shapes.

    Raises:
        CohortError: batches that do not stack, or a model or loss that cannot run under `vmap`.
    """
    if len(batches) != len(cohort.models):
        raise CohortError(f"{len(batches)} batches for {len(cohort.models)} models; give one for each seed")
    stacked = _stacked(batches)
    together = _WithLoss(cohort.models[0], loss)
    rebuild = batches[0]

    def of_one(parameters: dict[str, Tensor], buffers: dict[str, Tensor], tensors: list[Tensor]) -> Tensor:
        state = {f"model.{name}": value for name, value in (parameters | buffers).items()}
        return functional_call(together, state, (_filled(rebuild, iter(tensors)),))

    try:
        with warnings.catch_warnings():
            # An operation without a batching rule is looped over by torch itself: slower, and still right.
            warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
            found = vmap(of_one)(cohort.parameters, cohort.buffers, stacked)
    except (RuntimeError, ValueError) as error:
        raise _refusal(error) from error
    if found.shape != (len(batches),):
        raise CohortError(f"the loss has shape {tuple(found.shape[1:])} a seed; reduce it to one number")
    return found


_BY_VALUE = "(`.item()`, `if loss > 1:`, a boolean mask as index): use torch.where, or multiply by the mask"
_REFUSALS = {
    "random operation": "it draws random numbers in its forward pass (dropout?): draw them outside and hand them over "
    "in the batch, or set the rate to 0",
    "data-dependent control flow": f"it asks for the value of a tensor {_BY_VALUE}",
    ".item()": f"it asks for the value of a tensor {_BY_VALUE}",
    "data-dependent operation": f"the shape of a result depends on values {_BY_VALUE}",
    "dynamic": f"the shape of a result depends on values {_BY_VALUE}",
}


def _refusal(error: Exception) -> Exception:
    """Return an error that says what to do where torch refuses to vectorise; others are the model's own."""
    text = str(error)
    if "vmap" not in text and "functorch" not in text:
        return error
    known = (words for sign, words in _REFUSALS.items() if sign in text)
    reason = next(known, "an operation in it cannot be taken for many seeds at once")
    return CohortError(
        f"model or loss cannot run under many seeds at once: {reason}; or train them one by one "
        f"(train_one_by_one takes the same arguments). torch says: {text.splitlines()[0]}"
    )


def _taken_apart(batch: Batch, leaves: list[Tensor]) -> tuple:
    """Append the tensors of a batch to `leaves` and return its form: structure, shapes, and all that is no tensor."""
    if isinstance(batch, Tensor):
        leaves.append(batch)
        return (batch.shape, batch.dtype)
    if isinstance(batch, tuple | list):
        return (type(batch), *[_taken_apart(part, leaves) for part in batch])
    if isinstance(batch, dict):
        return (dict, *[(key, _taken_apart(part, leaves)) for key, part in batch.items()])
    if is_dataclass(batch) and not isinstance(batch, type):
        return (type(batch), *[_taken_apart(getattr(batch, field.name), leaves) for field in fields(batch)])
    if batch is None or isinstance(batch, bool | int | float | str):
        return (type(batch), batch)
    raise CohortError(f"a batch holds a {type(batch).__name__}; give tensors, numbers and texts, in whatever nesting")


def _filled(batch: Batch, tensors: Iterator[Tensor]) -> Batch:
    """Return a batch of the same structure with these tensors in place of its own."""
    if isinstance(batch, Tensor):
        return next(tensors)
    if isinstance(batch, tuple | list):
        parts = [_filled(part, tensors) for part in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    if isinstance(batch, dict):
        return {key: _filled(value, tensors) for key, value in batch.items()}
    if is_dataclass(batch):
        return replace(batch, **{field.name: _filled(getattr(batch, field.name), tensors) for field in fields(batch)})
    return batch


def _stacked(batches: Sequence[Batch]) -> list[Tensor]:
    tensors: list[list[Tensor]] = [[] for _ in batches]
    forms = [_taken_apart(batch, leaves) for batch, leaves in zip(batches, tensors)]
    for place, form in enumerate(forms):
        if form != forms[0]:
            raise CohortError(
                f"batch {place} is not of the form of batch 0: {_short(form)} instead of {_short(forms[0])}; give "
                "every seed a batch of equal shapes and settings (pad, or leave the odd rows out)"
            )
    return [torch.stack(leaves) for leaves in zip(*tensors)]


def clip(cohort: Cohort, limit: float) -> Float[Tensor, " seeds"]:
    """Scale the gradients of each model so that their norm, over all of that model's parameters, is at most `limit`.

    Returns:
        The norms before clipping, one a seed.

    Source: torch.nn.utils.clip_grad_norm_, whose 1e-6 in the denominator is kept.
    """
    gradients = [value.grad for value in cohort.trainable if value.grad is not None]
    norms = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in gradients]).norm(dim=0)
    shares = (limit / (norms + 1e-6)).clamp(max=1)
    for gradient in gradients:
        gradient.mul_(shares.view(-1, *[1] * (gradient.dim() - 1)))
    return norms


def train(
    models: Sequence[nn.Module],
    loss: Loss,
    batches: Iterable[Sequence[Batch]],
    make_optimiser: MakeOptimiser,
    *,
    schedule: Callable[[int], float] | None = None,
    limit: float | None = None,
    watch: Watch | None = None,
) -> Float[Tensor, "steps seeds"]:
    """Train several models side by side, each from its own weights on its own batches; `models` hold the result.

    Args:
        models: one a seed, equal in all but the values of their parameters and buffers. Frozen parameters stay.
        loss: takes a model and a batch and returns one number. A weight that differs between seeds goes in the batch.
        batches: for each step one batch a seed.
        make_optimiser: takes parameters, returns an element-wise optimiser, such as
            `lambda parameters: torch.optim.AdamW(parameters, lr=3e-3)`.
        schedule: takes a step, counted from 0, and returns the factor on the learning rate.
        limit: the largest norm that a model's gradient keeps, each model by itself.
        watch: called after each step with the step, the losses (one a seed, before the step) and the models.

    Returns:
        The losses before each step.

    Raises:
        CohortError: models, batches or loss do not suit; an optimiser that mixes the elements of a tensor; no step.
    """
    cohort = stack(models)
    try:
        optimiser = _checked(make_optimiser(cohort.trainable))
        rates, record = [group["lr"] for group in optimiser.param_groups], []
        for step, batch in enumerate(batches):
            _set_rates(optimiser, rates, schedule, step)
            optimiser.zero_grad()
            found = losses(cohort, loss, batch)
            found.sum().backward()
            if limit is not None:
                clip(cohort, limit)
            optimiser.step()
            record.append(found.detach())
            if watch is not None:
                watch(step, record[-1], cohort.models)
    finally:  # each model gets tensors of its own again, with the values of now
        for model in cohort.models:
            for value in (*model.parameters(), *model.buffers()):
                value.data = value.data.clone()
    return _recorded(record)


def train_one_by_one(
    models: Sequence[nn.Module],
    loss: Loss,
    batches: Iterable[Sequence[Batch]],
    make_optimiser: MakeOptimiser,
    *,
    schedule: Callable[[int], float] | None = None,
    limit: float | None = None,
    watch: Watch | None = None,
) -> Float[Tensor, "steps seeds"]:
    """Do what `train` does in a plain loop over the models; this is its oracle, and runs what `vmap` cannot."""
    own = [[value for value in model.parameters() if value.requires_grad] for model in models]
    optimisers = [make_optimiser(parameters) for parameters in own]
    rates = [[group["lr"] for group in optimiser.param_groups] for optimiser in optimisers]
    record = []
    for step, batch in enumerate(batches):
        found = []
        for place, (model, optimiser) in enumerate(zip(models, optimisers, strict=True)):
            _set_rates(optimiser, rates[place], schedule, step)
            optimiser.zero_grad()
            value = loss(model, batch[place])
            value.backward()
            if limit is not None:
                nn.utils.clip_grad_norm_(own[place], limit)
            optimiser.step()
            found.append(value.detach())
        record.append(torch.stack(found))
        if watch is not None:
            watch(step, record[-1], models)
    return _recorded(record)


def _checked(optimiser: torch.optim.Optimizer) -> torch.optim.Optimizer:
    if type(optimiser).__name__ not in _ELEMENT_WISE:
        raise CohortError(
            f"{type(optimiser).__name__} may mix elements of a tensor, and here a tensor holds all seeds; allowed are "
            f"{', '.join(_ELEMENT_WISE)}, or train one by one"
        )
    return optimiser


def _set_rates(optimiser: torch.optim.Optimizer, rates: list[float], schedule, step: int) -> None:
    if schedule is not None:
        for group, rate in zip(optimiser.param_groups, rates):
            group["lr"] = rate * schedule(step)


def _recorded(record: list[Tensor]) -> Tensor:
    if not record:
        raise CohortError("no step was taken: batches is empty")
    return torch.stack(record)
