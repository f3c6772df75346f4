"""Probes: one import and one call find an incident's fault in the reader's own model.

A probe changes nothing in what it is given and returns a `ProbeResult`.
"""

from casestudies_lib.probes.alignment import alignment
from casestudies_lib.probes.idle_parameters import idle_parameters
from casestudies_lib.probes.reduction_scaling import reduction_scaling
from casestudies_lib.probes.result import Finding, ProbeFault, ProbeInputError, ProbeResult
from casestudies_lib.probes.stepping import stepping

__all__ = [
    "Finding",
    "ProbeFault",
    "ProbeInputError",
    "ProbeResult",
    "alignment",
    "idle_parameters",
    "reduction_scaling",
    "stepping",
]
