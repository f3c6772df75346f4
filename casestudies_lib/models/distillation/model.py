"""Distillation between two language models that differ in width, depth and tokenizer.

A frozen teacher, a student, and the trainable bridge between them: every projector that makes two tensors of different
width comparable, and a router that mixes the teacher's layers. Explained in chapter `distillation_loss`.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from casestudies_lib.models.blocks import causal_mask, check_sizes, initialise, merge_heads, split_heads

Maps = Float[Tensor, "batch heads tokens tokens"]
Stream = Float[Tensor, "batch tokens dim"]
Hidden = tuple[Stream, ...]
Experts = tuple[Float[Tensor, "batch teacher_tokens teacher_dim"], ...]


@dataclass(frozen=True)
class Sizes:
    """The shape of a language model: vocabulary, longest text in tokens, width, attention heads, depth."""

    vocab: int
    tokens: int
    dim: int = 32
    heads: int = 4
    blocks: int = 2

    def __post_init__(self) -> None:
        """Refuse sizes that no model has, with a ValueError."""
        check_sizes(self, {"vocab": 2, "tokens": 2, "dim": 1, "heads": 1, "blocks": 1})


class Reading(NamedTuple):
    """What a language model makes of a text: everything that a distillation loss may ask for.

    `logits[:, i]` speak of the token after token i. `hidden` holds the embedding and the output of each block,
    `attention` the attention weights of each block, and `experts` what each feed-forward adds.
    """

    logits: Float[Tensor, "batch tokens vocab"]
    hidden: Hidden
    attention: tuple[Maps, ...]
    experts: Hidden


class Block(nn.Module):
    """A pre-norm transformer block that also returns its attention weights and what its feed-forward adds.

    Source: Radford et al., "Language Models are Unsupervised Multitask Learners", 2019 (norm before each part).
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        dim, self.heads = sizes.dim, sizes.heads
        self.norm, self.forward_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.query_key_value, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.feed_forward = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, hidden: Stream) -> tuple[Stream, Maps, Stream]:
        """Return the residual stream after the block, its attention weights, and the feed-forward's output."""
        parts = self.query_key_value(self.norm(hidden)).chunk(3, dim=-1)
        queries, keys, values = (split_heads(part, self.heads) for part in parts)
        scores = queries @ keys.transpose(-1, -2) / math.sqrt(queries.shape[-1])
        weights = scores.masked_fill(~causal_mask(scores.shape[-1], scores.device), -math.inf).softmax(-1)
        hidden = hidden + self.out(merge_heads(weights @ values))
        added = self.feed_forward(self.forward_norm(hidden))
        return hidden + added, weights, added


class LanguageModel(nn.Module):
    """A causal language model with learned positions and an output layer tied to the embedding."""

    def __init__(self, sizes: Sizes, generator: torch.Generator) -> None:
        """Declare the parts and draw their weights from `generator`."""
        super().__init__()
        self.sizes = sizes
        self.embedding, self.positions = nn.Embedding(sizes.vocab, sizes.dim), nn.Embedding(sizes.tokens, sizes.dim)
        self.blocks = nn.ModuleList(Block(sizes) for _ in range(sizes.blocks))
        self.norm = nn.LayerNorm(sizes.dim)
        initialise(self, generator)
        with torch.no_grad():  # tied weights: a standard normal would make the first logits as large as the root of dim
            self.embedding.weight.mul_(sizes.dim**-0.5)
            self.positions.weight.mul_(sizes.dim**-0.5)

    def forward(self, ids: Int[Tensor, "batch tokens"]) -> Reading:
        """Read token ids.

        Raises:
            ValueError: the text is empty or longer than the model's positions.
        """
        most = self.sizes.tokens
        if not 1 <= ids.shape[1] <= most:
            raise ValueError(
                f"{ids.shape[1]} tokens for a model of {most} positions; give 1 to {most}, or raise `tokens`"
            )
        hidden = [self.embedding(ids) + self.positions.weight[: ids.shape[1]]]
        attention, experts = [], []
        for block in self.blocks:
            after, weights, added = block(hidden[-1])
            hidden.append(after)
            attention.append(weights)
            experts.append(added)
        logits = functional.linear(self.norm(hidden[-1]), self.embedding.weight)
        return Reading(logits, tuple(hidden), tuple(attention), tuple(experts))


def with_massive_activations(reading: Reading, size: float, channels: int = 2) -> Reading:
    """Return the reading with huge values planted on the first token of all hidden states between first and last.

    Large models grow such values by themselves after an early block, in a few fixed channels, mostly on the first
    token, and lose them before the output. Planted, they leave the teacher's answers as they are.

    Raises:
        ValueError: no hidden state lies between first and last, or the width has not so many channels.

    Source: Sun et al., "Massive Activations in Large Language Models", COLM 2024, section 2.
    """
    if len(reading.hidden) < 3:
        raise ValueError(f"{len(reading.hidden)} hidden states leave none between; read with at least 2 blocks")
    width = reading.hidden[0].shape[-1]
    if not 1 <= channels <= width:
        raise ValueError(f"channels is {channels}; choose 1 to {width}, the width of the hidden states")
    inner = [hidden.clone() for hidden in reading.hidden[1:-1]]
    for hidden in inner:
        hidden[:, 0, :channels] += size
    return reading._replace(hidden=(reading.hidden[0], *inner, reading.hidden[-1]))


