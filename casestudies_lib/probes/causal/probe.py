"""Does a past output of a sequence model change with a future token, another document, an earlier batch or row?"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from casestudies_lib.probes.causal.findings import DOCUMENTS, EARLIER, FUTURE, GIVEN, JITTERED, ROWS, Look, findings
from casestudies_lib.probes.causal.passes import Axes, Difference, Passes, compare, prepare
from casestudies_lib.probes.guard import left_as_found, random_left_as_found
from casestudies_lib.probes.inputs import check_module, kind_of
from casestudies_lib.probes.result import Bar, ProbeInputError, ProbeResult, shown

MOST_DOCUMENTS = 8
COLUMNS = ("weights", "changed", "outputs compared", "largest difference, relative", "outputs moved", "answer")


@dataclass(frozen=True)
class Asked:
    """What is replaced.

    Attributes:
        tokens: as given.
        cuts: the positions from which tokens are replaced.
        axes: of the tokens.
        lag: how far an output must lie behind an input that it may see, positions.
        documents: the document number of every token, (positions, rows); without rows, (positions,); or None.
    """

    tokens: Tensor
    cuts: tuple[int, ...]
    axes: Axes
    lag: int
    documents: Tensor | None

    @property
    def numbers(self) -> list[int]:
        """Return the documents that are replaced, at most so many, spread over all."""
        if self.documents is None:
            return []
        found = [number for number in self.documents.unique().tolist() if number >= 0]
        return found[:: math.ceil(len(found) / MOST_DOCUMENTS)]

    def changed_document(self, number: int) -> Tensor:
        """Return the tokens with those of one document replaced."""
        chosen = self.documents == number
        for axis in range(self.tokens.dim()):
            if axis not in (self.axes.position, self.axes.batch):
                chosen = chosen.unsqueeze(-1)
        order = [self.axes.position, *([] if self.axes.batch is None else [self.axes.batch])]
        return torch.where(chosen.movedim(tuple(range(len(order))), order), _other(self.tokens, number), self.tokens)

    def changed_from(self, cut: int) -> Tensor:
        """Return the tokens with everything from this position on replaced."""
        axis = self.axes.position
        length = self.tokens.shape[axis]
        # Another draw for each cut: a leak through a choice, such as a top-k, shows only where the choice changes.
        other = _other(self.tokens, seed=cut)
        return torch.cat([self.tokens.narrow(axis, 0, cut), other.narrow(axis, cut, length - cut)], axis)

    def changed_rows(self) -> Tensor:
        """Return the tokens with all rows but the first replaced."""
        axis = self.axes.batch
        rows = self.tokens.shape[axis]
        return torch.cat([self.tokens.narrow(axis, 0, 1), _other(self.tokens, 0).narrow(axis, 1, rows - 1)], axis)


def causality(
    model: nn.Module,
    tokens: Tensor,
    *,
    call: Callable[[nn.Module, Tensor], Any] | None = None,
    position_axis: int = 1,
    output_axis: int | None = None,
    batch_axis: int | None = 0,
    cuts: Sequence[int] | None = None,
    lag: int = 0,
    documents: Tensor | None = None,
    jitter: float = 1.0,
) -> ProbeResult:
    """Find out whether outputs depend on future tokens, other documents, the batch before, or other rows of the batch.

    The tokens from some position on are replaced, and the outputs before it compared with those for the tokens as
    given; a causal model gives the very same numbers. Likewise the outputs after one batch and after another, and the
    first row beside other rows. Everything runs on copies in double precision where the model allows it, in the shape
    given, so that a leak far below single precision's rounding stands out; each run starts from the state in which the
    model was found. A second look, with noise on the trainable weights, finds leaks that a gate at zero hides today.

    A finite number of cuts sees every leak that crosses one of them; a leak between a few positions that lie between
    two cuts is missed, and so is one through a choice (a top-k) that no replacement changed: give `cuts` where you
    suspect one. Differences that rounding may explain are notes in double
    precision; where the model insists on a lower one, they leave `ok` at None.

    The model stays as it was, also after an error. Cost: about 17 forward passes, one more a document (eight at most),
    and a copy of the model.

    Args:
        model: the sequence model, in the mode (train or eval) you ask about.
        tokens: one batch, token numbers or floating-point inputs such as embeddings; with two rows or more, rows are
            compared as well.
        call: how to call the model, `call(model, tokens)`; None calls `model(tokens)`. The first floating-point tensor
            in what it returns with one entry a token is compared.
        position_axis: the axis of `tokens` that counts positions.
        output_axis: the axis of the output that does; None takes the same.
        batch_axis: the axis that counts rows, in both; None if there is none.
        cuts: first replaced positions, from 1 on; None takes the second, the last, and five between.
        lag: output t may see inputs up to position t - lag, and none after. 0 is a language model, whose output t
            predicts the token after t; 1 is for an input that holds the answer at its own position, such as the
            responses in knowledge tracing (give the questions by `call`); -3 allows three positions of look-ahead.
        documents: whole numbers, (positions,) or (rows, positions): to which of several documents, packed one after
            the other, a token belongs; an output must not see another document's. Negative numbers are padding. Hand
            the model what keeps its documents apart (positions, mask, lengths) by `call`.
        jitter: noise on the trainable weights in the second look, relative; 0 leaves it out.

    Returns:
        A result whose `ok` is False if a past output moves, True if none does, None if the forward pass is random or
        rounding may explain what moves. `measures` holds the largest relative differences.

    Raises:
        ProbeInputError: names the argument, what came and what to give.

    Source: the chapter mixing_gates.
    """
    check_module(model)
    axes = _checked_axes(tokens, position_axis, output_axis, batch_axis)
    _check_number_from_zero("jitter", jitter)
    _check_lag(lag, tokens.shape[axes.position])
    numbered = _checked_documents(documents, tokens, axes)
    if call is not None and not callable(call):
        raise ProbeInputError(f"call is {kind_of(call)}; give a function of (module, tokens), or None")
    with left_as_found(model), random_left_as_found():
        tokens = tokens.detach()
        asked = Asked(tokens, _checked_cuts(cuts, lag, tokens.shape[axes.position]), axes, lag, numbered)
        passes = prepare(model, call or (lambda module, values: module(values)), axes, tokens)
        again = passes.run([tokens, tokens])
        if reason := _random(passes, asked, again[0]):
            return ProbeResult("causality", None, "The forward pass is random or irreproducible.", reason=reason)
        looks = _looks(passes, asked, again, GIVEN)
        looks += _jittered_looks(passes, asked, jitter)
    return _result(passes, asked, looks)


def _checked_axes(tokens: object, position: object, output: object, batch: object) -> Axes:
    if not isinstance(tokens, Tensor):
        raise ProbeInputError(f"tokens is {kind_of(tokens)}; give one tensor, and what else the model needs by call=…")
    if tokens.is_complex() or not tokens.numel():
        raise ProbeInputError(f"tokens has type {tokens.dtype} and shape {tuple(tokens.shape)}; give real numbers")
    found = {}
    for name, value in (("position_axis", position), ("batch_axis", batch)):
        if value is None and name == "batch_axis":
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not -tokens.dim() <= value < tokens.dim():
            raise ProbeInputError(f"{name} is {value!r}; tokens has shape {tuple(tokens.shape)}, give one of its axes")
        found[name] = value % tokens.dim()
    if found["position_axis"] == found.get("batch_axis"):
        raise ProbeInputError(
            f"position_axis and batch_axis are both {position}; give batch_axis=None if there are no rows"
        )
    if output is not None and (isinstance(output, bool) or not isinstance(output, int) or output < 0):
        raise ProbeInputError(f"output_axis is {output!r}; give a whole number, 0 or more, or None")
    if tokens.shape[found["position_axis"]] < 2:
        raise ProbeInputError(f"tokens of shape {tuple(tokens.shape)} has fewer than 2 positions; nothing is past")
    return Axes(found["position_axis"], found["position_axis"] if output is None else output, found.get("batch_axis"))


def _check_number_from_zero(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ProbeInputError(f"{name} is {value!r}; give a number, 0 or more")


def _check_lag(lag: object, length: int) -> None:
    if isinstance(lag, bool) or not isinstance(lag, int) or not 1 - length < lag < length:
        raise ProbeInputError(
            f"lag is {lag!r}; give a whole number from {2 - length} to {length - 1}, for there are {length} positions"
        )


def _checked_documents(documents: object, tokens: Tensor, axes: Axes) -> Tensor | None:
    """Return the document numbers, positions first and rows second."""
    if documents is None:
        return None
    shape = [1 if axes.batch is None else tokens.shape[axes.batch], tokens.shape[axes.position]]
    whole = isinstance(documents, Tensor) and not documents.is_floating_point() and not documents.is_complex()
    if not whole or list(documents.shape) not in (shape, shape[1:]):
        what = f"of type {documents.dtype} and shape {tuple(documents.shape)}" if isinstance(documents, Tensor) else ""
        raise ProbeInputError(
            f"documents is {kind_of(documents)} {what}; give a tensor of whole numbers, ({shape[1]},) or "
            f"({shape[0]}, {shape[1]}): one document number a token"
        )
    if len(documents[documents >= 0].unique()) < 2:
        raise ProbeInputError("documents holds fewer than 2 documents; give a batch that packs several, or None")
    numbered = documents.expand(shape).mT
    return numbered[:, 0] if axes.batch is None else numbered


def _checked_cuts(cuts: Sequence[int] | None, lag: int, length: int) -> tuple[int, ...]:
    # Some output must have to stay as it is.
    first = max(0, 1 - lag)
    if cuts is None:
        return tuple(sorted({first, *(max(length * part // 6, first) for part in range(1, 6)), length - 1}))
    listed = list(cuts) if isinstance(cuts, Sequence) and not isinstance(cuts, str) else [cuts]
    bad = [cut for cut in listed if isinstance(cut, bool) or not isinstance(cut, int) or not first <= cut < length]
    if bad or not listed:
        raise ProbeInputError(f"cuts is {cuts!r}; give positions from {first} to {length - 1}, such as [{length // 2}]")
    return tuple(sorted(set(listed)))


def _other(tokens: Tensor, seed: int) -> Tensor:
    """Return tokens that differ at every position: another one of those that occur, or floats moved by noise."""
    generator = torch.Generator().manual_seed(seed)
    if tokens.is_floating_point():
        size = tokens.double().square().mean().sqrt().item()
        return tokens + (size or 1.0) * torch.randn(tokens.shape, generator=generator).to(tokens)
    if tokens.dtype == torch.bool:
        return ~tokens
    known = tokens.unique()
    if len(known) < 2:
        raise ProbeInputError(
            f"tokens holds only {known[0].item()}; give a batch with at least two different tokens, for a token is "
            "replaced by another one of the batch"
        )
    step = torch.randint(1, len(known), tokens.shape, generator=generator).to(tokens.device)
    return known[(torch.searchsorted(known, tokens.contiguous()) + step) % len(known)]


def _random(passes: Passes, asked: Asked, base: Tensor) -> str:
    """Return why two runs on the same tokens differ; empty if they do not."""
    apart = compare(base, passes.run([asked.tokens], reseed=True)[0], slice(None)).largest
    if apart <= passes.rounding:
        return ""
    repeat = compare(base, passes.run([asked.tokens])[0], slice(None)).largest
    if repeat <= passes.rounding:
        return (
            f"the forward pass draws random numbers: with other seeds its outputs move by {shown(apart)} of their "
            "size; call model.eval(), or set dropout and noise to zero, and ask again"
        )
    return (
        f"two runs from the same state on the same tokens differ by {shown(repeat)} of the outputs' size, by random "
        "numbers or by state that is kept outside the module; make the forward pass repeatable and ask again"
    )


def _looks(passes: Passes, asked: Asked, again: list[Tensor], weights: str, all_cuts: bool = True) -> list[Look]:
    """Return one look a question; `again` holds the outputs for the tokens, and for the same tokens after that."""
    base, length = again[0], asked.tokens.shape[asked.axes.position]
    cuts = asked.cuts if all_cuts else asked.cuts[:1]
    # The first run is followed by the tokens as given, which shows what an earlier batch leaves behind.
    first, after = passes.run([asked.changed_from(cuts[0]), asked.tokens])
    outputs = [first, *(passes.run([asked.changed_from(cut)])[0] for cut in cuts[1:])]
    found = [
        Look(weights, FUTURE, f"tokens {cut}–{length - 1}", cut, compare(base, out, slice(cut + asked.lag)))
        for cut, out in zip(cuts, outputs)
    ]
    for number in asked.numbers if all_cuts else asked.numbers[:1]:
        out = passes.run([asked.changed_document(number)])[0]
        others = (asked.documents >= 0) & (asked.documents != number)
        found.append(Look(weights, DOCUMENTS, f"document {number}", None, compare(base, out, others)))
    found.append(Look(weights, EARLIER, "the batch before", None, compare(again[1], after, slice(None))))
    if all_cuts and asked.axes.batch is not None and asked.tokens.shape[asked.axes.batch] > 1:
        beside = passes.run([asked.changed_rows()])[0]
        found.append(Look(weights, ROWS, "all rows but the first", None, compare(base, beside, slice(1), by_row=True)))
    return found


def _jittered_looks(passes: Passes, asked: Asked, jitter: float) -> list[Look]:
    if not jitter or not passes.copied:
        return []
    try:
        noisy = passes.jittered(jitter)
        again = noisy.run([asked.tokens, asked.tokens])
        looks = _looks(noisy, asked, again, JITTERED, all_cuts=False)
    except Exception:
        # Jittered weights can leave the domain of the reader's own code, which says nothing about the weights.
        return []
    usable = again[0].isfinite().any() and all(math.isfinite(look.difference.largest) for look in looks)
    return looks if usable else []


def _result(passes: Passes, asked: Asked, looks: list[Look]) -> ProbeResult:
    rounding = passes.rounding
    found = findings(looks, rounding, passes.lowest == torch.float64)
    unclear = [look for look in looks if 0 < look.difference.largest <= rounding]
    ok: bool | None = not any(finding.severity != "note" for finding in found)
    reason = ""
    if ok and unclear and passes.lowest != torch.float64:
        ok, reason = None, _unclear_reason(passes, max(look.difference.largest for look in unclear))
    return ProbeResult(
        probe="causality",
        ok=ok,
        headline=_headline(looks, rounding, ok),
        findings=tuple(found),
        columns=COLUMNS,
        rows=tuple(_row(look, rounding) for look in looks),
        bars=tuple(
            Bar(f"{look.changed} ({look.weights})", look.difference.largest, look.difference.largest > rounding)
            for look in looks
        ),
        bar_unit="largest change of a past output, relative to the outputs' root mean square",
        measures=_measures(passes, asked, looks),
        reason=reason,
    )


def _unclear_reason(passes: Passes, largest: float) -> str:
    return (
        f"past outputs move by {shown(largest)} of their size, which rounding in {passes.lowest} may explain, and the "
        "model does not compute in double precision throughout; remove casts to a fixed precision, and ask again"
    )


def _headline(looks: list[Look], rounding: float, ok: bool | None) -> str:
    if ok is None:
        return "Past outputs move by no more than rounding may explain."
    moved = list(dict.fromkeys(look.question for look in looks if look.difference.largest > rounding))
    if not moved:
        return f"No past output moves, in {len(looks)} comparisons."
    return f"Past outputs move with {' and with '.join(moved)}."


def _row(look: Look, rounding: float) -> tuple[Any, ...]:
    gap: Difference = look.difference
    answer = "leak" if gap.largest > rounding else "rounding" if gap.largest else "none"
    return (look.weights, look.changed, gap.compared, gap.largest, len(gap.places), answer)


def _measures(passes: Passes, asked: Asked, looks: list[Look]) -> dict[str, Any]:
    def largest(question: str, weights: str) -> float | None:
        found = [look.difference.largest for look in looks if (look.question, look.weights) == (question, weights)]
        return max(found, default=None)

    return {
        "future": largest(FUTURE, GIVEN),
        "documents": largest(DOCUMENTS, GIVEN),
        "earlier_batch": largest(EARLIER, GIVEN),
        "rows": largest(ROWS, GIVEN),
        "future_jittered": largest(FUTURE, JITTERED),
        "earlier_batch_jittered": largest(EARLIER, JITTERED),
        "rounding": passes.rounding,
        "precision": str(passes.lowest).removeprefix("torch."),
        "cuts": list(asked.cuts),
    }
