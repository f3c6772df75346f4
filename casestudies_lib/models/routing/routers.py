"""Routers: which of a layer's attention heads a token uses, and with what weight. Explained in chapter `head_routing`.

Source: repository ryancinsight/RustGPT, `src/head_router.rs`; Jin et al., "MoH: Multi-Head Attention as Mixture-of-Head
Attention", 2024 (shared heads beside routed ones).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from casestudies_lib.models.routing.backwards import Heuristic, named

Hidden = Float[Tensor, "batch tokens dim"]
PerHead = Float[Tensor, "batch tokens heads"]
PerToken = Float[Tensor, "batch tokens"]
AUXILIARY = {"load balance": 0.1, "complexity": 0.1, "sparsity": 0.01}  # the weights of the reported run
ROUTER_GRADIENTS = ("exact", "heuristic", "leaking")


class Routing(NamedTuple):
    """What a router says of each token.

    `weights` multiply the heads' outputs; `selected` are the heads that a hard choice runs; `gates` say how open the
    choice is for a head; `targets` are how many heads the router means to use; at the probability `thresholds` a hard
    choice stops.
    """

    weights: PerHead
    selected: Bool[Tensor, "batch tokens heads"]
    gates: PerHead
    probabilities: PerHead
    thresholds: PerToken
    targets: PerToken


@dataclass(frozen=True)
class RouterSettings:
    """What a router needs to know besides its name.

    `shared` heads are always on; `most` limits how many of the others a token may use (0: all of them); `sharpness` is
    the published gate's temperature, which multiplies; `noise` the temperature of Gumbel noise, which divides;
    `gradient` is what the router learns from: its exact derivative, or the published heuristic, kept from its input or
    leaking into it; `strength` scales the heuristic.
    """

    shared: int = 0
    top_p: float = 0.5
    most: int = 0
    sharpness: float = 5.0
    noise: float = 1.0
    gradient: str = "exact"
    strength: float = 1.0

    def check(self, heads: int) -> None:
        """Refuse what no router of so many heads can do.

        Raises:
            ValueError: names the setting, what came and what is allowed.
        """
        if not 0 <= self.shared < heads:
            raise ValueError(
                f"shared is {self.shared}; choose 0 to {heads - 1}, so that one of {heads} heads is routed"
            )
        if not 0 <= self.most <= heads - self.shared:
            raise ValueError(
                f"most is {self.most}, but {heads} heads with {self.shared} shared leave {heads - self.shared} to "
                "select from; choose at most that many, or 0 for all"
            )
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; choose a probability above 0 and at most 1")
        for name in ("sharpness", "noise"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is a temperature of {getattr(self, name)}; it must be above 0")
        if self.gradient not in ROUTER_GRADIENTS:
            raise ValueError(f"gradient is {self.gradient!r}; allowed are {', '.join(ROUTER_GRADIENTS)}")


class Ranked(NamedTuple):
    """Heads in order of probability: how many are ahead, their summed probability, and that with the head itself."""

    rank: PerHead
    before: PerHead
    cumulative: PerHead


def ranked(probabilities: PerHead) -> Ranked:
    """Return each head's place among its token's heads; of equal heads the first is ahead.

    It compares all pairs instead of sorting: heads keep their places, and the sums stay differentiable.
    """
    mine, other = probabilities.unsqueeze(-1), probabilities.unsqueeze(-2)
    heads = probabilities.shape[-1]
    earlier = torch.ones(heads, heads, dtype=torch.bool, device=probabilities.device).tril(-1)
    ahead = (other > mine) | ((other == mine) & earlier)
    before = (ahead * other).sum(-1)
    return Ranked(ahead.sum(-1).to(probabilities.dtype), before, before + probabilities)


def chosen(places: Ranked, thresholds: PerToken, targets: PerToken) -> Bool[Tensor, "batch tokens heads"]:
    """Return the heads that a hard choice takes: the best first, until sum reaches threshold or number the target.

    The best head is always among them, since a threshold is above zero and a target at least one.
    """
    return (places.before < thresholds.unsqueeze(-1)) & (places.rank < targets.unsqueeze(-1))


class AllHeads(nn.Module):
    """Every head with weight one: plain attention, whose router has no parameters."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, hidden: Hidden) -> Routing:
        """Return ones."""
        ones = torch.ones_like(hidden[..., :1]).expand(*hidden.shape[:-1], self.heads)
        return Routing(ones, ones > 0, ones, ones / self.heads, ones[..., 0], ones.sum(-1))


