"""Probes: one import and one call find an incident's fault in the reader's own model.

A probe changes nothing in what it is given and returns a `ProbeResult`.

Each probe is the function of a module of its own name, and is imported when it is first asked for: a chapter reads the
probes that it calls, so that an edit of another one neither runs it nor makes its evidence stale.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from casestudies_lib.probes.result import Finding, ProbeFault, ProbeInputError, ProbeResult

if TYPE_CHECKING:
    from casestudies_lib.probes.ablation_diff import ablation_diff
    from casestudies_lib.probes.alignment import alignment
    from casestudies_lib.probes.backward_check import backward_check
    from casestudies_lib.probes.causality import causality
    from casestudies_lib.probes.gates import gates
    from casestudies_lib.probes.grouped_errors import grouped_errors
    from casestudies_lib.probes.idle_parameters import idle_parameters
    from casestudies_lib.probes.interference import interference
    from casestudies_lib.probes.reduction_scaling import reduction_scaling
    from casestudies_lib.probes.routing_reach import routing_reach
    from casestudies_lib.probes.stepping import stepping

__all__ = [
    "Finding",
    "ProbeFault",
    "ProbeInputError",
    "ProbeResult",
    "ablation_diff",
    "alignment",
    "backward_check",
    "causality",
    "gates",
    "grouped_errors",
    "idle_parameters",
    "interference",
    "reduction_scaling",
    "routing_reach",
    "stepping",
]
_PROBES = [name for name in __all__ if name.islower()]


class _Probes(ModuleType):
    """A package whose probes stand where Python puts the modules of the same names."""

    def __getattr__(self, name: str) -> object:
        if name not in _PROBES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}; its probes are {', '.join(_PROBES)}")
        setattr(self, name, import_module(f"{__name__}.{name}"))
        return vars(self)[name]

    def __setattr__(self, name: str, value: object) -> None:
        is_module = name in _PROBES and isinstance(value, ModuleType)
        super().__setattr__(name, getattr(value, name) if is_module else value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *__all__})


sys.modules[__name__].__class__ = _Probes
