"""Two or more losses on one model: who sends gradient where, do they pull apart, and do the parts add up?"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from casestudies_lib.probes.conflict.findings import (
    Pair,
    broken_finding,
    conflict_finding,
    drowned_finding,
    last_axis_note_finding,
    structural_note_finding,
    sum_finding,
)
from casestudies_lib.probes.guard import left_as_found
from casestudies_lib.probes.inputs import check_module, checked_loss, kind_of
from casestudies_lib.probes.passes import first_tensor
from casestudies_lib.probes.result import Bar, Finding, ProbeInputError, ProbeResult

COLUMNS = ("part", "where", "losses", "norm", "norm of the second", "cosine", "positions reached")
FEATURES_LAST = (
    nn.Linear, nn.Bilinear, nn.Embedding, nn.LayerNorm, nn.RMSNorm, nn.RNNBase, nn.MultiheadAttention,
)  # fmt: skip
POSITIONS_LAST = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    *(nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d),
)
Losses = Callable[[nn.Module, Any], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Gradients:
    """One backward pass: the gradient of each parameter, and of each recorded output by position."""

    parameters: dict[str, Tensor | None]
    positions: dict[str, Tensor]


def interference(
    module: nn.Module,
    losses: Losses,
    batch: Any,
    *,
    weights: Mapping[str, float] | None = None,
    total: str | None = None,
    layers: Sequence[str] | None = None,
    position_axis: int = 1,
    conflict: float = -0.5,
    drowned: float = 0.1,
) -> ProbeResult:
    """Measure what each loss sends to every position, layer and shared parameter, and whether the losses disagree.

    All losses come from one forward pass, so dropout masks and batch are the same for each. Positions are those of the
    recorded layers' outputs: the gradient of a loss at a layer and position is zero *by construction* where nothing
    after that layer carries the position to the loss. Such a zero is a fact about the wiring: it holds for any weights
    and shows nothing about interference further down. The probe says where that is so: where a loss reaches a position
    in an earlier layer, and no entry of it in a later one.

    One batch gives one cosine, and cosines vary from batch to batch; ask again before you act on one near the limit.
    The module stays as it was, also after an error. Cost: one forward pass and one backward pass a loss (and one for
    `total`).

    Args:
        module: the model, in the mode (train or eval) you ask about.
        losses: called once as `losses(module, batch)`; returns two or more named numbers, each with a graph.
        batch: whatever your losses take.
        weights: what each loss is multiplied by in training; None takes each as it is returned.
        total: the name among the returned losses of the one that you train on; it is compared with the weighted sum of
            the others. None leaves the sum unchecked.
        layers: names of the submodules to look at; None takes direct children and the entries of containers.
        position_axis: the axis of a layer's output that counts positions, 1 for (batch, tokens, features). The last
            axis counts positions in (batch, channels, length) alone: it is refused for layers that hold linear layers,
            norms, attention and the like but no convolution, and earns a note where nothing tells.
        conflict: a cosine at or below this, on the parameters that two losses share, is a fault.
        drowned: a warning if one loss's norm on shared parameters is below this share of the other's.

    Returns:
        A result whose `ok` is False if two losses conflict, one drowns the other, a gradient is not finite, or the
        parts do not add up to the total. `measures["positions"]` holds, by layer and loss, one norm a position.

    Raises:
        ProbeInputError: names the argument, what came and what to give; also if no two losses share a parameter, or
            a loss's gradient is zero everywhere and leaves no pair to compare.

    Source: the chapter value_head_spillover; the cosine as a sign of conflict: Yu et al., "Gradient Surgery for
        Multi-Task Learning", NeurIPS 2020.
    """
    check_module(module)
    if not callable(losses) or isinstance(losses, nn.Module | type):
        raise ProbeInputError(f"losses is {kind_of(losses)}; give a function of (module, batch) that returns a mapping")
    if isinstance(position_axis, bool) or not isinstance(position_axis, int) or position_axis < 1:
        raise ProbeInputError(f"position_axis is {position_axis!r}; give a whole number, 1 or more (0 is the batch)")
    watched = _watched(module, layers)
    trainable = {name: p for name, p in module.named_parameters() if p.requires_grad and p.numel()}
    if not trainable:
        raise ProbeInputError("every parameter of the module has requires_grad=False; call requires_grad_() first")
    with left_as_found(module):
        taken, factors, unsure = _gradients(
            module, losses, batch, watched, trainable, weights, total, position_axis, layers is not None
        )
    parts = {name: taken[name] for name in factors}
    groups = _groups(trainable, list(watched))
    pairs = _pairs(parts, factors, groups)
    residual = None if total is None else _residual(parts, factors, taken[total])
    return _result(parts, factors, pairs, residual, (conflict, drowned), unsure)


def _watched(module: nn.Module, layers: Sequence[str] | None) -> dict[str, nn.Module]:
    named = dict(module.named_modules())
    if layers is not None:
        if isinstance(layers, str) or not layers:
            raise ProbeInputError(f"layers is {layers!r}; give a list of submodule names, or None")
        if unknown := [name for name in layers if name not in named]:
            raise ProbeInputError(f"the module has no submodule {unknown[0]!r}; some that it has: {list(named)[1:9]}")
        return {name: named[name] for name in layers}
    found: dict[str, nn.Module] = {}
    for name, child in module.named_children():
        found |= _opened(name, child)
    return found or {"": module}


def _opened(name: str, child: nn.Module) -> dict[str, nn.Module]:
    """Return a child, or the blocks it holds where it is a container, or little more than one."""
    holders = [child, *(part for part in child.children() if isinstance(part, nn.ModuleList | nn.Sequential))]
    for holder in holders:
        if isinstance(holder, nn.ModuleList | nn.Sequential):
            inside = name if holder is child else f"{name}.{_name_within(child, holder)}"
            return {f"{inside}.{key}": part for key, part in holder.named_children()}
    return {name: child}


def _name_within(parent: nn.Module, child: nn.Module) -> str:
    return next(name for name, part in parent.named_children() if part is child)


def _gradients(
    module: nn.Module,
    losses: Losses,
    batch: Any,
    watched: Mapping[str, nn.Module],
    trainable: Mapping[str, Tensor],
    weights: Mapping[str, float] | None,
    total: str | None,
    axis: int,
    chosen: bool,
) -> tuple[dict[str, Gradients], dict[str, float], list[Finding]]:
    outputs: dict[str, list[Tensor]] = {name: [] for name in watched}
    with torch.inference_mode(False), torch.enable_grad():
        handles = [part.register_forward_hook(_keeper(outputs[name])) for name, part in watched.items()]
        try:
            returned = losses(module, batch)
        finally:
            for handle in handles:
                handle.remove()
        terms = _checked_terms(returned, total)
        factors = _factors(terms, weights, total)
        recorded = _with_positions(outputs, axis, chosen)
        unsure = _last_axis(module, watched, recorded, axis)
        taken = {}
        for place, (name, term) in enumerate(terms.items()):
            taken[name] = _backward(term, trainable, recorded, axis, place < len(terms) - 1)
    return taken, factors, unsure


def _keeper(kept: list[Tensor]) -> Callable[..., None]:
    def keep(_part: nn.Module, _into: Any, out: Any) -> None:
        tensor = first_tensor(out)
        if tensor is not None and tensor.requires_grad:
            kept.append(tensor)

    return keep


def _checked_terms(returned: object, total: str | None) -> dict[str, Tensor]:
    if not isinstance(returned, Mapping):
        raise ProbeInputError(f"losses returned {kind_of(returned)}; return a mapping such as {{'Q': q, 'value': v}}")
    if total is not None and total not in returned:
        raise ProbeInputError(f"total is {total!r}; losses returned {', '.join(map(str, returned))}")
    if len(returned) - (total is not None) < 2:
        raise ProbeInputError(f"losses returned {', '.join(map(str, returned)) or 'nothing'}; two or more are needed")
    terms = {}
    for name, term in returned.items():
        try:
            terms[name] = checked_loss(term)
        except ProbeInputError as error:
            raise ProbeInputError(f"loss {name!r}: {error}") from None
    return terms


def _factors(terms: Mapping[str, Tensor], weights: Mapping[str, float] | None, total: str | None) -> dict[str, float]:
    names = [name for name in terms if name != total]
    if weights is None:
        return dict.fromkeys(names, 1.0)
    if set(weights) != set(names):
        raise ProbeInputError(
            f"weights are for {', '.join(weights) or 'nothing'}; give one for each of {', '.join(names)}"
        )
    if bad := [name for name in names if not math.isfinite(weights[name]) or not weights[name]]:
        raise ProbeInputError(f"weight of {bad[0]!r} is {weights[bad[0]]}; give a finite number other than 0")
    return {name: float(weights[name]) for name in names}


def _with_positions(outputs: Mapping[str, list[Tensor]], axis: int, chosen: bool) -> dict[str, list[Tensor]]:
    """Return the outputs with batch, positions and features; those of the commonest number of positions."""
    deep = {name: [out for out in kept if out.dim() > max(axis, 2)] for name, kept in outputs.items()}
    if chosen and (without := [name for name in outputs if not deep[name]]):
        shapes = [tuple(out.shape) for out in outputs[without[0]]]
        raise ProbeInputError(
            f"layer {without[0]!r} has no axis {axis} of positions: its outputs have shapes "
            f"{shapes or '(none with a graph)'}; choose another layer or position_axis"
        )
    found = {name: kept for name, kept in deep.items() if kept}
    if not found:
        shapes = [tuple(out.shape) for kept in outputs.values() for out in kept][:5]
        raise ProbeInputError(
            f"no layer's output has an axis {axis} of positions besides batch and features; shapes are {shapes}"
        )
    lengths = [out.shape[axis] for kept in found.values() for out in kept]
    usual = max(set(lengths), key=lengths.count)
    return {name: same for name, kept in found.items() if (same := [o for o in kept if o.shape[axis] == usual])}


def _last_axis(
    module: nn.Module, watched: Mapping[str, nn.Module], recorded: Mapping[str, list[Tensor]], axis: int
) -> list[Finding]:
    """Refuse features taken for positions; return a note for layers of which nothing tells what comes last."""
    shapes = {name: tuple(out.shape) for name, kept in recorded.items() for out in kept if out.dim() == axis + 1}
    convolves = {name: _holds(watched[name], POSITIONS_LAST) for name in shapes}
    for name, shape in shapes.items():
        if _holds(watched[name], FEATURES_LAST) and not convolves[name]:
            raise ProbeInputError(
                f"position_axis is {axis}, the last axis of the outputs of layer {name!r}, of shape {shape}; this "
                f"layer, {kind_of(watched[name])}, keeps features there. Allowed are 1 to {axis - 1}, such as 1 for "
                "(batch, tokens, features), or layers=[…] with convolutions, whose last axis counts positions"
            )
    unsure = [] if _holds(module, POSITIONS_LAST) else list(shapes)
    return [last_axis_note_finding(unsure, axis, shapes[unsure[0]])] if unsure else []


def _holds(part: nn.Module, kinds: tuple[type[nn.Module], ...]) -> bool:
    return any(isinstance(inner, kinds) for inner in part.modules())


def _backward(
    term: Tensor, trainable: Mapping[str, Tensor], recorded: Mapping[str, list[Tensor]], axis: int, keep: bool
) -> Gradients:
    flat = [out for kept in recorded.values() for out in kept]
    wanted = [*trainable.values(), *flat]
    found = torch.autograd.grad(term, wanted, retain_graph=keep, allow_unused=True)
    parameters = dict(zip(trainable, found[: len(trainable)]))
    squares = iter(zip(flat, found[len(trainable) :]))
    positions = {}
    for name, kept in recorded.items():
        sums = [_by_position(*next(squares), axis) for _ in kept]
        positions[name] = torch.stack(sums).sum(0).sqrt()
    return Gradients(parameters, positions)


def _by_position(output: Tensor, gradient: Tensor | None, axis: int) -> Tensor:
    if gradient is None:
        return output.new_zeros(output.shape[axis], dtype=torch.float64)
    others = [place for place in range(gradient.dim()) if place != axis]
    return torch.linalg.vector_norm(gradient.detach(), dim=others, dtype=torch.float64).square()


def _groups(trainable: Mapping[str, Tensor], layers: list[str]) -> dict[str, list[str]]:
    """Return parameter names by the watched layer that holds them, else by their first component."""
    groups: dict[str, list[str]] = {}
    for name in trainable:
        inside = [layer for layer in layers if layer and name.startswith(f"{layer}.")]
        groups.setdefault(max(inside, key=len, default=name.split(".")[0]), []).append(name)
    return groups


def _pairs(parts: Mapping[str, Gradients], factors: Mapping[str, float], groups: Mapping[str, list[str]]) -> list[Pair]:
    groups = {**groups, "all shared parameters": [name for names in groups.values() for name in names]}
    found = []
    for first, second in combinations(parts, 2):
        for group, names in groups.items():
            both = [(parts[first].parameters[name], parts[second].parameters[name]) for name in names]
            both = [(a, b) for a, b in both if a is not None and b is not None and a.any() and b.any()]
            if both:
                found.append(_pair(group, (first, second), both, (factors[first], factors[second])))
    if not found:
        _check_some_gradient(parts)
        raise ProbeInputError(
            f"losses {' and '.join(map(repr, parts))} share no parameters that both teach, so they cannot interfere; "
            "if they should share some, look for detach() or no_grad() between a loss and the shared layers"
        )
    return found


def _check_some_gradient(parts: Mapping[str, Gradients]) -> None:
    for name, part in parts.items():
        reached = [gradient for gradient in part.parameters.values() if gradient is not None]
        if reached and not any(gradient.any() for gradient in reached):
            raise ProbeInputError(
                f"loss {name!r}: its gradient is zero everywhere, on each of the {len(reached)} parameters that it "
                "reaches, so it teaches nothing and cannot be compared; look for a factor of 0, a mask that leaves "
                "no row, or a clamp or ReLU that cuts everything, or give a batch on which it is not zero"
            )


def _pair(group: str, names: tuple[str, str], both: list[tuple[Tensor, Tensor]], factors: tuple[float, float]) -> Pair:
    sums = [torch.stack([(x.double() * y.double()).sum() for x, y in both]) for both in _products(both)]
    aa, bb, ab = (float(part.sum()) for part in sums)
    norms = abs(factors[0]) * math.sqrt(aa), abs(factors[1]) * math.sqrt(bb)
    cosine = math.copysign(1.0, factors[0] * factors[1]) * ab / math.sqrt(aa * bb) if aa * bb > 0 else math.nan
    return Pair(group, names, norms, cosine)


def _products(both: list[tuple[Tensor, Tensor]]) -> tuple[list[tuple[Tensor, Tensor]], ...]:
    return [(a, a) for a, _ in both], [(b, b) for _, b in both], both


def _residual(parts: Mapping[str, Gradients], factors: Mapping[str, float], whole: Gradients) -> float:
    """Return how far the weighted sum of the parts is from the total's gradient, relative to the larger of the two."""
    missed = summed = reached = 0.0
    for name, gradient in whole.parameters.items():
        terms = [
            factors[part] * g.double() for part, found in parts.items() if (g := found.parameters[name]) is not None
        ]
        expected = torch.stack(terms).sum(0) if terms else torch.zeros(())
        given = torch.zeros_like(expected) if gradient is None else gradient.double()
        missed += float((given - expected).square().sum())
        summed, reached = summed + float(expected.square().sum()), reached + float(given.square().sum())
    return math.sqrt(missed / max(summed, reached)) if max(summed, reached) else 0.0


