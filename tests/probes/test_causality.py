"""The probe finds what past outputs should not see, in models of many kinds, and is silent on their causal twins."""

import copy

import pytest
import torch
from registry import drawn
from torch import nn
from torch.nn import functional

from casestudies_lib.probes import causality

SEEDS = range(10)
TOKENS, VOCABULARY, DIM = 12, 9, 8


def seeded(seed, build, *args, **settings):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build(*args, **settings)


def tokens_of(seed, rows=2, length=TOKENS):
    return torch.randint(VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


class Embedded(nn.Module):
    """Token numbers through an embedding, a mixer of positions, and a head."""

    def __init__(self, mixer):
        super().__init__()
        self.embedding, self.mixer, self.head = nn.Embedding(VOCABULARY, DIM), mixer, nn.Linear(DIM, VOCABULARY)

    def forward(self, tokens):
        mixed = self.mixer(self.embedding(tokens))
        return self.head(mixed[0] if isinstance(mixed, tuple) else mixed)


class Encoder(nn.Module):
    def __init__(self, masked, dropout=0.0):
        super().__init__()
        layer = nn.TransformerEncoderLayer(DIM, 2, 16, dropout, batch_first=True)
        self.encoder, self.masked = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), masked

    def forward(self, values):
        mask = nn.Transformer.generate_square_subsequent_mask(values.shape[1]) if self.masked else None
        return self.encoder(values, mask=mask, is_causal=self.masked)


class Fused(nn.Module):
    """Fused attention, with or without its causal flag."""

    def __init__(self, causal=True):
        super().__init__()
        self.project, self.causal = nn.Linear(DIM, 3 * DIM), causal

    def forward(self, values):
        query, key, value = self.project(values).chunk(3, -1)
        return values + functional.scaled_dot_product_attention(query, key, value, is_causal=self.causal)


class Reciprocal(nn.Module):
    """Scores and their transpose, added before or after the causal mask."""

    def __init__(self, late, weight=0.3):
        super().__init__()
        self.query, self.key, self.late = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM), late
        self.alpha = nn.Parameter(torch.tensor(weight))

    def forward(self, values):
        scores = self.query(values) @ self.key(values).transpose(-1, -2)
        past = torch.ones_like(scores[0], dtype=torch.bool).tril()
        if self.late:
            weights = scores.masked_fill(~past, -torch.inf).softmax(-1)
            weights = weights + self.alpha * weights.transpose(-1, -2)
        else:
            weights = (scores + self.alpha * scores.transpose(-1, -2)).masked_fill(~past, -torch.inf).softmax(-1)
        return values + weights @ values


class Convolution(nn.Module):
    def __init__(self, left, right):
        super().__init__()
        self.convolution, self.padding = nn.Conv1d(DIM, DIM, left + right + 1), (left, right)

    def forward(self, values):
        return self.convolution(functional.pad(values.transpose(1, 2), self.padding)).relu().transpose(1, 2)


class Spectral(nn.Module):
    """A long convolution by FFT: causal if padded to twice the length, circular if not."""

    def __init__(self, padded=True):
        super().__init__()
        self.kernel, self.padded = nn.Parameter(torch.randn(TOKENS, DIM)), padded

    def forward(self, values):
        length = values.shape[1]
        size = 2 * length if self.padded else length
        spectrum = torch.fft.rfft(values, n=size, dim=1) * torch.fft.rfft(self.kernel, n=size, dim=0)
        return torch.fft.irfft(spectrum, n=size, dim=1)[:, :length]


class Running(nn.Module):
    """The mean so far, by cumulative sum; or by the mean of the whole."""

    def __init__(self, whole=False):
        super().__init__()
        self.whole, self.scale = whole, nn.Parameter(torch.ones(DIM))

    def forward(self, values):
        counts = torch.arange(1, values.shape[1] + 1, device=values.device)[:, None]
        mean = values.mean(1, keepdim=True) if self.whole else values.cumsum(1) / counts
        return values + self.scale * mean


class LeaksALittle(nn.Module):
    def __init__(self, inner, size, reach=None):
        super().__init__()
        self.inner, self.size, self.reach = inner, size, reach

    def forward(self, values):
        ahead = values.mean(1, keepdim=True) if self.reach is None else values.roll(-self.reach, 1)
        return self.inner(values) + self.size * ahead


