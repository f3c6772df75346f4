"""Bad calls: what is changed in the good call of `registry.py`, and words that the error must say."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from registry import CASES
from torch import nn

Changes = dict[str, Any] | Callable[[dict[str, Any]], dict[str, Any]]

# By the kind of argument; every probe that has one refuses all of these.
BAD_MODULES = [
    ("model", "module is a str"),
    (nn.ReLU(), "module ReLU has no parameters"),
    (nn.LazyLinear(3), "module has lazy parameters"),
]
BAD_LOSSES = [
    (nn.MSELoss(), "loss is a MSELoss; give a function of .module, batch."),
    (nn.MSELoss, "loss is the class MSELoss"),
    (lambda m, b: m(b[0]), r"shape \(96, \d\); reduce it"),
    (lambda m, b: m(b[0]).sum().item(), "returned a float"),
    (lambda m, b: None, "returned None"),
    (lambda m, b: m(b[0]).sum().detach(), "without a graph"),
    (lambda m, b: m(b[0]).sum() * math.nan, "loss is nan.*0 \\* inf"),
    (lambda m, b: m(b[0]).sum().to(torch.complex64), "complex64"),
]
BAD_OPTIMISERS = [("adam", "optimiser is a str")]
LOSSES_OF_A_MODULE = ("idle_parameters", "gates", "routing_reach")
OPTIMISER_OBJECTS = ("idle_parameters", "gates", "stepping")

OWN: dict[str, list[tuple[Changes, str]]] = {
    "ablation_diff": [
        ({"expected": 3}, "expected is 3"),
        ({"expected": ["a", None]}, "expected is"),
        ({"expected": "", "inputs": None}, "inputs is None"),
        ({"loss": nn.MSELoss()}, "loss is a MSELoss"),
        ({"call": 3}, "call is a int"),
        ({"call": lambda model, inputs: None}, "no floating-point tensor"),
    ],
    "backward_check": [
        ({"function": 3}, "function is a int; give a module, a function of tensors, or an autograd.Function"),
        ({"function": nn.Linear}, "function is the class Linear"),
        ({"function": lambda x: x * 2, "parameters": {"weight": 3}}, "parameter weight is a int"),
        ({"function": lambda x: x * 2, "parameters": [torch.ones(3)]}, "parameters is a list; give a module, or a map"),
        ({"parameters": {}}, "parameters are given beside a module"),
        ({"directions": 0}, "directions is 0"),
        ({"tolerance": 0}, "tolerance is 0"),
        ({"tolerance": True}, "tolerance is True"),
        ({"function": lambda x: x.argmax()}, "without a floating-point tensor"),
        ({"function": lambda x: None}, "returned None"),
        ({"function": lambda x: x * math.nan}, "hold nan"),
        (
            {"function": lambda x: x, "inputs": torch.ones(3, dtype=torch.complex64, requires_grad=True)},
            "input 0 is of type torch.complex64",
        ),
    ],
    "causality": [
        ({"tokens": [1, 2]}, "tokens is a list"),
        ({"tokens": torch.zeros(2, 0, dtype=torch.long)}, r"shape \(2, 0\)"),
        ({"tokens": torch.ones(2, 1, dtype=torch.long)}, "fewer than 2 positions"),
        ({"tokens": torch.ones(2, 4, dtype=torch.long)}, "tokens holds only 1"),
        ({"position_axis": 2}, "position_axis is 2"),
        ({"position_axis": 0}, "both 0"),
        ({"batch_axis": True}, "batch_axis is True"),
        ({"output_axis": -1}, "output_axis is -1"),
        ({"output_axis": 2}, r"no floating-point tensor with 12 positions on axis 2.*\(2, 12, 9\)"),
        ({"cuts": [0]}, "positions from 1 to 11"),
        ({"cuts": [12]}, "positions from 1 to 11"),
        ({"cuts": []}, "positions from 1 to 11"),
        ({"cuts": [0], "lag": -2}, "positions from 3 to 11"),
        ({"lag": 12}, "lag is 12; give a whole number from -10 to 11"),
        ({"lag": 0.5}, "lag is 0.5"),
        ({"documents": torch.zeros(12)}, r"documents is a Tensor of type torch.float32.*\(12,\) or \(2, 12\)"),
        ({"documents": torch.zeros(12, dtype=torch.long)}, "fewer than 2 documents"),
        ({"documents": [0, 1]}, "documents is a list"),
        ({"cuts": 3.5}, "positions from 1 to 11"),
        ({"jitter": -1}, "jitter is -1"),
        ({"call": 3}, "call is a int"),
        ({"call": lambda module, tokens: module(tokens)[:, :-1]}, r"shapes are \[\(2, 11, 9\)\]"),
        ({"call": lambda module, tokens: None}, "it returned None"),
    ],
    "gates": [
        (
            {"optimiser": torch.optim.SGD(nn.Linear(7, 5).parameters(), lr=1)},
            r"2 of 2 parameters.*shape \(5, 7\)",
        ),
        ({"names": "alhpa"}, "no gate is called 'alhpa'; near it: alpha"),
        ({"names": []}, "no gate name was given"),
        ({"names": "branch.weight"}, r"shape \(6, 6\); a gate is one number"),
        ({"model": nn.LayerNorm(512), "names": "weight", "optimiser": None}, "at most 128 heads"),
        ({"steps": 0}, "steps is 0"),
        ({"saturated": 2}, "saturated is 2"),
        ({"mostly_decay": -1}, "mostly_decay is -1"),
        ({"branches": ["branch"]}, "branches is a list"),
        ({"branches": {"alfa": "branch"}}, "branches: no chosen gate is called 'alfa'; near it: alpha"),
        ({"branches": {"alpha": "brunch"}}, "no submodule is called 'brunch'; near it: branch"),
        ({"further_batches": 3}, "further_batches is a int"),
        (lambda own: {"loss": lambda module, batch: own["loss"](own["model"], batch)}, "passes copies"),
    ],
    "grouped_errors": [
        (lambda own: {"groups": np.append(own["groups"][:-1], 99)}, "group 99 has one member; a group's errors need"),
        (
            lambda own: {"groups": np.append(own["groups"][:-2], [99, 98])},
            "2 groups have one member each.*first is 98",
        ),
        (
            lambda own: {"predicted": own["predicted"] * 1e-200, "target": own["target"] * 1e-200},
            "r is not defined: the squares of targets from .* scale both",
        ),
        (lambda own: {"target": np.ones_like(own["target"])}, "target holds no two different values"),
        (lambda own: {"predicted": np.ones_like(own["target"])}, "predicted holds no two different values"),
        (lambda own: {"groups": np.zeros_like(own["groups"])}, "all rows belong to group 0"),
        (lambda own: {"predicted": own["predicted"][:-1]}, "give one of each a row"),
        (lambda own: {"predicted": np.append(own["predicted"][:-1], np.nan)}, "predicted holds nan"),
        (lambda own: {"target": np.append(own["target"][:-1], np.inf)}, "target holds inf"),
        (lambda own: {"predicted": own["predicted"].reshape(2, -1)}, "give one number a row"),
        (lambda own: {"predicted": ["a"] * len(own["predicted"])}, "not a sequence of numbers"),
        (lambda own: {name: values[:0] for name, values in own.items()}, "no two different values"),
        ({"times_median": 1.0}, "times_median"),
        ({"times_median": math.inf}, "times_median"),
        ({"resamples": 10}, "resamples"),
        ({"resamples": 1e3}, "resamples"),
    ],
    "idle_parameters": [
        ({"steps": 0}, "steps is 0"),
        ({"passes": True}, "passes is True"),
        ({"jitter": math.nan}, "jitter is nan"),
        ({"further_batches": torch.ones(3, 2)}, "further_batches is a Tensor"),
        ({"further_batches": 3}, "further_batches is a int"),
    ],
    "interference": [
        ({"position_axis": 4}, "no layer's output has an axis 4 of positions"),
        ({"position_axis": 4, "layers": ["into"]}, "layer 'into' has no axis 4 of positions"),
        ({"position_axis": 0}, "position_axis is 0"),
        ({"layers": ["nowhere"]}, "no submodule 'nowhere'"),
        ({"layers": "into"}, "give a list of submodule names"),
        ({"total": "sum"}, "total is 'sum'; losses returned up, down"),
        ({"weights": {"up": 1.0}}, "give one for each of up, down"),
        ({"weights": {"up": 0.0, "down": 1.0}}, "weight of 'up' is 0.0"),
        ({"losses": nn.MSELoss()}, "give a function of .module, batch."),
        ({"losses": lambda m, b: m(b).mean()}, "return a mapping"),
        ({"losses": lambda m, b: {"one": m(b).mean()}}, "two or more are needed"),
        ({"losses": lambda m, b: {"one": m(b).mean(), "two": m(b)}}, "loss 'two': .*reduce it"),
        ({"losses": lambda m, b: {"one": m(b).mean(), "two": torch.tensor(1.0)}}, "loss 'two': .*without a graph"),
        ({"losses": lambda m, b: {"one": m(b).mean(), "two": m(b).mean() * math.nan}}, "loss 'two': loss is nan"),
        ({"module": nn.Linear(3, 2).requires_grad_(False)}, "requires_grad=False"),
    ],
    "routing_reach": [
        ({"routers": "ruoter"}, "routers: no submodule is called 'ruoter'; near it: router"),
        ({"experts": "expert.*"}, "experts: no submodule is called 'expert.*'; near it: experts"),
        ({"gates": {"gate": -1}}, "gates: no submodule is called 'gate'"),
        ({"gates": {"router": 2}}, r"gates: 'router' returns shape \(96, 3\), which has no axis 2"),
        ({"gates": {"router": "last"}}, r"gates\['router'\] is 'last'"),
        ({"gates": ["router"]}, "gates is a list; give a mapping"),
        ({"gates": {"experts": -1}}, "gates: 'experts' gave no tensor"),
        ({"routers": 3}, "routers is a int"),
        ({"auxiliary": nn.MSELoss()}, "loss is a MSELoss"),
        ({"steps": 0}, "steps is 0"),
        ({"optimiser": "adam"}, "optimiser is a str"),
        ({"optimiser": lambda parameters: None}, "optimiser returned None"),
        (
            {"module": nn.TransformerEncoderLayer(4, 2, 8), "routers": None, "gates": None},
            "no submodule of TransformerEncoderLayer looks like a router.*linear1",
        ),
    ],
    "reduction_scaling": [
        ({"loss": "mse"}, "loss is a str"),
        ({"loss": nn.MSELoss}, "the class MSELoss"),
        ({"loss": nn.MSELoss(reduction="none")}, r"shape \(3, 12, 6\); reduce"),
        ({"loss": lambda p, t: 1.0}, "returned a float"),
        ({"loss": lambda p, t: None}, "returned None"),
        ({"loss": lambda p, t: (p - t).detach().sum()}, "without a graph"),
        ({"loss": lambda p, t: (t.requires_grad_() ** 2).sum()}, "without a graph"),
        ({"loss": lambda p, t: (p - t).sum().to(torch.complex64)}, "complex64"),
        ({"loss": lambda p, t: (p - t).mean() * math.nan}, "loss is nan, in float64 too"),
        ({"loss": lambda p: p.mean()}, r"raised TypeError.*prediction \(3, 12, 6\), target \(3, 12, 6\)"),
        ({"loss": lambda p, t: (p @ t).sum()}, r"raised RuntimeError.*target \(3, 12, 6\)"),
        ({"prediction": torch.full((3, 12, 6), math.nan)}, "prediction of shape .* holds 216 values"),
        ({"prediction": torch.ones(3, 12, 6).long()}, r"prediction is of type torch\.int64"),
        ({"prediction": [1.0]}, "prediction is a list"),
        ({"prediction": torch.ones(3, 0, 6)}, r"prediction has shape \(3, 0, 6\)"),
        ({"target": torch.ones(3, 0, 6)}, r"target has shape \(3, 0, 6\)"),
        ({"target": torch.tensor(1.0)}, r"target has shape \(\)"),
        ({"target": torch.ones(3, 11, 6)}, r"'length' has 12 slots in the prediction and 11 in the target"),
        ({"target": torch.ones(5, 7)}, r"target of shape \(5, 7\) does not fit.*target_axes"),
        ({"prediction": torch.ones(3, 6, 6), "target": torch.ones(3, 6), "axes": ("a", "b", "c")}, "several axes"),
        ({"axes": "length"}, "axes is 'length'"),
        ({"axes": ("batch", "length")}, r"2 names for 3 dimensions of shape \(3, 12, 6\)"),
        ({"axes": ("batch", "length", "length")}, "different names"),
        ({"axes": {}}, "different names"),
        ({"axes": {"length": 3}}, r"axes\['length'\] is 3; shape \(3, 12, 6\) has dimensions 0…2"),
        ({"axes": {"length": 1, "tokens": -2}}, "two names for one dimension"),
        ({"expected": {"tokens": "mean"}}, "the axis 'tokens'; axes names batch, length, classes"),
        ({"expected": {"length": "average"}}, "'average'; allowed are 'mean', 'sum'"),
        ({"expected": "mean"}, "expected is a str"),
        ({"mask": torch.zeros(3, 12, dtype=torch.bool)}, r"mask of shape \(3, 12\) is False everywhere"),
        ({"mask": torch.ones(3, 12)}, r"mask is of type torch\.float32"),
        ({"mask": torch.ones(3, 11, dtype=torch.bool)}, r"mask of shape \(3, 11\) does not fit"),
        ({"mask": torch.ones(3, 12, dtype=torch.bool), "mask_axes": ("batch", "time")}, "names 'time'"),
        ({"loss_takes_mask": True}, "mask is None"),
        ({"loss_takes_mask": 1}, "loss_takes_mask is 1"),
        ({"tolerance": 0.5}, "tolerance is 0.5"),
        ({"seed": -1}, "seed is -1"),
    ],
    "stepping": [
        ({"optimiser": None}, "optimiser is None"),
        ({"accumulation": 0}, "accumulation is 0"),
        ({"accumulation": -4}, "accumulation is -4"),
        ({"accumulation": True}, "accumulation is True"),
        ({"accumulation": 4.0}, "accumulation is 4.0"),
        ({"every": 0}, "every is 0"),
        ({"scheduler": 3}, "scheduler is a int"),
        (
            {"scheduler": torch.optim.lr_scheduler.StepLR(torch.optim.SGD(nn.Linear(1, 1).parameters(), 0.1), 1)},
            "drives another optimiser",
        ),
        ({"ema": 0.999}, "ema is a float"),
        ({"ema": {"other": torch.ones(1)}}, "none of the module's parameter names.*into.weight.*other"),
        ({"ema": {"into.weight": 3}}, r"ema\['into.weight'\] is int.*\(8, 4\)"),
        ({"ema": {"into.weight": torch.ones(3)}}, r"is \(3,\)"),
        ({"ema_decay": 1.5}, "ema_decay is 1.5"),
        ({"ema_decay": math.nan}, "ema_decay is nan"),
    ],
}


def shared(probe: str) -> list[tuple[Changes, str]]:
    """Return the bad calls of a probe that follow from the kinds of its arguments."""
    given = CASES[probe].call(0, False).arguments
    kinds = [(name, BAD_MODULES) for name in ("module", "model", "first", "second") if name in given]
    kinds += [("loss", BAD_LOSSES)] * (probe in LOSSES_OF_A_MODULE)
    kinds += [("optimiser", BAD_OPTIMISERS)] * (probe in OPTIMISER_OBJECTS)
    return [({name: value}, words) for name, bad in kinds for value, words in bad]


REFUSALS = [(probe, change, words) for probe in CASES for change, words in [*shared(probe), *OWN.get(probe, [])]]
