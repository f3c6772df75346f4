"""Every probe with a call on its fault and one on the healthy twin, for what all probes promise alike.

A new probe gets one function here and its bad calls in `refusals.py`; `test_contract.py` then holds it to the promises.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional

from casestudies_lib import probes


@dataclass(frozen=True)
class Call:
    """One call of a probe, by the names of its arguments.

    Attributes:
        probe: the probe's name.
        arguments: what it is given.
        training: for a probe that watches: what runs meanwhile, given the watch; it ends in the result.
    """

    probe: str
    arguments: dict[str, Any]
    training: Callable[[Any], probes.ProbeResult] | None = None

    def ask(self, **changes: Any) -> probes.ProbeResult:
        """Return the probe's answer, with some arguments changed."""
        answer = getattr(probes, self.probe)(**{**self.arguments, **changes})
        return self.training(answer) if self.training else answer

    @property
    def modules(self) -> list[nn.Module]:
        """Return the modules among the arguments."""
        return [value for value in self.arguments.values() if isinstance(value, nn.Module)]


@dataclass(frozen=True)
class Case:
    """What a probe is tried on.

    Attributes:
        call: returns the call of a seed, on the fault or on its healthy twin.
        where: the start of the place that the probe must name for the fault.
    """

    call: Callable[[int, bool], Call]
    where: str


def seeded(seed: int, build: Callable[..., Any], *arguments: Any, **settings: Any) -> Any:
    """Return what a function builds with the global generator at a seed, which is then put back."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build(*arguments, **settings)


def drawn(seed: int, *shape: int) -> Tensor:
    """Return standard normal numbers of a generator of their own."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def regression(seed: int) -> tuple[Tensor, Tensor]:
    """Return inputs (96 × 4) and targets (96 × 1)."""
    return drawn(seed, 96, 4), drawn(seed + 1000, 96, 1)


def squared_error(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Return the mean squared error of the first output."""
    return functional.mse_loss(module(batch[0])[:, :1], batch[1])


class Perceptron(nn.Module):
    """Two layers with an activation between them."""

    def __init__(self, inputs, outputs, activation):
        super().__init__()
        self.into, self.activation, self.out = nn.Linear(inputs, 8), activation(), nn.Linear(8, outputs)

    def forward(self, inputs):
        return self.out(self.activation(self.into(inputs)))


class TwoHeads(nn.Module):
    """A body with two heads, whose answers stand side by side."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.Tanh())
        self.answer, self.mastery = nn.Linear(8, 1), nn.Linear(8, 1)

    def forward(self, inputs):
        hidden = self.body(inputs)
        return torch.cat([self.answer(hidden), self.mastery(hidden)], dim=-1)


def idle_call(seed: int, faulty: bool) -> Call:
    """A head whose loss has weight zero."""

    def loss(module, batch):
        answer, mastery = module(batch[0]).split(1, dim=-1)
        weight = 0.0 if faulty else 0.3
        return functional.mse_loss(answer, batch[1]) + weight * functional.mse_loss(mastery, batch[1])

    module = seeded(seed, TwoHeads)
    optimiser = torch.optim.AdamW(module.parameters())
    arguments = {"module": module, "loss": loss, "batch": regression(seed), "optimiser": optimiser}
    return Call("idle_parameters", arguments)


def stepping_call(seed: int, faulty: bool) -> Call:
    """A loop that asks twice a batch whether to step, and by the first answer never does."""
    module = seeded(seed, Perceptron, 4, 1, nn.Tanh)
    optimiser = torch.optim.SGD(module.parameters(), lr=0.01)

    def training(watch):
        for number, batch in enumerate(watch([regression(each) for each in range(16)]), 1):
            squared_error(module, batch).backward()
            queries = 2 * number - 1 if faulty else number
            if queries % 4 == 0:
                optimiser.step()
                optimiser.zero_grad()
        return watch.result()

    return Call("stepping", {"module": module, "optimiser": optimiser, "accumulation": 4}, training)


class Gated(nn.Module):
    """A residual branch behind a gate; the branch may be zero."""

    def __init__(self, silent=False):
        super().__init__()
        self.into, self.head = nn.Linear(4, 6), nn.Linear(6, 1)
        self.alpha, self.branch, self.silent = nn.Parameter(torch.tensor(0.3)), nn.Linear(6, 6), silent

    def forward(self, inputs):
        hidden = self.into(inputs)
        branch = self.branch(hidden).tanh() * (0 if self.silent else 1)
        return self.head(hidden + self.alpha * branch)


def gates_call(seed: int, faulty: bool) -> Call:
    """A gate before a branch of zeros."""
    model = seeded(seed, Gated, faulty)
    optimiser = torch.optim.AdamW(model.parameters())
    arguments = {"model": model, "loss": squared_error, "batch": regression(seed), "names": "alpha"}
    return Call("gates", {**arguments, "optimiser": optimiser})


class Mixture(nn.Module):
    """Experts weighted by a router, whose weights may be cut off."""

    def __init__(self, detached=False):
        super().__init__()
        self.router = nn.Linear(4, 3)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 1)) for _ in range(3))
        self.detached = detached

    def forward(self, inputs):
        weights = self.router(inputs).softmax(-1)
        weights = weights.detach() if self.detached else weights
        return sum(weights[:, [place]] * expert(inputs) for place, expert in enumerate(self.experts))


class TopOne(nn.Module):
    """Experts of which one a token is chosen; its weight may be divided by itself."""

    def __init__(self, normalised):
        super().__init__()
        self.into, self.router = nn.Linear(4, 6), nn.Linear(6, 3, bias=False)
        self.experts = nn.ModuleList(nn.Linear(6, 1) for _ in range(3))
        self.normalised = normalised

    def forward(self, inputs):
        hidden = self.into(inputs)
        weight, chosen = self.router(hidden).softmax(-1).max(-1, keepdim=True)
        weight = weight / (weight + 1e-9) if self.normalised else weight
        every = torch.cat([expert(hidden) for expert in self.experts], dim=-1)
        return weight * every.gather(-1, chosen)


