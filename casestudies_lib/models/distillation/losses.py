"""The eight loss terms of the distillation run, each with its reduction named, and their weights over the run.

Each refuses tensors of different shape, which broadcasting would let pass, and a temperature that is not above 0, with
a ValueError. Explained in chapter `distillation_loss`.

Source of all terms: repository rakeshb49/student_aware_distillation, `models/distillation_framework.py` and
`models/student_aware_router.py`.
"""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from casestudies_lib.models.distillation.model import Distiller, Reading, Routed, stretched

Maps = Float[Tensor, "batch heads tokens tokens"]
Ids = Int[Tensor, "batch tokens"]
Real = Bool[Tensor, "batch tokens"]
Logits = Float[Tensor, "batch tokens vocab"]
Number = Float[Tensor, ""]
LayerError = Callable[[Tensor, Tensor], Tensor]
TERMS = (
    "kd",
    "routing_feature",
    "routing_load_balance",
    "routing_attention_alignment",
    "attention",
    "layerwise",
    "contrastive",
    "lm",
)


def same_shape(name: str, first: Tensor, second: Tensor) -> None:
    """Refuse two tensors of different shape, which broadcasting would let pass.

    Raises:
        ValueError: names both shapes.
    """
    if first.shape != second.shape:
        raise ValueError(
            f"{name}: shapes {tuple(first.shape)} and {tuple(second.shape)} differ; align both sequences first"
        )


def mean_over_real(values: Float[Tensor, "batch tokens"], real: Real, name: str = "loss") -> Number:
    """Return the mean over the tokens that are no padding.

    Raises:
        ValueError: the shapes differ, or the mask leaves no token at all.
    """
    same_shape(name, values, real)
    if not real.any():
        raise ValueError(f"{name}: the padding mask {tuple(real.shape)} masks every token; give a batch with text")
    return values.masked_fill(~real, 0).sum() / real.sum()  # zero times an infinite loss would be nan


def kd_loss(student_logits: Logits, teacher_logits: Logits, real: Real, temperature: float, top_k: int) -> Number:
    """Return KL(teacher ‖ student) over the top-k classes of either, times T²: nats a token, mean over real tokens.

    A class that both put among their first k stands twice in the sum, as in the published code.

    Raises:
        ValueError: shapes differ, a temperature that is not positive, or fewer classes than `top_k`.

    Source: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015 (the factor T²).
    """
    same_shape("kd_loss", student_logits, teacher_logits)
    _check_temperature(temperature)
    if not 1 <= top_k <= student_logits.shape[-1]:
        raise ValueError(f"top_k is {top_k}; choose 1 to {student_logits.shape[-1]}, the number of classes")
    either = [logits.detach().topk(top_k, dim=-1).indices for logits in (teacher_logits, student_logits)]
    kept = torch.cat(either, dim=-1)
    student = (student_logits.gather(-1, kept) / temperature).log_softmax(-1)
    teacher = (teacher_logits.gather(-1, kept) / temperature).log_softmax(-1)
    divergence = functional.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)
    return mean_over_real(divergence, real, "kd_loss") * temperature**2


def routing_feature_loss(routed: Routed) -> Number:
    """Return the squared error between the projected student and the routed mix, mean over all elements."""
    same_shape("routing_feature_loss", routed.projected, routed.routed)
    return functional.mse_loss(routed.projected, routed.routed)


def routing_load_balance_loss(weights: Float[Tensor, "batch tokens experts"]) -> Number:
    """Return .01 × the squared distance of the experts' mean weights from even use, mean over experts."""
    mean = weights.mean(dim=(0, 1))
    return 0.01 * functional.mse_loss(mean, torch.full_like(mean, 1 / len(mean)))


def routing_attention_alignment_loss(routed: Routed) -> Number:
    """Return the squared error between what the student attends to and what it was offered, mean over all elements."""
    same_shape("routing_attention_alignment_loss", routed.attended, routed.compressed)
    return functional.mse_loss(routed.attended, routed.compressed)


