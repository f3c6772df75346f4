"""Starts one kernel, asks it for its Python and this package, and ends it: what `casebook doctor` runs under guard."""

import sys

from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import KernelManager

_CODE = "import sys, casestudies_lib; print(sys.executable)"


def main() -> int:
    """Print the kernel's Python; returns 0 when it is this one."""
    manager = KernelManager(kernel_name="python3", kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))
    manager.start_kernel()
    client = manager.blocking_client()
    client.start_channels()
    shown: list[str] = []
    try:
        client.wait_for_ready(timeout=45)
        reply = client.execute_interactive(_CODE, timeout=10, output_hook=lambda message: shown.append(_text(message)))
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    sys.stdout.write("".join(shown))
    return 0 if reply["content"]["status"] == "ok" and sys.executable in "".join(shown) else 1


def _text(message: dict) -> str:
    return message["content"].get("text", "") or message["content"].get("evalue", "")


if __name__ == "__main__":
    sys.exit(main())
