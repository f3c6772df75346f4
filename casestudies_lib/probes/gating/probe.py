"""Is each gate alive, what moves it, and does the branch that it opens carry anything?"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from casestudies_lib.probes.gating.bench import (
    DRAWS,
    SIGMOID,
    TANH,
    Bench,
    Evaluation,
    Motion,
    bench_of,
    mean_motion,
    motion_of,
    root_mean_square,
)
from casestudies_lib.probes.gating.findings import (
    ABSORBED,
    ABSORBING,
    ASLEEP,
    DEAD,
    DETACHED,
    FAULTY,
    LEARNS,
    MISSED,
    UNKNOWN,
    Reading,
    findings,
)
from casestudies_lib.probes.guard import left_as_found, random_left_as_found
from casestudies_lib.probes.inputs import (
    Loss,
    check_loss,
    check_module,
    check_optimiser,
    check_share,
    check_whole_number,
    kind_of,
)
from casestudies_lib.probes.names import UnknownName, matching
from casestudies_lib.probes.result import Bar, ProbeInputError, ProbeResult

COLUMNS = (
    "gate",
    "value",
    "opening",
    "slope, % of steepest",
    "gradient",
    "finite difference",
    "branch, root mean square",
    "share of output, %",
    "movement",
    "moved by decay, %",
    "state",
)
MOST_ENTRIES = 128
# Open and closed: a plain factor at 1 and 0, a squashed one so far out that nothing is left to add.
_ENDS = {None: (1.0, 0.0), SIGMOID: (40.0, -40.0), TANH: (20.0, 0.0)}
_BESIDE_ZERO = 1e-3
# Steps of the finite difference, and by how much it may miss the gradient.
_NUDGE, _COARSE_NUDGE, _MISSES = 1e-5, 1e-2, 0.05


def gates(
    model: nn.Module,
    loss: Loss,
    batch: Any,
    *,
    names: str | Iterable[str],
    branches: Mapping[str, str] | None = None,
    optimiser: Optimizer | None = None,
    further_batches: Sequence[Any] = (),
    steps: int = 20,
    saturated: float = 0.1,
    mostly_decay: float = 0.75,
) -> ProbeResult:
    """Tell for each scalar or per-head gate whether it learns, what moves it, and what its branch carries.

    A gate is *dead* if its gradient is zero, stays so over some steps of training, and opening it changes no loss:
    nothing flows through the branch. It is *absorbed* if it sits where it is out of the graph while elsewhere it has a
    gradient, as at zero under `if alpha > 0`; *absorbing* if it can still get there, across zero; and *detached* if the
    loss moves with it and the gradient says nothing. All of that is measured: the gate is put to other values on copies
    (in double precision where the model allows it), and loss, gradient and output are read.

    Copies also take some steps under a copy of the optimiser, as it is and with weight decay off for the gates; the
    difference is what decay does. The steps see `batch` and `further_batches` in turn: a single batch pulls the same
    way at every step, and so makes gradients look stronger than they are in training.

    A gate's branch is what comes out of the submodule that owns the gate with the gate open (1, or far out in its
    sigmoid or tanh) less what comes out with it closed; with `branches`, it is that submodule's own output.

    A loss that draws random numbers (dropout) is stepped under eight draws, whose mean counts; where one draw more or
    less would change the answer, `ok` is None.

    The module stays as it was, also after an error; the optimiser is only read. Cost: about seven passes an entry and
    `steps` steps twice (sixteen times with random numbers), each pass with a copy of the model.

    Args:
        model: the model, in the mode (train or eval) you ask about.
        loss: called as `loss(module, batch)` with copies of the model; returns one finite number.
        batch: whatever your loss takes.
        names: gates by parameter name or pattern such as `"*.alpha"`; one number, or one a head.
        branches: for a gate's name, that of the submodule whose output it multiplies.
        optimiser: the one that trains the model; None leaves movement unknown.
        further_batches: more batches for the steps.
        steps: how many to take, at the present learning rate.
        saturated: a warning if a sigmoid's or tanh's mean slope is below this share of its steepest.
        mostly_decay: a warning if decay makes at least this share of a gate's movement; it is a half where decay and
            gradient hold each other.

    Returns:
        A result whose `ok` is False if a gate cannot learn, may fall into a place where it cannot, is saturated, is
        moved mostly by decay, or its gradient has little to do with the loss. `measures` holds the numbers by gate.

    Raises:
        ProbeInputError: names the argument, what came and what to give; for a gate that does not exist, near names.

    Source: the chapter mixing_gates.
    """
    check_module(model)
    check_loss(loss)
    check_optimiser(model, optimiser)
    check_whole_number("steps", steps, 1)
    check_share("saturated", saturated)
    check_share("mostly_decay", mostly_decay)
    chosen = _chosen(model, names)
    multiplied = _checked_branches(model, branches, chosen)
    batches = [batch, *_checked_batches(further_batches)]
    with left_as_found(model), random_left_as_found():
        chains = {name: _owners(model, name) for name in chosen}
        watched = sorted({path for chain in [*chains.values(), list(multiplied.values())] for path in chain})
        bench, base = bench_of(model, loss, batch, chosen, watched)
        motion = motion_of(model, loss, batches, optimiser, chosen, steps)
        readings = [
            _reading(model, bench, base, motion, optimiser, (name, index), chains[name], multiplied.get(name))
            for name in chosen
            for index in range(model.get_parameter(name).numel())
        ]
    return _result(readings, motion, saturated, mostly_decay)


def _chosen(model: nn.Module, names: str | Iterable[str]) -> list[str]:
    known = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    try:
        chosen = matching(names, known, "gate")
    except UnknownName as error:
        raise ProbeInputError(str(error)) from None
    for name in chosen:
        parameter = model.get_parameter(name)
        axes = [length for length in parameter.shape if length != 1]
        if len(axes) > 1 or parameter.numel() > MOST_ENTRIES or not parameter.numel():
            raise ProbeInputError(
                f"gate {name!r} has shape {tuple(parameter.shape)}; a gate is one number, or one for each of at most "
                f"{MOST_ENTRIES} heads. Give the name of such a parameter"
            )
        if not parameter.is_floating_point():
            raise ProbeInputError(f"gate {name!r} is of type {parameter.dtype}; a gate is a real floating-point number")
    return chosen


def _checked_branches(model: nn.Module, branches: object, chosen: list[str]) -> dict[str, str]:
    if branches is None:
        return {}
    if not isinstance(branches, Mapping):
        raise ProbeInputError(f"branches is {kind_of(branches)}; give a mapping from gate names to submodule names")
    paths = [path for path, _ in model.named_modules()]
    try:
        for gate, path in branches.items():
            matching([gate], chosen, "chosen gate")
            matching([path], paths, "submodule")
    except UnknownName as error:
        raise ProbeInputError(f"branches: {error}") from None
    return dict(branches)


def _checked_batches(further: object) -> list[Any]:
    if isinstance(further, Tensor | Mapping | str) or not isinstance(further, Sequence):
        raise ProbeInputError(f"further_batches is {kind_of(further)}; give a list of batches")
    return list(further)


def _owners(model: nn.Module, name: str) -> list[str]:
    """Return the submodules around a gate, the nearest first, whose output its branch may show in."""
    pieces = name.split(".")[:-1]
    paths = [".".join(pieces[:length]) for length in range(len(pieces), -1, -1)]
    # In a layer of torch's own the gate is its bias or weight; what it multiplies is found around that layer.
    return [path for path in paths if not path or not type(model.get_submodule(path)).__module__.startswith("torch.nn")]


def _reading(
    model: nn.Module,
    bench: Bench,
    base: Evaluation,
    motion: Motion,
    optimiser: Optimizer | None,
    entry: tuple[str, int],
    chain: list[str],
    multiplied: str | None,
) -> Reading:
    name, index = entry
    parameter = model.get_parameter(name)
    value = parameter.detach().flatten()[index].item()
    squash = base.squashes.get(name)
    opened, closed = (bench.at(name, index, end) for end in _ENDS[squash.kind if squash else None])
    owner = next((path for path in chain if path in base.outputs), None)
    branch = _branch(base, opened, closed, owner, multiplied)
    opening = squash.opening[index] if squash else value
    whole = root_mean_square(base.outputs[owner]) if owner is not None else 0.0
    moved, by_decay = _moved(motion, name, index, value)
    state, difference, point = _state(bench, base, motion, entry, value, squash is not None, (opened, closed))
    held = optimiser is None or any(parameter is p for group in optimiser.param_groups for p in group["params"])
    return Reading(
        gate=name if parameter.numel() == 1 else f"{name}[{index}]",
        value=value,
        squash=squash.kind if squash else "",
        opening=opening,
        slope=squash.slope[index] if squash else None,
        gradient=base.gradient(name, index),
        difference=difference,
        branch=branch,
        share=abs(opening) * branch / whole if branch is not None and whole else None,
        moved=moved,
        by_decay=by_decay,
        decay_range=_decay_range(motion, name, index, value),
        # A gate that nothing may move needs no further reason.
        state=state if parameter.requires_grad and held else MISSED,
        frozen=not parameter.requires_grad,
        point=point,
        distorted=state == LEARNS and _distorted(bench, base, entry, difference),
    )


def _branch(
    base: Evaluation, opened: Evaluation | None, closed: Evaluation | None, owner: str | None, multiplied: str | None
) -> float | None:
    if multiplied is not None:
        return root_mean_square(base.outputs[multiplied]) if multiplied in base.outputs else None
    if owner is None or opened is None or closed is None:
        return None
    first, second = opened.outputs.get(owner), closed.outputs.get(owner)
    if first is None or second is None or first.shape != second.shape:
        return None
    return root_mean_square(first - second)


def _moved(motion: Motion, name: str, index: int, value: float) -> tuple[float | None, float | None]:
    """Return how far the steps carry an entry, and the share of decay in that; None where that is unknown."""
    if motion.unknown or motion.stand_in:
        return None, None
    moved = motion.decayed[name].end[index].item() - value
    if motion.free is None:
        return moved, None
    pulled = motion.free[name].end[index].item() - value
    decay = moved - pulled
    both = abs(decay) + abs(pulled)
    return moved, abs(decay) / both if both else None


def _decay_range(motion: Motion, name: str, index: int, value: float) -> tuple[float, float] | None:
    """Return the least and largest share of decay with one draw of the loss's random numbers left out at a time."""
    without_one = [mean_motion([*motion.draws[:k], *motion.draws[k + 1 :]]) for k in range(len(motion.draws))]
    shares = [share for each in without_one if (share := _moved(each, name, index, value)[1]) is not None]
    return (min(shares), max(shares)) if shares else None


