"""What `stepping` concludes: whether anything moved, why not, and what to do about it."""

import math

from casestudies_lib.probes.result import SEVERITIES, Finding, listed, percent, shown
from casestudies_lib.probes.steps.evidence import Evidence
from casestudies_lib.probes.steps.traces import Average, Move

CHAPTER = "distillation_loss"
AVERAGE = "averaged weights (ema)"
# Loss scalers drop a few steps: so much, or one step, is worth a note only.
TOLERANCE = 0.1


def findings(evidence: Evidence) -> list[Finding]:
    """Return all findings, the worst first."""
    found = [
        *_nothing_moved(evidence),
        *_count(evidence),
        *_rate(evidence),
        *_stopped(evidence),
        *_flipped(evidence),
        *_broken_values(evidence),
        *_replaced(evidence),
        *_piles(evidence),
        *_broken_gradients(evidence),
        *_schedule(evidence),
        *_average(evidence),
        *_unmoved(evidence),
    ]
    return sorted(found, key=lambda finding: -SEVERITIES.index(finding.severity))


def _nothing_moved(evidence: Evidence) -> list[Finding]:
    """Nothing moved although it should have."""
    if evidence.moved or not evidence.expected or not evidence.compared or evidence.warms_up:
        return []
    batches, steps = shown(evidence.batches), evidence.steps
    took = f"took {shown(steps)} steps" if steps else "took no step" if steps == 0 else "left no trace of a step"
    meaning, remedy = _causes(evidence)
    measured = (
        f"None of {len(evidence.compared)} trainable tensors changed in {batches} batches; the {evidence.optimiser} "
        f"{took}, where {shown(evidence.expected)} were expected."
    )
    return [_finding("fault", "all parameters", measured, meaning, remedy)]


def _causes(evidence: Evidence) -> tuple[str, str]:
    """Return what most likely keeps everything in place, and what to do."""
    if not evidence.steps:
        return _no_step_causes(evidence)
    remedy = "Build the optimiser over the very model that the loss runs, when it is complete and on its device."
    if all(move.group is None for move in evidence.compared):
        meaning = "The optimiser holds none of these parameters: it was built over a copy, or before the model was."
        return meaning, remedy
    if not evidence.has_gradients:
        return (
            "The optimiser steps, but its parameters never had a gradient: the loss trains other tensors than the "
            "optimiser holds (a copy, or a model that was built again), or its path is cut by detach() or no_grad().",
            remedy,
        )
    if evidence.rate_zero:
        return "The learning rate was 0 at every step.", "See the finding about the learning rate."
    if evidence.broken or any(math.isinf(look.largest) for look in evidence.looks):
        return (
            "Gradients hold nan or infinity, and a loss scaler withholds such steps without an error.",
            "Look for the first operation that overflows; lower the scaler's initial scale, or train in bfloat16.",
        )
    if not any(look.largest for look in evidence.looks):
        return (
            "Every gradient seen was exactly zero, or had been cleared before the step.",
            "Call backward() between zero_grad() and step(); the probe idle_parameters finds a loss of weight zero.",
        )
    return (
        "The steps are smaller than the parameters' precision can hold (usual in half precision), or something puts "
        "the old weights back.",
        "Keep the weights in float32 under autocast, or raise the learning rate; look for load_state_dict in the loop.",
    )


def _no_step_causes(evidence: Evidence) -> tuple[str, str]:
    if evidence.broken:
        return (
            f"{shown(evidence.broken)} of {shown(evidence.passes)} backward passes gave nan or infinity: a loss scaler "
            "withholds such steps without an error.",
            "Look for the first operation that overflows; lower the scaler's initial scale, or train in bfloat16.",
        )
    accumulation, epochs = evidence.accumulation, evidence.lengths
    if accumulation > 1 and max(epochs, default=0) < accumulation:
        return (
            f"No epoch has the {accumulation} batches of one accumulation: a counter that starts anew with each epoch "
            "never gets there.",
            "Let the counter run on across epochs, or step on the rest at the end of each.",
        )
    if accumulation > 1 and accumulation % 2 == 0:
        return (
            "The branch that steps is never entered. If a counter decides and advances on every query, a second query "
            f"a batch (a monitor, a log line) leaves the branch only odd counts, and {accumulation} divides none.",
            "Ask the accumulation's counter once a batch and keep the answer; better, let the query not count.",
        )
    return (
        "The optimiser's step is never called: a branch is never entered, a loss scaler withholds it, or another "
        "optimiser steps.",
        "Call step() and count the calls; give this probe the optimiser that steps.",
    )


