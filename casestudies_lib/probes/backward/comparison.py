"""Hold what autograd says against finite differences: first all tensors together, then, if need be, one by one."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from casestudies_lib.probes.backward.subject import Slope, Subject, careful_slope, floor_of, profile, quick_slope

AGREES, ZERO, FAINT = "agrees", "zero on both sides", "too small to judge"
SIGN, SCALE, DIRECTION = "wrong sign", "wrong scale", "wrong direction"
MISSING, PART, SPURIOUS = "missing", "missing in part", "spurious"
BROKEN, DISAGREES, UNRESOLVED = "not finite", "disagrees", "cannot tell"
# A gradient of which only an error larger than this could be seen is not judged.
RESOLVED = 0.05
# The spacing of float32 at 1: a gradient smaller than this next to the largest is rounding.
FINEST = 2.0**-23
# Two ratios that differ by no more than this are one factor.
ONE_FACTOR = 0.01
# Doubts above this share of the gradient are as likely a kink's as noise, and must be exceeded by far.
KINKED, KINK_MARGIN = 0.01, 10.0
# Noise above this share of the larger side blames nobody.
CLEAR = 0.25
# Tensors with a small gradient move further, up to this, so that their share in the sum is not drowned.
FURTHEST = 1000.0
# Directions along which a tensor must agree again before its one disagreement is put down to a kink, and that one.
LOOKS = 3
# Pairs of derivatives that chance alone does not bring to one factor.
PAIRS = 3
# A tensor of zeros has no size of its own to scale its moves by; this is that of a common initialisation.
SIZE_OF_ZEROS = 0.1


@dataclass(frozen=True)
class Sample:
    """One tensor, or several together, along one direction, for each question: a weighting of the outputs.

    Attributes:
        analytic: the derivatives by autograd.
        slope: those by finite differences.
        ignored: the largest difference to ignore.
        step: the step of the differences.
    """

    analytic: Tensor
    slope: Slope
    ignored: Tensor
    step: float

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
        smallest: the smallest relative error that would have been seen; None where nothing was resolved.
    """

    kind: str
    factor: float | None = None
    difference: float | None = None
    smallest: float | None = None


@dataclass(frozen=True)
class Bench:
    """Both sides of the comparison.

    Attributes:
        subject, centre: the function and its outputs without a graph.
        upstreams: gradients of the outputs, one list a question.
        gradients: what backward makes of them, by question and tensor; None where there is no path.
        reaches: how far each tensor moves in one unit of the step, root mean square.
        sizes: by tensor the derivative along a random direction, root mean square, one a question.
        generator: of the random directions.
        tolerance: relative error of a gradient that is accepted.
        steps: to try, in units of each tensor's reach.
    """

    subject: Subject
    centre: list[Tensor]
    upstreams: list[list[Tensor]]
    gradients: list[dict[str, Tensor | None]]
    reaches: dict[str, float]
    sizes: dict[str, Tensor]
    generator: torch.Generator
    tolerance: float
    steps: Sequence[float]

    def sample(self, names: Sequence[str], moves: Mapping[str, Tensor], slope: Slope, step: float) -> Sample:
        """Return both sides along the moves of some tensors."""
        sums = [sum(_product(each[name], moves[name]) for name in names) for each in self.gradients]
        analytic = torch.tensor(sums, dtype=torch.float64)
        sizes = torch.stack([self.sizes[name] for name in names])
        smallest = torch.where(sizes > 0, sizes, math.inf).amin(0).nan_to_num(posinf=0.0)
        tolerated = torch.maximum(smallest, analytic.abs()) if len(names) == 1 else smallest
        # Kinks are no noise: they shift a slope by about what they show of themselves, now and then by more.
        kinked = slope.doubts > KINKED * torch.maximum(sizes.amax(0), slope.values.abs())
        doubts = torch.where(kinked, KINK_MARGIN, 1.0) * slope.doubts
        return Sample(analytic, slope, doubts + self.tolerance * tolerated, step)

    def careful(self, names: Sequence[str], moves: Mapping[str, Tensor], steps: Sequence[float]) -> Sample:
        """Return a sample from four evaluations, at the first step that resolves the tolerance, else at the best."""
        change, floor = profile(self.subject, self.centre, moves), floor_of(self.centre, self.upstreams)
        best, finest = None, math.inf
        for step in steps:
            slope = careful_slope(change, step, self.upstreams, floor)
            blur = _blur(torch.stack([self.sizes[name] for name in names]), slope)
            if best is None or blur < finest:
                best, finest = self.sample(names, moves, slope, step), blur
            elif finest <= RESOLVED:
                break
            if finest <= self.tolerance:
                break
        return best

    def quick(self, name: str, moves: Mapping[str, Tensor], model: Sample) -> Sample:
        """Return a sample of one tensor from two evaluations, with the noise and at the step of a careful one."""
        change = profile(self.subject, self.centre, moves)
        slope = quick_slope(change, model.step, self.upstreams, model.slope)
        return self.sample([name], moves, slope, model.step)

    def directed(self, names: Sequence[str], towards: bool) -> dict[str, Tensor]:
        """Return a random direction; `towards` the gradient by so much that an error of scale cannot hide.

        A random direction shows any difference of two gradients but one at a right angle to it, which has probability
        zero.
        """
        moves = {name: self._normal(self.subject.tensors[name]).mul_(self.reaches[name]) for name in names}
        for name in names if towards else ():
            gradient, reach = self.gradients[0][name], self.reaches[name]
            if norm := _norm(gradient):
                along = _product(gradient, moves[name]) / norm
                moves[name].add_(gradient, alpha=(reach + abs(along) - along) / norm)
        return moves

    def _normal(self, tensor: Tensor) -> Tensor:
        # Drawn in float32, which is several times faster; a direction need not be precise, only the same on both sides.
        return torch.randn(tensor.shape, generator=self.generator).to(tensor.device, tensor.dtype)


