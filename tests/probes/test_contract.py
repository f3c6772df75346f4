"""What every probe promises, held by one set of tests over the registry of all probes."""

import json
import random
from collections.abc import Callable
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib import pyplot
from refusals import REFUSALS
from registry import CASES, Call
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from casestudies_lib import paths, probes

matplotlib.use("Agg")
SEEDS = range(10)
ON_MODULES = [name for name, case in CASES.items() if case.call(0, False).modules and name != "stepping"]


def test_every_probe_is_in_the_registry():
    assert set(CASES) == set(probes.OFFERED)


# The fault and its healthy twin.


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", CASES)
def test_a_probe_fires_on_its_fault_and_names_it(name, seed):
    result = CASES[name].call(seed, True).ask()
    assert (result.probe, result.ok) == (name, False)
    assert result.findings[0].severity == "fault"
    assert result.findings[0].where.startswith(CASES[name].where)
    assert result.findings[0].chapter in {path.stem for path in paths.reports().glob("*.toml")}
    with pytest.raises(probes.ProbeFault, match=CASES[name].where):
        result.raise_if_found()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", CASES)
def test_a_probe_is_silent_on_the_healthy_twin(name, seed):
    result = CASES[name].call(seed, False).ask()
    assert result.ok is True
    assert [finding for finding in result.findings if finding.severity != "note"] == []
    result.raise_if_found(unknown="raise")


@pytest.mark.parametrize("name", CASES)
def test_the_same_question_gets_the_same_answer_whatever_was_drawn_before(name):
    call = CASES[name].call(3, True)
    first = CASES[name].call(3, True).ask().to_dict()
    torch.rand(5), random.random(), np.random.rand()
    assert call.ask().to_dict() == first


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", [name for name in CASES if name != "stepping"])
def test_a_probe_answers_where_the_reader_builds_no_graph(name, mode):
    for faulty in (False, True):
        call = CASES[name].call(0, faulty)
        with mode():
            assert call.ask().ok is not faulty


# Forms of the answer.


