"""The record of a pass: FLOPs by hand, by torch's own counter, and by where they ran."""

import pytest
import torch
from registry import drawn
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from casestudies_lib.probes.passes import WorkRecorder


def watch(module, loss):
    parameters = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    recorder = WorkRecorder(module, parameters)
    with recorder:
        with recorder.watching_modules():
            value = loss()
        with recorder.watching_backward(value):
            torch.autograd.grad(value, list(parameters.values()), allow_unused=True, retain_graph=True)
    return recorder


def totals(recorder):
    return [sum(work.flops for work in recorder.works if work.backward == way) for way in (False, True)]


def test_a_linear_layer_costs_two_flops_a_weight_and_position_forward_and_twice_that_backward():
    layer, inputs = nn.Linear(8, 3), drawn(0, 5, 8).requires_grad_()
    recorder = watch(layer, lambda: layer(inputs).square().sum())
    # The gradient of the input is not asked for, but a part of the graph leads to it only if it needs one.
    assert totals(recorder) == [2 * 5 * 8 * 3, 2 * 5 * 8 * 3]
    chained = nn.Sequential(layer, nn.Linear(3, 2))
    recorder = watch(chained, lambda: chained(inputs).square().sum())
    assert totals(recorder) == [2 * 5 * (24 + 6), 2 * 5 * (24 + 6 + 6)]
    assert {work.module for work in recorder.works} == {"0", "1"}
    assert all(recorder.carries_signal(work) for work in recorder.works)


@pytest.mark.parametrize("kind", ["convolution", "attention", "functional"])
def test_the_sum_is_that_of_torchs_own_counter(kind):
    module, inputs = {
        "convolution": (nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 1, 2)), drawn(0, 3, 2, 8, 8)),
        "attention": (nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True), drawn(0, 3, 5, 8)),
        "functional": (nn.Bilinear(4, 4, 2), drawn(0, 6, 4)),
    }[kind]
    loss = {
        "functional": lambda: module(inputs, inputs).square().sum(),
    }.get(kind, lambda: module(inputs).square().sum())
    with FlopCounterMode(display=False) as counter:
        torch.autograd.grad(loss(), list(module.parameters()))
    assert sum(totals(watch(module, loss))) == counter.get_total_flops()


def test_fused_attention_costs_what_its_two_products_cost():
    module = nn.MultiheadAttention(8, 2, bias=False, batch_first=True)
    inputs = drawn(0, 3, 5, 8)
    recorder = watch(module, lambda: module(inputs, inputs, inputs, need_weights=False)[0].square().sum())
    projections, attention = 2 * 3 * 5 * 8 * 8 * 4, 2 * 2 * 3 * 5 * 5 * 8
    assert totals(recorder)[0] == projections + attention


def test_the_second_pass_through_a_shared_layer_carries_no_signal_if_its_result_is_dropped():
    layer, inputs = nn.Linear(4, 4), drawn(0, 2, 4)

    def loss():
        layer(inputs)
        return layer(inputs).sum()

    recorder = watch(layer, loss)
    assert [recorder.carries_signal(work) for work in recorder.works if not work.backward] == [False, True]


def test_work_belongs_to_the_innermost_module_also_after_a_child_has_returned():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.weight = nn.Linear(4, 4), nn.Parameter(torch.ones(4, 1))

        def forward(self, inputs):
            return self.inner(inputs) @ self.weight

    module, inputs = Outer(), drawn(0, 2, 4)
    recorder = watch(module, lambda: module(inputs).sum())
    assert [(work.module, work.backward) for work in recorder.works] == [
        ("inner", False),
        ("", False),
        ("", True),
        ("", True),
        ("inner", True),
    ]


def test_work_under_no_grad_is_not_called_idle():
    layer, teacher, inputs = nn.Linear(4, 4), nn.Linear(4, 4).requires_grad_(False), drawn(0, 2, 4)
    both = nn.ModuleList([layer, teacher])
    recorder = watch(both, lambda: (layer(inputs) - teacher(inputs)).square().sum())
    assert all(recorder.carries_signal(work) for work in recorder.works)
    assert {work.module for work in recorder.works} == {"0", "1"}


def test_no_hook_is_left_behind():
    layer, inputs = nn.Linear(4, 4), drawn(0, 2, 4)
    persistent = (inputs * layer.weight.sum()).sum()
    watch(layer, lambda: layer(inputs).sum() + persistent * 1)
    assert not layer._forward_hooks
    assert not layer._forward_pre_hooks
    recorder = WorkRecorder(layer, {})
    with recorder.watching_backward(persistent):
        pass
    persistent.backward()
    assert not recorder._live
