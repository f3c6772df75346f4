"""Everything that models, tasks, statistics and figures refuse, one row a reason: what is asked, and what is said."""

import math
import sys

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError
from tokenizers import Tokenizer, models
from torch import nn

from casestudies_lib import figures
from casestudies_lib.cohort import CohortError, train
from casestudies_lib.models import dominoes, tracing
from casestudies_lib.models.blocks import Dropout, split_heads
from casestudies_lib.models.distillation import evaluation, losses
from casestudies_lib.models.distillation import model as distillation
from casestudies_lib.models.gates import ladder, switches
from casestudies_lib.models.gates.model import GatedModel
from casestudies_lib.models.routing import estimators, sparse
from casestudies_lib.models.routing import model as routing
from casestudies_lib.models.routing.routers import RouterSettings
from casestudies_lib.stats import (
    area_under_curve,
    bootstrap_groups,
    correlation,
    grouped_correlations,
    mean_interval,
    paired_differences,
)
from casestudies_lib.tasks import words
from casestudies_lib.tasks.dominoes import data, game
from casestudies_lib.tasks.dominoes.tokens import FEATURES, Positions
from casestudies_lib.tasks.students import simulate_students
from casestudies_lib.tasks.text import byte_pairs, corpora, harbour, questions


def generator():
    return torch.Generator().manual_seed(0)


def rng():
    return np.random.default_rng(0)


def normal(*shape):
    return torch.randn(*shape, generator=generator())


def every(*shape):
    return torch.ones(shape, dtype=torch.bool)


def ids(*shape):
    return torch.zeros(shape, dtype=torch.int64)


def routed(router="standard", **settings):
    return routing.LanguageModel(
        routing.Sizes(vocab=9), routing.Wiring(router, RouterSettings(**settings)), generator()
    )


def gated(**changes):
    sizes = switches.Sizes(vocab=13, tokens=10, dim=16, heads=4, blocks=2, gate_dim=3)
    return GatedModel(sizes, switches.switched(switches.Switches(), **changes), generator())


def two_batches(model):
    model(ids(3, 9))
    model(ids(2, 9))


def alignment(first, second):
    blank = torch.zeros(1, 1, 1)
    return distillation.Routed(first, second, blank, first, second)


def perfect(logits=None, own=(4, 0, 5), student=(b"a", b"b", b"c", b"d", b"x", b"bc"), floor=1e-4):
    teacher = [b"a", b"abc", b"abd", b"x"]
    logits = normal(2, 4) if logits is None else logits
    return evaluation.perfect_student(logits, torch.tensor([3, 1]), torch.tensor(own), teacher, student, floor)


def cohort(batches, loss=lambda model, rows: model(rows).square().mean(), optimiser=torch.optim.SGD):
    return train([nn.Linear(2, 1), nn.Linear(2, 1)], loss, batches, lambda own: optimiser(own, lr=0.1))


def figure(*rows):
    figures.pairs(figures.axes("", "m", "x", "y"), *rows)


def position(declaration=0, leader=0, hands=((0,), (1,), (2,), (3,)), trick=()):
    return game.Position(declaration, leader, hands, trick)