def _state(
    bench: Bench,
    base: Evaluation,
    motion: Motion,
    entry: tuple[str, int],
    value: float,
    squashed: bool,
    ends: tuple[Evaluation | None, Evaluation | None],
) -> tuple[str, float | None, bool]:
    """Return the state, the finite difference of the loss, and whether zero alone, not a whole side, is out."""
    name, index = entry
    nudge = (_NUDGE if bench.precision == torch.float64 else _COARSE_NUDGE) * max(1.0, abs(value))
    up, down = bench.at(name, index, value + nudge), bench.at(name, index, value - nudge)
    difference = None if up is None or down is None else (up.loss - down.loss) / (2 * nudge)
    if base.gradient(name, index):
        if squashed:
            return LEARNS, difference, False
        region, point = _out_beside_zero(bench, entry, value, ends[1])
        return (ABSORBING if region else LEARNS), difference, point
    if not motion.unknown and motion.decayed[name].pulled[index]:
        return ASLEEP, difference, False
    around = [up, down, *ends, *(bench.at(name, index, side) for side in (_BESIDE_ZERO, -_BESIDE_ZERO))]
    tried = [place for place in around if place is not None]
    if any(place.gradient(name, index) for place in tried):
        return ABSORBED, difference, False
    if any(place.loss != base.loss for place in tried):
        return DETACHED, difference, False
    return (UNKNOWN if motion.unknown else DEAD), difference, False


