"""Find the tensors whose gradient disagrees with finite differences, in few evaluations, and say how it is wrong.

All tensors move together first. Only where that disagrees are they halved, and a derivative being linear, what one half
is found to contribute leaves the other's by subtraction.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from casestudies_lib.probes.backward.subject import Slope, Subject, careful_slope, floor_of, profile, quick_slope

AGREES, ZERO, FAINT = "agrees", "zero on both sides", "too small to judge"
SIGN, SCALE, DIRECTION = "wrong sign", "wrong scale", "wrong direction"
MISSING, PART, SPURIOUS = "missing", "missing in part", "spurious"
BROKEN, SUSPECT, DISAGREES, UNRESOLVED = "not finite", "suspect", "disagrees", "cannot tell"
# A gradient of which only an error larger than this could be seen is not judged.
RESOLVED = 0.05
# The spacing of float32 at 1: a gradient smaller than this next to the largest is rounding.
FINEST = 2.0**-23
# Two ratios that differ by no more than this are one factor.
ONE_FACTOR = 0.01
# Doubts above this share of the gradient are as likely a kink's as noise, and must be exceeded by far.
KINKED, KINK_MARGIN = 0.01, 10.0
# Tensors with a small gradient move further, up to this, so that their share in the sum is not drowned.
FURTHEST = 1000.0
# Directions along which a tensor must agree again before its one disagreement is put down to a kink, and that one.
LOOKS = 3
# A tensor of zeros has no size of its own to scale its moves by; this is that of a common initialisation.
SIZE_OF_ZEROS = 0.1


@dataclass(frozen=True)
class Pulls:
    """What autograd says.

    Attributes:
        upstreams: gradients of the outputs, one list a question.
        gradients: what backward makes of them, by question and tensor; None where there is no path.
        reaches: how far each tensor moves in one unit of the step, root mean square.
        sizes: by tensor the derivative along a random direction, root mean square, one a question.
    """

    upstreams: list[list[Tensor]]
    gradients: list[dict[str, Tensor | None]]
    reaches: dict[str, float]
    sizes: dict[str, Tensor]

    def along(self, names: Sequence[str], moves: Mapping[str, Tensor]) -> Tensor:
        """Return the derivative along the moves of these tensors, one number a question."""
        sums = [sum(_product(pull[name], moves[name]) for name in names) for pull in self.gradients]
        return torch.tensor(sums, dtype=torch.float64)


@dataclass(frozen=True)
class Sample:
    """One tensor, or several together, along one direction: both derivatives, and the largest difference to ignore."""

    analytic: Tensor
    slope: Slope
    ignored: Tensor

    @property
    def agrees(self) -> bool:
        """Return whether the difference may be ignored for every question."""
        return bool(((self.analytic - self.slope.values).abs() <= self.ignored).all())


@dataclass(frozen=True)
class Judgement:
    """What is known about one tensor's gradient.

    Attributes:
        kind: one of the words above.
        factor: the gradient over the finite difference, where one factor explains all directions.
        difference: the largest difference, as a share of the gradient.
        smallest: the smallest relative error that would have been seen; None where there is no gradient to scale it by.
    """

    kind: str
    factor: float | None = None
    difference: float | None = None
    smallest: float | None = None


@dataclass
class Search:
    """The state of one search: what was measured and what may still be spent.

    Attributes:
        subject, centre: the function and its outputs without a graph.
        pulls: what autograd says.
        tolerance: relative error of a gradient that is accepted.
        left: evaluations that may still be spent.
        step: the step in use, in units of each tensor's reach.
        model: the careful slope at that step.
        judged: by tensor, as far as known.
    """

    subject: Subject
    centre: list[Tensor]
    pulls: Pulls
    generator: torch.Generator
    tolerance: float
    left: int
    step: float = math.nan
    model: Slope | None = None
    judged: dict[str, Judgement] = field(default_factory=dict)

    def careful(self, moves: Mapping[str, Tensor], step: float) -> Slope:
        """Spend four evaluations."""
        self.left -= 4
        change, upstreams = profile(self.subject, self.centre, moves), self.pulls.upstreams
        return careful_slope(change, step, upstreams, floor_of(self.centre, upstreams))

    def quick(self, moves: Mapping[str, Tensor]) -> Slope:
        """Spend two."""
        self.left -= 2
        change = profile(self.subject, self.centre, moves)
        return quick_slope(change, self.step, self.pulls.upstreams, self.model)

    def affordable(self, moves: Mapping[str, Tensor]) -> Slope:
        """Spend four evaluations if there are so many, else two."""
        return self.careful(moves, self.step) if self.left >= 4 else self.quick(moves)

    def sample(self, names: Sequence[str], moves: Mapping[str, Tensor], slope: Slope) -> Sample:
        """Return both sides of the comparison along the moves of some tensors."""
        sizes = torch.stack([self.pulls.sizes[name] for name in names])
        analytic = self.pulls.along(names, moves)
        smallest = torch.where(sizes > 0, sizes, math.inf).amin(0).nan_to_num(posinf=0.0)
        tolerated = torch.maximum(smallest, analytic.abs()) if len(names) == 1 else smallest
        # Kinks are no noise: they shift a slope by about what they show of themselves, now and then by more.
        kinked = slope.doubts > KINKED * torch.maximum(sizes.amax(0), slope.values.abs())
        doubts = torch.where(kinked, KINK_MARGIN, 1.0) * slope.doubts
        return Sample(analytic, slope, doubts + self.tolerance * tolerated)


def search(work: Search, directions: int, steps: Sequence[float]) -> None:
    """Fill in `work.judged` for every tensor."""
    names = [name for name in work.subject.tensors if _finite(work.pulls, name)]
    work.judged |= {name: Judgement(BROKEN) for name in work.subject.tensors if name not in names}
    if not names:
        return
    for turn in range(directions):
        moves = directed(work, names, towards=turn == 0)
        slope = work.quick(moves) if turn else _chosen(work, names, moves, steps)
        whole = work.sample(names, moves, slope)
        if turn and not whole.agrees and work.left >= 4:
            # Two points do not see a kink.
            slope = work.careful(moves, work.step)
            whole = work.sample(names, moves, slope)
        _note_agreement(work, names, whole)
        if not whole.agrees:
            if bool(slope.doubts.isfinite().all()):
                _split(work, names, moves, whole)
            return
        if work.left < 2:
            return


def directed(work: Search, names: Sequence[str], towards: bool) -> dict[str, Tensor]:
    """Return a random direction; `towards` the gradient by so much that no error of scale can hide at a right angle.

    A random direction shows any difference of two gradients but one at a right angle to it, which has probability zero.
    """
    moves = {name: _normal(work, work.subject.tensors[name]).mul_(work.pulls.reaches[name]) for name in names}
    for name in names if towards else ():
        gradient, reach = work.pulls.gradients[0][name], work.pulls.reaches[name]
        if norm := _norm(gradient):
            along = _product(gradient, moves[name]) / norm
            moves[name].add_(gradient, alpha=(reach + abs(along) - along) / norm)
    return moves


def pulls_of(subject: Subject, upstreams: list[list[Tensor]], gradients: list[dict[str, Tensor | None]]) -> Pulls:
    """Return what autograd says, with moves of each tensor's own size, larger where its gradient is small."""
    sizes = {name: _root_mean_square(tensor.detach()) or SIZE_OF_ZEROS for name, tensor in subject.tensors.items()}
    norms = {name: torch.tensor([_norm(pull[name]) for pull in gradients], dtype=torch.float64) for name in sizes}
    shares = {name: float(norms[name].amax()) * size for name, size in sizes.items()}
    largest = max((share for share in shares.values() if math.isfinite(share)), default=0.0)
    boosts = {name: min(max(largest / share, 1.0), FURTHEST) if share else 1.0 for name, share in shares.items()}
    reaches = {name: size * boosts[name] for name, size in sizes.items()}
    return Pulls(upstreams, gradients, reaches, {name: norms[name] * reaches[name] for name in sizes})