def _result(
    parts, factors, pairs: list[Pair], residual: float | None, limits: tuple[float, float], unsure: list[Finding]
) -> ProbeResult:
    broken = [pair for pair in pairs if not math.isfinite(pair.cosine) or not math.isfinite(sum(pair.norms))]
    sound = [pair for pair in pairs if pair not in broken]
    whole = [pair for pair in sound if pair.group == "all shared parameters"]
    structural = _structural_zeros(parts)
    found = [broken_finding(pair) for pair in broken[:1]] + sum_finding(residual)
    found += [conflict_finding(pair) for pair in whole if pair.cosine <= limits[0]]
    found += [drowned_finding(pair) for pair in whole if pair.ratio < limits[1]]
    found += [*unsure, *(structural_note_finding(*entry) for entry in structural)]
    worst = "; ".join(f"{pair.losses}: cosine {pair.cosine:+.2f}" for pair in whole)
    ok = not any(finding.severity != "note" for finding in found)
    positions = {
        layer: {name: part.positions[layer].tolist() for name, part in parts.items()}
        for layer in next(iter(parts.values())).positions
    }
    return ProbeResult(
        probe="interference",
        ok=ok,
        headline=f"On all shared parameters, {worst}." if whole else "A gradient is not finite.",
        findings=tuple(found),
        columns=COLUMNS,
        rows=(*map(_pair_row, pairs), *_layer_rows(parts)),
        bars=tuple(Bar(f"{pair.group}: {pair.losses}", pair.cosine, pair.cosine <= limits[0]) for pair in sound),
        bar_unit="cosine of the two gradients",
        measures={
            "cosine": {f"{pair.group}: {pair.losses}": pair.cosine for pair in sound},
            "norms": {f"{pair.group}: {pair.losses}": list(pair.norms) for pair in sound},
            "positions": positions,
            "zero_by_construction": {f"{layer}: {name}": zeros for layer, name, zeros, _ in structural},
            "parts_missing_from_total": residual,
            "weights": dict(factors),
        },
    )


