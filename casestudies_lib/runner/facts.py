"""What only a kernel knows about the machine it ran on; called inside the kernel, after the last cell."""

import platform
import resource
import sys

from casestudies_lib.runner import cache_recorder


class JsonDisplay:
    """A value that travels to the worker as JSON, as the display of an expression."""

    def __init__(self, value: dict) -> None:
        """Keep the value."""
        self.value = value

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict:
        import json

        return {"text/plain": repr(self.value), "application/json": json.dumps(self.value)}


def facts() -> JsonDisplay:
    """Return peak memory (MB), what was read, and torch's threads and CPU capability where torch was imported."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = {"peak_memory_mb": round(peak / (2**20 if platform.system() == "Darwin" else 2**10))}
    if torch := sys.modules.get("torch"):
        found |= {"torch_threads": torch.get_num_threads(), "cpu_capability": torch.backends.cpu.get_cpu_capability()}
    return JsonDisplay(found | {"recorded": cache_recorder.finish()})