def _count(evidence: Evidence) -> list[Finding]:
    """Steps happened, but not as often as expected; or they must have happened elsewhere."""
    steps, (low, high) = evidence.steps, evidence.bounds
    if steps is None or not evidence.batches or not (steps or evidence.moved):
        return []
    if not steps:
        return _moved_without_step(evidence) if evidence.expected else []
    away = max(low - steps, steps - high)
    if away <= 0:
        return []
    factor = low / steps if steps < low else steps / max(high, 1)
    slight = away <= max(1, TOLERANCE * (low if steps < low else high))
    severity = "note" if slight else "fault" if factor >= 2 else "warning"
    right = shown(low) if low == high else f"{shown(low)} to {shown(high)}"
    measured = (
        f"{shown(steps)} steps in {shown(evidence.batches)} batches, where an accumulation of {evidence.accumulation} "
        f"makes {right} (off by a factor of {factor:.3g})."
    )
    return [_finding(severity, "number of steps", measured, *_count_causes(steps < low, severity, evidence))]


def _count_causes(few: bool, severity: str, evidence: Evidence) -> tuple[str, str]:
    if severity == "note":
        return "Usual for a loss scaler, which withholds a few steps.", "Nothing, unless the gap grows."
    if few:
        return (
            "Fewer steps than planned: a loss scaler or a branch that is not always entered withholds some, or the "
            "real accumulation is longer.",
            "Compare the loop's accumulation with the one given; count how often the scaler lowers its scale.",
        )
    if evidence.short_epochs and evidence.accumulation > 1:
        return (
            f"No epoch has the {evidence.accumulation} batches of one accumulation: a step on each epoch's rest has "
            "fewer batches than planned.",
            "Let the counter run on across epochs, or set the accumulation to the length of an epoch.",
        )
    return (
        "Steps come too early, on gradients of fewer batches than planned, and the learning-rate schedule runs ahead. "
        "A counter that advances on every query and is asked twice a batch does this.",
        "Compare the loop's accumulation with the one given; ask the counter once a batch and keep the answer.",
    )


def _moved_without_step(evidence: Evidence) -> list[Finding]:
    moved, batches = len(evidence.moved), shown(evidence.batches)
    measured = f"{moved} tensors moved in {batches} batches without a step of this {evidence.optimiser}."
    meaning = "Something else moves the parameters: another optimiser, an update by hand, weights loaded meanwhile."
    remedy = "Give the probe the optimiser that steps; if this one should, see that its step() is called."
    return [_finding("warning", "optimiser", measured, meaning, remedy)]


def _rate(evidence: Evidence) -> list[Finding]:
    if not evidence.batches or not evidence.compared:
        return []
    zero = [number for number, rate in enumerate(evidence.rates) if rate.lowest == rate.highest == 0]
    if not evidence.rate_zero:
        moving = {move.group for move in evidence.moved}
        silent = [f"parameter group {number}" for number in zero if number not in moving]
        return [_zero_group(silent)] if silent and evidence.moved else []
    if evidence.moved or not evidence.expected:
        return []
    cause = "The learning rate"
    if evidence.schedule == 0:
        cause = "The scheduler never advanced, and it starts at 0: the learning rate"
    measured = f"0 in every parameter group, throughout {shown(evidence.batches)} batches."
    remedy = "Step the scheduler after each step of the optimiser, and see that its first value is above 0 or rises."
    return [_finding("fault", "learning rate", measured, f"{cause} turns every step into nothing.", remedy)]


def _zero_group(silent: list[str]) -> Finding:
    return _finding(
        "warning",
        listed(silent),
        "Learning rate 0 throughout, while other groups move.",
        "These parameters stay where they are, yet their gradients are computed.",
        "If meant, freeze them with requires_grad_(False); else mend the group's rate or its scheduler's function.",
    )


def _stopped(evidence: Evidence) -> list[Finding]:
    """Some or all tensors moved and then stopped."""
    stopped = evidence.stalled
    if not stopped or not evidence.moved:
        return []
    since = max(stopped.values())
    where, which = listed(stopped), f"{len(stopped)} of {len(evidence.moved)} tensors that moved stand still"
    meaning = "No gradient above rounding has been seen there since, while others move."
    if len(stopped) == len(evidence.moved):
        where, which = "all parameters", "No parameter has moved"
        meaning = (
            "Training went on but learning stopped: the schedule has reached 0, or a loss scaler withholds every step."
        )
    elif any(look.teaches(name) for name, last in stopped.items() for look in evidence.looks if look.batch > last):
        meaning = (
            "They still get gradients while others move: the steps have become smaller than their precision holds."
        )
    measured = f"{which} since batch {shown(since)}, for {shown(evidence.batches - since)} batches."
    remedy = "Look at the learning rate and at nan or infinity in gradients from that batch on."
    return [_finding("fault", where, measured, meaning, remedy)]