class Remembers(nn.Module):
    """Adds something of the batch before, as an attribute, in a nested list, or in a buffer; or only counts."""

    def __init__(self, how, trained=1.0):
        super().__init__()
        self.how, self.project, self.alpha = how, nn.Linear(DIM, DIM), nn.Parameter(torch.tensor(trained))
        self.nest, self.last, self.calls = {"seen": [[]]}, None, 0
        self.register_buffer("mean", torch.zeros(DIM))

    def forward(self, values):
        out, now = self.project(values), values.mean((0, 1))
        if self.how == "with graph":
            out = out if self.last is None else out + self.alpha * self.last
            self.last = now
        if self.how == "nested":
            out = out + self.alpha * sum(self.nest["seen"][0])
            self.nest["seen"][0].append(now.detach())
        if self.how == "buffer":
            out = out + self.alpha * self.mean
            with torch.no_grad():
                self.mean.mul_(0.9).add_(0.1 * now)
        self.calls += 1
        return out


class TopTokens(nn.Module):
    """Passes the tokens that score best: among all of the sequence, or each on its own."""

    def __init__(self, among_all):
        super().__init__()
        self.score, self.among_all = nn.Linear(DIM, 1), among_all

    def forward(self, values):
        scores = self.score(values)
        chosen = scores >= scores.median(1, keepdim=True).values if self.among_all else scores > 0
        return torch.where(chosen, values, 0.5 * values)


