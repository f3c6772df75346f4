"""Parameters that a model uses and does not list, by where they are held: in lists, dictionaries and functions."""

from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from functools import partial
from itertools import islice
from types import FunctionType, MethodType
from typing import Any

from torch import Tensor, nn

DEPTH = 5
# A function, a list that it uses, a layer in that: library code uses much else.
SHALLOW = 3
# Subclasses are left alone: to list what they hold may load it.
MAPPINGS, SEQUENCES = (dict, OrderedDict, defaultdict), (list, tuple, set, frozenset)
# Long containers hold data.
MOST_ITEMS = 1000


def unlisted_parameters(module: nn.Module, *functions: Any) -> dict[str, Tensor]:
    """Return the trainable tensors that `module.parameters()` does not list, by names such as `layers[0].weight`.

    Looked at are the attributes of every submodule and what lists, dictionaries and functions there hold; then the
    variables that each forward() uses, and the `functions`, such as a loss; of these only an nn.Parameter counts.
    """
    known = {id(parameter) for parameter in module.parameters()}
    seen, found = {id(part) for part in module.modules()}, {}
    for path, part in module.named_modules():
        for name, tensor in _attributes(part, path, DEPTH, seen):
            found.setdefault(id(tensor), (name, tensor))
    forwards = dict.fromkeys(type(part).forward for part in module.modules())
    for function, depth in [*((each, DEPTH) for each in functions), *((each, SHALLOW) for each in forwards)]:
        for name, tensor in _inside(function, "", depth, seen):
            if isinstance(tensor, nn.Parameter):
                found.setdefault(id(tensor), (name, tensor))
    return {name: tensor for number, (name, tensor) in found.items() if number not in known}


def _attributes(part: nn.Module, path: str, depth: int, seen: set[int]) -> Iterator[tuple[str, Tensor]]:
    for name, value in vars(part).items():
        if name not in ("_parameters", "_modules", "_buffers"):
            yield from _inside(value, f"{path}.{name}".lstrip("."), depth, seen)


def _inside(value: Any, name: str, depth: int, seen: set[int]) -> Iterator[tuple[str, Tensor]]:
    """Return the trainable leaves that a value holds, with their names."""
    if isinstance(value, Tensor):
        if value.is_leaf and value.requires_grad:
            yield name, value
        return
    if not depth or id(value) in seen or isinstance(value, str | bytes | type):
        return
    seen.add(id(value))
    for inner, held in _held(value, name):
        yield from _inside(held, inner, depth - 1, seen)
    if isinstance(value, nn.Module):
        yield from _attributes(value, name, depth - 1, seen)


def _held(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Return what a value holds at first hand, with the names that a reader would use."""
    if isinstance(value, nn.Module):
        yield from ((f"{name}.{inner}".lstrip("."), held) for inner, held in value.named_parameters())
    elif type(value) in MAPPINGS:
        yield from ((f"{name}[{key!r}]", held) for key, held in islice(value.items(), MOST_ITEMS))
    elif type(value) in SEQUENCES:
        yield from ((f"{name}[{place}]", held) for place, held in enumerate(islice(value, MOST_ITEMS)))
    elif isinstance(value, partial):
        yield from ((name, held) for held in (value.func, *value.args, *value.keywords.values()))
    elif isinstance(value, MethodType):
        yield from ((name, value.__func__), (name, value.__self__))
    elif isinstance(value, FunctionType):
        yield from _variables(value)


def _variables(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """Return the variables outside a function that it uses, by their names."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or ()):
        try:
            yield name, cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    used = [name for name in function.__code__.co_names if name in function.__globals__]
    yield from ((name, function.__globals__[name]) for name in used)
