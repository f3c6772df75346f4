"""What `interference` says about what it saw: conflicts, drowned losses, zeros, sums."""

from dataclasses import dataclass

from casestudies_lib.probes.result import Finding, percent

CHAPTER = "value_head_spillover"
ADDS_UP = 1e-3  # half precision misses the sum by about this share


@dataclass(frozen=True)
class Pair:
    """Two losses on the parameters of one group that both of them reach."""

    group: str
    names: tuple[str, str]
    norms: tuple[float, float]
    cosine: float

    @property
    def losses(self) -> str:
        """Return both names in one."""
        return " and ".join(self.names)

    @property
    def ratio(self) -> float:
        """Return the smaller norm over the larger."""
        return min(self.norms) / max(self.norms)


def structural_note_finding(layer: str, name: str, zeros: list[int], source: str) -> Finding:
    """Return the caveat for positions that a loss cannot reach after a layer."""
    return Finding(
        severity="note",
        where=f"{layer}: {name}",
        measured=f"Exactly zero at {len(zeros)} positions ({_ranges(zeros)}), which the same loss reaches at {source}.",
        meaning="Zero by construction: after this layer nothing carries these positions to this loss. Where the wiring "
        "is fixed, that holds for any weights and any data, and says nothing about interference.",
        what_to_do="Measure at earlier layers, or on the shared parameters.",
        chapter=CHAPTER,
    )


def last_axis_note_finding(layers: list[str], axis: int, shape: tuple[int, ...]) -> Finding:
    """Return the caveat for positions counted along the last axis, where nothing tells whether that holds features."""
    return Finding(
        severity="note",
        where=", ".join(layer or "the module itself" for layer in layers),
        measured=f"position_axis {axis} is the last axis of these outputs; one has shape {shape}.",
        meaning="That counts positions in (batch, channels, length). In (batch, tokens, features) it counts features, "
        "and every number by position here is one by feature.",
        what_to_do="If the last axis holds features, give the axis of the tokens, such as position_axis=1.",
        chapter=CHAPTER,
    )


def _ranges(numbers: list[int]) -> str:
    """Return whole numbers in ascending order as ranges: 1–7, 9."""
    starts = [n for n in numbers if n - 1 not in numbers]
    ends = [n for n in numbers if n + 1 not in numbers]
    return ", ".join(f"{a}–{b}" if a < b else f"{a}" for a, b in zip(starts, ends))


def conflict_finding(pair: Pair) -> Finding:
    """Return the finding for two losses that pull apart."""
    first, second = pair.norms
    return Finding(
        severity="fault",
        where=pair.losses,
        measured=f"Cosine {pair.cosine:+.2f} on the parameters that both teach, norms {first:.3g} and {second:.3g}.",
        meaning="On this batch each loss undoes a good part of what the other one does.",
        what_to_do="Look at several batches. If it lasts, lower a weight, split the trunk, or project the gradients.",
        chapter=CHAPTER,
    )


def drowned_finding(pair: Pair) -> Finding:
    """Return the finding for a loss that another one outweighs."""
    weak, strong = pair.names if pair.norms[0] < pair.norms[1] else pair.names[::-1]
    share = percent(min(pair.norms), max(pair.norms))
    return Finding(
        severity="warning",
        where=weak,
        measured=f"Its weighted gradient on shared parameters is {share} of that of {strong}.",
        meaning=f"The shared layers learn {strong}; {weak} gets what that leaves.",
        what_to_do="Change the weights, or bring both losses to one scale.",
        chapter=CHAPTER,
    )


def broken_finding(pair: Pair) -> Finding:
    """Return the finding for a gradient that cannot be compared."""
    return Finding(
        severity="fault",
        where=f"{pair.group}: {pair.losses}",
        measured="A gradient holds nan or infinity, or is too small for its square to be told from zero.",
        meaning="Neither size nor direction can be compared.",
        what_to_do="Look for the first bad operation with torch.autograd.detect_anomaly().",
        chapter=CHAPTER,
    )


def sum_finding(residual: float | None) -> list[Finding]:
    """Return the finding for a total that is not the sum of its parts, if it is not."""
    if residual is None or residual < ADDS_UP:
        return []
    finding = Finding(
        severity="fault",
        where="total",
        measured=f"The weighted parts miss the total's gradient by {100 * residual:.3g} % of its norm.",
        meaning="Differentiation is linear: a total is the sum of its parts. A weight is not what you think, a part is "
        "missing, or something detaches.",
        what_to_do="Compare the weights given here with those in the training code; look for further terms.",
        chapter=CHAPTER,
    )
    return [finding]
