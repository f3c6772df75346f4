"""Where the rows of a sweep run: a Dask cluster on this machine's loopback, or a scheduler at an address.

Dask's messages carry pickled code. The local cluster therefore listens on the loopback interface only, and an address
beyond it without TLS gets a warning.
"""

import asyncio
import contextlib
import ipaddress
import logging
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass

from casestudies_lib.runner.errors import Failure, Mistake

PATIENCE = 15.0  # seconds for a scheduler to answer
WORKER_PATIENCE = 60.0  # seconds for a first worker to be there
DEATHS = 3  # workers that a row may take with it


class NoCluster(Failure):
    """There is no scheduler at the address, no worker with it, or it went away."""


@dataclass(frozen=True)
class Tls:
    """Files for encrypted messages: certificate authority, own certificate and its key."""

    authority: str | None = None
    certificate: str | None = None
    key: str | None = None


@dataclass(frozen=True)
class Workplace:
    """Workers behind an executor: how many rows run at once, and whether the scheduler is still there."""

    executor: Executor
    capacity: int
    alive: Callable[[], bool]
    where: str


@contextlib.contextmanager
def local(workers: int) -> Iterator[Workplace]:
    """Start a cluster of worker processes on this machine, one row each, and end it on leaving."""
    import dask
    from distributed import Client, LocalCluster

    settings = {
        "distributed.scheduler.allowed-failures": DEATHS - 1,
        # A row that waits at a worker would be blamed with the one that kills it.
        "distributed.scheduler.worker-saturation": 1.0,
        "distributed.worker.daemon": True,
        "distributed.admin.system-monitor.gil.enabled": False,
        # Nobody looks at its profile; each of these wakes a process often, on a core that a row could use.
        "distributed.worker.profile.enabled": False,
        "distributed.admin.tick.interval": "500ms",
        "distributed.admin.system-monitor.interval": "5s",
        "distributed.scheduler.http.routes": [],
        "distributed.worker.http.routes": [],
    }
    with (
        _quiet(),
        dask.config.set(settings),
        tempfile.TemporaryDirectory(prefix="casebook-sweep-") as scratch,
        LocalCluster(
            n_workers=workers, threads_per_worker=1, processes=True, host="127.0.0.1", memory_limit=0,
            # Its page cannot be left out; empty, on a free port, it meets no other sweep's.
            dashboard_address="127.0.0.1:0", scheduler_kwargs={"dashboard": False},
            local_directory=scratch, silence_logs=logging.CRITICAL,
        ) as cluster,
        Client(cluster, timeout=PATIENCE, set_as_default=False) as client,
    ):  # fmt: skip
        yield _workplace(client, workers, "on this machine")


@contextlib.contextmanager
def remote(address: str, at_once: int | None, tls: Tls, say: Callable[[str], None]) -> Iterator[Workplace]:
    """Use the workers of a scheduler; they go on after the sweep.

    Args:
        address: `tcp://HOST:PORT` or `tls://HOST:PORT`; without a scheme it is tcp.
        at_once: rows to hand out at once; by default as many as the workers have threads.
        tls: files for an address that begins with tls://.
        say: receives a warning where messages travel in the clear beyond this machine.

    Raises:
        Mistake: no such form of address, or TLS files that do not suit it.
        NoCluster: nothing answers there, or what answers is no scheduler, or has no worker.
    """
    from distributed import Client

    address = checked_address(address, tls)
    if not address.startswith("tls://") and not is_loopback(address):
        say(
            f"warning: {address} is beyond this machine and messages to it are pickled code in the clear: whoever "
            "reaches it can run code as you; use tls:// with --tls-ca, --tls-cert and --tls-key"
        )
    with _quiet():
        security = _security(tls)
        _check_scheduler(address, security)
        with Client(address, timeout=PATIENCE, security=security, set_as_default=False) as client:
            threads = _threads(client, address)
            yield _workplace(client, max(at_once or threads, 1), address)


def _workplace(client, capacity: int, where: str) -> Workplace:
    executor = client.get_executor(pure=False)
    return Workplace(executor, capacity, lambda: client.status == "running", where)


def checked_address(text: str, tls: Tls) -> str:
    """Return the address with its scheme; raises `Mistake` where it has no known form."""
    scheme, separator, rest = text.rpartition("://")
    scheme = scheme if separator else "tcp"
    host, _, port = rest.rpartition(":")
    if scheme not in ("tcp", "tls") or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise Mistake(f"--scheduler {text!r} is no address; give HOST:PORT, tcp://HOST:PORT or tls://HOST:PORT")
    given = [tls.authority, tls.certificate, tls.key]
    if scheme == "tls" and not all(given):
        raise Mistake("a tls:// address needs --tls-ca, --tls-cert and --tls-key")
    if scheme == "tcp" and any(given):
        raise Mistake(f"TLS files are of no use to {text!r}; give a tls:// address")
    return f"{scheme}://{rest}"


def is_loopback(address: str) -> bool:
    """Return whether an address leads to this machine only."""
    host = address.rpartition("://")[2].rpartition(":")[0].strip("[]")
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _security(tls: Tls):
    from distributed import Security

    if not tls.authority:
        return Security()
    return Security(
        tls_ca_file=tls.authority, tls_client_cert=tls.certificate, tls_client_key=tls.key, require_encryption=True
    )


def _check_scheduler(address: str, security) -> None:
    """Ask who is there, because a client waits for ever for anything that is no scheduler and says nothing."""
    try:
        identity = asyncio.run(_identity(address, security))
    except Exception as error:  # whatever a stranger says is read as Dask's own, down to a MemoryError
        reason = str(error) if type(error) is OSError else "no answer that a Dask scheduler would give"
        raise NoCluster(
            f"no Dask scheduler at {address}: {reason}; start one with: dask scheduler --host HOST --port PORT"
        ) from error
    if identity.get("type") != "Scheduler":
        other = identity.get("scheduler") or "unknown"
        raise NoCluster(f"{address} is a Dask {identity.get('type', 'something')}; its scheduler is at {other}")


async def _identity(address: str, security) -> dict:
    from distributed.core import rpc

    async def ask() -> dict:
        async with rpc(address, timeout=PATIENCE / 2, connection_args=security.get_connection_args("client")) as remote:
            return await remote.identity()

    return await asyncio.wait_for(ask(), PATIENCE)


def _threads(client, address: str) -> int:
    deadline = time.monotonic() + WORKER_PATIENCE
    while time.monotonic() < deadline:
        if threads := sum(client.nthreads().values()):
            return threads
        time.sleep(0.2)
    raise NoCluster(
        f"no worker joined {address} within {WORKER_PATIENCE:.0f} s; start some: dask worker {address} --nthreads 1"
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence Dask's own lines while it is in use; what matters to the user is said by the sweep."""
    import distributed

    name = distributed.__name__
    names = [name, *(each for each in logging.root.manager.loggerDict if each.startswith(f"{name}."))]
    before = {each: logging.getLogger(each).level for each in names}  # it gives several of them levels of their own
    for each in names:
        logging.getLogger(each).setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for each, level in before.items():
            logging.getLogger(each).setLevel(level)