def _flipped(evidence: Evidence) -> list[Finding]:
    """Return what requires_grad did in mid-run."""
    found = []
    if frozen := evidence.frozen:
        first = shown(min(frozen.values()))
        measured = f"requires_grad became False by batch {first}, and the values stand still since."
        remedy = "Look for a freeze in the loop; if it is planned, begin a new watch after it."
        found.append(_finding("fault", listed(frozen), measured, "They no longer learn.", remedy))
    kept, lost = ([name for name, held in evidence.thawed.items() if held is wanted] for wanted in (True, False))
    measured = "requires_grad was False and became True since the watch began."
    return found + _new_tensors(lost, kept, measured, "No optimiser holds them.")


def _new_tensors(lost: list[str], kept: list[str], measured: str, meaning: str) -> list[Finding]:
    """Return the fault of tensors that the watch does not know and no optimiser holds, and a note on the others."""
    mend = "Change the module before you build the optimiser, or add the new parameters with add_param_group."
    known = "The optimiser holds the new one; whether it moved was not measured."
    found = [_finding("fault", listed(lost), measured, meaning, mend)] if lost else []
    again = "Begin a new watch to measure these too."
    return found + ([_finding("note", listed(kept), measured, known, again)] if kept else [])


def _broken_values(evidence: Evidence) -> list[Finding]:
    names = [move.name for move in evidence.compared if not move.finite]
    finding = _finding(
        "fault",
        listed(names),
        f"nan or infinity in {len(names)} of {len(evidence.compared)} tensors.",
        "They moved, but nowhere: such weights never recover.",
        "Go back to a checkpoint; clip or skip gradients that are not finite.",
    )
    return [finding] if names else []


def _replaced(evidence: Evidence) -> list[Finding]:
    gone = [move for move in evidence.moves if move.moved is None]
    kept, lost = ([move.name for move in gone if (move.group is None) is out] for out in (False, True))
    measured = "Another tensor has taken its place since the watch began."
    meaning = "The optimiser does not hold the new tensor and goes on stepping the old one."
    return _new_tensors(lost, kept, measured, meaning)


def _piles(evidence: Evidence) -> list[Finding]:
    if not evidence.piles:
        return []
    sizes = [look.largest for look in evidence.looks if look.sizes and math.isfinite(look.largest)]
    growth = f"; largest value {sizes[0]:.3g} at first, {sizes[-1]:.3g} at last" if len(sizes) > 1 else ""
    measured = f"{shown(evidence.pile)} backward passes fell on one another without the gradient being cleared{growth}."
    meaning = (
        "Gradients of all these batches are summed: each step repeats the old ones, and the sum grows without end."
    )
    remedy = "Call zero_grad() after every step; where steps are missing, mend those first."
    return [_finding("fault", "gradients", measured, meaning, remedy)]


def _broken_gradients(evidence: Evidence) -> list[Finding]:
    if not evidence.broken or not evidence.moved:
        return []
    many = evidence.broken > TOLERANCE * evidence.passes and evidence.broken > 1
    measured = f"nan or infinity in {shown(evidence.broken)} of {shown(evidence.passes)} backward passes."
    meaning = (
        "A loss scaler drops such steps, some at the start while it looks for its scale; without one they spoil the "
        "weights."
    )
    remedy = "If it lasts, look for the operation that overflows." if many else "Nothing, unless it lasts."
    return [_finding("warning" if many else "note", "gradients", measured, meaning, remedy)]


def _schedule(evidence: Evidence) -> list[Finding]:
    advance, steps, batches = evidence.schedule, evidence.steps, evidence.batches
    if advance is None or steps is None or not evidence.expected:
        return []
    counts = f"{shown(advance)} advances of the scheduler, {shown(steps)} steps of the optimiser"
    measured = f"{counts}, {shown(batches)} batches."
    if advance > max(evidence.bounds[1], steps) + 1 and advance >= 1.5 * steps:
        meaning = "The schedule runs ahead of the optimiser: warm-up and decay end early, unless laid out in batches."
        remedy = "Step the scheduler where the optimiser steps, or lay the schedule out in batches on purpose."
        return [_finding("warning", "scheduler", measured, meaning, remedy)]
    if advance == 0 and steps and not evidence.rate_zero:
        meaning = "Right for a scheduler that steps once an epoch, if no epoch has ended; else it is never stepped."
        return [_finding("note", "scheduler", measured, meaning, "See that scheduler.step() is reached.")]
    return []


