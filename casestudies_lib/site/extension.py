"""The Sphinx extension behind the site: directives for what is made from results, and what changes in every page.

It reads the folder that `publish` lays out: `results/` holds the runs, `reports/` the report files. A directive renders
the template of its name in `book/_templates/parts`, and notes what it read, so that Sphinx rebuilds the page with it.
"""

import ast
import base64
import functools
import hashlib
import html
import importlib.util
import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from docutils import nodes
from docutils.statemachine import StringList
from markupsafe import Markup
from sphinx.application import Sphinx
from sphinx.jinja2glue import BuiltinTemplateLoader
from sphinx.util.docutils import SphinxDirective

import casestudies_lib
from casestudies_lib.claims import ReportError, Verdict, parse_report
from casestudies_lib.runner.chapters import source_of
from casestudies_lib.runner.errors import CasebookError, Failure
from casestudies_lib.runner.exercises import Exercise, exercises_of
from casestudies_lib.site.case import Case, read_case
from casestudies_lib.site.templates import render

_INSTRUCTIVE = ("uninformative", "refuted", "inconclusive", "upheld", "untested")
_DESCRIPTION = 155  # characters, as many as search engines show
_MATHJAX = ("tex-chtml.js", "output/chtml/fonts/woff-v2")
_UNUSED = (
    "**/*.map", "_static/*webpack-macros.html", "_static/locales", ".buildinfo", "objects.inv",
    "_static/vendor/fontawesome/*/js", "_static/vendor/fontawesome/**/*.ttf",
)  # fmt: skip
_INLINE_SCRIPT = re.compile(r"<script(?![^>]*\ssrc=)(?![^>]*application/json)[^>]*>(.*?)</script>", re.DOTALL)


class Staged:
    """What `publish` laid out for the book."""

    def __init__(self, folder: Path) -> None:
        """Read the cases in the order of the book."""
        self.folder = folder
        found = (read_case(each.name, each, folder / "reports") for each in (folder / "results").iterdir())
        self.cases = sorted(found, key=lambda case: case.number)

    def case(self, slug: str) -> Case | None:
        """Return the case of a slug, or None where it is not on this site."""
        return next((case for case in self.cases if case.slug == slug), None)

    def trial(self, where: str, name: str, slug: str) -> tuple[Case, Verdict] | None:
        """Return case and verdict of `Z2` or `zero_weight_head:Z2`; None where that report has no chapter yet.

        Args:
            where: what names the trial, for messages.
            name: the trial.
            slug: the chapter that is meant where `name` holds none.

        Raises:
            ReportError: there is no such report, or its chapter holds no such claim.
        """
        given, _, claim_id = name.rpartition(":")
        case = self.case(given or slug)
        if case is None and (self.folder / "reports" / f"{given}.toml").is_file():
            return None
        verdict = case and case.verdict(claim_id)
        if verdict is None:
            known = ", ".join(each.id for each in case.verdicts) if case else ", ".join(c.slug for c in self.cases)
            raise ReportError(f"{where} names the trial {name}, which does not exist; known are {known}")
        return case, verdict


@functools.cache  # one build reads one state of the folder
def staged(folder: Path) -> Staged:
    """Return what lies in the staged folder."""
    return Staged(folder)


def _landing_board(staged: Staged, *_: object) -> dict:
    reports = (parse_report(path) for path in sorted((staged.folder / "reports").glob("[!_]*.toml")))
    return {"cases": staged.cases, "waiting": [report.title for report in reports if not staged.case(report.slug)]}


def _cases(staged: Staged, *_: object) -> dict:
    return {"cases": staged.cases}


def _symptom_index(staged: Staged, *_: object) -> dict:
    rows = []
    for case in staged.cases:
        for symptom in case.report.symptoms:
            named = [(symptom.claim, symptom.suspect), *((name, None) for name in symptom.then)]
            trials = [(staged.trial(f"{case.slug}.toml: a symptom", name, case.slug), cause) for name, cause in named]
            suspects = [(*trial, cause) for trial, cause in trials if trial]
            rows.append({"case": case, "symptom": symptom, "suspects": suspects})
    return {"rows": rows}