def _chosen(work: Search, names: Sequence[str], moves: Mapping[str, Tensor], steps: Sequence[float]) -> Slope:
    """Return the slope at the first step that resolves the tolerance for every tensor, else at the best one."""
    best = math.inf
    for step in steps:
        if work.model is not None and step < work.step * best and step > work.step:
            # Rounding shrinks no faster than steps grow: there it would hide the gradient still.
            continue
        slope = work.careful(moves, step)
        blur = _blur(work, names, slope)
        worse = blur >= best
        if work.model is None or not worse:
            best, work.step, work.model = blur, step, slope
        if best <= work.tolerance or work.left < 4 or (worse and best <= RESOLVED):
            break
    return work.model


def _blur(work: Search, names: Sequence[str], slope: Slope) -> float:
    """Return the largest doubt next to a tensor's gradient, the faint ones apart."""
    sizes = torch.stack([work.pulls.sizes[name] for name in names])
    counted = sizes > FINEST * sizes.amax()
    if not counted.any():
        return float((slope.doubts / slope.values.abs().clamp(min=1e-300)).amax())
    return float((slope.doubts / sizes)[counted].amax())


def _note_agreement(work: Search, names: Sequence[str], sample: Sample) -> None:
    """Judge tensors that together agree; each keeps the better of what it had and what this direction resolves."""
    largest = max(float(work.pulls.sizes[name].amax()) for name in work.subject.tensors if _finite(work.pulls, name))
    for name in names:
        sizes = work.pulls.sizes[name]
        size = float(sizes.amax())
        if not size:
            kind = ZERO if bool(sample.slope.doubts.isfinite().all()) else UNRESOLVED
            work.judged[name] = Judgement(kind)
            continue
        smallest = float((sample.ignored / sizes).nan_to_num(nan=math.inf).amin())
        before = work.judged.get(name)
        if before is not None and before.smallest is not None:
            smallest = min(smallest, before.smallest)
        limit = max(RESOLVED, 2 * work.tolerance)
        kind = AGREES if smallest <= limit else FAINT if size <= FINEST * largest else UNRESOLVED
        work.judged[name] = Judgement(kind, difference=0.0, smallest=smallest)


