"""What `backward_check` says about what it saw: how each gradient is wrong, and what usually makes it so."""

from collections.abc import Mapping, Sequence

from casestudies_lib.probes.backward.comparison import (
    AGREES,
    BROKEN,
    DIRECTION,
    DISAGREES,
    FAINT,
    MISSING,
    PART,
    SCALE,
    SIGN,
    SPURIOUS,
    UNRESOLVED,
    ZERO,
    Judgement,
)
from casestudies_lib.probes.result import Finding

CHAPTER = "head_routing"
# The worst first; what stands before `UNRESOLVED` is wrong.
ORDER = (
    *(SIGN, BROKEN, MISSING, SPURIOUS, DIRECTION, PART, SCALE, DISAGREES),
    *(UNRESOLVED, FAINT, ZERO, AGREES),
)
WRONG = ORDER[: ORDER.index(UNRESOLVED)]

# Names in one finding; the table has all.
LISTED = 6

_DOWNSTREAM = " One wrong backward spoils all that comes before it: look behind the last of these."
_ON_PURPOSE = "If a stop-gradient is meant (detach, no_grad, straight-through), it is as designed: leave it out here."
_MEANING = {
    SIGN: "A step along it raises what it should lower.",
    BROKEN: "One step with this gradient destroys the weights.",
    MISSING: "The output depends on it, yet it learns nothing from here.",
    SPURIOUS: "The output does not depend on it here, yet every step moves it.",
    DIRECTION: "No single factor explains the difference: part of the gradient is missing, foreign, or both.",
    PART: "Some of its elements learn, others have exactly zero gradient although the output depends on them.",
    SCALE: "It points the right way, but its learning rate is not the one that you set; next to right gradients it "
    "turns the step as a whole.",
    DISAGREES: "It is wrong, but noise hides whether in scale or in direction.",
}
_WHAT_TO_DO = {
    SIGN: "Look for a subtraction the wrong way round in the backward.",
    BROKEN: "Look for a division by zero or a root at zero; torch.autograd.detect_anomaly() names the first one.",
    MISSING: "Look for a backward that returns None or zeros, a detach, a .data or an .item() on its path. "
    f"{_ON_PURPOSE}",
    SPURIOUS: "Look for a backward that ignores a mask or a weight of zero that the forward applies.",
    DIRECTION: "Look for a mask, a weight, a transposition or sharing between heads that the backward ignores, or a "
    f"term that does not belong to it. {_ON_PURPOSE}",
    PART: f"Look for a mask or an index that the backward applies and the forward does not. {_ON_PURPOSE}",
    SCALE: "Look for a factor that one pass has and the other has not: a mean for a sum, a temperature, a square root.",
    DISAGREES: "Check a smaller part, at a point away from kinks (ReLU, top-k, clamp), to see how it is wrong.",
}


def findings(judged: Mapping[str, Judgement]) -> list[Finding]:
    """Return one finding for all tensors that are wrong in the same way, the worst first."""
    alike: dict[tuple[str, str], list[str]] = {}
    for name, judgement in judged.items():
        if judgement.kind in WRONG:
            factor = "" if judgement.factor is None else f"{judgement.factor:.3g}"
            alike.setdefault((judgement.kind, factor), []).append(name)
    worst_first = sorted(alike.items(), key=lambda entry: ORDER.index(entry[0][0]))
    return [_finding(names, [judged[name] for name in names]) for _, names in worst_first]


def unchecked_inputs_note() -> Finding:
    """Return the caveat for inputs that ask for no gradient."""
    return Finding(
        severity="note",
        where="inputs",
        measured="No input has requires_grad=True, so that no gradient to an input was compared.",
        meaning="A wrong gradient to the input spoils all that comes before this function.",
        what_to_do="Call requires_grad_() on the inputs that should be compared.",
        chapter=CHAPTER,
    )


def overwritten_finding(names: Sequence[str], during: str) -> Finding:
    """Return the fault of a pass that writes into its inputs unseen."""
    return Finding(
        severity="fault",
        where=", ".join(names),
        measured=f"Overwritten. The values are others after the {during} pass, and no version counter tells of it.",
        meaning="Whatever else keeps this tensor for its own backward, such as the operation that made it, computes a "
        "wrong gradient from it, and no error is raised.",
        what_to_do="Write into a copy; or call ctx.mark_dirty(input) and write in place without .data, so that "
        "autograd refuses the uses that are wrong.",
        chapter=CHAPTER,
    )


def precision_note(dtype: str, error: str) -> Finding:
    """Return the caveat for a function that does not run in float64."""
    return Finding(
        severity="note",
        where="precision",
        measured=f"The function does not run in float64 ({error}), so that it was measured in {dtype}.",
        meaning="Finite differences see only larger errors there.",
        what_to_do="Let it run in float64. If it reads tensors of its own, give them as parameters.",
        chapter=CHAPTER,
    )


def _finding(names: Sequence[str], judgements: Sequence[Judgement]) -> Finding:
    kind, factor = judgements[0].kind, judgements[0].factor or 0.0
    off = max(judgement.difference or 0.0 for judgement in judgements)
    measured = {
        SIGN: f"The gradient is {factor:.3g} times the finite difference.",
        SCALE: f"The gradient is {factor:.4g} times the finite difference.",
        BROKEN: "The gradient holds nan or infinity, while the output is finite.",
        MISSING: "The gradient is zero or None, while finite differences are not zero.",
        SPURIOUS: "The gradient is not zero, while finite differences are.",
    }.get(kind, f"The gradient is off by {100 * off:.3g} % of its size along a random direction.")
    more = _DOWNSTREAM if len(names) > 1 else ""
    return Finding(
        severity="fault",
        where=", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else ""),
        measured=f"{kind.capitalize()}. {measured}",
        meaning=_MEANING[kind],
        what_to_do=f"{_WHAT_TO_DO[kind]}{more}",
        chapter=CHAPTER,
    )