def stretched(values: Stream, tokens: int) -> Float[Tensor, "batch {tokens} dim"]:
    """Return the sequence stretched or squeezed to another length by linear interpolation, as the report's code does.

    Position i then holds what stands at the same *share* of the other text, whatever characters that is.

    Raises:
        ValueError: a length below one.
    """
    if tokens < 1:
        raise ValueError(f"tokens is {tokens}; stretch to at least 1")
    if values.shape[1] == tokens:
        return values
    return functional.interpolate(values.transpose(1, 2), tokens, mode="linear", align_corners=False).transpose(1, 2)


def layer_pairs(student_states: int, teacher_states: int) -> list[tuple[int, int]]:
    """Return which hidden state of the student is compared with which of the teacher, spread evenly, as published.

    Raises:
        ValueError: one of the two has no hidden state.
    """
    shorter = min(student_states, teacher_states)
    if shorter < 1:
        raise ValueError(f"{student_states} and {teacher_states} hidden states make no pair; each needs at least 1")
    return [(place * student_states // shorter, place * teacher_states // shorter) for place in range(shorter)]


class FeatureProjector(nn.Sequential):
    """Student width to teacher width through a hidden layer with norm and GELU."""

    def __init__(self, dim: int, out: int) -> None:
        """Declare the layers; the hidden one is as wide as the mean of both ends."""
        middle = (dim + out) // 2
        super().__init__(nn.Linear(dim, middle), nn.LayerNorm(middle), nn.GELU(), nn.Linear(middle, out))


class Routed(NamedTuple):
    """What the router makes of a batch: the mixed teacher layers, the mixing weights, and two things to align."""

    projected: Float[Tensor, "batch tokens teacher_dim"]
    routed: Float[Tensor, "batch tokens teacher_dim"]
    weights: Float[Tensor, "batch tokens experts"]
    attended: Stream
    compressed: Stream


class Router(nn.Module):
    """Mix the teacher's experts by weights that the student chooses, two at a time."""

    def __init__(self, student: Sizes, teacher: Sizes, kept: int = 2) -> None:
        """Declare the gate, the projections and a cross-attention of one head.

        Raises:
            ValueError: no expert would be kept. More than the teacher has means all of them.
        """
        if kept < 1:
            raise ValueError(f"kept is {kept}; at least 1 expert must be mixed")
        super().__init__()
        dim, wide = student.dim, teacher.dim
        self.kept = min(kept, teacher.blocks)
        self.gate, self.projector = nn.Linear(dim, teacher.blocks), nn.Linear(dim, wide)
        self.compressor = nn.Sequential(nn.Linear(wide, wide // 2), nn.GELU(), nn.Linear(wide // 2, dim))
        self.query, self.key, self.value = (nn.Linear(dim, dim) for _ in range(3))

    def forward(self, student: Stream, experts: Experts) -> Routed:
        """Return the mix; experts of another length are stretched first.

        Raises:
            ValueError: there are not as many experts as the gate has weights.
        """
        if len(experts) != self.gate.out_features:
            raise ValueError(f"{len(experts)} experts for a gate of {self.gate.out_features}; give one for each block")
        stack = torch.stack([stretched(expert, student.shape[1]) for expert in experts], dim=2)
        scores = self.gate(student).softmax(-1)
        top = scores.topk(self.kept, dim=-1)
        weights = torch.zeros_like(scores).scatter(-1, top.indices, top.values)
        weights = weights / weights.sum(-1, keepdim=True)
        routed = (stack * weights.unsqueeze(-1)).sum(2)
        compressed = self.compressor(routed)
        scores = self.query(student) @ self.key(compressed).transpose(-1, -2) / math.sqrt(student.shape[-1])
        return Routed(self.projector(student), routed, weights, scores.softmax(-1) @ self.value(compressed), compressed)


class Bridge(nn.Module):
    """Everything trainable that is not the student: projectors for logits, layers and heads, and the router."""

    def __init__(self, student: Sizes, teacher: Sizes, generator: torch.Generator) -> None:
        """Declare the parts and draw their weights from `generator`."""
        super().__init__()
        self.pairs = layer_pairs(student.blocks + 1, teacher.blocks + 1)
        self.logit_projector = nn.Linear(teacher.dim, student.dim)
        self.layer_projectors = nn.ModuleList(FeatureProjector(student.dim, teacher.dim) for _ in self.pairs)
        self.layer_weights = nn.Parameter(torch.full((len(self.pairs),), 1 / len(self.pairs)))
        self.head_projector = nn.Linear(teacher.heads, student.heads, bias=False)
        self.pool_projector = nn.Linear(teacher.dim, student.dim)
        self.router = Router(student, teacher)
        initialise(self, generator)


class Distiller(nn.Module):
    """The student and its bridge: all that a distillation run trains."""

    def __init__(self, student: Sizes, teacher: Sizes, generator: torch.Generator) -> None:
        super().__init__()
        self.student = LanguageModel(student, generator)
        self.bridge = Bridge(student, teacher, generator)


def moving_average(module: nn.Module, decay: float) -> AveragedModel:
    """Return an exponential moving average of a module's parameters that starts from where they are now.

    Call `update_parameters(module)` after each step; the average then keeps `decay` of itself.

    Raises:
        ValueError: a decay outside 0 to 1.

    Source: torch.optim.swa_utils; its first update copies the parameters, so that one is made here, before any step.
    """
    if not 0 <= decay < 1:
        raise ValueError(f"decay is {decay}; it must be at least 0 and below 1")
    average = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(decay))
    average.update_parameters(module)
    return average
