"""What `stepping` concludes: whether anything moved, why not, and what to do about it."""

import math

from casestudies_lib.probes.result import SEVERITIES, Finding, listed, percent, shown
from casestudies_lib.probes.steps.evidence import Evidence
from casestudies_lib.probes.steps.traces import Average, Move

CHAPTER = "distillation_loss"
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
    meaning, what_to_do = _causes(evidence)
    measured = (
        f"None of {len(evidence.compared)} trainable tensors changed in {batches} batches; the {evidence.optimiser} "
        f"{took}, where {shown(evidence.expected)} were expected."
    )
    return [_finding("fault", "all parameters", measured, meaning, what_to_do)]


def _causes(evidence: Evidence) -> tuple[str, str]:
    """Return what most likely keeps everything in place, and what to do."""
    if not evidence.steps:
        return _no_step_causes(evidence)
    if all(move.group is None for move in evidence.compared):
        return (
            "The optimiser holds none of these parameters: it was built over a copy, or before the model was built "
            "again.",
            "Build the optimiser over the very model that the loss runs, when it is complete and on its device.",
        )
    if not evidence.has_gradients:
        return (
            "The optimiser steps, but its parameters never had a gradient: the loss trains other tensors than the "
            "optimiser holds (a copy, or a model that was built again), or its path is cut by detach() or no_grad().",
            "Build the optimiser over the very model that the loss runs, when it is complete and on its device.",
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
    return [
        _finding(
            "warning",
            "optimiser",
            measured,
            "Something else moves the parameters: another optimiser, an update by hand, weights loaded meanwhile.",
            "Give the probe the optimiser that steps; if this one should, see that its step() is called.",
        )
    ]


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
    return [
        _finding(
            "fault",
            "learning rate",
            f"0 in every parameter group, throughout {shown(evidence.batches)} batches.",
            f"{cause} turns every step into nothing.",
            "Step the scheduler after each step of the optimiser, and see that its first value is above 0 or rises.",
        )
    ]


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
    since, everything = max(stopped.values()), len(stopped) == len(evidence.moved)
    some = f"{len(stopped)} of {len(evidence.moved)} tensors that moved stand still"
    which = "No parameter has moved" if everything else some
    taught = any(look.teaches(name) for name, last in stopped.items() for look in evidence.looks if look.batch > last)
    if everything:
        meaning = (
            "Training went on but learning stopped: the schedule has reached 0, or a loss scaler withholds every step."
        )
    elif taught:
        meaning = (
            "They still get gradients while others move: the steps have become smaller than their precision holds."
        )
    else:
        meaning = "No gradient above rounding has been seen there since, while others move."
    return [
        _finding(
            "fault",
            "all parameters" if everything else listed(stopped),
            f"{which} since batch {shown(since)}, for {shown(evidence.batches - since)} batches.",
            meaning,
            "Look at the learning rate and at nan or infinity in gradients from that batch on.",
        )
    ]


def _flipped(evidence: Evidence) -> list[Finding]:
    """Return what requires_grad did in mid-run."""
    found, thawed = [], evidence.thawed
    if frozen := evidence.frozen:
        found.append(
            _finding(
                "fault",
                listed(frozen),
                f"requires_grad became False by batch {shown(min(frozen.values()))}, and the values stand still since.",
                "They no longer learn.",
                "Look for a freeze in the loop; if it is planned, begin a new watch after it.",
            )
        )
    for held in dict.fromkeys(thawed.values()):
        meaning = (
            "The optimiser holds them; whether they moved was not measured." if held else "No optimiser holds them."
        )
        found.append(
            _finding(
                "note" if held else "fault",
                listed(name for name in thawed if thawed[name] is held),
                "requires_grad was False and became True since the watch began.",
                meaning,
                "Begin a new watch to measure them." if held else "Add them to the optimiser with add_param_group.",
            )
        )
    return found


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
    lost = [move.name for move in gone if move.group is None]
    kept = [move.name for move in gone if move.group is not None]
    measured = "Another tensor has taken its place since the watch began."
    found = []
    if lost:
        meaning = "The optimiser does not hold the new tensor and goes on stepping the old one."
        what_to_do = "Change the module before you build the optimiser, or add the new parameters with add_param_group."
        found.append(_finding("fault", listed(lost), measured, meaning, what_to_do))
    if kept:
        meaning = "The optimiser holds the new one; whether it moved was not measured."
        found.append(_finding("note", listed(kept), measured, meaning, "Begin a new watch to measure these too."))
    return found


def _piles(evidence: Evidence) -> list[Finding]:
    if not evidence.piles:
        return []
    sizes = [look.largest for look in evidence.looks if look.sizes and math.isfinite(look.largest)]
    growth = f"; largest value {sizes[0]:.3g} at first, {sizes[-1]:.3g} at last" if len(sizes) > 1 else ""
    return [
        _finding(
            "fault",
            "gradients",
            f"{shown(evidence.pile)} backward passes fell on one another without the gradient being cleared{growth}.",
            "Gradients of all these batches are summed: each step repeats the old ones, and the sum grows without end.",
            "Call zero_grad() after every step; where steps are missing, mend those first.",
        )
    ]


def _broken_gradients(evidence: Evidence) -> list[Finding]:
    if not evidence.broken or not evidence.moved:
        return []
    many = evidence.broken > TOLERANCE * evidence.passes and evidence.broken > 1
    return [
        _finding(
            "warning" if many else "note",
            "gradients",
            f"nan or infinity in {shown(evidence.broken)} of {shown(evidence.passes)} backward passes.",
            "A loss scaler drops such steps, some at the start while it looks for its scale; without one they spoil "
            "the weights.",
            "If it lasts, look for the operation that overflows." if many else "Nothing, unless it lasts.",
        )
    ]


def _schedule(evidence: Evidence) -> list[Finding]:
    advance, steps, batches = evidence.schedule, evidence.steps, evidence.batches
    if advance is None or steps is None or not evidence.expected:
        return []
    counts = f"{shown(advance)} advances of the scheduler, {shown(steps)} steps of the optimiser"
    measured = f"{counts}, {shown(batches)} batches."
    if advance > max(evidence.bounds[1], steps) + 1 and advance >= 1.5 * steps:
        return [
            _finding(
                "warning",
                "scheduler",
                measured,
                "The schedule runs ahead of the optimiser: warm-up and decay end early, unless laid out in batches.",
                "Step the scheduler where the optimiser steps, or lay the schedule out in batches on purpose.",
            )
        ]
    if advance == 0 and steps and not evidence.rate_zero:
        meaning = "Right for a scheduler that steps once an epoch, if no epoch has ended; else it is never stepped."
        return [_finding("note", "scheduler", measured, meaning, "See that scheduler.step() is reached.")]
    return []


def _average(evidence: Evidence) -> list[Finding]:
    average = evidence.average
    if average is None or not evidence.moved or not evidence.expected:
        return []
    if not average.moved:
        return [
            _finding(
                "fault",
                "averaged weights (ema)",
                "None of them changed, while the live weights moved.",
                "Evaluation reads weights that never learn.",
                "Update the average after every step of the optimiser.",
            )
        ]
    return [*_stale_buffers(average.stale), *_slow_average(average, evidence.decay)]


def _stale_buffers(names: tuple[str, ...]) -> list[Finding]:
    finding = _finding(
        "warning",
        "averaged weights (ema)",
        f"{len(names)} of their buffers ({listed(names)}) are as at the start, while those of the live module moved.",
        "Evaluation normalises with the statistics of the start.",
        "Average or copy the buffers too, or call update_bn before each evaluation.",
    )
    return [finding] if names else []


def _slow_average(average: Average, decay: float | None) -> list[Finding]:
    if average.share is None or average.share >= 0.5:
        return []
    updates = "" if average.updates is None else f" after {shown(average.updates)} updates"
    weight = "" if average.start_weight is None else f"; the start has weight {average.start_weight:.3g} in it"
    return [
        _finding(
            "warning",
            "averaged weights (ema)",
            f"They have made {percent(average.share, 1)} of the live weights' way from the start{updates}{weight}.",
            f"Evaluation reads weights that are {percent(1 - average.share, 1)} start, whatever the model learns.",
            _average_advice(decay),
        )
    ]


def _average_advice(decay: float | None) -> str:
    advice = "evaluate the live weights too, or let the decay rise from a small value, as min(decay, (1 + n)/(10 + n))"
    if decay is None or not 0 < decay < 1:
        return f"Early in training, {advice}."
    return f"For the first {shown(math.ceil(math.log(0.05) / math.log(decay)))} updates (start below 5 %), {advice}."


def _unmoved(evidence: Evidence) -> list[Finding]:
    """Some tensors did not move while the rest did, each kind with what was seen of its gradient."""
    if not evidence.moved:
        return []
    silent = {number for number, rate in enumerate(evidence.rates) if rate.lowest == rate.highest == 0}
    still = [m for m in evidence.compared if not m.moved and m.group not in silent and m.name not in evidence.frozen]
    looked = any(look.sizes for look in evidence.looks)
    kinds: dict[tuple[str, ...], list[Move]] = {}
    for move in still:
        kinds.setdefault(_why_unmoved(move, evidence, looked), []).append(move)
    return [
        _finding(
            severity,
            listed(dict.fromkeys(_place(move, severity) for move in members)),
            f"{len(members)} of {len(evidence.compared)} trainable tensors did not move, the others did{seen}.",
            meaning,
            what_to_do,
        )
        for (severity, seen, meaning, what_to_do), members in kinds.items()
    ]


def _place(move: Move, severity: str) -> str:
    """Return the tensor's name, or its module's where that is outside the optimiser."""
    outside = move.group is None and severity == "fault"
    return move.name.rpartition(".")[0] or move.name if outside else move.name


def _why_unmoved(move: Move, evidence: Evidence, looked: bool) -> tuple[str, str, str, str]:
    """Return severity, what was seen, what it means and what to do."""
    taught = evidence.had_gradient(move.name)
    if move.group is None and taught:
        return (
            "fault",
            ", and had gradients",
            "The loss reaches them, but the optimiser does not hold them, so they never learn.",
            "Build the optimiser when the module is complete; keep layers in nn.ModuleList, not in a list. "
            "If another optimiser trains them, give all in a list.",
        )
    if move.group is None:
        return (
            "note",
            "",
            "The optimiser does not hold them, so they keep their values.",
            "Add them to the optimiser, or freeze them if that is what you want.",
        )
    if taught and evidence.never_steps(move.group):
        return (
            "fault",
            ", and had gradients",
            "Their optimiser never stepped, while another did.",
            "Call its step(), and count the calls.",
        )
    if taught:
        return (
            "fault",
            ", and had gradients",
            "The steps are smaller than the parameters' precision can hold (usual in half precision): they round away.",
            "Keep the weights in float32 under autocast, or raise the learning rate.",
        )
    return (
        "warning" if looked else "note",
        "",
        "Held, but without a gradient above rounding when it was looked at: frozen by use, or outside the loss."
        if looked
        else "Held; whether they had a gradient was not seen.",
        "Ask the probe idle_parameters why.",
    )


def _finding(severity: str, where: str, measured: str, meaning: str, what_to_do: str) -> Finding:
    return Finding(severity, where, measured, meaning, what_to_do, CHAPTER)
