"""Directional derivatives from differences, each with how far it may be off."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from casestudies_lib.probes.backward_subject import Subject

# Noise is estimated from three differences of one draw, so that it may well be several times what they show.
SURE = 10.0
# Steps to try, relative to each tensor's root mean square. A step that crosses a kink (ReLU, top-k) measures neither
# side, and a million units are near one somewhere: so the first is the smallest that rounding allows. The larger ones
# are for functions that compute in less than float64.
STEPS = (3e-9, 1e-7, 1e-6, 1e-3, 3e-2)
COARSE_STEPS = (3e-3, 3e-2, 3e-4)

Upstream = Sequence[Tensor]
Profile = Callable[[float], list[Tensor]]


@dataclass(frozen=True)
class Slope:
    """Derivatives along one direction, one an upstream gradient.

    Attributes:
        values: the derivatives.
        doubts: how far each may be off.
        noise: how far one evaluation may be off, in units of the projected output.
        bend: what the third derivative adds to a difference of two points.
    """

    values: Tensor
    doubts: Tensor
    noise: Tensor
    bend: Tensor

    def minus(self, part: "Slope") -> "Slope":
        """Return the derivative along what is left of the direction without a part."""
        return Slope(self.values - part.values, self.doubts + part.doubts, self.noise, self.bend)


def profile(subject: Subject, centre: Sequence[Tensor], moves: Mapping[str, Tensor]) -> Profile:
    """Return how the outputs change with the step along a direction."""

    def change(step: float) -> list[Tensor]:
        with subject.at_start(), torch.no_grad():
            outputs = subject.run(moves, step)
        # The difference first, the projection after: so the sum does not round what they have in common.
        return [near.double() - start.double() for near, start in zip(outputs, centre)]

    return change


def careful_slope(change: Profile, step: float, upstreams: Sequence[Upstream], floor: Tensor) -> Slope:
    """Return the slope from four points around the centre, and its doubt from how little they lie on a parabola.

    Third and fourth differences of a smooth function vanish at such steps; what is left of them is rounding, or a kink.
    They are squared output by output before they are summed, so that kinks of opposite sign do not hide each other.

    Source: the five-point stencil; noise from difference tables: Moré and Wild, "Estimating computational noise", 2011.
    """
    points = zip(*(change(place * step) for place in (-2, -1, 1, 2)))
    tables = [_table(*four, step) for four in points]
    near, far, *spreads = ([table[place] for table in tables] for place in range(5))
    noise = torch.stack([*(_spread(each, upstreams) for each in spreads), floor]).amax(0)
    near, far = _projected(near, upstreams), _projected(far, upstreams)
    values = (4 * near - far) / 3
    return Slope(values, _doubts(values, SURE * noise / step), noise, (near - far).abs() / 3)


def quick_slope(change: Profile, step: float, upstreams: Sequence[Upstream], model: Slope) -> Slope:
    """Return the slope from two points, with the doubt that a careful one found at the same step."""
    above, below = change(step), change(-step)
    values = _projected([(high - low) / (2 * step) for high, low in zip(above, below)], upstreams)
    return Slope(values, _doubts(values, SURE * model.noise / step + model.bend), model.noise, model.bend)


def floor_of(centre: Sequence[Tensor], upstreams: Sequence[Upstream]) -> Tensor:
    """Return what rounding alone does to a projected output, one number an upstream gradient."""
    eps = max(torch.finfo(out.dtype).eps for out in centre)
    return eps * _spread([out.double() for out in centre], upstreams)


def _table(far_below: Tensor, below: Tensor, above: Tensor, far_above: Tensor, step: float) -> tuple[Tensor, ...]:
    """Return two slopes, and three differences scaled to the noise of one evaluation; the centre is zero."""
    return (
        (above - below) / (2 * step),
        (far_above - far_below) / (4 * step),
        (far_below - 4 * below - 4 * above + far_above) / math.sqrt(70),
        (above + 3 * below - far_below) / math.sqrt(20),
        (far_above - 3 * above - below) / math.sqrt(20),
    )


def _projected(values: Sequence[Tensor], upstreams: Sequence[Upstream]) -> Tensor:
    """Return the sums of products; elements with an upstream gradient of zero count as zero, infinite ones too."""
    products = [[_product(value, weight).sum() for value, weight in zip(values, upstream)] for upstream in upstreams]
    return torch.stack([torch.stack(each).sum() for each in products]).cpu()


def _spread(values: Sequence[Tensor], upstreams: Sequence[Upstream]) -> Tensor:
    return _projected([value.square() for value in values], [[w.square() for w in each] for each in upstreams]).sqrt()


def _product(value: Tensor, weight: Tensor) -> Tensor:
    return torch.where(weight == 0, 0.0, value * weight)


def _doubts(values: Tensor, doubts: Tensor) -> Tensor:
    """Return the doubts, without limit where the slope is no number: a step has left the function's domain."""
    return torch.where(values.isfinite(), doubts, math.inf).nan_to_num(nan=math.inf)