def _exhibits(staged: Staged, _: str, lines: Sequence[str]) -> dict:
    """Each line is `slug:ID`, then what to see there."""
    parts = [line.split(maxsplit=1) for line in lines if line.strip()]
    found = [(staged.trial("an exhibit", name, ""), shows) for name, shows in parts]
    return {"exhibits": [(*trial, shows) for trial, shows in found if trial]}


def _teaching_plans(staged: Staged, *_: object) -> dict:
    return {"plans": [(case, _exercises(case), central_trials(case)) for case in staged.cases]}


def central_trials(case: Case) -> list[Verdict]:
    """Return the two trials to spend class time on: those whose verdict surprises most, in the report's order."""
    ranked = sorted(case.verdicts, key=lambda verdict: _INSTRUCTIVE.index(verdict.verdict))
    chosen = [verdict.id for verdict in ranked[:2]]
    return [verdict for verdict in case.verdicts if verdict.id in chosen]


def _exercises(case: Case) -> list[dict]:
    return [
        {"number": each.number, "kind": each.kind, "question": Markup(each.question), "wrong": Markup(each.wrong),
         "solution": Markup(_right_answer(each))}
        for each in exercises_of(case.notebook, f"{case.name}.ipynb")
    ]  # fmt: skip


def _right_answer(exercise: Exercise) -> str:
    """Return the solution as a Markdown block of code, without the line that only asks the check."""
    code = re.sub(rf"\n*^check_{exercise.number}\(.*\)\s*\Z", "", source_of(exercise.solution), flags=re.MULTILINE)
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", code))])
    return f"{fence}python\n{code.strip()}\n{fence}"


def _sweep_table(staged: Staged, *_: object) -> dict:
    sweeps = json.loads((staged.folder / "sweeps.json").read_text(encoding="utf-8"))
    return {"sweeps": [(case, sweeps[case.slug]) for case in staged.cases if case.slug in sweeps]}


def _probe_table(*_: object) -> dict:
    """Name and first paragraph of every probe that the package offers, read from its source without importing torch."""
    package, probes = Path(casestudies_lib.__file__).parent, []
    offered = (package / "probes" / "__init__.py").read_text(encoding="utf-8")
    for module, name in re.findall(r"^    from casestudies_lib\.(probes[\w.]*) import (\w+)$", offered, re.MULTILINE):
        source = (package / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")
        [function] = [node for node in ast.parse(source).body if getattr(node, "name", None) == name]
        probes.append((name, ast.get_docstring(function).split("\n\n")[0]))
    return {"probes": sorted(probes)}


def _chapter(staged: Staged, slug: str, _: object) -> dict:
    return {"case": staged.case(slug)}


def _sweep_explorer(staged: Staged, slug: str, _: object) -> dict:
    from casestudies_lib.runner.evidence import read_evidence
    from casestudies_lib.site.explorer import explorer  # Altair and pandas, only where a page needs them

    case = staged.case(slug)
    return explorer(read_evidence(slug).lines, case.report, case.provenance["parameters"])


# The template of each directive, its context, and what its page is rebuilt for, below the staged folder.
_EVERYTHING = ("results/*/*", "reports/*")
PARTS: dict[str, tuple[Callable[..., dict], tuple[str, ...]]] = {
    "landing-board.html": (_landing_board, _EVERYTHING),
    "verdict-board.md": (_cases, _EVERYTHING),
    "symptom-index.html": (_symptom_index, _EVERYTHING),
    "exhibits.html": (_exhibits, _EVERYTHING),
    "teaching-plans.md": (_teaching_plans, _EVERYTHING),
    "run-table.html": (_cases, _EVERYTHING),
    "sweep-table.html": (_sweep_table, ("sweeps.json",)),
    "probe-table.html": (_probe_table, ()),
    "chapter-header.md": (_chapter, ("results/*_{slug}/*", "reports/{slug}.toml")),
    "sweep-explorer.html": (_sweep_explorer, ("results/*_{slug}/*", "reports/{slug}.toml", "sweeps.json")),
    "downloads.html": (lambda *_: {}, ()),
}


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
