"""What must not stand in a stored notebook or on a page: folders of somebody's machine, and secrets.

Messages say where a secret comes from, never what it is.
"""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from casestudies_lib import paths

_HOME = re.compile(
    r"""(?<![\w./-])(?:/home/|/Users/|/var/folders/|[A-Za-z]:(?:\\+|/)Users(?:\\+|/))[^\s/\\"'<>]+"""
    r"""|(?<![\w./-])/(?:root|tmp|mnt|private)/[^\s/\\"'<>]+"""
)
_SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY", re.IGNORECASE)
_SHORTEST = 8  # characters; a shorter value of such a variable is a word or a number that stands anywhere
_SECRETS = {
    "a private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
    "a GitHub token": re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{22,})"),
    "a GitLab token": re.compile(r"\bglpat-[A-Za-z0-9_-]{20}"),
    "a Hugging Face token": re.compile(r"\bhf_[A-Za-z0-9]{30,}"),
    "an AWS access key": re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"),
    "a Slack token": re.compile(r"\bxox[abprs]-[A-Za-z0-9-]{10,}"),
    "an API key": re.compile(r"\bsk-[A-Za-z0-9_-]{20,}"),
    "a signed web token": re.compile(r"\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\."),
    "a password in an address": re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s/:@\"'<>]+:[^\s/@\"'<>]+@"),
}


def private_traces(text: str, environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return in words what in a text belongs to a machine or a person; empty where nothing does.

    Args:
        text: the text of a file.
        environment: the variables whose values count as secrets where their names say so.
    """
    return list(dict.fromkeys([*_folders(text), *_secrets(text, environment)]))


def private_traces_in(value: object) -> list[str]:
    """Return in words what in the texts of a notebook or of other JSON belongs to a machine or a person."""
    return private_traces("\n".join(_texts(value)))


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, entry in value.items():
            yield key
            yield from _texts(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from _texts(entry)


def _folders(text: str) -> Iterator[str]:
    for name, folder in (("this casebook", paths.root().absolute()), ("your home", Path.home())):
        # A folder right below the root, such as /root, may be a word of a sentence: then only what lies in it counts.
        end = r"(?![\w-])" if len(folder.parts) > 2 else r"(?=[/\\]\w)"
        if (
            len(folder.parts) > 1
            and str(folder) in text
            and re.search(rf"(?<![\w.-]){re.escape(str(folder))}{end}", text)
        ):
            yield f"the folder of {name}"
    if match := _HOME.search(text):
        yield f"a folder of one machine ({match[0][:60]})"


def _secrets(text: str, environment: Mapping[str, str]) -> Iterator[str]:
    for name, value in environment.items():
        if _SECRET_NAME.search(name) and len(value) >= _SHORTEST and value in text:
            yield f"the value of the environment variable {name}"
    for name, pattern in _SECRETS.items():
        if pattern.search(text):
            yield name
