"""Takes out of a built site what Sphinx and the themes copy along and no reader needs."""

import re
import shutil
from pathlib import Path

_UNUSED = (
    "**/*.map", "_static/*webpack-macros.html", "_static/locales", ".buildinfo", "objects.inv",
    "_static/vendor/fontawesome/*/js", "_static/vendor/fontawesome/**/*.ttf",
)  # fmt: skip
_ICON_LINES = (r'<script src="[^"]*/fontawesome/[^"]*"></script>\n?', r'<link rel="preload" as="font"[^>]*>\n?')
_MATH_LINES = (r"<script>window\.MathJax = .*</script>\n?", r"<script [^>]*mathjax/tex-chtml\.js[^>]*></script>\n?")


def lighten(site: Path) -> None:
    """Rewrite every page without superfluous scripts and delete superfluous files.

    Icons come from a font and, once more, from a script of 1.5 MB; the font is enough. MathJax stays where math is.
    """
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        heavy = _ICON_LINES if 'class="math' in text else _ICON_LINES + _MATH_LINES
        page.write_text(re.sub("|".join(heavy), "", text), encoding="utf-8")
    for pattern in _UNUSED:
        for path in sorted(site.glob(pattern)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