class Normalised(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(DIM)

    def forward(self, values):
        return self.norm(values.transpose(1, 2)).transpose(1, 2)


CAUSAL = {
    "transformer": lambda: Encoder(masked=True),
    "fused attention": lambda: Fused(),
    "reciprocal before the mask": lambda: Reciprocal(late=False),
    "lstm": lambda: nn.LSTM(DIM, DIM, 2, batch_first=True),
    "gru": lambda: nn.GRU(DIM, DIM, batch_first=True),
    "causal convolution": lambda: Convolution(left=2, right=0),
    "padded FFT": lambda: Spectral(),
    "cumulative mean": lambda: Running(),
    "position-wise": lambda: nn.Sequential(nn.Linear(DIM, DIM), nn.LayerNorm(DIM), nn.GELU()),
    "counts its calls": lambda: Remembers("counts"),
    "batch statistics, evaluated": lambda: Normalised().eval(),
    "threshold a token": lambda: TopTokens(among_all=False),
}
LEAKS = {
    "transformer without mask": lambda: Encoder(masked=False),
    "fused attention without the flag": lambda: Fused(causal=False),
    "reciprocal after the mask": lambda: Reciprocal(late=True),
    "bidirectional lstm": lambda: nn.LSTM(DIM, DIM // 2, batch_first=True, bidirectional=True),
    "convolution padded on both sides": lambda: Convolution(left=1, right=1),
    "circular FFT": lambda: Spectral(padded=False),
    "mean of the whole": lambda: Running(whole=True),
    "top half of all tokens": lambda: TopTokens(among_all=True),
    "batch statistics, training": lambda: Normalised(),
    "a millionth of the next token": lambda: LeaksALittle(Encoder(masked=True), 1e-6, reach=1),
    "a millionth of the mean": lambda: LeaksALittle(Fused(), 1e-6),
}


def faults(result):
    return [finding.where for finding in result.findings if finding.severity == "fault"]


# The fault and its healthy twins.


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", CAUSAL)
def test_a_causal_model_is_silent(kind, seed):
    result = causality(seeded(seed, lambda: Embedded(CAUSAL[kind]())), tokens_of(seed))
    assert result.ok is True
    assert [finding for finding in result.findings if finding.severity != "note"] == []
    assert result.measures["precision"] == "float64"
    if kind != "padded FFT":
        assert result.findings == ()
        assert set(result.table()["largest difference, relative"]) == {0.0}


def test_tokens_that_are_a_view_of_longer_ones_are_taken_without_a_warning():
    model = seeded(0, lambda: Embedded(next(iter(CAUSAL.values()))()))
    assert causality(model, tokens_of(0, length=TOKENS + 1)[:, :-1]).ok is True


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", LEAKS)
def test_a_leak_from_the_future_is_a_fault(kind, seed):
    result = causality(seeded(seed, lambda: Embedded(LEAKS[kind]())), tokens_of(seed))
    assert result.ok is False
    assert faults(result) == ["future tokens"]
    assert result.measures["future"] > 1e-8


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("how", ["with graph", "nested", "buffer"])
@pytest.mark.parametrize("warm", [False, True])
def test_what_an_earlier_batch_leaves_behind_is_a_fault(how, warm, seed):
    model = seeded(seed, lambda: Embedded(Remembers(how)))
    if warm:
        model(tokens_of(seed + 100))
    result = causality(model, tokens_of(seed))
    assert result.ok is False
    assert faults(result) == ["the batch before"]
    assert result.measures["future"] == 0
    # A tensor with a graph among the attributes is no reason not to copy the model.
    assert result.measures["precision"] == "float64"


@pytest.mark.parametrize("seed", SEEDS)
def test_rows_that_mix_are_a_warning(seed):
    class MeanOfRows(nn.Module):
        def forward(self, values):
            return values - values.mean(0, keepdim=True)

    model = seeded(seed, lambda: Embedded(MeanOfRows()))
    result = causality(model, tokens_of(seed, rows=3))
    assert result.ok is False
    assert [(f.severity, f.where) for f in result.findings] == [("warning", "other rows of the batch")]
    alone = causality(model, tokens_of(seed, rows=1))
    assert alone.ok is True
    assert alone.measures["rows"] is None


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("build", "where"),
    [
        (lambda: Reciprocal(late=True, weight=0.0), "future tokens"),
        (lambda: Remembers("buffer", trained=0.0), "the batch before"),
    ],
)
def test_a_leak_that_a_gate_at_zero_hides_is_a_warning(build, where, seed):
    model = seeded(seed, lambda: Embedded(build()))
    result = causality(model, tokens_of(seed))
    assert result.ok is False
    assert [(f.severity, f.where) for f in result.findings] == [("warning", where)]
    assert "hides it today" in result.findings[0].meaning
    assert causality(model, tokens_of(seed), jitter=0).ok is True


def test_zeros_that_a_mask_keeps_in_the_weights_are_not_jittered():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix = nn.Parameter(torch.randn(TOKENS, TOKENS).tril())

        def forward(self, values):
            return self.mix @ values

    assert causality(seeded(0, lambda: Embedded(Masked())), tokens_of(0)).ok is True


# How small, how far, where.


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("size", [1e-4, 1e-6, 1e-8])
def test_the_size_of_a_leak_is_measured_far_below_single_precision(size, seed):
    model = LeaksALittle(nn.Linear(DIM, DIM), size)
    values = torch.randn(2, TOKENS, DIM, generator=torch.Generator().manual_seed(seed))
    result = causality(model, values, cuts=[6])
    # By hand, in double precision: the mean moves by the change's mean.
    twin = copy.deepcopy(model).double()
    drawn = torch.randn(values.shape, generator=torch.Generator().manual_seed(6)).double()
    noise = values.double().square().mean().sqrt() * drawn
    base, moved = twin(values.double()), size * noise[:, 6:].sum(1) / TOKENS
    assert result.measures["future"] == pytest.approx(
        (moved.abs().max() / base.square().mean().sqrt()).item(), rel=1e-4
    )
    assert faults(result) == ["future tokens"]


@pytest.mark.parametrize("reach", [1, 3])
def test_the_reach_of_a_leak_is_told(reach):
    model = Convolution(left=1, right=reach)
    result = causality(model, drawn(0, 2, TOKENS, DIM), cuts=[6])
    assert f"an output sees at least {reach} positions ahead" in result.findings[0].measured
    assert f"moves {reach} of 6 outputs" in result.findings[0].measured


def test_a_leak_between_two_cuts_is_missed_and_found_with_a_cut_between():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, values):
            out = values * self.scale
            return torch.cat([out[:, :3], out[:, 3:4] + out[:, 4:5], out[:, 4:]], 1)

    values = drawn(0, 2, TOKENS, DIM)
    assert causality(Pair(), values, cuts=[1, 6]).ok is True
    assert causality(Pair(), values, cuts=[4]).ok is False


# An answer at its own position, a look ahead, and documents in one row.