NO_NUMBER, LINE = torch.full((1, 3), math.nan), "User: Why? Assistant: Because."
DISTILLATION = [
    (
        lambda: losses.kd_loss(normal(2, 1, 7), normal(2, 5, 7), every(2, 5), 2.0, 3),
        r"^kd_loss: shapes \(2, 1, 7\) and",
    ),
    (lambda: losses.kd_loss(normal(2, 5, 7), normal(2, 5, 7), every(2, 1), 2.0, 3), r"kd_loss: shapes \(2, 5\) and"),
    (lambda: losses.kd_loss(normal(2, 5, 7), normal(2, 5, 7), every(2, 5), 0.0, 3), "temperature is 0.0; it must be"),
    (lambda: losses.kd_loss(normal(2, 5, 7), normal(2, 5, 7), every(2, 5), 2.0, 8), "top_k is 8; choose 1 to 7"),
    (lambda: losses.kd_loss(normal(2, 5, 7), normal(2, 5, 7), ~every(2, 5), 2.0, 3), "kd_loss: .* masks every token"),
    (lambda: losses.routing_feature_loss(alignment(normal(2, 1, 4), normal(2, 3, 4))), "^routing_feature_loss: shapes"),
    (
        lambda: losses.routing_attention_alignment_loss(alignment(normal(2, 1, 4), normal(2, 3, 4))),
        "^routing_attention_alignment_loss: shapes",
    ),
    *[
        (lambda error=error: error(normal(2, 5, 1), normal(2, 5, 7)), rf"^{error.__name__}: shapes")
        for error in (losses.mean_square, losses.sum_over_count, losses.normalised_square, losses.masked_square)
    ],
    (lambda: losses.lm_loss(normal(2, 5, 7), ids(2, 4), every(2, 5)), r"^lm_loss: shapes \(2, 5\) and \(2, 4\) differ"),
    (lambda: losses.lm_loss(normal(2, 5, 7), ids(2, 5), every(1, 5)), r"^lm_loss: shapes \(2, 5\) and \(1, 5\) differ"),
    (
        lambda: losses.lm_loss(normal(3, 5, 7), ids(3, 5), torch.arange(5) < torch.ones(3, 1)),
        "^lm_loss: .* masks every",
    ),
    (
        lambda: losses.layerwise_loss([normal(2, 3, 4)] * 2, [normal(2, 3, 4)] * 2, torch.zeros(3)),
        "3 weights; give the",
    ),
    (lambda: losses.weighted({"kd": torch.ones(()), "lm": torch.ones(())}, {"kd": 0.7}), "^lm: in only one of terms"),
    (lambda: losses.curriculum(-0.01), "progress is -0.01; it runs from 0 to 1"),
    (lambda: evaluation.capped_perplexity(math.nan), "loss is nan"),
    (lambda: evaluation.divergence(normal(1, 7), normal(3, 7)), r"^divergence: shapes \(1, 7\) and \(3, 7\) differ"),
    (lambda: evaluation.divergence(normal(0, 7), normal(0, 7)), "^divergence: .* share no position"),
    (
        lambda: evaluation.divergence(NO_NUMBER, normal(1, 3)),
        "^divergence: student: logits of 1 of 1 tokens are no dis",
    ),
    (lambda: evaluation.top_overlap(normal(3, 4), normal(3, 4), 5), "top_k is 5; choose 1 to 4"),
    (lambda: evaluation.next_byte(normal(3, 7), ids(6)), "7 classes and 6 first bytes"),
    (lambda: perfect(own=(4, 0, 1)), "the two tokenizations spell different bytes"),
    (
        lambda: perfect(own=(4, 5, 2), student=(b"a", b"b", b"c", b"bc", b"x", b"ab")),
        "no token of the student begins b'd'",
    ),
    (lambda: perfect(normal(3, 4)), r"teacher_logits are \(3, 4\); its ids and strings need \(2, 4\)"),
    (lambda: perfect(torch.full((2, 4), math.nan)), "perfect_student: teacher: logits of 2 of 2 tokens"),
    (lambda: perfect(floor=1.0), "floor is 1.0; it must be above 0 and below 1"),
    (lambda: distillation.stretched(normal(1, 3, 2), 0), "tokens is 0; stretch to at least 1"),
    (lambda: distillation.layer_pairs(0, 3), "0 and 3 hidden states make no pair"),
    (lambda: distillation.moving_average(nn.Linear(1, 1), 1.0), "decay is 1.0; it must be at least 0 and below 1"),
    (lambda: distillation.Router(*[distillation.Sizes(9, 6)] * 2, kept=0), "kept is 0"),
    (
        lambda: distillation.Router(*[distillation.Sizes(9, 6)] * 2)(normal(1, 3, 32), (normal(1, 3, 32),)),
        "1 experts for a gate of 2",
    ),
    (lambda: distillation.LanguageModel(distillation.Sizes(9, 6), generator())(ids(1, 7)), "7 tokens for a model of 6"),
]
OTHER_MODELS = [
    (lambda: Dropout(1, generator()), "dropout rate is 1; it must be at least 0 and below 1"),
    (lambda: split_heads(normal(1, 2, 6), 4), "width 6 is not a multiple of 4 heads"),
    (lambda: distillation.Sizes(vocab=1, tokens=6), "vocab is 1; at least 2 is needed"),
    (
        lambda: distillation.Sizes(5, 6, dim=30, heads=4),
        r"width 30 is not a multiple of 4 heads; choose dim = heads \*",
    ),
    (lambda: tracing.Sizes(concepts=1, slots=6), "concepts is 1; at least 2"),
    (lambda: switches.Sizes(vocab=5, tokens=6, window=-1), "window is -1"),
    (lambda: routing.Sizes(vocab=9, kv_heads=3), "8 heads cannot share 3 key/value heads evenly"),
    (lambda: dominoes.Sizes(tuple(FEATURES.values()), slots=32), "32 slots and a context token do not fit"),
    (lambda: dominoes.Sizes((2, 3)), "features are"),
    (
        lambda: dominoes.DominoNet(dominoes.Sizes(tuple(FEATURES.values())), generator(), trunk="x"),
        "trunk is 'x'; allowed",
    ),
    (lambda: gated(latent=17), "latent=17 is above the model's width of 16"),
    (lambda: gated(expansion=0.01), "leaves no hidden unit"),
    (
        lambda: gated(latent=6, reciprocal_mlp="both", coupler="per_head_scalar"),
        "latent 6 is not a multiple of 4 heads",
    ),
    (lambda: gated(reciprocal_mlp="both"), "latent=0 exclude each other: the coupler joins"),
    (lambda: gated(coupler_zeros=True), "the bug sits in the per-head-scalar coupler"),
    (lambda: gated(force_open=True), "no gate to hold open"),
    (lambda: gated(expansion_form="masked", cross_token=True), "cross_token exclude each other: .* one hidden layer"),
    (lambda: gated(expansion_form="masked", expansion=9.0), "starts between 2 and 6"),
    (lambda: gated(pruned=1.0), "pruned=1.0"),
    (lambda: gated(reciprocal="sideways"), "reciprocal='sideways'; allowed are off, rank_one"),
    (lambda: gated(gates=1), "unknown switch 'gates'; known are reciprocal"),
    (lambda: gated()(ids(1, 11)), "11 tokens for a model of 10"),
    (lambda: two_batches(gated(head_gate="previous_batch")), r"2 texts after a batch of 3; call forget\(\)"),
    (lambda: ladder.row_of(25), "unknown step 25; the ladder has steps 0 to 24"),
    (lambda: routed("sideways"), "router is 'sideways'; allowed are all heads"),
    (
        lambda: routing.RoutedAttention(routing.Sizes(9), routing.Wiring(weighing="x")),
        "weighing is 'x'; allowed are exact",
    ),
    (lambda: routed(shared=8), "shared is 8; choose 0 to 7"),
    (lambda: routed(most=7, shared=2), "most is 7, but 8 heads with 2 shared leave 6"),
    (lambda: routed(top_p=0.0), "top_p is 0.0; choose a probability above 0 and at most 1"),
    (lambda: routed("hard", sharpness=0.0), "sharpness is a temperature of 0.0; it must be above 0"),
    (lambda: routed("hard", gradient="none"), "gradient is 'none'; allowed are exact, heuristic, leaking"),
    (lambda: routing.greedy(routed(), [], 3, 0), "prompt"),
    (lambda: sparse.sparse(routed().blocks[0].attention, normal(1, 3, 32), every(1, 3, 4)), "selected has shape"),
    (lambda: estimators.gumbel_softmax(*[normal(2)] * 2, normal(2), normal(1, 2), 0.0), "temperature is 0.0"),
    (lambda: cohort([]), "no step was taken"),
    (lambda: cohort([[normal(3, 2)]]), "1 batches for 2 models"),
    (lambda: cohort([[normal(4, 2), normal(5, 2)]]), "batch 1 is not of the form of batch 0"),
    (lambda: cohort([[{"x": object()}] * 2]), "a batch holds a object"),
    (lambda: cohort([[normal(3, 2)] * 2], loss=lambda model, rows: model(rows)), "reduce it to one number"),
    (lambda: cohort([[normal(3, 2)] * 2], optimiser=torch.optim.LBFGS), "LBFGS may mix elements of a tensor"),
    (lambda: cohort([[normal(3, 2)] * 2], loss=lambda m, r: Dropout(0.5, generator())(m(r)).mean()), "random numbers"),
]
TASKS = [
    (lambda: position(declaration=10), "declaration 10; allowed are 0 to 9, whole numbers"),
    (lambda: position(hands=((0,), (1,), (2,), (0,))), "domino 0-0 stands twice"),
    (lambda: position(hands=((0,), (1,), (2,), (28,))), r"domino number 28; allowed are 0 \(0-0\) to 27 \(6-6\)"),
    (lambda: position(hands=((0,), (1,), (2,), ())), r"hands of \[1, 1, 1, 0\] with 0 on the table, led by player 0;"),
    (lambda: position(hands=((0,), (1,), (2,))), "3 hands and 0 dominoes on the table"),
    (lambda: position(trick=(20, 21, 22, 23)), "4 hands and 4 dominoes on the table"),
    (lambda: game.strength(3, 2, 10), "declaration 10"),
    (lambda: game.domino(7, 0), "domino 7-0; pips are 0 to 6"),
    (lambda: game.trick_winner((0, 1, 2), 0, 0), "a trick of 3 dominoes has no winner yet"),
    (
        lambda: game.play(position(), 3),
        "player 0 may not play domino 1-0|player 0 may not play domino 2-0; allowed are 0-0",
    ),
    (lambda: game.solve(game.Position(1, 0, ((), (), (), ()))), "every hand is empty: the game is over"),
    (lambda: game.solve(game.deal(rng(), 0)), "the largest hand has 7; endgames of 1 to 6 tricks are solved"),
    (lambda: data.generate(data.Settings(0, 1, 1, 1, 0)), "every count must be at least 1"),
    (
        lambda: Positions(
            np.zeros((1, 4, 7), int), *[np.zeros(1, int)] * 2, np.zeros((1, 28), bool), np.zeros((1, 3), int)
        ),
        "hands are no deal",
    ),
    (lambda: simulate_students(generator(), 0), "students=0, .*at least 1, 1, 3 and 3 are needed"),
    (lambda: simulate_students(generator(), 5, mean_length=math.inf), "mean_length=inf"),
    (
        lambda: corpora.split(corpora.Corpus("small", ("a", "b"), "", ""), 0, 1.0),
        "held_out=1.0; a share above 0 and below",
    ),
    (
        lambda: corpora.split(corpora.Corpus("small", ("a", "a"), "", ""), 0, 0.5),
        "small: 1 different paragraphs cannot be",
    ),
    (lambda: byte_pairs.train_tokenizer(["some text"], 256), "vocab=256; at least 257 are needed"),
    (lambda: byte_pairs.train_tokenizer(["", ""], 300), "2 paragraphs hold no text"),
    (lambda: byte_pairs.train_tokenizer(["abc"], 259), "vocab=259; this text has merges for 258 tokens at most"),
    (
        lambda: byte_pairs.encode(byte_pairs.train_tokenizer(["abc"], 258), "", "greeting"),
        "greeting: the text is empty",
    ),
    (lambda: byte_pairs.token_stream(byte_pairs.train_tokenizer(["abc"], 258), [], ""), "there are no paragraphs"),
    (
        lambda: byte_pairs.token_stream(byte_pairs.train_tokenizer(["ab"], 257), ["a", ""], ""),
        "paragraph 1: the text is e",
    ),
    (
        lambda: byte_pairs.first_byte(Tokenizer(models.WordLevel({"a": 0, "a–b": 1}, "a"))),
        "token 1 is 'a–b'; a byte-level",
    ),
    (lambda: byte_pairs.token_strings(Tokenizer(models.WordLevel({"a": 0, "b": 2}, "a"))), "token 1 is None"),
    (
        lambda: byte_pairs.windows(torch.arange(4), 4, 2, generator()),
        "the stream has 4 tokens; windows of 4 and a next one",
    ),
    (lambda: byte_pairs.windows(torch.arange(9), 0, 2, generator()), "tokens=0, batch=2; at least 1 of each"),
    (lambda: byte_pairs.padded([], pad=0), "there are no encodings"),
    (lambda: questions.question_and_answer("Why?"), "'Why.' is no dialogue"),
    (lambda: words.vocabulary([""]), "1 texts hold no word"),
    (lambda: words.vocabulary(["the sea"]).encode("the lake"), "'lake' is not among the 5 words"),
    (lambda: words.rows(words.vocabulary(["sea"]), []), "there are no texts"),
]
STATISTICS = [
    (lambda: mean_interval([1.0]), r"got 1 value\(s\); .* at least two"),
    (lambda: mean_interval([1.0, math.inf, 2.0]), "values are not finite"),
    (lambda: mean_interval([1e308, -1e308, 1.5e308]), "is not finite"),
    (lambda: mean_interval([1, 2], 1.0), "strictly between 0 and 1"),
    (lambda: paired_differences([1, 2, 3], [1, 2]), "3 against 2 values; give one pair a seed"),
    (lambda: area_under_curve([1, 2, 3], [1, 0]), "3 scores for 2 labels"),
    (lambda: area_under_curve([1, 2, 3], [1, 1, 1]), "3 ones and 0 zeros"),
    (lambda: area_under_curve([1, 2, 3], [0, 1, 0.5]), "label 0.5; AUC takes 0 and 1 only"),
    (lambda: area_under_curve([1, math.nan, 3], [0, 1, 0]), "not finite"),
    (lambda: bootstrap_groups([7, 7], len, 10, rng()), "needs two groups or more; these rows hold 1"),
    (lambda: correlation([1, 2, 3], [1, 2]), "3 against 2 values; give pairs"),
    (lambda: correlation([1, 2, 3], [4, 4, 4]), "a constant variable has no correlation"),
    (lambda: grouped_correlations([1, 2], [1, 2], [0, 1, 2], 9, rng()), "2 and 2 values in 3 rows of groups"),
    (lambda: grouped_correlations([1, 2], [1, 2], [0, 0], 9, rng()), "needs two groups or more"),
    (lambda: grouped_correlations([1, 1], [1, 2], [0, 1], 9, rng()), "a constant variable"),
    (
        lambda: figure(["a", "b"], [[1, 2, 3], [1, 2]], [figures.FAULT, figures.FIX]),
        r"2 names, 2 arms, 2 styles, \[3, 2\]",
    ),
    (lambda: figure(["a"], [[1, 2], [1, 2]], [figures.FAULT, figures.FIX]), "1 names, 2 arms, 2 styles"),
    (lambda: figures.show(figures.axes("", "m", "x", "y"), "a figure"), "alt text 'a figure' states no message"),
]


