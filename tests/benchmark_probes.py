"""What the probes cost, each against something measured in the same run; part of `make bench`."""

import time

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from casestudies_lib.probes import alignment, reduction_scaling, stepping

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
    return rows + reduction_scaling_rows()


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
