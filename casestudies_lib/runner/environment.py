"""What of the machine and its environment a result may depend on; light, because every listing asks for it."""

import hashlib
import platform
import sys
from collections.abc import Mapping
from pathlib import Path

ONE_THREAD = (
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "VECLIB_MAXIMUM_THREADS",
    "BLIS_NUM_THREADS",
)  # fmt: skip
THREADS = "1"  # chapters run side by side, and oversubscribed threads cost a factor of three
# What Python, PyTorch and the libraries below them obey; any other variable is an input of chapters that read it.
_DECLARED = (
    "OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "NUMEXPR_", "VECLIB_", "BLIS_", "BLAS_", "ATEN_", "TORCH", "PYTORCH_",
    "CUDA_", "CUBLAS_", "ONEDNN_", "DNNL_", "NUMBA_", "NPY_", "NUMPY_", "PYTHON", "MPL", "MATPLOTLIB", "LANG", "LC_",
    "TZ", "TOKENIZERS_", "RAYON_", "JAXTYPING_", "PANDAS_", "ARROW_", "SCIPY_", "GLIBC_TUNABLES", "LD_",
)  # fmt: skip
# Set by the runner itself, seen in the installed packages, or of no consequence for a result.
_LEFT_OUT = frozenset(
    {"MPLBACKEND", "PYTHONSTARTUP", "PYTHONNOUSERSITE", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE",
     "PYTHONPYCACHEPREFIX", "PYTHONIOENCODING", "PYTHONBREAKPOINT"}
)  # fmt: skip


def is_declared(name: str) -> bool:
    """Return whether a variable belongs to every key, because libraries obey it without our code reading it."""
    return name.startswith(_DECLARED) and name not in _LEFT_OUT


def variable_digest(name: str, value: str | None) -> str:
    """Return the state of a variable for keys and manifests; its value may be a secret and is stored nowhere."""
    return "absent" if value is None else hashlib.sha256(f"{name}={value}".encode(errors="replace")).hexdigest()


def kernel_threads() -> dict[str, str]:
    """Return the variables that give a kernel its one thread."""
    return dict.fromkeys(ONE_THREAD, THREADS)


def environment_parts(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the declared variables as a kernel sees them, one thread each, by the name that messages use."""
    kernel = {**environ, **kernel_threads()}
    names = [name for name in kernel if is_declared(name) and kernel[name]]
    return {f"environment {name}": variable_digest(name, kernel[name]) for name in names}


def machine_parts() -> dict[str, str]:
    """Return Python, platform and processor.

    The processor stands for PyTorch's CPU capability, which follows from it, from PyTorch's version and from a declared
    variable, but which only an imported PyTorch could tell; MKL chooses its code by the processor's model as well.
    """
    return {
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "platform": f"{platform.system()} {platform.machine()} {'-'.join(platform.libc_ver())}",
        "processor": _processor(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = [line for line in lines if line.partition("\t")[0] in ("vendor_id", "model name", "flags", "Features")]
    return hashlib.sha256("\n".join(fields).encode()).hexdigest()


def package_parts() -> dict[str, str]:
    """Return the version of every installed package, read off the names of their metadata folders."""
    found = {}
    for folder in reversed([Path(entry) for entry in sys.path if entry.endswith("-packages")]):
        for metadata in folder.glob("*.dist-info"):
            package, _, version = metadata.name.removesuffix(".dist-info").partition("-")
            found[f"package {package.lower().replace('_', '-')}"] = version
    return found
