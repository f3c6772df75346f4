"""Knowledge tracing: from a student's past responses, how likely is the next one to be right?

Two systems that one report compares. GainAKT4 reads the past in two streams and answers with two heads; AKT weighs the
past by a distance that grows with what lies between. Explained in chapter `zero_weight_head`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional

from casestudies_lib.models.blocks import (
    Dropout,
    causal_mask,
    check_sizes,
    feed_forward,
    initialise,
    merge_heads,
    split_heads,
)

Ids = Int[Tensor, "batch slots"]
Stream = Float[Tensor, "batch slots dim"]
Streams = Callable[[str], torch.Generator]
HIDDEN = -1e32


class Predictions(NamedTuple):
    """What a tracing model answers: logits for "the next response is right", one a slot.

    `mastery_logits` is the second head's answer to the same question and `mastery` its running record a concept; both
    are None where that head was skipped or never built.
    """

    response_logits: Float[Tensor, "batch slots"]
    mastery_logits: Float[Tensor, "batch slots"] | None = None
    mastery: Float[Tensor, "batch slots concepts"] | None = None


def shared_stream(seed: int) -> Streams:
    """Return one generator for every purpose, as a process-wide seed does: whoever draws first moves all others."""
    generator = torch.Generator().manual_seed(seed)
    return lambda purpose: generator


def isolated_streams(seed: int) -> Streams:
    """Return one generator a purpose, each seeded by purpose and seed, so that no draw can move another's."""
    generators: dict[str, torch.Generator] = {}

    def stream(purpose: str) -> torch.Generator:
        if purpose not in generators:
            label = sum(byte * 257**place for place, byte in enumerate(purpose.encode()))
            generators[purpose] = torch.Generator().manual_seed((label * 1_000_003 + seed) % 2**63)
        return generators[purpose]

    return stream


@dataclass(frozen=True)
class Sizes:
    """The shape of a tracing model.

    `concepts` counts ids 0 … C − 1; `slots` is the longest sequence; `dim`, `heads` and `blocks` are width, attention
    heads and depth; `hidden` is the width inside feed-forwards and heads; `dropout` is the share dropped in training.
    """

    concepts: int
    slots: int
    dim: int = 32
    heads: int = 2
    blocks: int = 2
    hidden: int = 64
    dropout: float = 0.2

    def __post_init__(self) -> None:
        """Refuse sizes that no model has, with a ValueError."""
        check_sizes(self, {"concepts": 2, "slots": 1, "dim": 1, "heads": 1, "blocks": 1, "hidden": 1})


class DualStreamBlock(nn.Module):
    """Attention whose queries and keys come from a context stream and whose values come from a value stream.

    Source: clabra/pykt-toolkit, `pykt/models/gainakt4.py` (post-norm; only the context stream has a feed-forward).
    """

    def __init__(self, sizes: Sizes, generator: torch.Generator) -> None:
        super().__init__()
        self.heads, dim, rate = sizes.heads, sizes.dim, sizes.dropout
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim) for _ in range(4))
        self.context_norm, self.value_norm, self.forward_norm = (nn.LayerNorm(dim) for _ in range(3))
        self.feed_forward = feed_forward(dim, sizes.hidden, dim, rate, generator)
        self.attention_dropout, self.dropout = Dropout(rate, generator), Dropout(rate, generator)

    def forward(self, context: Stream, value: Stream) -> tuple[Stream, Stream]:
        """Return both streams after one round of causal attention."""
        queries, keys = split_heads(self.query(context), self.heads), split_heads(self.key(context), self.heads)
        scores = queries @ keys.transpose(-1, -2) / math.sqrt(queries.shape[-1])
        scores = scores.masked_fill(~causal_mask(context.shape[1], context.device), -math.inf)
        weights = self.attention_dropout(scores.softmax(-1))
        attended = self.out(merge_heads(weights @ split_heads(self.value(value), self.heads)))
        context = self.context_norm(context + attended)
        context = self.forward_norm(context + self.dropout(self.feed_forward(context)))
        return context, self.value_norm(value + attended)


class Encoder(nn.Module):
    """Embed (concept, response) pairs twice, add learned positions, and run the dual-stream blocks."""

    def __init__(self, sizes: Sizes, streams: Streams) -> None:
        super().__init__()
        self.concepts = sizes.concepts
        self.context_embedding = nn.Embedding(2 * sizes.concepts, sizes.dim)
        self.value_embedding = nn.Embedding(2 * sizes.concepts, sizes.dim)
        self.positions = nn.Embedding(sizes.slots, sizes.dim)
        dropout = streams("encoder dropout")
        self.blocks = nn.ModuleList(DualStreamBlock(sizes, dropout) for _ in range(sizes.blocks))

    def forward(self, concepts: Ids, responses: Ids) -> tuple[Stream, Stream]:
        """Return the context and value streams after the last block."""
        pairs = concepts + self.concepts * responses
        positions = self.positions.weight[: concepts.shape[1]]
        context, value = self.context_embedding(pairs) + positions, self.value_embedding(pairs) + positions
        for block in self.blocks:
            context, value = block(context, value)
        return context, value