class Tracing(nn.Module):
    """Predicts whether a response is right from the question and from responses before it, or from its own too."""

    def __init__(self, shifted):
        super().__init__()
        self.question, self.response = nn.Embedding(VOCABULARY, DIM), nn.Embedding(3, DIM)
        self.recurrent, self.head, self.shifted = nn.GRU(DIM, DIM, batch_first=True), nn.Linear(2 * DIM, 1), shifted

    def forward(self, questions, responses):
        seen = functional.pad(responses[:, :-1], (1, 0), value=2) if self.shifted else responses
        hidden, _ = self.recurrent(self.response(seen))
        return self.head(torch.cat([hidden, self.question(questions)], -1)).squeeze(-1)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_response_that_enters_the_output_at_its_own_position_is_a_leak_at_a_lag_of_one(seed):
    questions, responses = tokens_of(seed, rows=3), tokens_of(seed + 100, rows=3) % 2

    def ask(shifted, lag):
        model = seeded(seed, Tracing, shifted)
        return causality(model, responses, call=lambda module, values: module(questions, values), lag=lag)

    assert (ask(True, 0).ok, ask(True, 1).ok, ask(False, 0).ok) == (True, True, True)
    result = ask(False, 1)
    assert result.ok is False
    assert [finding.where for finding in result.findings] == ["future tokens"]
    assert "sees the input of its own position" in result.findings[0].measured
    further = ask(True, 3)
    assert further.ok is False
    assert "sees the input 1 positions before it" in further.findings[0].measured


@pytest.mark.parametrize("ahead", [1, 2])
def test_positions_of_look_ahead_may_be_allowed(ahead):
    model = seeded(0, Embedded, Convolution(2, ahead))
    assert causality(model, tokens_of(0), lag=-ahead).ok is True
    result = causality(model, tokens_of(0), lag=1 - ahead)
    assert result.ok is False
    assert f"at least {ahead} positions ahead" in result.findings[0].measured


class Packed(nn.Module):
    """Causal attention over rows that hold several documents, kept apart by a mask or not; rows may come second."""

    def __init__(self, apart, rows_first=True):
        super().__init__()
        self.embedding, self.project = nn.Embedding(VOCABULARY, DIM), nn.Linear(DIM, 3 * DIM)
        self.apart, self.rows_first = apart, rows_first

    def forward(self, tokens, documents):
        values = self.embedding(tokens if self.rows_first else tokens.mT)
        query, key, value = self.project(values).chunk(3, -1)
        mask = torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril()
        if self.apart:
            mask = mask & (documents[:, :, None] == documents[:, None, :])
        out = values + functional.scaled_dot_product_attention(query, key, value, mask)
        return out if self.rows_first else out.transpose(0, 1)


