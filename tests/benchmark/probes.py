"""What the probes cost, each against something measured in the same run; part of `make bench`."""

import time

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from casestudies_lib.models.gates.gradient_log import log_gradient_norms
from casestudies_lib.probes import alignment, backward_check, causality, reduction_scaling, stepping

Row = tuple[str, str, str]


def probe_rows() -> list[Row]:
    """Return what was measured, the measurement, and the figure to reach."""
    torch.set_num_threads(1)
    arrays, lists = alignment_speed()
    rows = [
        ("alignment, arrays", f"{arrays / 1e6:.1f} M tokens a CPU second", "≥ 1 M"),
        ("alignment, lists of pairs", f"{lists / 1e6:.1f} M tokens a CPU second", "≥ 1 M"),
        ("stepping, step with ÷ without, 10 M parameters", f"{stepping_overhead():.3f}", "≤ 1.02"),
    ]
    return rows + reduction_scaling_rows() + causality_rows() + gradient_log_rows() + backward_check_rows()


def alignment_speed(characters: int = 2_000_000, turns: int = 5) -> tuple[float, float]:
    """Return the tokens of both sides that `alignment` judges per CPU second, from arrays and from lists of pairs."""
    generator = np.random.default_rng(0)
    arrays = []
    for share in (0.25, 0.28):
        edges = np.flatnonzero(np.r_[True, generator.random(characters - 1) < share, True])
        arrays.append(np.stack([edges[:-1], edges[1:]], axis=1))
    lists = [list(map(tuple, side.tolist())) for side in arrays]
    rates = []
    for first, second in (arrays, lists):
        seconds = []
        for _ in range(turns):
            begin = time.process_time()
            alignment(first, second)
            seconds.append(time.process_time() - begin)
        rates.append((len(first) + len(second)) / min(seconds))
    return rates[0], rates[1]


def stepping_overhead(rounds: int = 40) -> float:
    """Return the processor time of training with the watch by that without, in blocks of ten steps that take turns."""
    # 10 million parameters; 32 rows make the step short, which is the hard case.
    module = nn.Sequential(*[layer for _ in range(10) for layer in (nn.Linear(1000, 1000), nn.Tanh())])
    optimiser = torch.optim.AdamW(module.parameters(), lr=1e-4)
    rows = torch.randn(32, 1000, generator=torch.Generator().manual_seed(0))

    def ten_steps(after_each) -> float:
        begin = time.process_time()
        for _ in range(10):
            module(rows).square().mean().backward()
            optimiser.step()
            optimiser.zero_grad()
            after_each()
        return time.process_time() - begin

    ten_steps(lambda: None)
    begin = time.process_time()
    watch = stepping(module, optimiser, accumulation=1, every=100)
    on, plain = time.process_time() - begin, 0.0
    for _ in range(rounds):
        plain += ten_steps(lambda: None)
        begin = time.process_time()
        with watch:
            ten_steps(watch.batch)
        on += time.process_time() - begin
    return on / plain


def divergence(prediction: Tensor, target: Tensor) -> Tensor:
    return functional.kl_div(prediction.log_softmax(-1), target.softmax(-1), reduction="batchmean")


def entropy(prediction: Tensor, target: Tensor) -> Tensor:
    return functional.cross_entropy(prediction.flatten(0, 1), target.flatten())


def reduction_scaling_rows() -> list[Row]:
    """Return the probe's seconds on [8, 512, 8192] against one pass of the same loss over the whole."""
    generator = torch.Generator().manual_seed(0)
    prediction, target = (torch.randn(8, 512, 8192, generator=generator) for _ in range(2))
    labels = torch.randint(8192, (8, 512), generator=generator)
    rows = []
    for name, loss, wanted in (
        ("mse", functional.mse_loss, target),
        ("kl_div batchmean", divergence, target),
        ("cross_entropy", entropy, labels),
    ):
        leaf = prediction.detach().requires_grad_()
        begin = time.perf_counter()
        torch.autograd.grad(loss(leaf, wanted), leaf)
        alone, begin = time.perf_counter() - begin, time.perf_counter()
        reduction_scaling(loss, prediction, wanted, axes=("batch", "length", "classes"))
        probe = time.perf_counter() - begin
        measured = f"{probe:.2f} s = {probe / alone:.1f} × one pass of the loss"
        rows.append((f"reduction_scaling, {name}", measured, "≤ 2 s"))
    return rows