def _average(evidence: Evidence) -> list[Finding]:
    average = evidence.average
    if average is None or not evidence.moved or not evidence.expected:
        return []
    if not average.moved:
        measured = "None of them changed, while the live weights moved."
        remedy = "Update the average after every step of the optimiser."
        return [_finding("fault", AVERAGE, measured, "Evaluation reads weights that never learn.", remedy)]
    return [*_stale_buffers(average.stale), *_slow_average(average, evidence.decay)]


def _stale_buffers(names: tuple[str, ...]) -> list[Finding]:
    if not names:
        return []
    measured = f"{len(names)} of their buffers ({listed(names)}) are as at the start, while the live ones moved."
    remedy = "Average or copy the buffers too, or call update_bn before each evaluation."
    return [_finding("warning", AVERAGE, measured, "Evaluation normalises with the statistics of the start.", remedy)]


def _slow_average(average: Average, decay: float | None) -> list[Finding]:
    if average.share is None or average.share >= 0.5:
        return []
    updates = "" if average.updates is None else f" after {shown(average.updates)} updates"
    weight = "" if average.start_weight is None else f"; the start has weight {average.start_weight:.3g} in it"
    measured = f"They have made {percent(average.share, 1)} of the live weights' way from the start{updates}{weight}."
    meaning = f"Evaluation reads weights that are {percent(1 - average.share, 1)} start, whatever the model learns."
    return [_finding("warning", AVERAGE, measured, meaning, _average_advice(decay))]


def _average_advice(decay: float | None) -> str:
    advice = "evaluate the live weights too, or let the decay rise from a small value, as min(decay, (1 + n)/(10 + n))"
    if decay is None or not 0 < decay < 1:
        return f"Early in training, {advice}."
    return f"For the first {shown(math.ceil(math.log(0.05) / math.log(decay)))} updates (start below 5 %), {advice}."


# Why some tensors stand while the rest moves: severity, meaning, what to do.
_UNMOVED = {
    "outside": (
        "fault",
        "The loss reaches them, but the optimiser does not hold them, so they never learn.",
        "Build the optimiser when the module is complete; keep layers in nn.ModuleList, not in a list. If another "
        "optimiser trains them, give all in a list.",
    ),
    "not held": (
        "note",
        "The optimiser does not hold them, so they keep their values.",
        "Add them to the optimiser, or freeze them if that is what you want.",
    ),
    "never stepped": (
        "fault",
        "They have gradients, but their optimiser never stepped, while another did.",
        "Call its step(), and count the calls.",
    ),
    "rounded away": (
        "fault",
        "They have gradients, but the steps are smaller than the parameters' precision can hold (usual in half "
        "precision): they round away.",
        "Keep the weights in float32 under autocast, or raise the learning rate.",
    ),
    "no gradient": (
        "warning",
        "Held, but without a gradient above rounding when it was looked at: frozen by use, or outside the loss.",
        "Ask the probe idle_parameters why.",
    ),
    "not seen": (
        "note",
        "Held; whether they had a gradient was not seen.",
        "Ask the probe idle_parameters why.",
    ),
}


def _unmoved(evidence: Evidence) -> list[Finding]:
    """Some tensors stand while the rest moves, each kind with what was seen of its gradient."""
    if not evidence.moved:
        return []
    silent = {number for number, rate in enumerate(evidence.rates) if rate.lowest == rate.highest == 0}
    kinds: dict[str, list[str]] = {}
    for move in evidence.compared:
        if not move.moved and move.group not in silent and move.name not in evidence.frozen:
            kinds.setdefault(_why_unmoved(move, evidence), []).append(move.name)
    found = []
    for kind, names in kinds.items():
        severity, meaning, remedy = _UNMOVED[kind]
        places = dict.fromkeys(name.rpartition(".")[0] or name for name in names) if kind == "outside" else names
        measured = f"{len(names)} of {len(evidence.compared)} trainable tensors did not move, the others did."
        found.append(_finding(severity, listed(places), measured, meaning, remedy))
    return found


def _why_unmoved(move: Move, evidence: Evidence) -> str:
    """Return a key of `_UNMOVED`."""
    taught = any(look.teaches(move.name) for look in evidence.looks)
    if move.group is None:
        return "outside" if taught else "not held"
    if taught:
        return "never stepped" if evidence.never_steps(move.group) else "rounded away"
    return "no gradient" if any(look.sizes for look in evidence.looks) else "not seen"


def _finding(severity: str, where: str, measured: str, meaning: str, remedy: str) -> Finding:
    return Finding(severity, where, measured, meaning, remedy, CHAPTER)
