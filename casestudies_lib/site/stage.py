"""Lays out the folder that jupyter-book builds the site from; a file whose content stays the same is left alone."""

import ast
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import yaml

import casestudies_lib
from casestudies_lib import paths
from casestudies_lib.runner import evidence
from casestudies_lib.runner.chapters import find_chapter
from casestudies_lib.runner.errors import Failure
from casestudies_lib.site.case import Case, read_case
from casestudies_lib.site.chapter import page_notebook
from casestudies_lib.site.figures import FOLDER, figures_in
from casestudies_lib.site.slides import slide_file

RESULT = ("notebook.ipynb", "verdicts.json", "provenance.json")
_ADDRESSED = {  # settings of the extensions that need to know where the site will be
    "sitemap_url_scheme": "{link}",
    "sitemap_show_lastmod": False,
    "ogp_enable_meta_description": False,  # the pages have one already
    "ogp_social_cards": {"enable": False},  # a picture would have to be drawn for each page
}


def stage_book(folder: Path, results: Mapping[str, Path], address: str | None, pdf: bool) -> None:
    """Lay out the book's pages, the results that directives read, the chapters, and files that go onto the site as is.

    Raises:
        CasebookError: contents and results differ, a chapter or its result is wrong, or evidence is damaged.
        ReportError: a report file is wrong.
    """
    cases = [read_case(find_chapter(slug).path.stem, found) for slug, found in results.items()]
    cases.sort(key=lambda case: case.number)
    _check_contents(cases)
    wanted = _files_in(paths.book(), "") | _files_in(paths.reports(), "reports/")
    wanted["_config.yml"] = _settings(address, pdf)
    sweeps = {slug: _sweep(slug) for slug in evidence.slugs() if slug in results}
    wanted |= {"sweeps.json": _json(sweeps), "probes.json": _json(_probes())}
    for case in cases:
        wanted |= _chapter_files(case, swept=case.slug in sweeps)
    records = [verdict.model_dump(mode="json") for case in cases for verdict in case.verdicts]
    wanted["extra/downloads/verdicts.json"] = _json(records)
    _write(folder, wanted)


def _check_contents(cases: list[Case]) -> None:
    """Refuse contents that promise a chapter without a result, and results that the contents do not list."""
    path = paths.book() / "_toc.yml"
    try:
        listed = _chapters_in(yaml.safe_load(path.read_text(encoding="utf-8")))
    except yaml.YAMLError as error:
        raise Failure(f"_toc.yml is not valid YAML: {error}") from error
    present = [case.name for case in cases]
    if missing := [name for name in listed if name not in present]:
        raise Failure(f"_toc.yml lists {', '.join(missing)} without a result; run it or take the line out")
    if unlisted := [name for name in present if name not in listed]:
        lines = ", ".join(f"`- file: notebooks/{name}`" for name in unlisted)
        raise Failure(f"_toc.yml does not list {', '.join(unlisted)}; add {lines}")


def _chapters_in(entry: object) -> list[str]:
    if isinstance(entry, dict):
        name = str(entry.get("file", "")).removesuffix(".ipynb")
        own = [name.removeprefix("notebooks/")] if name.startswith("notebooks/") else []
        return own + _chapters_in(list(entry.values()))
    return [name for each in entry for name in _chapters_in(each)] if isinstance(entry, list) else []


def _files_in(folder: Path, prefix: str) -> dict[str, bytes]:
    paths_in = (path for path in folder.rglob("*") if path.is_file())
    return {prefix + path.relative_to(folder).as_posix(): path.read_bytes() for path in paths_in}


def _settings(address: str | None, pdf: bool) -> bytes:
    """Return the book's settings, with what a sitemap, link previews and links to PDFs need where they are wanted."""
    content = (paths.book() / "_config.yml").read_bytes()
    if not address and not pdf:
        return content
    settings = yaml.safe_load(content)
    sphinx = settings["sphinx"]["config"] | {"casebook_pdf": pdf}
    if address:
        settings["html"]["baseurl"] = address
        sphinx |= _ADDRESSED | {"ogp_site_url": address, "html_baseurl": address}
        sphinx["extensions"] = [*sphinx["extensions"], "sphinx_sitemap", "sphinxext.opengraph"]
    settings["sphinx"]["config"] = sphinx
    return yaml.safe_dump(settings, sort_keys=False).encode()


def _sweep(slug: str) -> dict:
    """Return what the page for those who run the book says of a chapter's evidence."""
    provenance = evidence.read_evidence(slug).provenance
    changed = evidence.staleness(find_chapter(slug), provenance)
    return {
        "command": provenance["command"],
        "rows": provenance["rows"],
        "made_with": provenance.get("made_with", {}),
        "changed": changed,
        "sha256": provenance["sha256"],  # so that explorers are made again with other lines
    }


def _probes() -> list[tuple[str, str]]:
    """Return name and first paragraph of each probe that the package offers, from its source, without loading torch."""
    package, probes = Path(casestudies_lib.__file__).parent, []
    offered = (package / "probes" / "__init__.py").read_text(encoding="utf-8")
    for module, name in re.findall(r"^    from casestudies_lib\.(probes[\w.]*) import (\w+)$", offered, re.MULTILINE):
        source = (package / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")
        [function] = [node for node in ast.parse(source).body if getattr(node, "name", None) == name]
        probes.append((name, ast.get_docstring(function).split("\n\n")[0]))
    return sorted(probes)


def _chapter_files(case: Case, *, swept: bool) -> dict[str, bytes]:
    files = {f"results/{case.name}/{name}": (case.folder / name).read_bytes() for name in RESULT}
    files[f"notebooks/{case.name}.ipynb"] = _json(page_notebook(case, swept=swept))
    files |= {f"extra/{FOLDER}/{figure.file}": figure.png for _, figure in figures_in(case.notebook)}
    files[f"extra/{case.slides}"] = slide_file(case).encode()
    files[f"extra/downloads/{case.name}.ipynb"] = files[f"results/{case.name}/notebook.ipynb"]
    files[f"extra/downloads/{case.name}.verdicts.json"] = files[f"results/{case.name}/verdicts.json"]
    return files


def _json(value: object) -> bytes:
    return json.dumps(value, indent=1).encode()


def _write(folder: Path, wanted: Mapping[str, bytes]) -> None:
    """Make a folder hold exactly these files."""
    for path in sorted(folder.rglob("*"), reverse=True):
        name = path.relative_to(folder).as_posix()
        if path.is_dir():
            if not any(path.iterdir()):
                path.rmdir()
        elif name not in wanted:
            path.unlink()
    for name, content in wanted.items():
        path = folder / name
        if not path.is_file() or path.read_bytes() != content:
            if path.is_dir():
                shutil.rmtree(path)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