PACKINGS = {
    "one for all rows": torch.tensor([0] * 4 + [1] * 3 + [2] * 5),
    "a row each": torch.tensor([[0] * 4 + [1] * 6 + [-1] * 2, [3] * 7 + [4] * 5]),
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("rows_first", [True, False])
@pytest.mark.parametrize("packing", PACKINGS)
def test_documents_in_one_row_that_see_each_other_are_a_fault(packing, rows_first, seed):
    documents = PACKINGS[packing]
    numbers = documents.expand(2, TOKENS)
    axes = {} if rows_first else {"position_axis": 0, "batch_axis": 1}
    tokens = tokens_of(seed) if rows_first else tokens_of(seed).mT

    def ask(apart, **settings):
        model = seeded(seed, Packed, apart, rows_first)
        return causality(model, tokens, call=lambda module, values: module(values, numbers), **axes, **settings)

    assert ask(True, documents=documents).ok is True
    assert ask(False).ok is True
    result = ask(False, documents=documents)
    assert result.ok is False
    assert [(finding.severity, finding.where) for finding in result.findings] == [("fault", "other documents")]
    # Of the outputs that replacing a document should not reach, those after it in its row move.
    moved = {"document 0": 8, "document 1": 5} if documents.dim() == 1 else {"document 0": 6, "document 3": 5}
    rows = {row[1]: row[4] for row in result.rows if row[0] == "as given"}
    assert {name: rows[name] for name in moved} == {
        name: count * (2 if documents.dim() == 1 else 1) for name, count in moved.items()
    }


# Cannot tell.


@pytest.mark.parametrize("masked", [True, False])
def test_dropout_leaves_the_answer_open_and_evaluation_settles_it(masked):
    model = seeded(0, lambda: Embedded(Encoder(masked, dropout=0.1)))
    result = causality(model, tokens_of(0))
    assert result.ok is None
    assert "model.eval()" in result.reason
    assert causality(model.eval(), tokens_of(0)).ok is masked


def test_a_generator_of_the_models_own_is_random_too():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.streams = {"noise": [torch.Generator().manual_seed(3)]}

        def forward(self, values):
            return values + torch.randn(values.shape, generator=self.streams["noise"][0])

    result = causality(Embedded(Noisy()), tokens_of(0))
    assert result.ok is None
    assert "draws random numbers" in result.reason


def test_state_kept_elsewhere_leaves_the_answer_open():
    calls = []

    class Elsewhere(nn.Module):
        def forward(self, values):
            calls.append(0)
            return values * len(calls)

    result = causality(Embedded(Elsewhere()), tokens_of(0))
    assert result.ok is None
    assert "outside the module" in result.reason


class Single(nn.Module):
    """Insists on single precision inside."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, values):
        return self.inner(values.float())


@pytest.mark.parametrize("seed", SEEDS)
def test_rounding_of_a_model_that_insists_on_single_precision_is_not_called_a_leak(seed):
    spectral = seeded(seed, Spectral)
    values = torch.randn(2, TOKENS, DIM, generator=torch.Generator().manual_seed(seed))

    class Fixed(Single):
        def forward(self, values):
            length = values.shape[1]
            kernel = torch.fft.rfft(self.inner.kernel.float(), n=2 * length, dim=0)
            spectrum = torch.fft.rfft(values.float(), n=2 * length, dim=1) * kernel
            return torch.fft.irfft(spectrum, n=2 * length, dim=1)[:, :length].to(values.dtype)

    result = causality(Fixed(spectral), values)
    assert result.ok is None
    assert "float32 may explain" in result.reason
    assert faults(result) == []


def test_a_model_that_refuses_double_precision_is_judged_in_its_own():
    class Refuses(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, tokens):
            if torch.get_default_dtype() != torch.float32:
                raise TypeError("single precision only")
            return self.inner(tokens)

    for build, ok in ((CAUSAL["lstm"], True), (LEAKS["convolution padded on both sides"], False)):
        result = causality(Refuses(Embedded(build())), tokens_of(0))
        assert result.ok is ok
        assert result.measures["precision"] == "float32"


def test_a_model_that_cannot_be_copied_is_run_where_it_stands_and_left_as_it_was():
    class Uncopied(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def __deepcopy__(self, memo):
            raise TypeError("one of a kind")

        def forward(self, tokens):
            return self.inner(tokens)

    for how, ok in (("buffer", False), ("counts", True)):
        model = Uncopied(Embedded(Remembers(how)))
        before = model.inner.mixer.calls, model.inner.mixer.mean.clone()
        assert causality(model, tokens_of(0)).ok is ok
        assert model.inner.mixer.calls == before[0]
        assert torch.equal(model.inner.mixer.mean, before[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_half_precision_is_judged_in_double(dtype):
    for build, ok in ((CAUSAL["fused attention"], True), (LEAKS["mean of the whole"], False)):
        result = causality(Embedded(build()).to(dtype), tokens_of(0))
        assert result.ok is ok
        assert result.measures["precision"] == "float64"


# Other ways to call.


def test_other_axes_outputs_and_calls():
    lstm = nn.LSTM(DIM, DIM)
    assert causality(lstm, drawn(0, TOKENS, 2, DIM), position_axis=0, batch_axis=1).ok is True
    unbatched = drawn(0, TOKENS, DIM)
    assert causality(nn.LSTM(DIM, DIM, bidirectional=True), unbatched, position_axis=0, batch_axis=None).ok is False

    class ChannelsFirst(nn.Module):
        def __init__(self, padding):
            super().__init__()
            self.embedding, self.convolution = nn.Embedding(VOCABULARY, DIM), nn.Conv1d(DIM, 5, 3, padding=padding)

        def forward(self, tokens, scale):
            return {"loss": scale.sum(), "logits": self.convolution(scale * self.embedding(tokens).transpose(1, 2))}

    def call(module, tokens):
        return module(tokens, torch.ones(1))["logits"][..., :TOKENS]

    assert causality(ChannelsFirst(2), tokens_of(0), call=call, output_axis=2).ok is True
    assert causality(ChannelsFirst(1), tokens_of(0), call=call, output_axis=2).ok is False


def test_bool_tokens_and_a_logit_of_minus_infinity_are_no_trouble():
    class Forbids(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(2, DIM)

        def forward(self, tokens):
            out = self.embedding(tokens.long()).cumsum(1)
            return out.index_fill(2, torch.tensor([0]), -torch.inf)

    tokens = torch.rand(2, TOKENS, generator=torch.Generator().manual_seed(0)) > 0.5
    assert causality(Forbids(), tokens).ok is True