def attention_loss(student: Maps, teacher: Maps, temperature: float = 4.0) -> Number:
    """Return KL between two attention maps × T²: summed over heads and keys, mean over batch and queries.

    The maps go through a softmax once more, as published, although they are probabilities already.
    """
    same_shape("attention_loss", student, teacher)
    _check_temperature(temperature)
    first, second = (maps.div(temperature).log_softmax(-1) for maps in (student, teacher))
    divergence = functional.kl_div(first, second, reduction="batchmean", log_target=True)
    return divergence * temperature**2 / student.shape[-1]


def mean_square(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the squared error, mean over all elements: the layerwise error before the report's fix."""
    same_shape("mean_square", student, teacher)
    return functional.mse_loss(student, teacher)


def sum_over_count(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the summed squared error divided by batch · tokens · dim: the layerwise error after the report's fix."""
    same_shape("sum_over_count", student, teacher)
    batch, tokens, dim = student.shape
    return functional.mse_loss(student, teacher, reduction="sum") / (batch * tokens * dim)


def normalised_square(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the squared error between both states after a layer norm without weights, mean over all elements."""
    same_shape("normalised_square", student, teacher)
    shape = student.shape[-1:]
    return functional.mse_loss(functional.layer_norm(student, shape), functional.layer_norm(teacher, shape))


def masked_square(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the squared error without the teacher's massive tokens, mean over the elements that are left.

    Massive is a token whose norm exceeds ten times the median norm of its batch, so that at least half always stay.
    """
    same_shape("masked_square", student, teacher)
    norms = teacher.norm(dim=-1)
    plain = norms <= 10 * norms.median()
    return (student - teacher)[plain].square().mean()


def robust_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the Huber error with its bend at 1, mean over all elements: squares near, absolute values far away."""
    same_shape("robust_error", student, teacher)
    return functional.huber_loss(student, teacher)


def layerwise_loss(
    projected: Sequence[Float[Tensor, "batch tokens dim"]],
    teacher: Sequence[Float[Tensor, "batch tokens dim"]],
    weights: Float[Tensor, " pairs"],
    error: LayerError = mean_square,
) -> Number:
    """Return the error of each pair of layers, weighted by a softmax over trainable weights.

    Raises:
        ValueError: there is no pair, or there are not as many weights as pairs.
    """
    if not len(projected) == len(teacher) == len(weights) or not len(weights):
        raise ValueError(
            f"layerwise_loss: {len(projected)} student layers, {len(teacher)} teacher layers, {len(weights)} weights; "
            "give the same number of each, at least 1"
        )
    errors = [error(*pair) for pair in zip(projected, teacher)]
    return (torch.stack(errors) * weights.softmax(0)).sum()


def contrastive_loss(
    student: Float[Tensor, "batch dim"], teacher: Float[Tensor, "batch dim"], temperature: float = 0.07
) -> Number:
    """Return the cross-entropy of finding each text's teacher among the batch, by cosine: nats, mean over texts.

    A batch of one text leaves nothing to find: its loss and gradient are zero.

    Source: van den Oord et al., "Representation Learning with Contrastive Predictive Coding", 2018.
    """
    same_shape("contrastive_loss", student, teacher)
    _check_temperature(temperature)
    similarity = functional.normalize(student, dim=-1) @ functional.normalize(teacher, dim=-1).T / temperature
    return functional.cross_entropy(similarity, torch.arange(len(student), device=student.device))


def lm_loss(logits: Logits, ids: Ids, real: Real, smoothing: float = 0.1) -> Number:
    """Return the cross-entropy of the next token with label smoothing: nats a token, mean over real tokens.

    Counted are real tokens that follow a real one; what comes after padding would be guessed from padding.

    Raises:
        ValueError: shapes differ, or no real token follows another.
    """
    same_shape("lm_loss", logits[..., 0], ids)
    same_shape("lm_loss", ids, real)
    losses = functional.cross_entropy(
        logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none", label_smoothing=smoothing
    )
    return mean_over_real(losses, real[:, :-1] & real[:, 1:], "lm_loss")


def raw_terms(
    distiller: Distiller,
    teacher: Reading,
    student: Reading,
    ids: Ids,
    real: Real,
    temperature: float,
    top_k: int = 16,
    layer_error: LayerError = mean_square,
) -> dict[str, Number]:
    """Return all eight terms before any weight; whatever the teacher read is stretched to the student's length.

    No term sends a gradient into the teacher, even if its reading was made with gradients.

    The published system takes the teacher's last hidden state through a trainable projector into the student's
    vocabulary: the teacher's own logits are never used.
    """
    bridge, tokens, teacher = distiller.bridge, ids.shape[1], _without_gradient(teacher)
    hidden = [stretched(state, tokens) for state in teacher.hidden]
    target = functional.linear(bridge.logit_projector(hidden[-1]), distiller.student.embedding.weight)
    projected = [project(student.hidden[own]) for project, (own, _) in zip(bridge.layer_projectors, bridge.pairs)]
    routed = bridge.router(student.hidden[-1], teacher.experts)
    return {
        "kd": kd_loss(student.logits, target, real, temperature, top_k),
        "routing_feature": routing_feature_loss(routed),
        "routing_load_balance": routing_load_balance_loss(routed.weights),
        "routing_attention_alignment": routing_attention_alignment_loss(routed),
        "attention": _mean_attention_loss(distiller, teacher, student),
        "layerwise": layerwise_loss(
            projected, [hidden[other] for _, other in bridge.pairs], bridge.layer_weights, layer_error
        ),
        "contrastive": contrastive_loss(student.hidden[-1].mean(1), bridge.pool_projector(teacher.hidden[-1].mean(1))),
        "lm": lm_loss(student.logits, ids, real),
    }


def _without_gradient(reading: Reading) -> Reading:
    hidden, attention, experts = (tuple(part.detach() for part in parts) for parts in reading[1:])
    return Reading(reading.logits.detach(), hidden, attention, experts)


def _mean_attention_loss(distiller: Distiller, teacher: Reading, student: Reading) -> Number:
    """Return the attention term over the last blocks that both models have, mean over blocks."""
    shared = min(len(teacher.attention), len(student.attention))
    losses = []
    for own, other in zip(student.attention[-shared:], teacher.attention[-shared:]):
        resized = functional.interpolate(other, own.shape[-2:], mode="bilinear", align_corners=False)
        mixed = distiller.bridge.head_projector(resized.movedim(1, -1)).movedim(-1, 1)
        losses.append(attention_loss(own, mixed))
    return torch.stack(losses).mean()


def curriculum(progress: float) -> dict[str, float]:
    """Return the weight of each term at a share of the run, 0 to 1, as published.

    Feature and attention terms ramp up from 10 to 40 %, the layerwise term from 40 to 70 %, the contrastive term from
    70 % to the end.

    Raises:
        ValueError: a progress outside 0 to 1.
    """
    _check_progress(progress)
    early, middle, late = _ramp(progress, 0.1, 0.4), _ramp(progress, 0.4, 0.7), _ramp(progress, 0.7, 1.0)
    full = {"kd": 0.7, "layerwise": 0.05 * middle, "contrastive": 0.05 * late, "lm": 0.3}
    return {term: full.get(term, 0.1 * early) for term in TERMS}


def temperature_at(progress: float) -> float:
    """Return the temperature of the KD term at a share of the run: from 3 down to 2.

    Raises:
        ValueError: a progress outside 0 to 1.
    """
    _check_progress(progress)
    return 3.0 - progress


def _check_progress(progress: float) -> None:
    if not 0 <= progress <= 1:
        raise ValueError(f"progress is {progress}; it runs from 0 to 1")


def _check_temperature(temperature: float) -> None:
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature is {temperature}; it must be above 0 and finite")


def _ramp(progress: float, start: float, end: float) -> float:
    return min(max((progress - start) / (end - start), 0.0), 1.0)


def weighted(raw: dict[str, Number], weights: dict[str, float]) -> dict[str, Number]:
    """Return the terms times their weights: what the published log calls "raw loss components".

    Raises:
        ValueError: a term without a weight, or a weight without a term.
    """
    if alone := sorted(raw.keys() ^ weights.keys()):
        raise ValueError(f"{', '.join(alone)}: in only one of terms and weights; give each term one weight")
    return {term: raw[term] * weights[term] for term in raw}