class Scaled(torch.autograd.Function):
    """Hands its input on; its backward is off by a factor."""

    @staticmethod
    def forward(ctx, inputs: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return inputs.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.factor * gradient, None


class Encoder(nn.Module):
    """A transformer encoder of a million parameters; half way up, a backward may be off by a factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(128, 4, 512, dropout=0.0, batch_first=True)
        self.below, self.above = (nn.TransformerEncoder(layer, depth, enable_nested_tensor=False) for depth in (2, 3))
        self.factor = factor

    def forward(self, inputs: Tensor) -> Tensor:
        return self.above(Scaled.apply(self.below(inputs), self.factor))


def backward_check_rows() -> list[Row]:
    """Return the probe's processor time by that of one forward-backward pass, a million parameters, right and wrong."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for shape in ((8, 32, 128), (2, 32, 128)):
        inputs = torch.randn(shape, generator=generator)
        for factor in (1.0, 1.05):
            ratio, found = backward_check_ratio(Encoder(factor), inputs)
            name = f"backward_check ÷ forward-backward, {shape[0] * shape[1]} tokens, factor {factor:g}"
            rows.append((name, f"{ratio:.1f}, found {'yes' if found else 'no'}", "≤ 20" if shape[0] == 8 else ""))
    return rows


def backward_check_ratio(module: nn.Module, inputs: Tensor, turns: int = 5) -> tuple[float, bool]:
    """Return the median ratio of `turns` turns of both, and whether the probe found a fault."""
    ratios = []
    backward_check(module, inputs)
    for _ in range(turns):
        begin = time.process_time()
        for _ in range(4):
            module(inputs).square().mean().backward()
        alone, begin = (time.process_time() - begin) / 4, time.process_time()
        result = backward_check(module, inputs)
        ratios.append((time.process_time() - begin) / alone)
    return sorted(ratios)[turns // 2], result.ok is False


class Attention(nn.Module):
    """A GPT-2-shaped miniature; `leak` is the share of the sequence's mean that every position gets to see."""

    def __init__(self, dim: int, layers: int, tokens: int, leak: float = 0.0):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(256, dim), nn.Embedding(tokens, dim)
        layer = nn.TransformerEncoderLayer(dim, 4, 4 * dim, 0.0, "gelu", batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head, self.leak = nn.Linear(dim, 256), leak
        self.alphas = nn.Parameter(torch.ones(5))

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]] * self.alphas.mean()
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
        hidden = self.body(hidden, mask=mask, is_causal=True)
        out = self.head(hidden)
        return out + self.leak * out.mean(1, keepdim=True) if self.leak else out


def causality_rows(tokens: int = 1024, seeds: int = 10) -> list[Row]:
    """Return what leaks of a millionth and their causal twins get for an answer, and what one answer takes."""
    seconds, found, silent = [], 0, 0
    for seed in range(seeds):
        torch.manual_seed(seed)
        for leak in (1e-6, 0.0):
            module = Attention(dim=64, layers=2, tokens=tokens, leak=leak)
            begin = time.perf_counter()
            answer = causality(module, torch.randint(256, (1, tokens)))
            seconds.append(time.perf_counter() - begin)
            found += leak > 0 and answer.ok is False
            silent += leak == 0 and answer.ok is True
    what = f"causality, {tokens} tokens"
    return [
        (f"{what}, leak of 1e-6 found", f"{found} of {seeds}", f"{seeds} of {seeds}"),
        (f"{what}, causal twin silent", f"{silent} of {seeds}", f"{seeds} of {seeds}"),
        (f"{what}, 2 layers of width 64", f"{np.median(seconds):.2f} s", "≤ 2 s"),
    ]


def gradient_log_rows() -> list[Row]:
    """Return what logging adds to a step, every step and every hundredth, on a miniature and on 10 M parameters."""
    miniature = Attention(dim=64, layers=2, tokens=64)
    large = nn.Sequential(*[layer for _ in range(10) for layer in (nn.Linear(1000, 1000), nn.Tanh())])
    cases = (
        ("miniature, gates", miniature, torch.randint(256, (8, 64)), ["alphas", "*.linear2.bias"], 400),
        ("miniature, all parameters", miniature, torch.randint(256, (8, 64)), ["*"], 400),
        ("10 M parameters, all of them", large, torch.randn(32, 1000), ["*"], 200),
    )
    rows = []
    for what, module, batch, names, steps in cases:
        for every, limit in ((1, "≤ 15 %"), (100, "≤ 1 %")):
            share = logging_share(module, batch, names, every, steps)
            rows.append((f"gradient log every {every}, {what}", f"{100 * share:+.2f} %", limit))
    return rows


def logging_share(module: nn.Module, batch: Tensor, names: list[str], every: int, steps: int) -> float:
    """Return by what share logging makes the mean step longer, from medians of steps that take turns.

    Of N steps one reads norms and N - 1 only count, which is too little to show beside a whole step: it is measured on
    steps of an optimiser that has next to nothing else to do.
    """
    optimiser = torch.optim.AdamW(module.parameters(), lr=1e-4)

    def step() -> float:
        begin = time.process_time_ns()
        module(batch).square().mean().backward()
        optimiser.step()
        optimiser.zero_grad()
        return time.process_time_ns() - begin

    step()
    plain, read = [], []
    for _ in range(steps // 2):
        plain.append(step())
        with log_gradient_norms(module, names, every=1):
            read.append(step())
    extra = np.median(read) - np.median(plain)
    return (extra + (every - 1) * counting(module, names)) / every / np.median(plain)


def counting(module: nn.Module, names: list[str], turns: int = 50) -> float:
    """Return the nanoseconds that a step which is only counted takes longer."""
    optimiser = torch.optim.SGD([next(module.parameters())], lr=0.0)

    def hundred_steps() -> int:
        begin = time.process_time_ns()
        for _ in range(100):
            optimiser.step()
        return time.process_time_ns() - begin

    plain, counted = [], []
    for _ in range(turns):
        plain.append(hundred_steps())
        with log_gradient_norms(module, names, every=10**9):
            optimiser.step()
            counted.append(hundred_steps())
    return (np.median(counted) - np.median(plain)) / 100
