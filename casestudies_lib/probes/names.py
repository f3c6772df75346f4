"""Choose parameters and submodules by name or pattern, and say what is close where nothing matches."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase


class UnknownName(ValueError):
    """A name or pattern matches nothing; the message lists names that come near."""


def matching(wanted: str | Iterable[str], known: Sequence[str], kind: str = "parameter") -> list[str]:
    """Return the known names that are wanted, in their own order.

    Args:
        wanted: one name or several; each may be a pattern with `*` and `?`, such as `"*.alpha"`.
        known: all names that there are.
        kind: what the names are of, for the error.

    Raises:
        UnknownName: nothing wanted, something that is no name, or one that matches nothing.
    """
    patterns = [wanted] if isinstance(wanted, str) else list(wanted)
    if not patterns:
        raise UnknownName(f"no {kind} name was given; some that there are: {', '.join(known[:8]) or 'none'}")
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise UnknownName(f"{pattern!r} is no {kind} name; give text such as {known[0] if known else 'a.weight'!r}")
        if not any(fnmatchcase(name, pattern) for name in known):
            raise UnknownName(f"no {kind} is called {pattern!r}; {_near(pattern, known)}")
    return [name for name in known if any(fnmatchcase(name, pattern) for pattern in patterns)]


def _near(pattern: str, known: Sequence[str]) -> str:
    """Return the names that come near, by the whole and by the last component; the first ones if none does."""
    by_end: dict[str, list[str]] = {}
    for name in known:
        by_end.setdefault(name.rsplit(".", 1)[-1], []).append(name)
    near = get_close_matches(pattern, known, n=5, cutoff=0.8)
    for end in get_close_matches(pattern.rsplit(".", 1)[-1].strip("*?"), by_end, n=3, cutoff=0.5):
        near += by_end[end]
    near = list(dict.fromkeys([*near, *get_close_matches(pattern, known, n=5, cutoff=0.6)]))
    if near:
        return f"near it: {', '.join(near[:5])}"
    return f"there are: {', '.join(known[:8]) or 'none'}{' …' if len(known) > 8 else ''}"
