"""Where the rows of a sweep run: a Dask cluster on this machine's loopback, or a scheduler at an address.

Dask's messages carry pickled code. The local cluster therefore listens on the loopback interface only, and an address
beyond it without TLS gets a warning. Certificates are Dask's own settings (`DASK_DISTRIBUTED__COMM__TLS__…`).
"""

import asyncio
import contextlib
import ipaddress
import logging
import tempfile
from collections.abc import Callable, Iterator

from casestudies_lib.runner.errors import Failure, Mistake

PATIENCE = 15.0  # seconds for a scheduler to answer
WORKER_PATIENCE = 60.0  # seconds for a first worker to be there
_LOGGERS = ("distributed", "distributed.client", "distributed.gc", "tornado.application", "asyncio")
_SETTINGS = {
    "distributed.scheduler.allowed-failures": 2,
    # A row that waits at a worker would be blamed with the one that kills it.
    "distributed.scheduler.worker-saturation": 1.0,
    # Nobody looks at profile and monitor; each wakes a process often, on a core that a row could use.
    "distributed.worker.profile.enabled": False,
    "distributed.admin.system-monitor.gil.enabled": False,
    "distributed.admin.tick.interval": "500ms",
    "distributed.admin.system-monitor.interval": "5s",
    "distributed.scheduler.http.routes": [],
    "distributed.worker.http.routes": [],
}


class NoCluster(Failure):
    """There is no scheduler at the address, no worker with it, or it went away."""


@contextlib.contextmanager
def cluster(address: str | None, workers: int, say: Callable[[str], None]) -> Iterator:
    """Lend a Dask client: of a scheduler at an address, or of a cluster on this machine that ends on leaving.

    Args:
        address: `HOST:PORT`, `tcp://HOST:PORT` or `tls://HOST:PORT`; None for this machine.
        workers: processes on this machine, one row each.
        say: receives a warning where messages travel in the clear beyond this machine.

    Raises:
        Mistake: the address has none of these forms.
        NoCluster: nothing answers there, or what answers is not a scheduler, or has no worker.
    """
    import distributed  # noqa: F401 - it gives its loggers their levels

    for name in _LOGGERS:  # what matters to the user is said by the sweep
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with _remote(_checked(address), say) if address else _local(workers) as client:
        yield client


@contextlib.contextmanager
def _local(workers: int) -> Iterator:
    import dask
    from distributed import Client, LocalCluster

    with (
        dask.config.set(_SETTINGS),
        tempfile.TemporaryDirectory(prefix="casebook-sweep-") as scratch,
        LocalCluster(
            n_workers=workers, threads_per_worker=1, processes=True, host="127.0.0.1", memory_limit=0,
            # Its page cannot be left out; empty, on a free port, it meets no other sweep's.
            dashboard_address="127.0.0.1:0", scheduler_kwargs={"dashboard": False},
            local_directory=scratch, silence_logs=logging.CRITICAL,
        ) as here,
        Client(here, timeout=PATIENCE) as client,
    ):  # fmt: skip
        yield client


@contextlib.contextmanager
def _remote(address: str, say: Callable[[str], None]) -> Iterator:
    from distributed import Client

    if not address.startswith("tls://") and not _is_loopback(address):
        say(
            f"warning: {address} is beyond this machine and messages to it are pickled code in the clear: whoever "
            "reaches it can run code as you; use tls:// and Dask's TLS settings"
        )
    _check_scheduler(address)
    with Client(address, timeout=PATIENCE) as client:
        try:
            client.wait_for_workers(1, timeout=WORKER_PATIENCE)
        except TimeoutError as error:
            raise NoCluster(
                f"no worker joined {address} within {WORKER_PATIENCE:.0f} s; start some: "
                f"dask worker {address} --nthreads 1"
            ) from error
        yield client


def _checked(text: str) -> str:
    scheme, separator, rest = text.rpartition("://")
    scheme = scheme if separator else "tcp"
    host, _, port = rest.rpartition(":")
    if scheme not in ("tcp", "tls") or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise Mistake(f"--scheduler {text!r} is not an address; give HOST:PORT, tcp://HOST:PORT or tls://HOST:PORT")
    return f"{scheme}://{rest}"


def _is_loopback(address: str) -> bool:
    host = address.rpartition("://")[2].rpartition(":")[0].strip("[]")
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _check_scheduler(address: str) -> None:
    """Ask who is there, because a client waits for ever for a server that says nothing or talks otherwise."""
    try:
        identity = asyncio.run(asyncio.wait_for(_identity(address), PATIENCE))
    except Exception as error:  # a foreign answer is read as Dask's own and can fail in any way
        reason = str(error) if type(error) in (OSError, TypeError) else "no answer that a Dask scheduler would give"
        raise NoCluster(
            f"no Dask scheduler at {address}: {reason}; start one with: dask scheduler --host HOST --port PORT"
        ) from error
    if identity.get("type") != "Scheduler":
        raise NoCluster(f"{address} is a Dask {identity.get('type', 'something')}; give its scheduler's address")


async def _identity(address: str) -> dict:
    from distributed import Security
    from distributed.core import rpc

    arguments = Security().get_connection_args("client")
    async with rpc(address, timeout=PATIENCE / 2, connection_args=arguments) as remote:
        return await remote.identity()
