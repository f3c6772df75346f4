"""Renders the templates in `book/_templates/parts`: what a text holds is shown and never obeyed."""

import functools
import re
import unicodedata
from datetime import date
from pathlib import Path

from babel.dates import format_date
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from casestudies_lib import paths
from casestudies_lib.records import SYMBOLS
from casestudies_lib.regions import typeset

_CODE = re.compile(r"`([^`]+)`")
_PUNCTUATION = re.compile(r"([!-/:-@\[-`{-~])")
_INVISIBLE = ("Cc", "Cf", "Cs", "Co", "Cn")


def render(name: str, **context: object) -> str:
    """Return a template of `book/_templates/parts`, filled in.

    Every expression in it passes through `visible` and is escaped for HTML, unless a filter below made markup of it.
    """
    template = _environment(paths.book() / "_templates" / "parts").get_template(name)
    return template.render(context | {"symbols": SYMBOLS})


@functools.cache
def _environment(folder: Path) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(folder), autoescape=True, finalize=_shown, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    filters = (prose, myst, number, long_date)
    environment.filters |= {each.__name__: each for each in filters} | {"rule": typeset}
    return environment


def _shown(value: object) -> object:
    return value if isinstance(value, Markup) else visible(value)


def visible(text: object) -> str:
    """Return text on one line, with every control, direction or otherwise invisible character named: `⟨U+202E⟩`."""
    one_line = " ".join(str(text).split())
    return "".join(f"⟨U+{ord(c):04X}⟩" if unicodedata.category(c) in _INVISIBLE else c for c in one_line)


def prose(text: object) -> Markup:
    """Return text as HTML, with `code` in backticks set as code."""
    return Markup(_CODE.sub(r"<code>\1</code>", str(escape(visible(text)))))


def myst(text: object) -> Markup:
    """Return text for MyST Markdown with no character that Markdown would read as markup."""
    return Markup(_PUNCTUATION.sub(r"\\\1", visible(text)))


def number(value: float) -> str:
    """Return a number with three digits and a minus sign."""
    return f"{value:.3g}".replace("-", "−")


def long_date(started: str) -> str:
    """Return the day of an ISO time as `7 November 2025`."""
    return format_date(date.fromisoformat(started[:10]), "d MMMM y", locale="en")
