"""What a computation costs, by hand: multiply-adds, bytes that autograd keeps, ratios of medians."""

import itertools

import pytest
import torch
from torch import nn

from casestudies_lib.models import cost


def test_operations_of_a_linear_layer_are_two_a_multiply_add():
    layer, values = nn.Linear(5, 7, bias=False), torch.ones(3, 5)
    counted = cost.operations(lambda: layer(values).sum())
    # Forward 3 · 5 · 7 multiply-adds; backward only the weight's gradient, since the input asks for none.
    assert counted == (2 * 3 * 5 * 7, 2 * 3 * 5 * 7)
    assert counted.total == 420
    values.requires_grad_()
    assert cost.operations(lambda: layer(values).sum()).backward == 2 * 2 * 3 * 5 * 7


def test_bytes_kept_leave_parameters_out_and_count_a_storage_once():
    weight, values = nn.Parameter(torch.ones(4, 6)), torch.ones(10, 4, requires_grad=True)

    def once():
        return (values @ weight).sum()

    def twice():
        return (values @ weight).sum() + (values.view(2, 5, 4) @ weight).sum()

    # A product keeps its two factors: 40 floats of input, and the weight, which stands there anyway.
    assert cost.saved_bytes(once, [weight]) == 4 * 40
    assert cost.saved_bytes(once, []) == 4 * (40 + 24)
    assert cost.saved_bytes(twice, [weight]) == 4 * 40


def test_extra_time_is_the_median_ratio_of_the_turns_less_one(monkeypatch):
    clock = itertools.accumulate(
        # Three turns of (gap, lean forward, lean backward, gap, heavy forward, heavy backward).
        [*(0, 1, 2, 0, 1.5, 2.5), *(0, 1, 2, 0, 1.1, 4), *(0, 10, 2, 0, 12, 3)]
    )
    monkeypatch.setattr(cost.time, "perf_counter", lambda: next(clock))
    value = torch.ones(1, requires_grad=True)
    extra = cost.extra_time(lambda: value.sum(), lambda: value.sum(), turns=3)
    # Ratios forward 1.5, 1.1, 1.2 and backward 1.25, 2, 1.5.
    assert extra == pytest.approx((0.2, 0.5))
