"""Takes the figures out of a notebook's HTML into files, smaller than they came and each of them once."""

import base64
import hashlib
import html
import io
import re
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from casestudies_lib import paths
from casestudies_lib.runner.chapters import source_of
from casestudies_lib.runner.results import replace_file

FOLDER = "_figures"
_EMBEDDED = re.compile(r'<img class="casebook-figure"[^>]*\balt="([^"]*)"[^>]*src="data:image/png;base64,([^"]+)">')


@dataclass(frozen=True)
class Picture:
    """A figure of a chapter: file name, size in pixels, and the text alternative (not yet escaped)."""

    file: str
    width: int
    height: int
    alt: str

    def markup(self, root: str, *, lazy: bool = True) -> str:
        """Return the HTML image; `root` leads from its page to the site's front page."""
        loading = ' loading="lazy" decoding="async"' if lazy else ""
        return (
            f'<img class="casebook-figure" src="{root}{FOLDER}/{self.file}" width="{self.width}" '
            f'height="{self.height}"{loading} alt="{html.escape(self.alt)}">'
        )


def extracted(text: str, folder: Path, root: str) -> str:
    """Return HTML with every embedded figure replaced by a link to a file.

    Args:
        text: HTML as the notebook's cell shows it.
        folder: where the files go.
        root: leads from the page to the site's front page, such as `../`.
    """
    return _EMBEDDED.sub(lambda match: _stored(match, folder).markup(root), text)


def _stored(match: re.Match[str], folder: Path) -> Picture:
    """Write one figure; lossless WebP takes half the bytes of matplotlib's PNG and changes no pixel."""
    content = base64.b64decode(match[2])
    target = folder / f"{hashlib.sha256(content).hexdigest()[:16]}.webp"
    folder.mkdir(parents=True, exist_ok=True)
    with Image.open(io.BytesIO(content)) as image:
        if not target.exists():
            target.write_bytes(_webp(image.convert("RGB"), target.name))
        return Picture(target.name, *image.size, html.unescape(match[1]))


def _webp(image: Image.Image, name: str) -> bytes:
    """Return a picture as WebP, from an earlier build if one is kept there that shows the same pixels."""
    kept = paths.build() / "figures" / name
    try:
        content = kept.read_bytes()
        with Image.open(io.BytesIO(content), formats=["WEBP"]) as found:
            if found.size == image.size and found.convert("RGB").tobytes() == image.tobytes():
                return content
    except (OSError, ValueError):
        pass  # not kept, or damaged: it is made again
    out = io.BytesIO()
    image.save(out, "WEBP", lossless=True, quality=80, method=4)
    kept.parent.mkdir(parents=True, exist_ok=True)
    replace_file(kept, out.getvalue())
    return out.getvalue()


def symptom_picture(notebook: dict, folder: Path) -> Picture | None:
    """Return the figure that stands for a chapter: the first after its heading "symptom", else its first."""
    found, symptom_seen = None, False
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            symptom_seen = symptom_seen or bool(re.search(r"^#+ .*symptom", source_of(cell), re.MULTILINE | re.I))
        for output in cell.get("outputs", []):
            if match := _EMBEDDED.search("".join(output.get("data", {}).get("text/html", ""))):
                found = found or match
                if symptom_seen:
                    return _stored(match, folder)
    return _stored(found, folder) if found else None
