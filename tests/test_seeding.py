"""The process-wide generators start from the name of whoever draws: neither order nor worker can matter."""

import random

import numpy as np
import pytest
import torch


@pytest.fixture(scope="module")
def shared():
    return torch.rand(()).item()


@pytest.mark.parametrize(
    "drawn",
    [
        pytest.param((0.0204098817, 0.9589986110, 0.503643990), id="one"),
        pytest.param((0.5609790912, 0.8920037062, 0.352948725), id="another"),
    ],
)
def test_what_a_test_draws_hangs_on_its_name_alone(shared, drawn):
    assert (random.random(), np.random.random(), torch.rand(()).item()) == pytest.approx(drawn, rel=1e-6)
    assert shared == pytest.approx(0.794933856, rel=1e-6)
