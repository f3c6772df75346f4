"""Publishing replaces a site whole or not at all, rebuilds what changed, and says what to mend."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from casestudies_lib.runner.errors import CasebookError, Mistake
from casestudies_lib.site import publish as publishing
from casestudies_lib.site.publish import MARKER, PublishError, check_address, publish, set_aside_on_failure

CHAPTER = "notebooks/1_plain_case.html"


def content_of(folder):
    """Return all files, pages without the marks by which browsers tell versions of a style sheet apart."""
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: re.sub(rb"\?v=\w+", b"", content) for name, content in files.items() if name != MARKER}


def append(path, text):
    path.write_text(path.read_text(encoding="utf-8") + text, encoding="utf-8")


@pytest.fixture
def builds(monkeypatch):
    """Replace jupyter-book by a bare front page that holds one staged page, for tests of what happens around it."""
    done = []

    def build(stage, builder):
        site = stage / "output"
        shutil.rmtree(site, ignore_errors=True)
        site.mkdir()
        (site / "index.html").write_text((stage / "book" / "contributing.md").read_text())
        done.append(builder)
        return site

    monkeypatch.setattr(publishing, "build_book", build)
    return done


def test_an_edited_book_gives_the_site_that_it_would_give_from_nothing(casebook):
    contents = casebook.root / "book" / "_toc.yml"
    whole = contents.read_text()
    contents.write_text(whole.replace("  - file: notebooks/2_hostile_case\n", ""))
    publish({"plain_case": casebook.results["plain_case"]}, casebook.site)
    assert not list(casebook.site.rglob("*hostile*"))
    contents.write_text(whole)
    append(casebook.root / "book" / "contributing.md", "\nOne more sentence.\n")
    publish(casebook.results, casebook.site)
    casebook.change("plain_case", records=lambda records: [entry | {"value": 0.0625} for entry in records])
    append(casebook.root / "data" / "evidence" / "plain_case.json", "\n")
    publish(casebook.results, casebook.site)
    found = content_of(casebook.site)
    publish(casebook.results, casebook.site, fresh=True)
    expected = content_of(casebook.site)
    assert "One more sentence." in (casebook.site / "contributing.html").read_text()
    assert "0.0625" in (casebook.site / "verdicts.html").read_text()
    differing = {name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name)}
    assert differing == set()


def test_a_book_with_faults_is_refused_by_file_and_name_each_time_until_it_is_mended(casebook):
    casebook.site.mkdir(parents=True)
    (casebook.site / "index.html").write_text("the old site")
    page = casebook.root / "book" / "glossary.md"
    sound = page.read_text(encoding="utf-8")
    faults = "\nSee [there](#no-such-target).\n\n```{exhibits}\nplain_case:P9 No such claim.\n```\n"
    append(page, faults + "\n```{exhibits}\nnowhere:P1 No such chapter.\n```\n")
    for _ in range(2):
        with pytest.raises(PublishError) as caught:
            publish(casebook.results, casebook.site)
        for part in (
            "glossary.md",
            "no-such-target",
            "plain_case:P9, which does not exist; known are P1, P2",
            "nowhere:P1",
        ):
            assert part in str(caught.value)
        assert str(casebook.root) not in str(caught.value)
        assert list(content_of(casebook.site)) == ["index.html"]
    page.write_text(sound, encoding="utf-8")
    publish(casebook.results, casebook.site)
    assert (casebook.site / CHAPTER).is_file()


def test_a_site_with_an_address_has_a_sitemap_and_previews_and_one_without_names_none(casebook, published):
    page = (published.site / CHAPTER).read_text(encoding="utf-8")
    assert not (published.site / "sitemap.xml").exists()
    assert "og:" not in page
    assert 'rel="canonical"' not in page
    publish(casebook.results, casebook.site, "https://example.org/book/")
    page = (casebook.site / CHAPTER).read_text(encoding="utf-8")
    assert f"https://example.org/book/{CHAPTER}" in (casebook.site / "sitemap.xml").read_text()
    assert f'rel="canonical" href="https://example.org/book/{CHAPTER}"' in page
    assert 'property="og:title"' in page


def test_the_published_site_carries_what_it_needs_and_little_more(published):
    files = [path for path in published.site.rglob("*") if path.is_file()]
    assert {"tex-chtml.js"} == {path.name for path in (published.site / "_static" / "mathjax").glob("*.js")}
    assert sum(path.stat().st_size for path in files) < 4_500_000  # the explorer's library included
    assert [path for path in files if path.suffix in (".map", ".ttf")] == []
    pages = {name: (published.site / name).read_text(encoding="utf-8") for name in ("index.html", CHAPTER)}
    assert {name: "tex-chtml.js" in page for name, page in pages.items()} == {"index.html": False, CHAPTER: True}
    for page in pages.values():
        assert "fontawesome/6.5.2/js" not in page
    assert re.search('<meta content="Published post-mortems of [^>]* name="description"', pages["index.html"])
    assert '<meta name="description" content="The report in our words' in pages[CHAPTER]


CHANGES = {
    "a page": lambda casebook: append(casebook.root / "book" / "contributing.md", "\nOne more sentence.\n"),
    "a script": lambda casebook: append(casebook.root / "book" / "_static" / "bets.js", "// more\n"),
    "a report": lambda casebook: append(casebook.root / "data" / "reports" / "later_case.toml", "# more\n"),
    "a new report": lambda casebook: shutil.copyfile(
        casebook.root / "data" / "reports" / "later_case.toml", casebook.root / "data" / "reports" / "_other.toml"
    ),
    "a result": lambda casebook: casebook.change("plain_case", provenance=lambda found: found | {"seconds": 1.0}),
    "a notebook": lambda casebook: append(casebook.root / "notebooks" / "1_plain_case.ipynb", "\n"),
    "evidence": lambda casebook: append(casebook.root / "data" / "evidence" / "plain_case.json", "\n"),
    "a page of the site": lambda casebook: append(casebook.site / "index.html", "something else"),
    "a lost file": lambda casebook: (casebook.site / "index.html").unlink(),
    "an added file": lambda casebook: (casebook.site / "extra.html").write_text("not ours"),
    "the marker": lambda casebook: (casebook.site / MARKER).write_text("["),
    "a package": lambda casebook: None,
    "the address": lambda casebook: None,
}


@pytest.mark.parametrize("change", [None, *CHANGES])
def test_a_site_is_built_again_exactly_when_it_would_come_out_otherwise_or_was_touched(
    casebook, builds, monkeypatch, change
):
    publish(casebook.results, casebook.site)
    if change:
        CHANGES[change](casebook)
    if change == "a package":
        installed = publishing._installed()
        monkeypatch.setattr(publishing, "_installed", lambda: [*installed, "sphinx-99.dist-info"])
    publish(casebook.results, casebook.site, "https://example.org/" if change == "the address" else None)
    assert len(builds) == (2 if change else 1)
    assert (casebook.site / "index.html").read_text() == (casebook.root / "book" / "contributing.md").read_text()
    assert sorted(path.name for path in (casebook.root / "_build").iterdir()) == ["html", "runs", "stage"]


def test_two_builds_at_once_leave_one_whole_site(casebook, builds):
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: publish(casebook.results, casebook.site, fresh=True), range(2)))
    assert (casebook.site / "index.html").is_file()
    assert (casebook.site / MARKER).is_file()
    assert sorted(path.name for path in (casebook.root / "_build").iterdir()) == ["html", "runs", "stage"]


def test_what_fails_sets_the_earlier_site_aside_unless_another_build_replaced_it(casebook, builds):
    publish(casebook.results, casebook.site)
    said = []

    def stopped_after_another_build():
        publish(casebook.results, casebook.site, fresh=True)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), set_aside_on_failure(casebook.site, said.append):
        stopped_after_another_build()
    assert (casebook.site / "index.html").is_file()
    with pytest.raises(CasebookError), set_aside_on_failure(casebook.site, said.append):
        raise CasebookError("a chapter failed")
    assert not casebook.site.exists()
    assert (casebook.site.with_name("html.previous") / "index.html").is_file()
    assert len(said) == 1
    assert "html.previous" in said[0]


def refused(casebook) -> str:
    with pytest.raises(PublishError) as caught:
        publish(casebook.results, casebook.site)
    assert not casebook.site.exists()
    return str(caught.value)


def test_contents_and_results_that_differ_are_refused_with_the_line_to_add_or_take_out(casebook, builds):
    contents = casebook.root / "book" / "_toc.yml"
    whole = contents.read_text()
    contents.write_text(whole.replace("  - file: notebooks/2_hostile_case\n", ""))
    assert "add `- file: notebooks/2_hostile_case`" in refused(casebook)
    contents.write_text("format: [jb-book\n")
    assert "_toc.yml is not valid YAML" in refused(casebook)
    contents.write_text(whole)
    del casebook.results["plain_case"]
    assert "lists 1_plain_case without a result" in refused(casebook)


@pytest.mark.parametrize("name", ["notebook.ipynb", "verdicts.json", "provenance.json"])
def test_a_result_without_one_of_its_files_is_refused(casebook, builds, name):
    (casebook.results["plain_case"] / name).unlink()
    assert name in refused(casebook)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("(p3)=", "", "no target for P3; write `(p3)=`"),
        ("# Case", "Case", "1_plain_case.ipynb must start with a Markdown cell"),
    ],
)
def test_a_chapter_that_lacks_what_its_page_needs_is_refused_with_what_to_write(casebook, builds, old, new, says):
    casebook.change("plain_case", notebook=lambda found: json.loads(json.dumps(found).replace(old, new)))
    assert says in refused(casebook)


@pytest.mark.parametrize(
    ("kind", "content", "says"),
    [
        ("text/html", "<script>document.title = 1</script>", "the HTML element 'script'"),
        ("application/javascript", "alert(1)", "shows application/javascript; allowed: "),
        ("text/plain", "token: a-secret-value", "the value of the environment variable SITE_TOKEN"),
        ("text/plain", "read /home/someone/records.csv", "a folder of one machine"),
    ],
)
def test_an_output_that_no_page_may_hold_is_refused(casebook, builds, monkeypatch, kind, content, says):
    monkeypatch.setenv("SITE_TOKEN", "a-secret-value")

    def show(notebook):
        notebook["cells"][3]["outputs"] = [{"output_type": "display_data", "data": {kind: content}, "metadata": {}}]
        return notebook

    casebook.change("plain_case", notebook=show)
    message = refused(casebook)
    assert message.startswith("1_plain_case.ipynb may not be published: ")
    assert says in message
    assert "a-secret-value" not in message


def test_a_page_that_tells_of_this_machine_is_refused_wherever_that_comes_from(casebook, builds):
    append(casebook.root / "book" / "contributing.md", f"\nSee {casebook.root}/book/index.md.\n")
    assert "index.html would publish the folder of this casebook" in refused(casebook)


def test_a_build_that_does_not_end_is_given_up(casebook, monkeypatch):
    monkeypatch.setattr(publishing, "_TIME_LIMIT", 0.05)
    assert "longer than 0.05 s" in refused(casebook)


@pytest.mark.parametrize("address", ["example.org", "ftp://example.org", "https://", "https://example.org/?a=1"])
def test_an_address_that_no_site_can_have_is_refused(address):
    with pytest.raises(Mistake, match="https://host/path/"):
        check_address(address)
    assert check_address("https://example.org/book") == "https://example.org/book/"


def test_a_build_in_which_nothing_changed_imports_none_of_the_heavy_packages(casebook, builds):
    publish(casebook.results, casebook.site)
    code = (
        "import sys, pathlib; from casestudies_lib.site.publish import publish; from casestudies_lib import paths\n"
        "runs = paths.build() / 'runs'\n"
        "publish({each.name: each for each in runs.iterdir()}, paths.build() / 'html')\n"
        "heavy = {'torch', 'pandas', 'matplotlib', 'sphinx', 'jupyter_book', 'altair'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], env=os.environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def casebook_commands(text: str) -> list[str]:
    return re.findall(r"\.venv/bin/casebook ([^\n#]+)", text)


def test_every_casebook_command_of_a_workflow_exists_with_its_options():
    folder = Path(__file__).resolve().parents[2] / ".github" / "workflows"
    commands = [line for path in sorted(folder.glob("*.yml")) for line in casebook_commands(path.read_text())]
    assert any(line.startswith("evidence check") for line in commands)
    for line in commands:
        words = [*shlex.split(line.replace("${{ steps.pages.outputs.base_url }}", "https://example.org")), "--help"]
        done = subprocess.run([sys.executable, "-m", "casestudies_lib.cli", *words], capture_output=True, text=True)
        assert done.returncode == 0, (line, done.stderr)


def test_the_workflow_that_publishes_names_the_address_of_its_pages_and_prints_the_book():
    path = Path(__file__).resolve().parents[2] / ".github" / "workflows" / "publish.yml"
    steps = yaml.safe_load(path.read_text())["jobs"]["book"]["steps"]
    [pages] = [step for step in steps if "configure-pages" in step.get("uses", "")]
    [build] = [step["run"] for step in steps if "casebook build" in step.get("run", "")]
    assert f'--base-url "${{{{ steps.{pages["id"]}.outputs.base_url }}}}"' in build
    assert "--pdf" in build
