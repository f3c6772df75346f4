"""Copies of a reader's model and optimiser that may be run, trained and broken; the originals are left alone."""

import copy
import random
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from casestudies_lib.probes.passes import SIZE_OF_ZEROS


def twin_of(module: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """Return a deep copy, also of a module that keeps tensors with a graph from an earlier pass.

    Raises:
        Exception: whatever the module's own attributes raise when they are copied.
    """
    memo = {} if memo is None else memo
    for part in module.modules():
        for value in tree_leaves(dict(vars(part))):
            if isinstance(value, Tensor) and not value.is_leaf:
                # Deep copies refuse tensors with a history; a copy needs their values alone.
                memo[id(value)] = value.detach().clone()
    return copy.deepcopy(module, memo)


def jittered_twin_of(module: nn.Module, jitter: float = 1.0) -> nn.Module:
    """Return a deep copy with relative noise on every trainable weight; a tensor of zeros gets some of its own.

    Zeros in a tensor that has other values stay, for a mask may be kept in the weights that way.

    Raises:
        Exception: whatever the module's own attributes raise when they are copied.
    """
    twin, generator = twin_of(module), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in twin.parameters():
            if parameter.requires_grad and parameter.is_floating_point():
                noise = torch.randn(parameter.shape, generator=generator).to(parameter) * jitter
                parameter.copy_(parameter * (1 + noise) if parameter.any() else SIZE_OF_ZEROS * noise)
    return twin


def in_double(value: Any) -> Any:
    """Return nested containers with every real floating-point tensor in double precision; parameters stay."""
    return tree_map(lambda leaf: leaf.double() if _is_plain_float(leaf) else leaf, value)


def double_twin_of(module: nn.Module) -> nn.Module:
    """Return a deep copy in double precision, without gradients; tensors among its attributes are converted too.

    Raises:
        Exception: whatever the module's own attributes raise when they are copied.
    """
    twin = twin_of(module)
    twin.zero_grad(set_to_none=True)
    twin.double()
    for part in twin.modules():
        for name, value in vars(part).items():
            if any(map(_is_plain_float, tree_leaves(value))) and name != "_buffers":
                vars(part)[name] = in_double(value)
    return twin


def _is_plain_float(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and not isinstance(leaf, nn.Parameter) and leaf.is_floating_point()


@contextmanager
def double_by_default() -> Iterator[None]:
    """Let tensors that a forward pass makes, such as masks, be double; the usual default comes back after."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(usual)


class CastsInDouble(TorchFunctionMode):
    """Let code that asks for float32 (a loss, a norm or a softmax that casts its inputs up) compute in double instead.

    What asks in another way, such as by the type of a tensor that was made before, keeps float32. Torch's grouped
    product, which mixtures of experts use, knows no double: it is replaced by one product a group.
    """

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Call the function with float64 wherever float32 is named."""
        if func is Tensor.float:
            return args[0].double()
        if func is torch._grouped_mm and args[0].dtype == torch.float64 and (args[0].dim(), args[1].dim()) == (2, 3):
            return _grouped_product(*args, **(kwargs or {}))
        args, kwargs = ([_doubled(value) for value in args], {k: _doubled(v) for k, v in (kwargs or {}).items()})
        return func(*args, **kwargs)


def _grouped_product(rows: Tensor, matrices: Tensor, offs: Tensor, **_: Any) -> Tensor:
    """Return the rows times their group's matrix; `offs` says where each group ends, and rows after the last are 0."""
    ends = offs.tolist()
    products = [rows[start:end] @ matrix for start, end, matrix in zip([0, *ends], ends, matrices)]
    return torch.cat([*products, rows.new_zeros(len(rows) - ends[-1], matrices.shape[-1])])


def _doubled(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value


class _WithoutGraph(TorchFunctionMode):
    """Let deep copies take the values of a tensor with a history, which they refuse otherwise."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is not Tensor.__deepcopy__:
            return func(*args, **(kwargs or {}))
        tensor, memo = args
        if id(tensor) not in memo:
            memo[id(tensor)] = tensor.detach().clone()
        return memo[id(tensor)]


def fresh_copy(values: Any) -> Any:
    """Return a deep copy of arguments, also of objects among them such as a key/value cache; tensors lose their graph.

    What refuses to be copied is handed on as it is.
    """

    def copied(leaf: Any) -> Any:
        try:
            return copy.deepcopy(leaf)
        except Exception:
            return leaf

    with _WithoutGraph():
        try:
            return copy.deepcopy(values)
        except Exception:
            return tree_map(copied, values)


class Precision(TorchDispatchMode):
    """Note the lowest floating-point precision among the results of all operations."""

    def __init__(self) -> None:
        """Start from double precision."""
        super().__init__()
        self.lowest = torch.float64

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Run the operation as it is and look at its results."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.is_floating_point():
                self.lowest = max([self.lowest, leaf.dtype], key=lambda dtype: torch.finfo(dtype).eps)
        return result


def reseed_all(module: nn.Module, seed: int = 20_011) -> None:
    """Start random numbers elsewhere: the global generators, and those among the module's attributes."""
    torch.manual_seed(seed)
    random.seed(seed)
    numpy.random.seed(seed)
    for part in module.modules():
        for value in tree_leaves(dict(vars(part))):
            if isinstance(value, torch.Generator):
                value.manual_seed(seed)
            elif isinstance(value, random.Random):
                value.seed(seed)
            elif isinstance(value, numpy.random.Generator):
                value.bit_generator.state = type(value.bit_generator)(seed).state


@dataclass(frozen=True)
class Movement:
    """What some steps with a fixed gradient do to one parameter.

    Attributes:
        start: Euclidean norm before.
        end: Euclidean norm after.
        change: Euclidean norm of the difference.
        state_bytes: memory that the optimiser keeps for it, bytes.
    """

    start: float
    end: float
    change: float
    state_bytes: int


def simulate(optimiser: Optimizer, gradients: Mapping[Tensor, Tensor | None], steps: int) -> dict[Tensor, Movement]:
    """Return how far each parameter moves in some steps with the same gradient (None: no gradient) every time.

    The reader's parameters and optimiser are only read. Copied are the parameters asked for, their group's settings
    (learning rate, weight decay and the rest as they stand now) and their state (momentum, moments, counts).

    Raises:
        Exception: whatever the optimiser's own step raises, such as a demand for a closure.
    """
    held = {parameter for group in optimiser.param_groups for parameter in group["params"]}
    twins = {parameter: parameter.detach().clone().requires_grad_() for parameter in gradients if parameter in held}
    if not twins:
        return {}
    twin = twin_optimiser(optimiser, twins)
    for _ in range(steps):
        for parameter, copied in twins.items():
            gradient = gradients[parameter]
            copied.grad = None if gradient is None else gradient.detach().clone()
        twin.step()
    return {
        parameter: _movement(parameter.detach(), copied.detach(), state_bytes(twin, copied))
        for parameter, copied in twins.items()
    }


def twin_optimiser(optimiser: Optimizer, twins: dict[Tensor, Tensor]) -> Optimizer:
    """Return an optimiser of the same class with the same settings and state, over the twins alone.

    Built by the protocol that pickling uses, so that no constructor has to be guessed; the reader's step hooks and the
    wrapper that a learning-rate scheduler puts around `step` stay behind.
    """
    memo = {id(parameter): twin for parameter, twin in twins.items()}
    groups = [_twin_group(group, twins) for group in optimiser.param_groups]
    state = {twin: copy.deepcopy(optimiser.state[p], memo) for p, twin in twins.items() if p in optimiser.state}
    twin = object.__new__(type(optimiser))
    twin.__setstate__(
        {
            "defaults": copy.deepcopy(optimiser.defaults),
            "state": defaultdict(dict, state),
            "param_groups": [group for group in groups if group["params"]],
        }
    )
    return twin


def state_bytes(optimiser: Optimizer, parameter: Tensor) -> int:
    """Return the bytes of the tensors that the optimiser keeps for a parameter."""
    state = optimiser.state.get(parameter, {})
    return sum(value.numel() * value.element_size() for value in state.values() if isinstance(value, Tensor))


def _twin_group(group: dict, twins: dict[Tensor, Tensor]) -> dict:
    settings = {name: copy.deepcopy(value) for name, value in group.items() if name != "params"}
    return {**settings, "params": [twins[parameter] for parameter in group["params"] if parameter in twins]}


def _movement(before: Tensor, after: Tensor, kept: int) -> Movement:
    start, end = (_real(value).to("cpu", torch.float64) for value in (before, after))
    norms = [torch.linalg.vector_norm(value).item() for value in (start, end, end - start)]
    return Movement(*norms, state_bytes=kept)


def _real(value: Tensor) -> Tensor:
    return torch.view_as_real(value) if value.is_complex() else value