class MasteryHead(nn.Module):
    """The second head: a level for each concept that can only rise, and a logit read off all levels.

    Softplus keeps a level positive, the running maximum keeps it from falling; neither limits it from above.
    """

    def __init__(self, sizes: Sizes, generator: torch.Generator) -> None:
        super().__init__()
        concepts, rate = sizes.concepts, sizes.dropout
        self.level = feed_forward(sizes.dim, sizes.hidden, concepts, rate, generator)
        self.answer = feed_forward(concepts, concepts // 2, 1, rate, generator)

    def forward(self, context: Stream) -> tuple[Float[Tensor, "batch slots"], Float[Tensor, "batch slots concepts"]]:
        """Return the logit at each slot and the levels behind it."""
        mastery = functional.softplus(self.level(context)).cummax(dim=1).values
        return self.answer(mastery).squeeze(-1), mastery


class GainAKT4(nn.Module):
    """Dual-stream encoder with a response head and, unless it is not built, a mastery head.

    Source: clabra/pykt-toolkit, `pykt/models/gainakt4.py`, and the layers that the report's clarification states.
    """

    def __init__(self, sizes: Sizes, streams: Streams, build_mastery: bool = True, run_mastery: bool = True) -> None:
        """Declare encoder and heads and draw their weights, head 2 last.

        Args:
            sizes: the shape.
            streams: where each purpose draws its random numbers from (`shared_stream`, `isolated_streams`).
            build_mastery: whether head 2 exists (the report's second remedy).
            run_mastery: whether head 2 runs in the forward pass (the report's first remedy).
        """
        super().__init__()
        self.encoder = Encoder(sizes, streams)
        self.concept_embedding = nn.Embedding(sizes.concepts, sizes.dim)
        self.response_head = _response_head(3 * sizes.dim, sizes, streams)
        self.mastery_head = MasteryHead(sizes, streams("mastery dropout")) if build_mastery else None
        self.run_mastery = run_mastery
        self._initialise(streams)

    def _initialise(self, streams: Streams) -> None:
        for name in ("encoder", "concept_embedding", "response_head", "mastery_head"):
            if getattr(self, name) is not None:
                initialise(getattr(self, name), streams(f"{name} weights"))

    def forward(self, concepts: Ids, responses: Ids, queries: Ids) -> Predictions:
        """Answer, for each slot, whether the concept asked next will be answered right.

        Args:
            concepts: the concept practised in each slot.
            responses: whether it was answered right, 0 or 1.
            queries: the concept asked in the following slot.
        """
        context, value = self.encoder(concepts, responses)
        features = torch.cat([context, value, self.concept_embedding(queries)], dim=-1)
        logits = self.response_head(features).squeeze(-1)
        if self.mastery_head is None or not self.run_mastery:
            return Predictions(logits)
        return Predictions(logits, *self.mastery_head(context))


def _response_head(features: int, sizes: Sizes, streams: Streams) -> nn.Sequential:
    """Return the published response head: features → hidden → dim → 1."""
    first = feed_forward(features, sizes.hidden, sizes.dim, sizes.dropout, streams("response dropout"))
    return nn.Sequential(first, nn.ReLU(), nn.Linear(sizes.dim, 1))


class MonotonicAttention(nn.Module):
    """Attention that fades with distance, where distance counts what the weights in between already explain.

    For query t and key τ the score is divided by how far back τ lies, d = sqrt(|t − τ| · share of weight after τ),
    through a factor exp(−θ·d), with one rate θ ≥ 0 a head.

    Source: Ghosh, Heffernan and Lan, "Context-Aware Attentive Knowledge Tracing", KDD 2020, section 3.2, with the
    square root of the published implementation (arghosh/AKT).
    """

    def __init__(self, sizes: Sizes, generator: torch.Generator, strict: bool) -> None:
        """Declare the projections and the decay rates; `strict` hides a query's own slot as well."""
        super().__init__()
        self.heads, self.strict = sizes.heads, strict
        self.query_key, self.value, self.out = (nn.Linear(sizes.dim, sizes.dim) for _ in range(3))
        self.decay = nn.Parameter(torch.zeros(sizes.heads, 1, 1))
        self.dropout = Dropout(sizes.dropout, generator)

    def forward(self, queries: Stream, values: Stream) -> Stream:
        """Return the mix of earlier values at each slot; queries and keys share one projection, as published."""
        slots = queries.shape[1]
        allowed = causal_mask(slots, queries.device)
        allowed = allowed.tril(-1) if self.strict else allowed
        projected = split_heads(self.query_key(queries), self.heads)
        scores = projected @ projected.transpose(-1, -2) / math.sqrt(projected.shape[-1])
        factor = (-functional.softplus(self.decay) * self._distance(scores, allowed)).exp().clamp(min=1e-5)
        # A finite fill, because a strict first slot may see nothing: all -inf would make its softmax NaN, backward too.
        weights = (scores * factor).masked_fill(~allowed, HIDDEN).softmax(-1) * allowed
        mixed = self.dropout(weights) @ split_heads(self.value(values), self.heads)
        return self.out(merge_heads(mixed))

    @staticmethod
    @torch.no_grad()
    def _distance(
        scores: Float[Tensor, "batch heads slots slots"], allowed: Tensor
    ) -> Float[Tensor, "batch heads slots slots"]:
        weights = scores.masked_fill(~allowed, HIDDEN).softmax(-1).mul_(allowed)
        slots = torch.arange(scores.shape[-1], device=scores.device)
        gap = (slots[:, None] - slots[None, :]).abs().to(scores.dtype)
        after = weights.sum(-1, keepdim=True) - weights.cumsum(-1)
        return after.mul_(gap).clamp_(min=0).sqrt_()


class AKTBlock(nn.Module):
    """Monotonic attention and, where asked for, a feed-forward, each added to the query stream and normalised."""

    def __init__(
        self, sizes: Sizes, generator: torch.Generator, strict: bool = False, apply_feed_forward: bool = True
    ) -> None:
        super().__init__()
        dim, rate = sizes.dim, sizes.dropout
        self.attention = MonotonicAttention(sizes, generator, strict)
        self.norm, self.dropout = nn.LayerNorm(dim), Dropout(rate, generator)
        self.feed_forward = feed_forward(dim, sizes.hidden, dim, rate, generator) if apply_feed_forward else None
        self.forward_norm = nn.LayerNorm(dim) if apply_feed_forward else None

    def forward(self, queries: Stream, values: Stream) -> Stream:
        """Return the query stream after looking into the values."""
        queries = self.norm(queries + self.dropout(self.attention(queries, values)))
        if self.feed_forward is None:
            return queries
        return self.forward_norm(queries + self.dropout(self.feed_forward(queries)))


class AKT(nn.Module):
    """Context-aware attentive knowledge tracing, without the item parameters that this data cannot feed.

    Interactions attend to earlier interactions; concepts attend to earlier concepts, then look up, strictly in the
    past, what the interactions know. It is not GainAKT4 minus a head: attention, streams and head all differ.

    Source: Ghosh, Heffernan and Lan, KDD 2020; repository arghosh/AKT.
    """

    def __init__(self, sizes: Sizes, streams: Streams) -> None:
        """Declare the three encoders and the head; this model has no positions, so `sizes.slots` sets no size."""
        super().__init__()
        dropout = streams("encoder dropout")
        self.concept_embedding = nn.Embedding(sizes.concepts, sizes.dim)
        self.response_embedding = nn.Embedding(2, sizes.dim)
        depth = range(sizes.blocks)
        self.interaction_blocks = nn.ModuleList(AKTBlock(sizes, dropout) for _ in depth)
        self.concept_blocks = nn.ModuleList(AKTBlock(sizes, dropout, apply_feed_forward=False) for _ in depth)
        self.retriever_blocks = nn.ModuleList(AKTBlock(sizes, dropout, strict=True) for _ in depth)
        self.response_head = _response_head(2 * sizes.dim, sizes, streams)
        initialise(self, streams("weights"))

    def forward(self, concepts: Ids, responses: Ids, queries: Ids) -> Predictions:
        """Answer as `GainAKT4` does; the sequence is read with the asked concept at its end, as published."""
        asked = self.concept_embedding(torch.cat([concepts[:, :1], queries], dim=1))
        past = self.concept_embedding(concepts) + self.response_embedding(responses)
        for block in self.interaction_blocks:
            past = block(past, past)
        past = functional.pad(past, (0, 0, 0, 1))  # the slot of the last query; strict attention never reads it
        state = asked
        for look, retrieve in zip(self.concept_blocks, self.retriever_blocks):
            state = retrieve(look(state, state), past)
        features = torch.cat([state, asked], dim=-1)[:, 1:]
        return Predictions(self.response_head(features).squeeze(-1))


@runtime_checkable
class Histories(Protocol):
    """Practice histories as tracing models read them, padded at the end; `real` is False on padding."""

    concepts: Ids
    responses: Ids
    real: Bool[Tensor, "batch slots"]


def predict(model: nn.Module, batch: Histories) -> Predictions:
    """Return what the model answers at each slot but the last about the slot that follows."""
    return model(batch.concepts[:, :-1], batch.responses[:, :-1], batch.concepts[:, 1:])


@torch.no_grad()
def answer(model: nn.Module, students: Histories, rows: int = 250) -> Predictions:
    """Return what `predict` does, in evaluation mode, a few students at a time; the model's mode is put back."""
    training = model.training
    model.eval()
    try:
        answers = [
            model(concepts[:, :-1], responses[:, :-1], concepts[:, 1:])
            for concepts, responses in zip(students.concepts.split(rows), students.responses.split(rows))
        ]
    finally:
        model.train(training)
    return Predictions(*(None if part[0] is None else torch.cat(part) for part in zip(*answers)))


def real_slots(values: Shaped[Tensor, "batch following"], students: Histories) -> Shaped[Tensor, " responses"]:
    """Return the values at the slots whose following slot holds a response, student after student."""
    return values[students.real[:, 1:]]