@pytest.mark.parametrize(("asked", "said"), DISTILLATION + OTHER_MODELS + TASKS + STATISTICS)
def test_it_is_refused_and_the_reason_is_said(asked, said, shapes_unchecked):
    with pytest.raises((ValueError, CohortError), match=said):
        asked()


def test_where_shapes_are_checked_the_checker_answers_first():
    with pytest.raises(TypeCheckError, match=r"[Tt]ype-check error"):
        losses.kd_loss(normal(2, 1, 7), normal(2, 5, 7), every(2, 5), 2.0, 3)


@pytest.mark.parametrize("corpus", [harbour.harbour, questions.sentences, questions.dialogues])
def test_a_missing_or_edited_corpus_is_refused(corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("CASEBOOK_ROOT", str(tmp_path))
    with pytest.raises(corpora.CorpusError, match=rf"{corpus.__name__}\.txt: no such file"):
        corpus()
    (tmp_path / "data" / "text").mkdir(parents=True)
    (tmp_path / "data" / "text" / f"{corpus.__name__}.txt").write_text(LINE)
    with pytest.raises(corpora.CorpusError, match=r"sha256 is [0-9a-f]{64}, expected is .*the text was edited"):
        corpus()


def test_a_python_without_its_topics_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(corpora.CorpusError, match=r"Python 3\..* has no pydoc_data.topics"):
        corpora.python_topics()


def test_a_file_that_no_module_declares_is_refused_while_a_chapter_runs(monkeypatch):
    monkeypatch.setenv("CASEBOOK_DECLARED", "data/text/harbour.txt")
    assert harbour.harbour().paragraphs
    with pytest.raises(
        LookupError, match=r"data/text/sentences.txt is not declared .*; declared: data/text/harbour.txt"
    ):
        questions.sentences()
