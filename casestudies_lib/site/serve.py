"""Serves the built site on this machine only."""

import functools
from collections.abc import Callable
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from casestudies_lib.runner.errors import Mistake


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_arguments: object) -> None:
        """Say nothing: the terminal keeps the one line with the address."""


def serve(site: Path, port: int, announce: Callable[[str], None]) -> None:
    """Serve a folder on the loopback address until the process is told to end.

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
        server = ThreadingHTTPServer(("127.0.0.1", port), functools.partial(_Quiet, directory=str(site)))
    except OSError as error:
        raise Mistake(f"port {port} cannot be had ({error.strerror}); choose another with --port, or 0") from error
    with server:
        announce(f"http://127.0.0.1:{server.server_port}/")
        server.serve_forever()
