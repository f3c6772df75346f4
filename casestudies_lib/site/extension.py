"""The Sphinx extension behind the site: directives for what is made from results, and what changes in every page."""

import base64
import hashlib
import html
import importlib.util
import re
import shutil
from pathlib import Path

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.jinja2glue import BuiltinTemplateLoader
from sphinx.util.docutils import SphinxDirective

from casestudies_lib.reports import ReportError
from casestudies_lib.runner.errors import CasebookError, Failure
from casestudies_lib.site.parts import PARTS, staged
from casestudies_lib.site.templates import render

_DESCRIPTION = 155  # characters, as many as search engines show
_MATHJAX = ("tex-chtml.js", "output/chtml/fonts/woff-v2")
_UNUSED = (
    "**/*.map", "_static/*webpack-macros.html", "_static/locales", ".buildinfo", "objects.inv",
    "_static/vendor/fontawesome/*/js", "_static/vendor/fontawesome/**/*.ttf",
)  # fmt: skip
_INLINE_SCRIPT = re.compile(r"<script(?![^>]*\ssrc=)(?![^>]*application/json)[^>]*>(.*?)</script>", re.DOTALL)


class Part(SphinxDirective):
    """A directive that shows one part of the book that is made from results; its argument is a chapter's slug."""

    optional_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        """Return the rendered template: HTML as it is, Markdown parsed with its headings."""
        template = next(name for name in PARTS if Path(name).stem == self.name)
        context_of, patterns = PARTS[template]
        slug = self.arguments[0] if self.arguments else ""
        stage = Path(self.env.srcdir)
        for pattern in patterns:
            for path in stage.glob(pattern.format(slug=slug)):
                self.env.note_dependency(str(path))
        root = "../" * self.env.docname.count("/")
        try:
            context = context_of(staged(stage), slug, self.content)
            text = render(template, root=root, pdf=self.config.casebook_pdf, **context)
        except (ReportError, CasebookError) as error:
            raise self.error(str(error)) from error
        if template.endswith(".html"):
            return [nodes.raw("", text, format="html")]
        parent = nodes.Element()
        self.state.nested_parse(StringList(text.splitlines(), template), 0, parent, match_titles=True)
        return parent.children


class Templates(BuiltinTemplateLoader):
    """Gives every page a content security policy: scripts of the site itself, and of inline scripts only those that the
    page came with, by their digest. What a text smuggles in later, the browser does not run."""

    def render(self, template: str, context: dict) -> str:
        """Return the page with its policy behind the declaration of its encoding."""
        page = super().render(template, context)
        charset, meta = '<meta charset="utf-8" />', '<meta http-equiv="Content-Security-Policy" content="{}">'
        return page.replace(charset, f"{charset}\n    {meta.format(policy(page))}", 1)


def policy(page: str) -> str:
    """Return the policy that admits exactly the inline scripts of a page."""
    digests = {hashlib.sha256(script.encode()).digest() for script in _INLINE_SCRIPT.findall(page)}
    admitted = sorted(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    return "; ".join(
        [
            "default-src 'none'",
            " ".join(["script-src 'self'", *admitted]),
            "style-src 'self' 'unsafe-inline'",  # MathJax and the theme write style attributes
            "img-src 'self' data:",
            "font-src 'self'",
            "connect-src 'self'",
            "form-action 'self'",
            "base-uri 'none'",
        ]
    )


def page_context(app: Sphinx, pagename: str, templatename: str, context: dict, doctree: nodes.document | None) -> None:
    """Take a page's description from its first paragraph, unless its front matter holds one; leave MathJax to math.

    Sphinx loads it on the front page too where any page of the book holds math.
    """
    if doctree is None:
        return
    math = any(isinstance(node, nodes.math | nodes.math_block) for node in doctree.findall())
    if app.builder.name == "html" and not math:
        scripts = context["script_files"]
        scripts[:] = [s for s in scripts if "mathjax" not in f"{s.filename}{s.attributes.get('body')}".lower()]
    paragraphs = (found for found in doctree.findall(nodes.paragraph) if isinstance(found.parent, nodes.section))
    paragraph = next(paragraphs, None)
    if paragraph is not None and 'name="description"' not in context["metatags"]:
        words = " ".join(paragraph.astext().split())
        if len(words) > _DESCRIPTION:
            words = words[: _DESCRIPTION - 1].rsplit(" ", 1)[0] + "…"
        context["metatags"] += f'\n<meta name="description" content="{html.escape(words)}">'


def plain_citations(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Make plain blocks of reference lists: docutils writes roles for them that ARIA has withdrawn.

    References are cited by author and year, so the label would say that twice.
    """
    for citation in list(doctree.findall(nodes.citation)):
        text = [child for child in citation.children if not isinstance(child, nodes.label)]
        citation.replace_self(nodes.container("", *text, ids=citation["ids"], classes=["citation"]))


def finish(app: Sphinx, exception: Exception | None) -> None:
    """Add what typesetting and explorers need from installed packages; delete what the themes copy and no page uses."""
    out = Path(app.outdir)
    if exception or app.builder.format != "html":
        return
    package = importlib.util.find_spec("sphinx-mathjax-offline")
    if package is None or package.origin is None:
        raise Failure("the package sphinx-mathjax-offline is not installed; `make book` installs it")
    for name in _MATHJAX:
        source, target = Path(package.origin).parent / "static" / "mathjax" / name, out / "_static" / "mathjax" / name
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(source, target) if source.is_dir() else shutil.copyfile(source, target)
    chart_library = out / "_scripts" / "vega.js"
    if not chart_library.exists():
        import vl_convert

        chart_library.parent.mkdir(exist_ok=True)
        # The bundle is a module. As a plain script, which also loads from a folder, its names must not meet the page's.
        bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
        chart_library.write_text(f"(() => {{\n{bundle}\n}})();\n", encoding="utf-8")
    for path in [path for pattern in _UNUSED for path in out.glob(pattern)]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def setup(app: Sphinx) -> dict:
    """Register directives and hooks with Sphinx."""
    app.add_config_value("casebook_pdf", False, "env")
    for template in PARTS:
        app.add_directive(Path(template).stem, Part)
    app.connect("html-page-context", page_context)
    app.connect("doctree-resolved", plain_citations)
    app.connect("build-finished", finish)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
