"""Gradients of an expectation over one discrete choice: exact by enumeration, and four ways to estimate it.

One token, a few heads, one of them drawn with probability softmax(logits); the loss is a squared error, so it bends
between the corners that a choice can reach. Explained in chapter `head_routing`.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

Logits = Float[Tensor, " heads"]
Outputs = Float[Tensor, "heads dim"]
Target = Float[Tensor, " dim"]
Draws = Float[Tensor, "draws heads"]


def loss_of(
    weights: Float[Tensor, "... heads"], outputs: Outputs, target: Target
) -> Float[Tensor, "..."]:  # a batch of choices, each its own loss
    """Return the squared distance of the weighted outputs from the target, summed over dim."""
    return (weights @ outputs - target).square().sum(-1)


def exact(logits: Logits, outputs: Outputs, target: Target) -> Logits:
    """Return the gradient of the expected loss: every choice, times its probability."""
    probabilities = logits.softmax(-1)
    losses = loss_of(torch.eye(len(logits), dtype=logits.dtype), outputs, target)
    return probabilities * (losses - (probabilities * losses).sum())


def score_function(logits: Logits, outputs: Outputs, target: Target, noise: Draws) -> Draws:
    """Return one estimate a draw: the loss of the choice times the gradient of its log-probability. Unbiased.

    Source: Williams, "Simple statistical gradient-following algorithms", Machine Learning 8, 1992.
    """
    choice = _one_hot(logits + noise)
    return loss_of(choice, outputs, target).unsqueeze(-1) * (choice - logits.softmax(-1))


def straight_through(logits: Logits, outputs: Outputs, target: Target, noise: Draws) -> Draws:
    """Return one estimate a draw: forward the drawn choice, backward as if it were the softmax.

    Source: Bengio, Léonard and Courville, "Estimating or propagating gradients through stochastic neurons", 2013.
    """
    return _through_softmax(_one_hot(logits + noise), logits.softmax(-1).expand(noise.shape), outputs, target)


def gumbel_softmax(logits: Logits, outputs: Outputs, target: Target, noise: Draws, temperature: float) -> Draws:
    """Return one estimate a draw: the choice is replaced by a softmax of noisy logits, forward and backward.

    Raises:
        ValueError: a temperature that is not positive.

    Source: Jang, Gu and Poole, "Categorical reparameterization with Gumbel-softmax", ICLR 2017.
    """
    soft = _noisy_softmax(logits, noise, temperature)
    return _through_softmax(soft, soft, outputs, target) / temperature


def gumbel_straight_through(
    logits: Logits, outputs: Outputs, target: Target, noise: Draws, temperature: float
) -> Draws:
    """Return one estimate a draw: forward the drawn choice, backward the noisy softmax.

    Raises:
        ValueError: a temperature that is not positive.

    Source: as `gumbel_softmax`, section 2.2.
    """
    soft = _noisy_softmax(logits, noise, temperature)
    return _through_softmax(_one_hot(logits + noise), soft, outputs, target) / temperature


def gumbel(draws: int, heads: int, generator: torch.Generator) -> Draws:
    """Return standard Gumbel noise in float64: the largest of logits plus noise is a draw from their softmax."""
    uniform = torch.rand(draws, heads, generator=generator, dtype=torch.float64).clamp_min(1e-300)
    return -(-uniform.log()).log()


def bias_and_spread(estimates: Draws, truth: Logits) -> tuple[float, float]:
    """Return the distance of the estimates' mean from the truth and their spread, both over the truth's length."""
    length = truth.norm()
    return float((estimates.mean(0) - truth).norm() / length), float(estimates.var(0).sum().sqrt() / length)


def estimators(temperature: float) -> dict[str, Callable[[Logits, Outputs, Target, Draws], Draws]]:
    """Return the estimators by name, the two with a temperature at the one given."""
    return {
        "score function": score_function,
        "straight-through": straight_through,
        "Gumbel-softmax": lambda *case: gumbel_softmax(*case, temperature),
        "Gumbel, straight-through": lambda *case: gumbel_straight_through(*case, temperature),
    }


def _one_hot(scores: Draws) -> Draws:
    return functional.one_hot(scores.argmax(-1), scores.shape[-1]).to(scores.dtype)


def _noisy_softmax(logits: Logits, noise: Draws, temperature: float) -> Draws:
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}; it must be above 0")
    return ((logits + noise) / temperature).softmax(-1)


def _through_softmax(forward: Draws, soft: Draws, outputs: Outputs, target: Target) -> Draws:
    """Return the loss's gradient at `forward`, sent back through the softmax that gave `soft`."""
    gradient = 2 * (forward @ outputs - target) @ outputs.T
    return soft * (gradient - (soft * gradient).sum(-1, keepdim=True))