def reaches_and_sizes(
    subject: Subject, gradients: list[dict[str, Tensor | None]]
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Return how far each tensor moves, further where its gradient is small, and its derivative along such a move."""
    own = {name: _root_mean_square(tensor.detach()) or SIZE_OF_ZEROS for name, tensor in subject.tensors.items()}
    norms = {name: torch.tensor([_norm(each[name]) for each in gradients], dtype=torch.float64) for name in own}
    shares = {name: float(norms[name].amax()) * size for name, size in own.items()}
    largest = max((share for share in shares.values() if math.isfinite(share)), default=0.0)
    boosts = {name: min(max(largest / share, 1.0), FURTHEST) if share else 1.0 for name, share in shares.items()}
    reaches = {name: size * boosts[name] for name, size in own.items()}
    return reaches, {name: norms[name] * reaches[name] for name in own}


def judged(bench: Bench, directions: int) -> dict[str, Judgement]:
    """Return a judgement on every tensor.

    All move together first. What that does not settle is moved alone, so that a tensor is blamed for itself only.
    """
    finite = [name for name, sizes in bench.sizes.items() if bool(sizes.isfinite().all())]
    found = {name: Judgement(BROKEN) for name in bench.sizes if name not in finite}
    if not finite:
        return found
    together, moves = [], {}
    for turn in range(directions):
        steps = [together[0].step] if turn else bench.steps
        moves = bench.directed(finite, towards=not turn)
        together.append(bench.careful(finite, moves, steps))
        if not together[-1].agrees:
            break
    else:
        found |= {name: _agreement(bench, name, together) for name in finite}
    for name in finite:
        if name not in found or found[name].kind == UNRESOLVED:
            found[name] = _alone(bench, name, {name: moves[name]}, together[-1])
    return {name: found[name] for name in bench.sizes}


def _alone(bench: Bench, name: str, moves: Mapping[str, Tensor], model: Sample) -> Judgement:
    """Judge one tensor that moves alone, as it moved with the others; where that disagrees, other ways too."""
    first = bench.quick(name, moves, model)
    if first.agrees and (answer := _agreement(bench, name, [first])).kind != UNRESOLVED:
        return answer
    first = bench.careful([name], moves, bench.steps)
    if first.agrees:
        return _agreement(bench, name, [first])
    wrong = [first]
    for turn in range(LOOKS - 1):
        other = bench.quick(name, bench.directed([name], towards=not turn), first)
        wrong += [] if other.agrees else [other]
        if len(wrong) * len(bench.upstreams) >= PAIRS:
            break
    if len(wrong) == 1 or not any(_is_clear(bench.sizes[name], sample) for sample in wrong):
        # A kink on the way of the first, for a wrong gradient is wrong in every direction; or wide noise.
        return Judgement(UNRESOLVED)
    kind, factor = _kind(bench, name, wrong)
    sizes = bench.sizes[name]
    apart = [(sample.analytic - sample.slope.values).abs() for sample in wrong]
    whole = [torch.maximum(sizes, sample.slope.values.abs()) for sample in wrong]
    difference = max(float((a / b).nan_to_num(nan=0.0).amax()) for a, b in zip(apart, whole))
    return Judgement(kind, factor, difference, float((first.ignored / sizes).amin()) if bool(sizes.any()) else None)


def _is_clear(sizes: Tensor, sample: Sample) -> bool:
    """Return whether the noise is small next to the larger of the two sides, for some question."""
    return bool((sample.ignored < CLEAR * torch.maximum(sizes, sample.slope.values.abs())).any())


def _agreement(bench: Bench, name: str, samples: Sequence[Sample]) -> Judgement:
    """Judge a tensor that agrees, by the smallest error that one of the samples would have shown."""
    sizes = bench.sizes[name]
    if not bool(sizes.any()):
        return Judgement(ZERO if all(bool(each.slope.doubts.isfinite().all()) for each in samples) else UNRESOLVED)
    smallest = min(float((each.ignored / sizes).nan_to_num(nan=math.inf).amin()) for each in samples)
    if smallest <= max(RESOLVED, 2 * bench.tolerance):
        return Judgement(AGREES, difference=0.0, smallest=smallest)
    largest = max(float(each.amax()) for each in bench.sizes.values() if bool(each.isfinite().all()))
    return Judgement(FAINT if float(sizes.amax()) <= FINEST * largest else UNRESOLVED)


def _kind(bench: Bench, name: str, samples: Sequence[Sample]) -> tuple[str, float | None]:
    """Return how a tensor that disagrees is wrong, and the factor if that is one."""
    if not bool(bench.sizes[name].any()):
        return MISSING, None
    if all(bool((sample.slope.values.abs() <= sample.ignored).all()) for sample in samples):
        return SPURIOUS, None
    analytic = torch.cat([sample.analytic for sample in samples])
    numeric = torch.cat([sample.slope.values for sample in samples])
    noise = torch.cat([sample.slope.doubts for sample in samples]) / numeric.abs()
    clear = noise < 0.5
    if not bool(clear.any()):
        return DISAGREES, None
    ratios, noise = (analytic / numeric)[clear], noise[clear].clamp(min=1e-300)
    # Each ratio is known as well as its finite difference is.
    factor = float((ratios / noise**2).sum() / (1 / noise**2).sum())
    margin = (1 + abs(factor)) * noise
    # A factor is one only if it fits much better than no error at all would.
    if bool(((ratios - factor).abs() > min(ONE_FACTOR * abs(factor), abs(factor - 1) / 10) + margin).any()):
        return (PART if _has_gaps(bench, name, samples[0].step) else DIRECTION), None
    if factor == 0 or int(clear.sum()) < 2 or float(margin.amin()) > abs(factor - 1) / 2:
        # Wide noise fits any factor.
        return DISAGREES, None
    return (SIGN if factor < 0 else SCALE), factor


def _has_gaps(bench: Bench, name: str, step: float) -> bool:
    """Return whether the output depends on elements to which every question leaves a gradient of exactly zero."""
    found = [each[name] for each in bench.gradients if each[name] is not None]
    gaps = torch.stack([gradient == 0 for gradient in found]).all(0)
    if not bool(gaps.any()):
        return False
    inside = {name: bench.directed([name], towards=False)[name] * gaps}
    return not bench.careful([name], inside, [step]).agrees


def _blur(sizes: Tensor, slope: Slope) -> float:
    """Return the largest doubt next to a tensor's gradient, the faint ones apart."""
    counted = sizes > FINEST * sizes.amax()
    if not bool(counted.any()):
        return float((slope.doubts / slope.values.abs().clamp(min=1e-300)).amax())
    return float((slope.doubts / sizes)[counted].amax())


def _product(gradient: Tensor | None, move: Tensor) -> float:
    return 0.0 if gradient is None else float(torch.dot(gradient.double().flatten(), move.double().flatten()))


def _norm(gradient: Tensor | None) -> float:
    return 0.0 if gradient is None else float(torch.linalg.vector_norm(gradient, dtype=torch.float64))


def _root_mean_square(tensor: Tensor) -> float:
    return _norm(tensor) / math.sqrt(tensor.numel())
