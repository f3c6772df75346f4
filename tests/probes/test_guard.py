"""A probe leaves everything as it found it, whatever the reader's model does in between."""

import copy
import random

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from casestudies_lib.probes import ablation_diff, causality, gates, idle_parameters
from casestudies_lib.probes.guard import left_as_found


class Messy(nn.Module):
    """Does in its forward pass whatever a model can do to itself and to the global generators."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.3))
        self.head, self.idle = nn.Linear(6, 1), nn.Linear(6, 1)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("rebound", torch.zeros(3), persistent=False)
        self.seen, self.cache, self.hidden, self.count = [], {}, torch.zeros(2), 0
        self.breaks = False
        self.own = [torch.Generator(), random.Random(0), numpy.random.default_rng(0)]
        self.torch_generator, self.python_generator, self.numpy_generator = self.own

    def forward(self, inputs):
        self.count += 1
        self.calls += 1
        self.rebound = self.rebound + torch.rand(3)
        self.hidden.add_(1)
        self.hidden = self.hidden + 1
        self.seen.append(inputs)
        self.cache[random.random()] = numpy.random.rand()
        self.extra = torch.rand(1, generator=self.torch_generator)
        self.python_generator.random(), self.numpy_generator.random()
        self.frozen.requires_grad_(True)
        self.head.register_forward_hook(lambda *_: None)
        with torch.no_grad():
            self.head.bias.mul_(0.5)
            self.idle.weight.data = self.idle.weight.data * 2
        hidden = self.body(inputs)
        self.eval()
        if self.breaks:
            raise RuntimeError("broken on purpose")
        return self.head(hidden).mean(), self.idle(hidden).mean()


def messy_loss(module, batch):
    head, idle = module(batch)
    head.backward(retain_graph=True)
    return head + 0 * idle


def bits(tensor):
    return None if tensor is None else (id(tensor), tensor.data_ptr(), tensor.numpy(force=True).tobytes())


def snapshot(module, optimiser):
    return {
        "parameters": {n: (bits(p), bits(p.grad), p.requires_grad) for n, p in module.named_parameters()},
        "buffers": {n: (id(b), b.data_ptr(), b.numpy().tobytes()) for n, b in module.named_buffers()},
        "state_dict": list(module.state_dict()),
        "modes": [part.training for part in module.modules()],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in module.modules()],
        "attributes": {n: sorted(vars(part)) for n, part in module.named_modules()},
        "plain": [list(module.seen), dict(module.cache), id(module.hidden), module.hidden.tolist(), module.count],
        "own generators": [
            module.torch_generator.get_state().tolist(),
            module.python_generator.getstate(),
            repr(module.numpy_generator.bit_generator.state),
        ],
        "optimiser": repr(copy.deepcopy(optimiser.state_dict())),
        "optimiser objects": [id(p) for group in optimiser.param_groups for p in group["params"]],
        "torch": torch.get_rng_state().tolist(),
        "python": random.getstate(),
        "numpy": numpy.random.get_state()[1].tolist(),
        "global hooks": len(nn.modules.module._global_forward_hooks) + len(nn.modules.module._global_forward_pre_hooks),
        "grad mode": torch.is_grad_enabled(),
    }


@given(
    seed=st.integers(0, 1000),
    breaks=st.booleans(),
    trained=st.booleans(),
    training=st.booleans(),
    graded=st.sampled_from(["none", "zero", "kept"]),
)
@settings(max_examples=25, deadline=None)
def test_nothing_changes_also_when_the_forward_pass_breaks(seed, breaks, trained, training, graded):
    torch.manual_seed(seed)
    module = Messy().train(training)
    optimiser = torch.optim.Adam(module.parameters(), weight_decay=0.1)
    batch = torch.randn(5, 4)
    if trained:
        (module.head(module.body(batch)).mean() + 0 * module.idle(module.body(batch)).mean()).backward()
        optimiser.step()
        if graded != "kept":
            optimiser.zero_grad(set_to_none=graded == "none")
    module.breaks = breaks
    before = snapshot(module, optimiser)
    if breaks:
        with pytest.raises(RuntimeError, match="on purpose"):
            idle_parameters(module, messy_loss, batch, optimiser)
    else:
        shuffled = (batch[torch.randperm(len(batch))] for _ in range(5))
        idle_parameters(module, messy_loss, batch, optimiser, further_batches=shuffled)
    after = snapshot(module, optimiser)
    assert {key for key in before if before[key] != after[key]} == set()


@pytest.mark.parametrize("breaks", [False, True])
@pytest.mark.parametrize(
    "ask",
    [
        lambda module, optimiser, batch: gates(module, messy_loss, batch, names="head.bias", optimiser=optimiser),
        lambda module, optimiser, batch: causality(
            module, batch, call=lambda m, tokens: (m(tokens), tokens)[1], position_axis=0, batch_axis=None
        ),
        lambda module, optimiser, batch: ablation_diff(module, module, inputs=batch, expected=[]),
        lambda module, optimiser, batch: ablation_diff(copy.deepcopy(module), module, inputs=batch),
    ],
)
def test_probes_that_work_on_copies_leave_the_original_alone(ask, breaks):
    module = Messy()
    optimiser = torch.optim.Adam(module.parameters(), weight_decay=0.1)
    batch = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    (module.head(module.body(batch)).mean() + 0 * module.idle(module.body(batch)).mean()).backward()
    optimiser.step()
    before = snapshot(module, optimiser)
    module.breaks = breaks
    if breaks:
        with pytest.raises(RuntimeError, match="on purpose"):
            ask(module, optimiser, batch)
    else:
        ask(module, optimiser, batch)
    after = snapshot(module, optimiser)
    assert {key for key in before if before[key] != after[key]} == set()


def test_an_error_in_a_later_pass_leaves_nothing_either():
    module = Messy()
    optimiser = torch.optim.Adam(module.parameters())
    before = snapshot(module, optimiser)

    def loss(module, batch):
        value = messy_loss(module, batch)
        if batch.shape[0] == 3:
            raise KeyboardInterrupt
        return value

    with pytest.raises(KeyboardInterrupt):
        idle_parameters(
            module, loss, torch.randn(5, 4, generator=torch.Generator()), optimiser, further_batches=[torch.ones(3, 4)]
        )
    assert snapshot(module, optimiser) == before


def test_a_backward_pass_that_the_reader_has_begun_can_still_be_finished():
    module = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1))
    pending = module(torch.ones(2, 3)).sum()
    result = idle_parameters(module, lambda m, b: 0 * m(b).sum() + 0 * pending, torch.ones(2, 3))
    assert "with all weights jittered" in result.findings[0].measured
    pending.backward()
    assert module[2].bias.grad.item() == 2


def test_the_same_question_gets_the_same_answer_from_a_random_model():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5), nn.Linear(3, 1))
    ask = [idle_parameters(module, lambda m, b: m(b).square().sum(), torch.ones(8, 3)).to_dict() for _ in range(2)]
    assert ask[0] == ask[1]


def test_weights_that_share_memory_come_back_together():
    module = nn.Linear(3, 3)
    module.view = nn.Parameter(module.weight.data[:2])
    before = module.weight.detach().clone()
    with left_as_found(module):
        module.view.data.fill_(7)
    assert torch.equal(module.weight, before)
    assert module.view.data_ptr() == module.weight.data_ptr()


def test_a_model_asked_under_no_grad_and_inference_mode_answers_all_the_same():
    module = nn.Linear(3, 1)
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            assert idle_parameters(module, lambda m, b: m(b * 1).sum(), torch.ones(2, 3)).ok is True
