"""Tells whether a site that stands already is what a new build would make: same inputs, and nothing touched since."""

import json
import os
from pathlib import Path

import casestudies_lib
from casestudies_lib.runner.cache_key import canonical, digest
from casestudies_lib.runner.environment import environment_parts, machine_parts, package_parts

MARKER = "casebook-site.json"


def site_key(stage: Path) -> str:
    """Return the digest of all that a site follows from.

    These are every staged file (pages, executed chapters, settings, figures), the installed versions, Python, the
    declared environment, and the code that turns staged files into pages.
    """
    code = Path(casestudies_lib.__file__).parent / "runner"
    parts = {**machine_parts(), **environment_parts(os.environ), **package_parts()}
    return digest(canonical(parts | {"stage": tree_digest(stage), "code": tree_digest(code, "*.py")}))


def tree_digest(folder: Path, pattern: str = "*") -> str:
    """Return the digest of names and contents of all files below a folder, the site's own marker aside."""
    files = sorted(path for path in folder.rglob(pattern) if path.is_file() and path.name != MARKER)
    return digest(canonical([(path.relative_to(folder).as_posix(), digest(path.read_bytes())) for path in files]))


def mark(site: Path, chapters: list[str], key: str) -> None:
    """Leave in a new site what it was made from, and the digest of its files."""
    content = {"chapters": chapters, "key": key, "files": tree_digest(site)}
    (site / MARKER).write_text(json.dumps(content), encoding="utf-8")


def stands(site: Path, key: str) -> bool:
    """Return whether a site was made from what this key stands for and holds what it held then."""
    try:
        content = json.loads((site / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    if not isinstance(content, dict) or content.get("key") != key:
        return False
    return content.get("files") == tree_digest(site)
