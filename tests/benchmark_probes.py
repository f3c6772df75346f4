"""What the probes cost, each against something measured in the same run; part of `make bench`."""

import time

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from casestudies_lib.probes import alignment, backward_check, reduction_scaling, stepping

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
    return rows + reduction_scaling_rows() + backward_check_rows()


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
