"""Probes: one import and one call find an incident's fault in the reader's own model.

A probe changes nothing in what it is given and returns a `ProbeResult`.
"""

from casestudies_lib.probes.idle_parameters import idle_parameters
from casestudies_lib.probes.result import Finding, ProbeFault, ProbeInputError, ProbeResult

__all__ = ["Finding", "ProbeFault", "ProbeInputError", "ProbeResult", "idle_parameters"]