def _out_beside_zero(
    bench: Bench, entry: tuple[str, int], value: float, at_zero: Evaluation | None
) -> tuple[bool, bool]:
    """Return whether a live gate is out of the graph on the far side of zero, and whether it is at zero alone."""
    sides = {sign: bench.at(*entry, sign * _BESIDE_ZERO) for sign in (1, -1)}
    out = {sign: side is not None and not side.gradient(*entry) for sign, side in sides.items()}
    if not value:
        return any(out.values()), False
    near = 1 if value > 0 else -1
    if out[near]:
        return True, False
    zero_out = at_zero is not None and not at_zero.gradient(*entry)
    return out[-near], zero_out and not out[-near]


def _distorted(bench: Bench, base: Evaluation, entry: tuple[str, int], difference: float | None) -> bool:
    gradient = base.gradient(*entry)
    if difference is None or not gradient or not math.isfinite(gradient):
        return False
    nudge = _NUDGE if bench.precision == torch.float64 else _COARSE_NUDGE
    noise = 100 * torch.finfo(bench.precision).eps * max(abs(base.loss), 1.0) / nudge
    return abs(difference - gradient) > _MISSES * max(abs(difference), abs(gradient)) + noise


def _result(readings: list[Reading], motion: Motion, saturated: float, mostly_decay: float) -> ProbeResult:
    found = findings(readings, motion, saturated, mostly_decay)
    unknown = [reading.gate for reading in readings if reading.state == UNKNOWN]
    open_gates = [reading.gate for reading in readings if reading.hangs_on_a_draw(mostly_decay)]
    ok = False if any(finding.severity != "note" for finding in found) else None if unknown or open_gates else True
    reason = f"{', '.join(unknown[:4])}: no gradient, and {motion.unknown}" if unknown else ""
    if not unknown and open_gates:
        reason = (
            f"{', '.join(open_gates[:4])}: whether decay makes {100 * mostly_decay:g} % of the movement depends on the "
            f"random numbers that the loss draws ({DRAWS} draws); take more steps, or ask in eval mode"
        )
    counts = {state: sum(reading.state == state for reading in readings) for state in dict.fromkeys(_states(readings))}
    return ProbeResult(
        probe="gates",
        ok=ok,
        headline=f"Of {len(readings)} gates, " + ", ".join(f"{n} {state}" for state, n in counts.items()) + ".",
        findings=tuple(found),
        columns=COLUMNS,
        rows=tuple(_row(reading) for reading in readings),
        bars=tuple(
            Bar(reading.gate, 100 * reading.share, reading.state in FAULTY)
            for reading in readings
            if reading.share is not None and math.isfinite(reading.share)
        ),
        bar_unit="gate times branch, % of the owner's output (root mean square)",
        measures={reading.gate: reading.measures() for reading in readings} | {"steps": motion.steps},
        reason=reason if ok is None else "",
    )


def _states(readings: list[Reading]) -> list[str]:
    return [reading.state for reading in readings]


def _row(reading: Reading) -> tuple[Any, ...]:
    def in_percent(share: float | None) -> float | None:
        return None if share is None else 100 * share

    return (
        reading.gate,
        reading.value,
        reading.opening,
        in_percent(reading.slope),
        reading.gradient,
        reading.difference,
        reading.branch,
        in_percent(reading.share),
        reading.moved,
        in_percent(reading.by_decay),
        "frozen" if reading.frozen else reading.state,
    )