def routing_call(seed: int, faulty: bool) -> Call:
    """A router whose weights are detached."""
    arguments = {"module": seeded(seed, Mixture, faulty), "loss": squared_error, "batch": regression(seed)}
    settings = {"routers": "router", "gates": {"router": -1}, "steps": 3}
    return Call("routing_reach", {**arguments, **settings, "optimiser": lambda weights: torch.optim.Adam(weights)})


class Reader(nn.Module):
    """Reads tokens in one direction or in both."""

    def __init__(self, both_ways=False):
        super().__init__()
        self.embedding = nn.Embedding(9, 8)
        self.mixer = nn.GRU(8, 4 if both_ways else 8, batch_first=True, bidirectional=both_ways)
        self.head = nn.Linear(8, 9)

    def forward(self, tokens):
        return self.head(self.mixer(self.embedding(tokens))[0])


def causality_call(seed: int, faulty: bool) -> Call:
    """A recurrent layer that also reads backwards."""
    tokens = torch.randint(9, (2, 12), generator=torch.Generator().manual_seed(seed))
    return Call("causality", {"model": seeded(seed, Reader, faulty), "tokens": tokens})


def interference_call(seed: int, faulty: bool) -> Call:
    """Two losses that pull one number up and down."""

    def losses(module, batch):
        out = module(batch)
        return {"up": (out - 5).square().mean(), "down": (out + (5 if faulty else -4)).square().mean()}

    module = seeded(seed, Perceptron, 3, 2, nn.Tanh)
    return Call("interference", {"module": module, "losses": losses, "batch": drawn(seed, 16, 5, 3)})


def ablation_call(seed: int, faulty: bool) -> Call:
    """An ablation of the activation that keeps the activation."""

    first = seeded(seed, Perceptron, 4, 3, nn.ReLU)
    second = seeded(seed + 1000, Perceptron, 4, 3, nn.ReLU if faulty else nn.GELU)
    arguments = {"first": first, "second": second, "inputs": drawn(seed, 5, 4), "expected": ["activation"]}
    return Call("ablation_diff", arguments)


class Scaled(Function):
    """The identity, with a backward pass by another factor."""

    @staticmethod
    def forward(ctx, inputs, factor):
        ctx.factor = factor
        return inputs.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.factor, None


class ScaledBackward(nn.Module):
    """A layer behind a function whose backward pass may be 5 % too large."""

    def __init__(self, factor):
        super().__init__()
        self.factor, self.layer = factor, nn.Linear(5, 3)

    def forward(self, inputs):
        return self.layer(Scaled.apply(inputs, self.factor))


def backward_call(seed: int, faulty: bool) -> Call:
    """A backward pass that is 5 % too large."""
    function = seeded(seed, ScaledBackward, 1.05 if faulty else 1.0)
    return Call("backward_check", {"function": function, "inputs": drawn(seed, 6, 5).requires_grad_()})


class Divergence(nn.Module):
    """The divergence of two distributions over classes, averaged over positions or over the batch alone."""

    def __init__(self, over_batch=False):
        super().__init__()
        self.over_batch = over_batch

    def forward(self, prediction, target):
        slots = len(prediction) if self.over_batch else prediction[..., 0].numel()
        target = target.softmax(-1)
        return functional.kl_div(prediction.log_softmax(-1), target, reduction="sum") / slots


def reduction_call(seed: int, faulty: bool) -> Call:
    """A loss that grows with the length of its sequences."""
    tensors = {"prediction": drawn(seed, 3, 12, 6), "target": drawn(seed + 1000, 3, 12, 6)}
    return Call("reduction_scaling", {"loss": Divergence(faulty), **tensors, "axes": ("batch", "length", "classes")})


def alignment_call(seed: int, faulty: bool) -> Call:
    """Two tokenizers that cut one text of 200 characters at different places."""
    generator = np.random.default_rng(seed)
    first, second = (sorted({0, 200, *generator.choice(200, 60).tolist()}) for _ in range(2))
    pairs = list(pairwise(first)), list(pairwise(second if faulty else first))
    return Call("alignment", {"first_offsets": pairs[0], "second_offsets": pairs[1]})


def grouped_call(seed: int, faulty: bool) -> Call:
    """Targets of which three groups of unequal size have a part left blank."""
    generator = np.random.default_rng(seed)
    groups = np.repeat(np.arange(20), 100 + 10 * np.arange(20))
    target = generator.normal(0, 10, 20)[groups] + generator.normal(0, 10, groups.size)
    predicted = target + generator.normal(0, 1.4, groups.size)
    blank = np.isin(groups, [2, 5, 11]) & (generator.random(groups.size) < 0.7)
    target = np.where(blank & faulty, 0.0, target)
    return Call("grouped_errors", {"predicted": predicted, "target": target, "groups": groups})


CASES = {
    "ablation_diff": Case(ablation_call, "activation"),
    "alignment": Case(alignment_call, "position "),
    "backward_check": Case(backward_call, "input 0"),
    "causality": Case(causality_call, "future tokens"),
    "gates": Case(gates_call, "alpha"),
    "grouped_errors": Case(grouped_call, "group"),
    "idle_parameters": Case(idle_call, "mastery"),
    "interference": Case(interference_call, "up and down"),
    "reduction_scaling": Case(reduction_call, "length"),
    "routing_reach": Case(routing_call, "router"),
    "stepping": Case(stepping_call, "all parameters"),
}
