"""Do two models differ in the parts that an ablation names, and in nothing else?"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from casestudies_lib.probes.ablation.findings import ABSENT, DIFFERS, IDLE, SAME, Difference, Expectation, findings
from casestudies_lib.probes.ablation.runs import Call, Compared, compared
from casestudies_lib.probes.guard import left_as_found, random_left_as_found
from casestudies_lib.probes.inputs import Loss, check_loss, check_module, kind_of
from casestudies_lib.probes.result import Bar, ProbeInputError, ProbeResult, shown

OTHER_GRADIENT, OTHER_LOSS = "other gradient in training", "other loss in training"
EFFECTS = (OTHER_GRADIENT, OTHER_LOSS)
BEHAVES = "other output for the same arguments"
# Differences in what a model is made of, which need not reach any output.
BUILT = ("only in first", "only in second", "differs", "runs in one alone", "other values", BEHAVES)
COLUMNS = ("name", "kind", "difference", "first", "second", "expected")


@dataclass(frozen=True)
class Part:
    """A parameter or submodule as it shows from outside."""

    kind: str
    looks: str


def ablation_diff(
    first: nn.Module,
    second: nn.Module,
    *,
    inputs: Any = None,
    expected: str | Iterable[str] | None = None,
    call: Call | None = None,
    loss: Loss | None = None,
    values: bool = False,
) -> ProbeResult:
    """List what differs between two models, and hold it against what an ablation says should differ.

    Compared are parameters (names, shapes, frozen or not, tied or not), submodules (types and settings) and, with
    `inputs`, which submodules run, whether any output depends on what is there, and which submodules return something
    else for the same arguments. For that the models run on copies of themselves and of `inputs` (a key/value cache
    among them too), in double precision where they allow it. The second gets the first's values in every parameter that
    both have, so that other initial weights are no difference. Buffers stay each model's own, for they may be made from
    the settings (masks, rotation frequencies); those that training writes (running statistics) are shared. What one
    model returns beside what both return, such as attention weights, is left out.

    An expected name holds if something of that name, or inside it, differs, and some output depends on it. A difference
    is unexpected if neither it, nor what holds it, nor a differing part of it is named. A switch that shows in no
    setting is found by what it does: in the innermost submodule whose forward pass it changes; in the forward pass of
    the whole model as `""`; in training alone (dropout by function, the weight of an auxiliary loss) with `loss`, as
    `""` for the loss itself, and by the parameters that get other gradients. `"*"` expects any difference at all.

    Both models stay as they were, also after an error; a cache that `call` holds itself is not a copy. Cost: six to
    nine passes, and up to four more of a submodule whose output differs.

    Args:
        first: the model that is compared with, such as the row before.
        second: the model with the change.
        inputs: what both are run on: one argument, a tuple of arguments, or a mapping of keyword arguments; None
            compares what they are made of alone.
        expected: names of parameters or submodules that should differ, or patterns such as `"blocks.*.mlp"`; `""` is
            the whole model; an empty list says that nothing should differ; None asks for the list alone.
        call: how to run a model, `call(model, inputs)`; None passes inputs on as said above.
        loss: `loss(model, inputs)`, one number; both models are then compared in training mode too, under the same
            random numbers, where their outputs do not differ already.
        values: whether parameters with other values count as different, for models that were drawn from one seed.

    Returns:
        A result whose `ok` is False if an expected name does not differ, exists in neither model or changes no output,
        or something unexpected differs; None if nothing was said to be expected.

    Raises:
        ProbeInputError: names the argument, what came and what to give.

    Source: the chapter mixing_gates.
    """
    for name, model in (("first", first), ("second", second)):
        try:
            check_module(model)
        except ProbeInputError as error:
            raise ProbeInputError(f"{name}: {error}") from None
    if call is not None and not callable(call):
        raise ProbeInputError(f"call is {kind_of(call)}; give a function of (model, inputs), or None")
    if loss is not None:
        check_loss(loss)
    patterns = _patterns(expected)
    if inputs is None and (loss is not None or "" in (patterns or ())):
        raise ProbeInputError(
            "inputs is None; give what the models run on, without which only their parts are compared"
        )
    both = _parts(first), _parts(second)
    with left_as_found(first), left_as_found(second), random_left_as_found(), torch.inference_mode(False):
        run = None if inputs is None else compared(first, second, inputs, call or _call, loss)
    found = _structure(*both) + _ties(first, second) + (_values(first, second) if values else [])
    found += [] if run is None else _behaviour(run, *both)
    judged = [_judge(pattern, found, both, run) for pattern in patterns or ()]
    named = [] if patterns is None else [_is_named(each, found, patterns) for each in found]
    return _result((first, second), found, judged, named, run, patterns)


def _patterns(expected: object) -> list[str] | None:
    if expected is None:
        return None
    listed = [expected] if isinstance(expected, str) else list(expected) if isinstance(expected, Iterable) else [None]
    if not all(isinstance(name, str) for name in listed):
        raise ProbeInputError(f"expected is {expected!r}; give names or patterns such as ['blocks.*.mlp'], or None")
    return listed


def _call(model: nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def _parts(model: nn.Module) -> dict[str, Part]:
    parts = {path: Part("submodule", _looks(part)) for path, part in model.named_modules() if path}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        frozen = "" if parameter.requires_grad else ", frozen"
        parts[name] = Part("parameter", f"{_shape(parameter)}{frozen}")
    return parts


def _looks(part: nn.Module) -> str:
    # Containers tell their children, which are compared on their own.
    return type(part).__name__ + (f"({part.extra_repr()})" if part.extra_repr() else "")


def _shape(parameter: torch.Tensor) -> str:
    return "number" if not parameter.dim() else " × ".join(map(str, parameter.shape))


def _structure(first: Mapping[str, Part], second: Mapping[str, Part]) -> list[Difference]:
    found = []
    for name in dict.fromkeys([*first, *second]):
        one, other = first.get(name), second.get(name)
        if one == other:
            continue
        kind = (one or other).kind
        what = "only in second" if one is None else "only in first" if other is None else "differs"
        found.append(Difference(name, kind, what, one.looks if one else None, other.looks if other else None))
    return found


def _ties(first: nn.Module, second: nn.Module) -> list[Difference]:
    """Return the parameters that both have and that share memory with another one in one model alone."""
    sides = [dict(model.named_parameters(remove_duplicate=False)) for model in (first, second)]
    shared = [name for name in sides[0] if name in sides[1]]
    found = []
    for name in shared:
        tied = [next(other for other in shared if side[other] is side[name]) for side in sides]
        if tied[0] != tied[1]:
            words = ["on its own" if owner == name else f"tied to {owner}" for owner in tied]
            partners = tuple(owner for owner in tied if owner != name)
            found.append(Difference(name, "parameter", "tied in one alone", *words, partners))
    return found


def _values(first: nn.Module, second: nn.Module) -> list[Difference]:
    others, found = dict(second.named_parameters(remove_duplicate=False)), []
    for name, parameter in first.named_parameters(remove_duplicate=False):
        other = others.get(name)
        if other is not None and other.shape == parameter.shape and not torch.equal(parameter, other.to(parameter)):
            sizes = [f"norm {shown(each.detach().norm().item())}" for each in (parameter, other)]
            found.append(Difference(name, "parameter", "other values", *sizes))
    return found


def _behaviour(run: Compared, first: Mapping[str, Part], second: Mapping[str, Part]) -> list[Difference]:
    found = []
    for path, part in first.items():
        if part.kind == "submodule" and path in second:
            ran = [path in each.active for each in (run.first, run.second)]
            if ran[0] != ran[1]:
                words = ["runs" if each else "does not run" for each in ran]
                found.append(Difference(path, "submodule", "runs in one alone", *words))
    found += [Difference(path, "submodule", BEHAVES, None, None) for path in run.behaving]
    sizes = {name: [f"norm {shown(each)}" for each in pair] for name, pair in run.buffers.items()}
    found += [Difference(name, "buffer", "other values", *each) for name, each in sizes.items()]
    if run.gap and not run.behaving:
        found += [] if run.random else [Difference("", "the whole", "other output", None, None)]
    return found + ([] if run.gap and not run.random else _training(run))


def _training(run: Compared) -> list[Difference]:
    found = []
    for name, pair in (run.training or {}).items():
        kind, what = ("parameter", OTHER_GRADIENT) if name else ("the whole", OTHER_LOSS)
        found.append(Difference(name, kind, what, *map(shown, pair)))
    return found


def _judge(
    pattern: str, found: Sequence[Difference], both: tuple[Mapping[str, Part], ...], run: Compared | None
) -> Expectation:
    known = list(dict.fromkeys(["", *both[0], *both[1], *(each.name for each in found)]))
    matched = [name for name in known if _covers(pattern, name)]
    if not matched:
        near = get_close_matches(pattern, known, n=4, cutoff=0.5)
        return Expectation(pattern, ABSENT, tuple(near))
    covered = [each for each in found if any(_covers(pattern, name) for name in (each.name, *each.also))]
    differing = tuple(dict.fromkeys(each.name for each in covered))
    if not differing:
        return Expectation(pattern, SAME, tuple(filter(None, matched)))
    if run is None or any(each.what not in BUILT for each in covered):
        return Expectation(pattern, DIFFERS, differing)
    behaves = any(each.what == BEHAVES for each in covered)
    tensors = () if behaves else tuple(each.name for each in covered if each.kind == "parameter")
    frozen = {name for side in both for name, part in side.items() if part.looks.endswith("frozen")}
    idle = not (run.first.used | run.second.used | frozen).intersection(tensors) if tensors else not run.changes
    return Expectation(pattern, IDLE if idle else DIFFERS, tensors or differing, bool(tensors))


def _covers(pattern: str, name: str) -> bool:
    """Return whether a pattern names this part or something that it is part of."""
    pieces = name.split(".")
    return any(fnmatchcase(".".join(pieces[:length]), pattern) for length in range(1, len(pieces) + 1))


def _is_named(each: Difference, found: Sequence[Difference], patterns: Sequence[str]) -> bool:
    def covered(name: str) -> bool:
        return any(_covers(pattern, name) for pattern in patterns)

    # Other gradients are consequences: they reach whatever lies before the part that makes them.
    effects = [other.name for other in found if other.what in EFFECTS] if each.what in EFFECTS else []
    inside = [other.name for other in found if other.name != each.name and _is_inside(other.name, each.name)]
    return any(map(covered, (each.name, *each.also, *inside, *effects)))


def _is_inside(name: str, owner: str) -> bool:
    return not owner or name.startswith(f"{owner}.")


def _result(
    models: tuple[nn.Module, nn.Module],
    found: list[Difference],
    judged: list[Expectation],
    named: list[bool],
    run: Compared | None,
    patterns: list[str] | None,
) -> ProbeResult:
    counts = [sum(parameter.numel() for parameter in model.parameters()) for model in models]
    unexpected = [each for each, fine in zip(found, named) if not fine]
    listed = findings(found, judged, unexpected, run)
    ok = None if patterns is None else not any(finding.severity != "note" for finding in listed)
    seen = run is not None and run.training is not None and all(each.what in EFFECTS for each in found)
    silent = run is not None and run.random and ok is True and not seen
    reason = (
        "expected is None, so nothing can be missing; name the parts that should differ" if patterns is None else ""
    )
    if silent:
        ok, reason = None, "a forward pass draws random numbers, so outputs say nothing; call eval() on both models"
    labels = named or [None] * len(found)
    return ProbeResult(
        probe="ablation_diff",
        ok=ok,
        headline=_headline(counts, found, judged, unexpected),
        findings=tuple(listed),
        columns=COLUMNS,
        rows=tuple((e.name or "the whole", e.kind, e.what, e.first, e.second, fine) for e, fine in zip(found, labels)),
        bars=(Bar("first", float(counts[0]), False), Bar("second", float(counts[1]), ok is False)),
        bar_unit="parameters, numbers",
        measures=_measures(counts, found, judged, unexpected, run),
        reason=reason,
    )


def _headline(counts: list[int], found: list, judged: list[Expectation], unexpected: list) -> str:
    names = len({each.name for each in found})
    text = f"{names} parts differ; {shown(counts[0])} and {shown(counts[1])} parameters ({counts[1] - counts[0]:+d})"
    missing = [expectation.pattern or "the whole model" for expectation in judged if expectation.verdict != DIFFERS]
    text += f"; expected, but not so: {', '.join(missing)}" if missing else ""
    return text + (f"; unexpected: {len({each.name for each in unexpected})}." if unexpected else ".")


def _measures(
    counts: list[int], found: list[Difference], judged: list[Expectation], unexpected: list, run: Compared | None
) -> dict[str, Any]:
    def names(kind: str, what: str) -> list[str]:
        return [each.name for each in found if (each.kind, each.what) == (kind, what)]

    return {
        "parameters_first": counts[0],
        "parameters_second": counts[1],
        "only_first": names("parameter", "only in first"),
        "only_second": names("parameter", "only in second"),
        "reshaped": names("parameter", "differs"),
        "output_difference": None if run is None or run.random else run.gap,
        "behaving_differently": None if run is None or run.random else list(run.behaving),
        "inactive_first": None if run is None else _inactive(run.first.active, found, "first"),
        "inactive_second": None if run is None else _inactive(run.second.active, found, "second"),
        "training_differs": None if run is None or run.training is None else list(run.training),
        "expected": {expectation.pattern: expectation.verdict for expectation in judged},
        "unexpected": list(dict.fromkeys(each.name for each in unexpected)),
    }


def _inactive(active: frozenset[str], found: list[Difference], side: str) -> list[str]:
    """Return the submodules among the differences that this model has and does not run."""
    return [e.name for e in found if e.kind == "submodule" and getattr(e, side) is not None and e.name not in active]
