"""How far a student is from its teacher: divergence, overlap, perplexity, and what a perfect student would answer.

Two vocabularies share no class, but both spell bytes: next-token probabilities, summed by the first byte of the token,
can be compared wherever both models have read the same text. Explained in chapter `distillation_loss`.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from casestudies_lib.models.distillation.losses import same_shape

PERPLEXITY_CAP = 20.0


def capped_perplexity(loss: float, cap: float = PERPLEXITY_CAP) -> float:
    """Return e to the loss, or to the cap where the loss is larger, as the published evaluation prints it.

    Raises:
        ValueError: the loss is not a number.
    """
    if math.isnan(loss):
        raise ValueError("loss is nan; find its cause before a perplexity is printed")
    return math.exp(min(loss, cap))


def divergence(student: Float[Tensor, "tokens classes"], teacher: Float[Tensor, "tokens classes"]) -> Float[Tensor, ""]:
    """Return KL(teacher ‖ student) of two sets of logits: nats, mean over tokens.

    A class that the teacher excludes, with a logit of minus infinity, adds nothing.

    Raises:
        ValueError: the shapes differ, there is no token, or logits are no distribution.
    """
    _comparable("divergence", student, teacher)
    expected = teacher.log_softmax(-1)
    each = functional.kl_div(student.log_softmax(-1), expected, reduction="none", log_target=True)
    return each.masked_fill(expected == -math.inf, 0).sum() / len(student)


def top_overlap(
    student: Float[Tensor, "tokens classes"], teacher: Float[Tensor, "tokens classes"], top_k: int = 5
) -> Float[Tensor, ""]:
    """Return which share of the teacher's first k classes is among the student's first k: mean over tokens, 0 to 1.

    Raises:
        ValueError: the shapes differ, there is no token, logits are no distribution, or fewer classes than k.
    """
    _comparable("top_overlap", student, teacher)
    if not 1 <= top_k <= student.shape[-1]:
        raise ValueError(f"top_k is {top_k}; choose 1 to {student.shape[-1]}, the number of classes")
    first, second = (logits.topk(top_k, dim=-1).indices for logits in (student, teacher))
    return (first.unsqueeze(-1) == second.unsqueeze(-2)).any(-1).float().mean()


def _comparable(name: str, student: Tensor, teacher: Tensor) -> None:
    same_shape(name, student, teacher)
    if not len(student):
        raise ValueError(f"{name}: shapes are {tuple(student.shape)}; the two sequences share no position")
    _check_logits(f"{name}: student", student)
    _check_logits(f"{name}: teacher", teacher)


def _check_logits(name: str, logits: Tensor) -> None:
    """Refuse what a softmax would turn into nan: nan, plus infinity, or a token whose classes are all excluded."""
    bad = ~logits.amax(-1).isfinite()
    if bad.any():
        raise ValueError(
            f"{name}: logits of {int(bad.sum())} of {len(bad)} tokens are no distribution (nan, inf, or all -inf); "
            "find where the model first computes them"
        )


def next_byte(logits: Float[Tensor, "tokens vocab"], first_bytes: Int[Tensor, " vocab"]) -> Float[Tensor, "tokens 256"]:
    """Return the logarithm of the probability of each next byte: a token counts for the byte that it begins with.

    Raises:
        ValueError: not one first byte for each class, or logits are no distribution.
    """
    _check_logits("next_byte", logits)
    if logits.shape[-1] != len(first_bytes):
        raise ValueError(
            f"{logits.shape[-1]} classes and {len(first_bytes)} first bytes; give those of this vocabulary"
        )
    zeros = logits.new_zeros(len(logits), 256)
    # Bytes that begin no token have probability zero; a tiny floor keeps the logarithm finite.
    return zeros.index_add(-1, first_bytes, logits.softmax(-1)).clamp_min(torch.finfo(logits.dtype).tiny).log()


def perfect_student(
    teacher_logits: Float[Tensor, "teacher_tokens teacher_vocab"],
    teacher_ids: Int[Tensor, " teacher_tokens"],
    student_ids: Int[Tensor, " student_tokens"],
    teacher_strings: Sequence[bytes],
    student_strings: Sequence[bytes],
    floor: float = 1e-4,
) -> Float[Tensor, "student_tokens student_vocab"]:
    """Return the logits of a student that knows all that the teacher knows, and says it in its own tokens.

    Where the teacher expects a token, this student expects the longest of its own tokens that begins it. Inside a
    teacher's token, it keeps those of the teacher's guesses that agree with the bytes read since. Before the teacher's
    first token ends there is no guess, and all classes are equally likely.

    Args:
        teacher_logits: what the teacher expects after each of its tokens.
        teacher_ids, student_ids: the two tokenizations of one text.
        teacher_strings, student_strings: the bytes of every token of each vocabulary; single bytes must be among the
            student's.
        floor: probability shared by all classes, so that no logarithm is infinite; above 0 and below 1.

    Raises:
        ValueError: the two tokenizations spell different bytes, the teacher's logits are not one distribution over its
            vocabulary for each of its tokens, the student lacks a byte, or a floor outside its range.
    """
    if not 0 < floor < 1:
        raise ValueError(f"floor is {floor}; it must be above 0 and below 1")
    if teacher_logits.shape != (wanted := (len(teacher_ids), len(teacher_strings))):
        raise ValueError(f"teacher_logits are {tuple(teacher_logits.shape)}; its ids and strings need {wanted}")
    _check_logits("perfect_student: teacher", teacher_logits)
    ends = [
        np.cumsum([len(strings[token]) for token in ids])
        for strings, ids in ((teacher_strings, teacher_ids.tolist()), (student_strings, student_ids.tolist()))
    ]
    text = b"".join(student_strings[token] for token in student_ids.tolist())
    if text != b"".join(teacher_strings[token] for token in teacher_ids.tolist()):
        raise ValueError("the two tokenizations spell different bytes; encode one text by both tokenizers")
    behind = np.searchsorted(ends[0], ends[1], side="right") - 1  # the last teacher's token that ends by then
    known = torch.from_numpy(np.flatnonzero(behind >= 0))
    guesses = teacher_logits[torch.from_numpy(behind)[known]]
    answers = guesses.new_full((len(student_ids), len(student_strings)), 1 / len(student_strings))
    read = [text[ends[0][behind[place]] : ends[1][place]] for place in known.tolist()]
    answers[known] = _said(guesses, read, teacher_strings, student_strings)
    return ((1 - floor) * answers + floor / len(student_strings)).log()


def _said(
    guesses: Float[Tensor, "tokens teacher_vocab"],
    read: Sequence[bytes],
    teacher_strings: Sequence[bytes],
    student_strings: Sequence[bytes],
) -> Float[Tensor, "tokens student_vocab"]:
    """Return the teacher's guesses, given as logits, in the student's tokens, given the bytes read since each guess.

    Guesses that all disagree with the bytes leave no opinion: all classes are equally likely.
    """
    speak = _speaker(student_strings)
    said = guesses.new_zeros(len(read), len(student_strings))
    for since in set(read):
        rows = torch.tensor([place for place, each in enumerate(read) if each == since])
        agree = [token for token, string in enumerate(teacher_strings) if string.startswith(since) and string != since]
        words = torch.tensor([speak(teacher_strings[token][len(since) :]) for token in agree], dtype=torch.long)
        # A softmax among those that agree; a softmax over all, divided by their sum, is 0/0 where that sum underflows.
        left = guesses[rows][:, agree]
        shares = left.softmax(-1).nan_to_num(0)
        part = guesses.new_zeros(len(rows), len(student_strings)).index_add(-1, words, shares)
        said[rows] = torch.where((left == -math.inf).all(-1, keepdim=True), 1 / len(student_strings), part)
    return said


def _speaker(strings: Sequence[bytes]) -> Callable[[bytes], int]:
    """Return a function that finds the longest token that begins some bytes."""
    places, longest = {string: token for token, string in enumerate(strings)}, max(map(len, strings))

    def speak(wanted: bytes) -> int:
        for length in range(min(longest, len(wanted)), 0, -1):
            if wanted[:length] in places:
                return places[wanted[:length]]
        raise ValueError(f"no token of the student begins {wanted!r}; its vocabulary needs every single byte")

    return speak