def _pair_row(pair: Pair) -> tuple:
    numbers = [value if math.isfinite(value) else None for value in (*pair.norms, pair.cosine)]
    return ("parameters", pair.group, pair.losses, *numbers, None)


def _layer_rows(parts: Mapping[str, Gradients]) -> list[tuple]:
    rows = []
    for name, part in parts.items():
        for layer, norms in part.positions.items():
            size = float(norms.norm())
            reached = f"{int((norms != 0).sum())} of {len(norms)}"
            rows.append(("positions", layer, name, size if math.isfinite(size) else None, None, None, reached))
    return rows


def _structural_zeros(parts: Mapping[str, Gradients]) -> list[tuple[str, str, list[int], str]]:
    """Return layer, loss and positions where the gradient is exactly zero, though the loss reaches them earlier on."""
    found = []
    for name, part in parts.items():
        layers = list(part.positions)
        for place, layer in enumerate(layers):
            earlier = [part.positions[before] != 0 for before in layers[:place]]
            if earlier and part.positions[layer].any():
                reached = torch.stack(earlier).any(0) & (part.positions[layer] == 0)
                if reached.any():
                    source = next(before for before in layers[:place] if (part.positions[before] != 0)[reached].any())
                    found.append((layer, name, reached.nonzero().flatten().tolist(), source))
    return found
