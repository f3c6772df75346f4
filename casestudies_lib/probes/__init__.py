"""Probes: one import and one call find an incident's fault in the reader's own model.

A probe changes nothing in what it is given and returns a `ProbeResult`.
"""

from casestudies_lib.probes.ablation_diff import ablation_diff
from casestudies_lib.probes.alignment import alignment
from casestudies_lib.probes.backward_check import backward_check
from casestudies_lib.probes.causality import causality
from casestudies_lib.probes.gates import gates
from casestudies_lib.probes.grouped_errors import grouped_errors
from casestudies_lib.probes.idle_parameters import idle_parameters
from casestudies_lib.probes.interference import interference
from casestudies_lib.probes.reduction_scaling import reduction_scaling
from casestudies_lib.probes.result import Finding, ProbeFault, ProbeInputError, ProbeResult
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
