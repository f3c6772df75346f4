"""A probe leaves everything as it found it, whatever the reader's model does in between."""

import torch
from torch import nn

from casestudies_lib.probes import idle_parameters
from casestudies_lib.probes.guard import left_as_found


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
