"""Keeps the cache within a size; what a build would be served from stays, whatever the size."""

import contextlib
import math
import sys
from pathlib import Path

from casestudies_lib.runner import cache, cache_store
from casestudies_lib.runner.cache import Hit
from casestudies_lib.runner.cache_store import Swept
from casestudies_lib.runner.chapters import all_chapters
from casestudies_lib.runner.errors import CasebookError
from casestudies_lib.runner.jobs import prepare

LIMIT = 10**9  # bytes; a run of a chapter takes about one million
_SLACK = 0.9  # share of the limit that is filled afterwards, so that not every run has to make room again


def current() -> set[Path]:
    """Return the entries that the chapters, as they stand and with default parameters, would be served from."""
    found = set()
    for chapter in all_chapters():
        with contextlib.suppress(CasebookError):  # what cannot be read cannot be served
            answer = cache.lookup(prepare(chapter))
            found |= {answer.entry.path} if isinstance(answer, Hit) else set()
    return found


def tidy(keep: int, limit: float = math.inf) -> Swept:
    """Collect as `cache_store.collect` does, sparing what is current from the limit."""
    return cache_store.collect(keep, limit, current() if limit < math.inf else ())


def keep_within(limit: float = LIMIT) -> Swept | None:
    """Make room where the cache has outgrown the limit, in bytes; returns None where it has not.

    Raises:
        OSError: the cache cannot be changed.
    """
    return tidy(sys.maxsize, limit * _SLACK) if cache_store.size_bytes() > limit else None
