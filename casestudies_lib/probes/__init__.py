"""Probes: one import and one call find an incident's fault in the reader's own model.

A probe changes nothing in what it is given and returns a `ProbeResult`.

A probe is imported when it is first asked for, so that a chapter depends on the probes that it calls and on no other.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from casestudies_lib.probes.result import Finding, ProbeFault, ProbeInputError, ProbeResult

if TYPE_CHECKING:
    from casestudies_lib.probes.ablation.probe import ablation_diff
    from casestudies_lib.probes.backward.probe import backward_check
    from casestudies_lib.probes.causal.probe import causality
    from casestudies_lib.probes.conflict.probe import interference
    from casestudies_lib.probes.gating.probe import gates
    from casestudies_lib.probes.groups.probe import grouped_errors
    from casestudies_lib.probes.idle.probe import idle_parameters
    from casestudies_lib.probes.reduction.probe import reduction_scaling
    from casestudies_lib.probes.routing.probe import routing_reach
    from casestudies_lib.probes.steps.probe import stepping
    from casestudies_lib.probes.tokenisers.probe import alignment

# Names and modules are literals, because the runner and the site read them from the source without importing torch.
OFFERED = {
    "ablation_diff": "casestudies_lib.probes.ablation.probe",
    "alignment": "casestudies_lib.probes.tokenisers.probe",
    "backward_check": "casestudies_lib.probes.backward.probe",
    "causality": "casestudies_lib.probes.causal.probe",
    "gates": "casestudies_lib.probes.gating.probe",
    "grouped_errors": "casestudies_lib.probes.groups.probe",
    "idle_parameters": "casestudies_lib.probes.idle.probe",
    "interference": "casestudies_lib.probes.conflict.probe",
    "reduction_scaling": "casestudies_lib.probes.reduction.probe",
    "routing_reach": "casestudies_lib.probes.routing.probe",
    "stepping": "casestudies_lib.probes.steps.probe",
}

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


def __getattr__(name: str) -> object:
    if name not in OFFERED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; its probes are {', '.join(OFFERED)}")
    return getattr(import_module(OFFERED[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