def _split(work: Search, names: Sequence[str], moves: Mapping[str, Tensor], whole: Sample) -> None:
    """Halve what disagrees until single tensors are left, or no evaluation is."""
    # The last tensors first: what is wrong in the last wrong one sits right behind it.
    waiting = [(list(names), whole)]
    while waiting:
        group, sample = waiting.pop()
        if sample.agrees:
            _note_agreement(work, group, sample)
        elif len(group) == 1:
            work.judged[group[0]] = _judged(work, group[0], moves, sample)
        elif work.left < 2:
            _note_suspicion(work, group, sample)
        else:
            halves = _halved(work, group, moves, sample.slope)
            factor = _common_factor([half for _, half in halves], pairs=4)
            if factor is None:
                waiting += halves
            else:
                _note_factor(work, group, sample, factor)


def _note_suspicion(work: Search, group: Sequence[str], sample: Sample) -> None:
    """Judge tensors that are wrong together and were not told apart: by a common factor, if two questions show one."""
    factor = _common_factor([sample], pairs=2)
    if factor is None:
        work.judged |= {name: replace(work.judged[name], kind=SUSPECT) for name in group}
    else:
        _note_factor(work, group, sample, factor)


def _halved(
    work: Search, group: list[str], moves: Mapping[str, Tensor], slope: Slope
) -> list[tuple[list[str], Sample]]:
    first, second = group[: len(group) // 2], group[len(group) // 2 :]
    part = work.quick({name: moves[name] for name in first})
    return [(first, work.sample(first, moves, part)), (second, work.sample(second, moves, slope.minus(part)))]


def _common_factor(samples: Sequence[Sample], pairs: int) -> float | None:
    """Return the factor between the two sides if so many pairs share one that chance cannot have made them."""
    factor, found = _factor(samples, closely=pairs < 4)
    return factor if found >= pairs and abs(factor - 1) > ONE_FACTOR else None


def _factor(samples: Sequence[Sample], closely: bool = False) -> tuple[float, int]:
    """Return one factor for all pairs that stand out of the noise and how many they are; nan if no factor fits."""
    analytic = torch.cat([sample.analytic for sample in samples])
    numeric = torch.cat([sample.slope.values for sample in samples])
    doubts = torch.cat([sample.slope.doubts for sample in samples])
    clear = numeric.abs() > 2 * doubts
    if not clear.any():
        return math.nan, 0
    ratios = (analytic / numeric)[clear]
    # Each ratio is known as well as its finite difference is.
    weights = (numeric / doubts.clamp(min=1e-300))[clear].square()
    factor = float((ratios * weights).sum() / weights.sum())
    # A factor is one only if it fits much better than no error at all would.
    allowed = min(ONE_FACTOR * abs(factor), abs(factor - 1) / 10) * (0.01 if closely else 1.0)
    allowed = allowed + (1 + abs(factor)) * (doubts / numeric.abs())[clear]
    fits = bool(((ratios - factor).abs() <= allowed).all()) and factor != 0
    return (factor if fits else math.nan), int(clear.sum())


def _note_factor(work: Search, group: Sequence[str], sample: Sample, factor: float) -> None:
    for name in group:
        wrong = bool(work.pulls.sizes[name].any())
        kind = (SIGN if factor < 0 else SCALE) if wrong else ZERO
        smallest = work.judged[name].smallest
        work.judged[name] = (
            Judgement(kind, factor, abs(factor - 1) / max(abs(factor), 1), smallest) if wrong else Judgement(ZERO)
        )


def _judged(work: Search, name: str, moves: Mapping[str, Tensor], sample: Sample) -> Judgement:
    """Judge one tensor that disagrees along one direction, after looks along others as far as they can be afforded."""
    if not bool(work.pulls.sizes[name].any()):
        return _described(work, name, MISSING, [sample])
    samples = [sample]
    while work.left >= 2 and len(samples) < LOOKS:
        other = directed(work, [name], towards=len(samples) == 1)
        samples.append(work.sample([name], other, work.affordable(other)))
        if not samples[-1].agrees:
            break
    else:
        if len(samples) == LOOKS:
            # A kink on the way of the first, for a wrong gradient is wrong in every direction.
            return _described(work, name, UNRESOLVED, samples)
    samples = [each for each in samples if not each.agrees]
    kind = _kind(samples)
    return _described(work, name, PART if kind == DIRECTION and _has_gaps(work, name) else kind, samples)


def _has_gaps(work: Search, name: str) -> bool:
    """Return whether the output depends on elements to which every question leaves a gradient of exactly zero."""
    pulled = [pull[name] for pull in work.pulls.gradients if pull[name] is not None]
    gaps = torch.stack([gradient == 0 for gradient in pulled]).all(0)
    if work.left < 2 or not bool(gaps.any()):
        return False
    inside = {name: directed(work, [name], towards=False)[name] * gaps}
    return not work.sample([name], inside, work.affordable(inside)).agrees


def _kind(samples: Sequence[Sample]) -> str:
    if all(bool((sample.slope.values.abs() <= sample.ignored).all()) for sample in samples):
        return SPURIOUS
    factor, pairs = _factor(samples)
    if math.isnan(factor):
        return DIRECTION
    if pairs < 2:
        return DISAGREES
    return SIGN if factor < 0 else SCALE


def _described(work: Search, name: str, kind: str, samples: Sequence[Sample]) -> Judgement:
    sizes = work.pulls.sizes[name]
    apart = [(sample.analytic - sample.slope.values).abs() for sample in samples]
    whole = [torch.maximum(sizes, sample.slope.values.abs()) for sample in samples]
    difference = max(float((a / b).nan_to_num(nan=0.0).amax()) for a, b in zip(apart, whole))
    smallest = float((samples[0].ignored / sizes).amin()) if bool(sizes.any()) else None
    factor = _factor(samples)[0] if kind in (SIGN, SCALE) else None
    return Judgement(kind, factor, difference, smallest)


def _finite(pulls: Pulls, name: str) -> bool:
    return bool(pulls.sizes[name].isfinite().all())


def _normal(work: Search, tensor: Tensor) -> Tensor:
    # Drawn in float32, which is several times faster; a direction need not be precise, only the same on both sides.
    return torch.randn(tensor.shape, generator=work.generator).to(tensor.device, tensor.dtype)


def _product(gradient: Tensor | None, move: Tensor) -> float:
    return 0.0 if gradient is None else float(torch.dot(gradient.double().flatten(), move.double().flatten()))


def _norm(gradient: Tensor | None) -> float:
    return 0.0 if gradient is None else float(torch.linalg.vector_norm(gradient, dtype=torch.float64))


def _root_mean_square(tensor: Tensor) -> float:
    return _norm(tensor) / math.sqrt(tensor.numel())
