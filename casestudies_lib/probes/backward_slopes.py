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
STEPS = (3e-9, 1e-6, 1e-3, 3e-2)
COARSE_STEPS = (3e-3, 3e-2, 3e-4)

Profile = Callable[[float], Tensor]


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


def profile(
    subject: Subject, centre: Sequence[Tensor], upstreams: Sequence[Sequence[Tensor]], moves: Mapping[str, Tensor]
) -> Profile:
    """Return how the projected outputs change with the step along a direction, one number an upstream gradient."""

    def change(step: float) -> Tensor:
        with subject.at_start(), torch.no_grad():
            outputs = subject.run(moves, step)
        # The difference first, the projection after: so the sum does not round what they have in common.
        rises = [(near.double() - start.double()) for near, start in zip(outputs, centre)]
        return torch.stack([projected(rises, upstream) for upstream in upstreams])

    return change


def projected(rises: Sequence[Tensor], upstream: Sequence[Tensor]) -> Tensor:
    """Return the sum of products; elements with an upstream gradient of zero count as zero, infinite ones too."""
    total = [torch.where(weight == 0, 0.0, rise * weight).sum() for rise, weight in zip(rises, upstream)]
    return torch.stack(total).sum().cpu()


def careful_slope(change: Profile, step: float, floor: Tensor) -> Slope:
    """Return the slope from four points around the centre, and its doubt from how little they lie on a parabola.

    Fourth and third differences of a smooth function vanish at such steps; what is left of them is rounding, or a kink.

    Source: the five-point stencil; noise from difference tables: Moré and Wild, "Estimating computational noise", 2011.
    """
    far_below, below, above, far_above = (change(place * step) for place in (-2, -1, 1, 2))
    fourth = far_below - 4 * below - 4 * above + far_above
    thirds = above + 3 * below - far_below, far_above - 3 * above - below
    spreads = [fourth.abs() / math.sqrt(70), *(third.abs() / math.sqrt(20) for third in thirds), floor]
    noise = torch.stack(spreads).amax(0)
    near, far = (above - below) / (2 * step), (far_above - far_below) / (4 * step)
    values = (4 * near - far) / 3
    doubts = torch.where(values.isfinite(), SURE * noise / step, math.inf).nan_to_num(nan=math.inf)
    return Slope(values, doubts, noise, (near - far).abs() / 3)


def quick_slope(change: Profile, step: float, model: Slope) -> Slope:
    """Return the slope from two points, with the doubt that a careful one found at the same step."""
    values = (change(step) - change(-step)) / (2 * step)
    doubts = (SURE * model.noise / step + model.bend).nan_to_num(nan=math.inf)
    return Slope(values, torch.where(values.isfinite(), doubts, math.inf), model.noise, model.bend)


def floor_of(centre: Sequence[Tensor], upstreams: Sequence[Sequence[Tensor]]) -> Tensor:
    """Return what rounding alone does to a projected output, one number an upstream gradient."""
    sizes = [
        sum(
            float((torch.where(weight == 0, 0.0, out) * weight).square().sum()) for out, weight in zip(centre, upstream)
        )
        for upstream in upstreams
    ]
    eps = max(torch.finfo(out.dtype).eps for out in centre)
    return eps * torch.tensor(sizes, dtype=torch.float64).sqrt()