class TopP(nn.Module):
    """Standard mixture of heads: of the routed ones the most probable, until their sum reaches `top_p`."""

    def __init__(self, dim: int, heads: int, settings: RouterSettings, weighted: bool) -> None:
        """Declare the router; `weighted` multiplies a selected head by its probability."""
        super().__init__()
        settings.check(heads)
        self.settings, self.weighted = settings, weighted
        self.router = nn.Linear(dim, heads - settings.shared, bias=False)

    def forward(self, hidden: Hidden) -> Routing:
        """Return one for shared heads, and one or the probability for the routed ones that are selected."""
        probabilities = self.router(hidden).softmax(-1)
        thresholds = torch.full_like(probabilities[..., 0], self.settings.top_p)
        targets = torch.full_like(thresholds, self.settings.most or probabilities.shape[-1])
        selected = chosen(ranked(probabilities.detach()), thresholds, targets)
        gates = selected.to(hidden.dtype)
        weights = gates * probabilities if self.weighted else gates
        return _with_shared(Routing(weights, selected, gates, probabilities, thresholds, targets), self.settings.shared)


class Adaptive(nn.Module):
    """The fully adaptive router: predictors set each token's threshold, number of heads, and temperature if learned."""

    def __init__(self, dim: int, heads: int, settings: RouterSettings, gate: str, generator: torch.Generator) -> None:
        """Declare router and predictors; `gate` is a name in GATES, `generator` the source of Gumbel noise."""
        super().__init__()
        settings.check(heads)
        self.settings, self.kind, self.generator = settings, named(GATES, gate, "gate"), generator
        routed = heads - settings.shared
        self.most = settings.most or routed
        self.router = nn.Linear(dim, routed, bias=False)
        self.threshold, self.complexity = nn.Linear(dim, 1), nn.Linear(dim, 1)
        self.temperature = nn.Linear(dim, 1) if self.kind.learned_temperature else None

    def forward(self, hidden: Hidden) -> Routing:
        """Return the choice, its weights and what it follows from."""
        seen = hidden.detach() if self.settings.gradient == "heuristic" else hidden
        logits = self.router(seen)
        thresholds = 0.3 + 0.5 * self.threshold(hidden).squeeze(-1).sigmoid()
        targets = 1 + (self.most - 1) * self.complexity(hidden).squeeze(-1).sigmoid()
        probabilities = self._noisy(logits).softmax(-1)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.kind.differentiable):
            places = ranked(probabilities)
            gates = self._gates(hidden, places, thresholds)
        selected = chosen(places, thresholds, targets)
        weights = self.kind.weigh(gates, selected.to(hidden.dtype), probabilities, targets)
        if self.settings.gradient != "exact":
            weights = Heuristic.apply(logits, weights.detach(), self.settings.strength)
        routing = Routing(weights, selected, gates, probabilities, thresholds, targets)
        return _with_shared(routing, self.settings.shared)

    def _noisy(self, logits: Tensor) -> Tensor:
        if not (self.kind.noisy and self.training):
            return logits
        draws = torch.rand(logits.shape, generator=self.generator).clamp_min(1e-9)
        return (logits - (-draws.log()).log()) / self.settings.noise

    def _gates(self, hidden: Hidden, places: Ranked, thresholds: PerToken) -> PerHead:
        sharpness = self.settings.sharpness
        if self.temperature is not None:
            sharpness = 1 + 9 * self.temperature(hidden).sigmoid()
        return (self.kind.sign * sharpness * (places.cumulative - thresholds.unsqueeze(-1))).sigmoid()


