"""Gives every page a content security policy: scripts from the site itself, and of inline scripts only those it came
with, by their digest. Whatever a text smuggles in later, the browser does not run it."""

import base64
import hashlib
import re
from pathlib import Path

_INLINE = re.compile(r"<script(?![^>]*\ssrc=)([^>]*)>(.*?)</script>", re.DOTALL | re.IGNORECASE)
_HANDLER = re.compile(r"<[a-z][^<>]*\s(on[a-z]+)\s*=\s*[\"']", re.IGNORECASE)
_CHARSET = re.compile(r"<meta charset=[^>]*>")
_DATA_TYPES = re.compile(r"type=[\"']application/(?:ld\+)?json[\"']")


class PolicyError(ValueError):
    """A page cannot be given a policy; the message names the page and what is in the way."""


def policy(text: str) -> str:
    """Return the policy that admits exactly the inline scripts of a page."""
    scripts = [body for attributes, body in _INLINE.findall(text) if not _DATA_TYPES.search(attributes)]
    hashes = sorted({_digest(body) for body in scripts})
    return "; ".join(
        [
            "default-src 'none'",
            " ".join(["script-src 'self'", *hashes]),
            "style-src 'self' 'unsafe-inline'",  # MathJax and the theme write style attributes
            "img-src 'self' data:",
            "font-src 'self'",
            "connect-src 'self'",
            "form-action 'self'",
            "base-uri 'none'",
        ]
    )


def _digest(script: str) -> str:
    # A browser normalises line ends before it takes the digest.
    normal = script.replace("\r\n", "\n").replace("\r", "\n").encode()
    return f"'sha256-{base64.b64encode(hashlib.sha256(normal).digest()).decode()}'"


def guarded(text: str, name: str) -> str:
    """Return a page with its policy right behind the declaration of its encoding.

    Args:
        text: the page.
        name: for messages.

    Raises:
        PolicyError: an element has an `on...` attribute, which no policy without 'unsafe-inline' admits, or the page
            declares no encoding.
    """
    if handler := _HANDLER.search(text):
        raise PolicyError(f"{name}: an element carries {handler[1]}=, which the policy forbids; use a script file")
    meta = f'<meta http-equiv="Content-Security-Policy" content="{policy(text)}">'
    page, count = _CHARSET.subn(lambda match: f"{match[0]}\n    {meta}", text, count=1)
    if not count:
        raise PolicyError(f"{name} declares no encoding; begin its head with <meta charset='utf-8'>")
    return page


def guard(site: Path) -> None:
    """Give every page of a site its policy; raises as `guarded` does."""
    for page in sorted(site.rglob("*.html")):
        text = page.read_text(encoding="utf-8")
        page.write_text(guarded(text, page.relative_to(site).as_posix()), encoding="utf-8")
