"""Serves the built site on this machine only."""

import errno
import functools
from collections.abc import Callable
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from casestudies_lib.runner.errors import Mistake

ADDRESS = "127.0.0.1"


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_arguments: object) -> None:
        """Say nothing: the terminal keeps the one line with the address."""


def serve(site: Path, port: int, announce: Callable[[str], None]) -> None:
    """Serve a folder until the process is told to end.

    Args:
        site: the folder of the built site.
        port: the port; 0 takes a free one.
        announce: receives the address once it answers.

    Raises:
        Mistake: nothing has been built, or the port cannot be had.
    """
    if not (site / "index.html").is_file():
        raise Mistake(f"no site in {site}; build it first: casebook build")
    try:
        server = ThreadingHTTPServer((ADDRESS, port), functools.partial(_Quiet, directory=str(site)))
    except (OSError, OverflowError) as error:
        taken = getattr(error, "errno", None) == errno.EADDRINUSE
        reason = "is taken" if taken else f"cannot be used ({error})"
        raise Mistake(f"port {port} {reason}; choose another with --port, or --port 0 for any free one") from error
    with server:
        announce(f"http://{ADDRESS}:{server.server_address[1]}/")
        server.serve_forever(poll_interval=0.2)