@pytest.mark.parametrize("faulty", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_the_answer_survives_json_and_has_a_table_and_a_chart(name, faulty):
    result = CASES[name].call(0, faulty).ask()
    read = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert (read["probe"], read["ok"]) == (name, not faulty)
    assert [finding["where"] for finding in read["findings"]] == [finding.where for finding in result.findings]
    assert len(read["rows"]) == len(result.table())
    axes = result.plot()
    assert [bar.get_hatch() == "///" for bar in axes.patches] == [bar.faulty for bar in result.bars]
    pyplot.close(axes.figure)
    assert result.headline in result.alt_text()


# Left as found.


class Broken(BaseException):
    """What no probe may swallow, like an interrupt from the keyboard."""


def made_restless(module: nn.Module, calls: list[int], breaks_at: int) -> None:
    """Let a module, at each of its passes, do what a model can do to itself and to the global generators."""
    module.register_buffer("calls", torch.zeros(()))
    module.register_buffer("rebound", torch.zeros(3), persistent=False)
    module.seen, module.cache, module.count = [], {}, 0
    module.own = nn.Linear(2, 2).requires_grad_(False).eval()
    for parameter in [*module.parameters()][:-1]:
        parameter.grad = torch.ones_like(parameter)
    module.last = torch.ones(2, requires_grad=True) * 2
    module.generators = [torch.Generator(), random.Random(0), np.random.default_rng(0)]
    module.torch_generator, module.python_generator, module.numpy_generator = module.generators

    def restless(part: nn.Module, inputs: Any) -> None:
        calls.append(1)
        part.count += 1
        part.calls += 1
        part.rebound = part.rebound + torch.rand(3)
        part.seen.append(inputs)
        part.cache[random.random()] = np.random.rand()
        part.extra = torch.rand(1, generator=part.torch_generator)
        part.last = part.last + 1
        part.python_generator.random(), part.numpy_generator.random()
        part.own.register_forward_hook(lambda *_: None)
        for parameter in part.own.parameters():
            parameter.grad = torch.ones_like(parameter) if parameter.grad is None else parameter.grad.add_(1)
        with torch.no_grad():
            part.own.weight.mul_(0.5)
            part.own.bias.data = part.own.bias.data * 2
        part.own.requires_grad_(True)
        part.eval()
        if len(calls) == breaks_at:
            raise Broken

    module.register_forward_pre_hook(restless)


def bits(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return repr(value)
    return id(value), value.data_ptr(), value.dtype, value.requires_grad, value.detach().numpy().tobytes()


def state_of(module: nn.Module) -> dict[str, Any]:
    return {
        "parameters": {name: (bits(p), bits(p.grad)) for name, p in module.named_parameters()},
        "buffers": {name: bits(buffer) for name, buffer in module.named_buffers()},
        "saved names": list(module.state_dict()),
        "modes": [part.training for part in module.modules()],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in module.modules()],
        "attributes": {name: sorted(vars(part)) for name, part in module.named_modules()},
        "plain": (list(module.seen), dict(module.cache), module.count, id(module.last)),
        "own generators": (
            module.torch_generator.get_state().tolist(),
            module.python_generator.getstate(),
            repr(module.numpy_generator.bit_generator.state),
        ),
    }


def everything(call: Call) -> dict[str, Any]:
    """Return what a probe can reach and must leave as it was."""
    given = tree_leaves(list(call.arguments.values()))
    optimisers = [value for value in given if isinstance(value, torch.optim.Optimizer)]
    return {
        "modules": [state_of(module) for module in call.modules],
        "tensors": [(bits(value), value._version, bits(value.grad)) for value in given if isinstance(value, Tensor)],
        "arrays": [value.tobytes() for value in given if isinstance(value, np.ndarray)],
        "numbers": [value for value in given if isinstance(value, int | str)],
        "optimisers": [repr(optimiser.state_dict()) for optimiser in optimisers],
        "held": [id(p) for optimiser in optimisers for group in optimiser.param_groups for p in group["params"]],
        "torch": torch.get_rng_state().tolist(),
        "python": random.getstate(),
        "numpy": np.random.get_state()[1].tolist(),
        "global hooks": len(nn.modules.module._global_forward_hooks) + len(nn.modules.module._global_forward_pre_hooks),
        "modes": (torch.is_grad_enabled(), torch.get_default_dtype()),
    }


def differences(ask: Callable[[], Any], call: Call) -> set[str]:
    before = everything(call)
    ask()
    after = everything(call)
    inner = {key for one, other in zip(before["modules"], after["modules"]) for key in one if one[key] != other[key]}
    return inner | {key for key in before if before[key] != after[key] and key != "modules"}


def restless_call(name: str, faulty: bool, breaks_at: int = 0) -> tuple[Call, list[int]]:
    """Return a call on a restless model in the midst of its training, and what counts the model's passes."""
    call, calls = CASES[name].call(0, faulty), []
    for module in call.modules:
        made_restless(module, calls, breaks_at)
    for optimiser in tree_leaves(list(call.arguments.values())):
        if isinstance(optimiser, torch.optim.Optimizer):
            optimiser.step()
    return call, calls


@pytest.mark.parametrize("faulty", [False, True])
@pytest.mark.parametrize("name", ON_MODULES)
def test_everything_is_left_as_found_whatever_the_model_does_and_wherever_it_breaks(name, faulty):
    call, calls = restless_call(name, faulty)
    assert differences(call.ask, call) == set()
    assert calls
    for breaks_at in sorted({1, len(calls) // 2, len(calls)} - {0}):
        call, _ = restless_call(name, faulty, breaks_at)

        def ask(call=call):
            with pytest.raises(Broken):
                call.ask()

        assert differences(ask, call) == set(), f"broken at pass {breaks_at} of {len(calls)}"


@pytest.mark.parametrize("name", sorted(set(CASES) - {*ON_MODULES, "stepping"}))
def test_readings_are_left_as_found(name):
    call = CASES[name].call(0, True)
    assert differences(call.ask, call) == set()


# Bad input.


@pytest.mark.parametrize(("name", "change", "words"), REFUSALS, ids=[f"{name}: {words}" for name, _, words in REFUSALS])
def test_bad_input_is_refused_by_saying_what_to_give(name, change, words):
    call = CASES[name].call(0, False)
    with pytest.raises(probes.ProbeInputError, match=words):
        call.ask(**(change(call.arguments) if callable(change) else change))