def _hard(gates: PerHead, selected: PerHead, probabilities: PerHead, targets: PerToken) -> PerHead:
    return selected


def _straight_through(gates: PerHead, selected: PerHead, probabilities: PerHead, targets: PerToken) -> PerHead:
    return selected + (gates - gates.detach())  # in this order the value is the choice, to the last bit


def _plain(gates: PerHead, selected: PerHead, probabilities: PerHead, targets: PerToken) -> PerHead:
    return probabilities * gates


def _rescaled(gates: PerHead, selected: PerHead, probabilities: PerHead, targets: PerToken) -> PerHead:
    weights = probabilities * gates
    return weights * (targets / weights.sum(-1)).unsqueeze(-1)


@dataclass(frozen=True)
class Gate:
    """How weights follow from gates; `sign` 1, as published, opens the gates of the least probable heads."""

    weigh: Callable[[PerHead, PerHead, PerHead, PerToken], PerHead]
    sign: float = -1.0
    learned_temperature: bool = False
    differentiable: bool = True
    noisy: bool = False


GATES = {
    "hard": Gate(_hard, differentiable=False),
    "soft": Gate(_rescaled, sign=1.0),
    "soft, plain": Gate(_plain, sign=1.0),
    "soft, other sign": Gate(_rescaled),
    "soft, other sign, plain": Gate(_plain),
    "learned temperature": Gate(_rescaled, sign=1.0, learned_temperature=True),
    "straight-through": Gate(_straight_through),
    "gumbel": Gate(_straight_through, noisy=True),
}
ROUTERS = ("all heads", "standard", "standard, weighted", *GATES)


def make_router(name: str, dim: int, heads: int, settings: RouterSettings, generator: torch.Generator) -> nn.Module:
    """Return the router of a name in ROUTERS, its weights not yet drawn.

    Raises:
        ValueError: an unknown name, or settings that do not fit so many heads.
    """
    if name not in ROUTERS:
        raise ValueError(f"router is {name!r}; allowed are {', '.join(ROUTERS)}")
    if name == "all heads":
        return AllHeads(heads)
    if name in GATES:
        return Adaptive(dim, heads, settings, name, generator)
    return TopP(dim, heads, settings, weighted=name == "standard, weighted")


def draw_router(routers: nn.Module, generator: torch.Generator) -> None:
    """Draw the weights of routers and predictors: normal, variance 2 over fan-in plus fan-out, as published; no bias.

    Source: Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural networks", 2010.
    """
    for part in routers.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_normal_(part.weight, generator=generator)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def auxiliary(routing: Routing, real: Float[Tensor, "batch tokens"]) -> dict[str, Tensor]:
    """Return the three auxiliary losses of one layer, unweighted, mean over real tokens.

    Load balance is the product of a head's mean probability and mean weight, summed over heads; complexity the distance
    of the heads in use from the target; sparsity the share of heads in use.
    """
    share = real / real.sum()
    heads = routing.weights.shape[-1]
    probability, weight = (
        (share.unsqueeze(-1) * each).sum((0, 1)) for each in (routing.probabilities, routing.weights)
    )
    used, target = weight.sum(), (share * routing.targets).sum()
    return {"load balance": (probability * weight).sum(), "complexity": (used - target).abs(), "sparsity": used / heads}


def _with_shared(routing: Routing, shared: int) -> Routing:
    """Return the routing with always-on heads in front; their probability counts as one."""
    if not shared:
        return routing
    ones = torch.ones_like(routing.weights[..., :1]).expand(*routing.weights.shape[:-1], shared)
    weights, gates, probabilities = (
        torch.cat((ones, each), -1) for each in (routing.weights, routing.gates, routing.probabilities)
    )
    selected = torch.cat((ones > 0, routing.selected), -1)
    return Routing(weights, selected, gates, probabilities, routing.thresholds, routing.targets + shared)
