"""Publishing replaces a site whole or not at all, and says what to mend."""

import json
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from casestudies_lib.runner import results
from casestudies_lib.runner.errors import Mistake
from casestudies_lib.site import chapter, stage, unchanged
from casestudies_lib.site import publish as publishing
from casestudies_lib.site.address import check_address
from casestudies_lib.site.publish import MARKER, PublishError, publish

CHAPTER = "notebooks/1_plain_case.html"
NEW_PAGE = '<meta charset="utf-8"><p>the new site</p>'


def content_of(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def old_site(casebook):
    """An earlier site, in the place where the new one goes."""
    casebook.site.mkdir(parents=True)
    (casebook.site / MARKER).write_text("{}")
    (casebook.site / "index.html").write_text("the old site")
    return content_of(casebook.site)


def refused(casebook, old_site) -> str:
    """Publish, expect a refusal that leaves everything as it was, and return its message."""
    with pytest.raises(PublishError) as caught:
        publish(casebook.results, casebook.site)
    assert content_of(casebook.site) == old_site
    assert list((casebook.root / "_build").glob("stage/*")) == []
    assert list((casebook.root / "_build").glob(".*")) == []
    return str(caught.value)


def test_a_broken_cross_reference_is_refused_by_file_and_line(casebook, old_site):
    page = casebook.root / "book" / "glossary.md"
    page.write_text(page.read_text() + "\nSee [there](#no-such-target).\n")
    message = refused(casebook, old_site)
    assert "glossary.md" in message
    assert "no-such-target" in message
    assert str(casebook.root) not in message.replace(str(casebook.site), "")


@pytest.fixture
def builds(monkeypatch):
    """Replace the build by one that makes a bare front page, for tests of what happens before and after."""

    def build(folder):
        site = folder / "_output"
        site.mkdir()
        (site / "index.html").write_text(NEW_PAGE)
        return site

    monkeypatch.setattr(publishing, "_build", build)


def test_the_new_site_takes_the_place_of_the_old_one(casebook, old_site, builds):
    before = {slug: content_of(folder) for slug, folder in casebook.results.items()}
    assert publish(casebook.results, casebook.site) == casebook.site
    assert "the new site" in (casebook.site / "index.html").read_text()
    assert json.loads((casebook.site / MARKER).read_text())["chapters"] == ["plain_case", "hostile_case"]
    assert {slug: content_of(folder) for slug, folder in casebook.results.items()} == before
    assert sorted(path.name for path in (casebook.root / "_build").iterdir()) == ["figures", "html", "runs", "stage"]


@pytest.fixture
def built(casebook, builds):
    """Publish once, and give tests a function that publishes again and says whether the site was built for it."""
    publish(casebook.results, casebook.site)

    def again(**options) -> bool:
        before = casebook.site.stat().st_ino
        publish(casebook.results, casebook.site, **options)
        return casebook.site.stat().st_ino != before

    return again


def test_a_site_that_would_come_out_the_same_stays(built):
    assert not built()
    assert built(fresh=True)


def edit_a_page(casebook, monkeypatch):
    page = casebook.root / "book" / "contributing.md"
    page.write_text(page.read_text() + "\nOne more sentence.\n")


def add_a_report(casebook, monkeypatch):
    reports = casebook.root / "data" / "reports"
    text = (reports / "plain_case.toml").read_text()
    (reports / "later_case.toml").write_text(text.replace("plain_case", "later_case"))


def damage_the_site(casebook, monkeypatch):
    (casebook.site / "index.html").write_text("something else")


def lose_a_file(casebook, monkeypatch):
    next(path for path in casebook.site.rglob("*.html")).unlink()


def add_a_file(casebook, monkeypatch):
    (casebook.site / "extra.html").write_text("not ours")


def damage_the_marker(casebook, monkeypatch):
    (casebook.site / MARKER).write_text("[")


def upgrade_a_package(casebook, monkeypatch):
    monkeypatch.setattr(unchanged, "package_parts", lambda: {"package sphinx": "99"})


def edit_the_runner(casebook, monkeypatch):
    digest = unchanged.tree_digest
    monkeypatch.setattr(unchanged, "tree_digest", lambda folder, pattern="*": digest(folder, pattern) + pattern[1:])


CHANGES = (
    edit_a_page, add_a_report, damage_the_site, lose_a_file, add_a_file, damage_the_marker, upgrade_a_package,
    edit_the_runner,
)  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_site_that_would_come_out_otherwise_or_was_touched_is_built_again(casebook, built, monkeypatch, change):
    change(casebook, monkeypatch)
    assert built()


def test_a_site_that_stays_is_still_searched_for_secrets(casebook, built, monkeypatch):
    monkeypatch.setenv("SOME_TOKEN", "the new site")
    with pytest.raises(PublishError, match="SOME_TOKEN"):
        built()


def test_a_link_that_sphinx_cannot_see_is_refused(casebook, old_site, builds, monkeypatch):
    monkeypatch.setattr(publishing, "broken_links", lambda site: ["index.html: x.html is no file of the site"])
    assert "x.html is no file of the site" in refused(casebook, old_site)


def test_a_swap_that_fails_half_way_puts_the_old_site_back(casebook, old_site, builds, monkeypatch):
    rename = type(casebook.site).rename

    def fails_for_the_new_site(self, target):
        if self.name == "new":
            raise OSError("no")
        return rename(self, target)

    monkeypatch.setattr(type(casebook.site), "rename", fails_for_the_new_site)
    with pytest.raises(OSError, match="no"):
        publish(casebook.results, casebook.site)
    assert content_of(casebook.site) == old_site


def test_two_swaps_at_once_leave_one_whole_site(casebook, old_site, monkeypatch):
    """Each step is made slow, so that without a lock the two would meet between them."""
    rename = type(casebook.site).rename

    def slow(self, target):
        time.sleep(0.1)
        return rename(self, target)

    def swap(name):
        (casebook.root / name).mkdir()
        (casebook.root / name / "index.html").write_text(name)
        publishing._move_into_place(casebook.root / name, casebook.site)

    monkeypatch.setattr(type(casebook.site), "rename", slow)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(swap, ["first", "second"]))
    assert (casebook.site / "index.html").read_text() in ("first", "second")
    assert [path.name for path in (casebook.root / "_build").iterdir() if path.name.startswith(".")] == []


def test_a_folder_that_is_no_site_is_never_replaced(casebook, builds):
    casebook.site.mkdir(parents=True)
    (casebook.site / "thesis.txt").write_text("years of work")
    with pytest.raises(PublishError, match="is no site of the casebook"):
        publish(casebook.results, casebook.site)
    assert (casebook.site / "thesis.txt").read_text() == "years of work"


def test_contents_that_promise_a_chapter_without_a_result_are_refused(casebook, old_site):
    del casebook.results["plain_case"]
    assert "lists 1_plain_case without a result" in refused(casebook, old_site)


def test_a_result_that_the_contents_do_not_list_is_refused_with_the_line_to_add(casebook, old_site):
    contents = casebook.root / "book" / "_toc.yml"
    contents.write_text(contents.read_text().replace("  - file: notebooks/2_hostile_case\n", ""))
    assert "add `- file: notebooks/2_hostile_case`" in refused(casebook, old_site)


def test_a_trial_without_a_target_is_refused_with_the_target_to_write(casebook, old_site, monkeypatch):
    monkeypatch.setattr(chapter, "source_of", lambda cell: "".join(cell["source"]).replace("(p3)=", ""))
    assert "no target for P3; write `(p3)=`" in refused(casebook, old_site)


def test_a_chapter_without_a_title_is_refused_by_name(casebook, old_site, monkeypatch):
    monkeypatch.setattr(chapter, "source_of", lambda cell: "".join(cell["source"]).replace("# Case", "Case"))
    assert "1_plain_case.ipynb must start with a Markdown cell" in refused(casebook, old_site)


def test_a_report_in_preparation_that_is_wrong_is_refused_by_name(casebook, old_site):
    (casebook.root / "data" / "reports" / "half_written.toml").write_text('slug = "half_written"\n')
    assert "half_written.toml" in refused(casebook, old_site)


def test_contents_that_are_no_yaml_are_refused(casebook, old_site):
    (casebook.root / "book" / "_toc.yml").write_text("format: [jb-book\n")
    assert "_toc.yml is not valid YAML" in refused(casebook, old_site)


def test_a_bibliography_that_cannot_be_read_is_refused_with_its_line(casebook, old_site):
    (casebook.root / "book" / "references.bib").write_text("@misc{first,\n  title = {One},\n\n@misc{second,\n}\n")
    assert "syntax error in line 4" in refused(casebook, old_site)


def test_a_build_that_does_not_end_is_given_up(casebook, old_site, monkeypatch):
    monkeypatch.setattr(publishing, "TIME_LIMIT", 0.05)
    assert "longer than 0.05 s" in refused(casebook, old_site)


def test_a_missing_math_package_is_named(casebook, old_site, monkeypatch):
    monkeypatch.setattr(stage.importlib.util, "find_spec", lambda name: None)
    assert "sphinx-mathjax-offline is not installed" in refused(casebook, old_site)


def test_the_message_of_a_build_that_fails_without_a_warning_is_the_end_of_what_it_said(tmp_path):
    done = subprocess.CompletedProcess([], 1, stdout="", stderr="\x1b[31mTraceback\x1b[0m\nKeyError: 'x'\n")
    assert publishing._complaints(done, tmp_path) == "Traceback\nKeyError: 'x'"


def show(casebook, **data):
    """Let the plain chapter show this output, under a seal that fits."""
    folder = casebook.results["plain_case"]
    result = results.read_result(folder)
    notebook = json.loads((folder / "notebook.ipynb").read_text())
    notebook["cells"][2]["outputs"] = [{"output_type": "display_data", "data": data, "metadata": {}}]
    with results.scratch_folder(folder) as scratch:
        results.write_result(folder, scratch, json.dumps(notebook).encode(), result.verdicts, result.provenance)


@pytest.mark.parametrize(
    ("kind", "content", "says"),
    [
        ("text/html", "<script>document.title = 1</script>", "the HTML element 'script'"),
        ("text/html", ["<img src=x ", "onerror=alert(1)>"], "the attribute 'onerror'"),
        ("text/markdown", "<iframe src='x'></iframe>", "the HTML element 'iframe'"),
        ("application/javascript", "alert(1)", "shows application/javascript; allowed: "),
        ("text/plain", "token: a-secret-value", "the value of the environment variable SITE_TOKEN"),
        ("text/plain", "read /home/someone/records.csv", "a folder of one machine"),
    ],
)
def test_an_output_that_no_page_may_hold_is_refused(casebook, old_site, monkeypatch, kind, content, says):
    monkeypatch.setenv("SITE_TOKEN", "a-secret-value")
    show(casebook, **{kind: content})
    message = refused(casebook, old_site)
    assert message.startswith("1_plain_case.ipynb may not be published: ")
    assert says in message
    assert "a-secret-value" not in message


def test_a_page_that_tells_of_this_machine_is_refused_wherever_that_comes_from(casebook, old_site, monkeypatch):
    page = f'<html lang="en"><head><meta charset="utf-8"></head><p>{casebook.root}/book/index.md</p></html>'

    def build(stage):
        (stage / "_output").mkdir()
        (stage / "_output" / "index.html").write_text(page)
        return stage / "_output"

    monkeypatch.setattr(publishing, "_build", build)
    assert "index.html would publish the folder of this casebook" in refused(casebook, old_site)


def test_header_and_math_stand_in_the_published_chapter_and_not_in_the_download(published):
    page = (published.site / CHAPTER).read_text(encoding="utf-8")
    download = published.site / "downloads" / "1_plain_case.ipynb"
    assert page.index("</h1>") < page.index('class="case-header"') < page.index("The report in our words")
    assert download.read_bytes() == (published.results["plain_case"] / "notebook.ipynb").read_bytes()
    assert 'id="p1"' in page


def test_the_published_site_carries_what_it_needs_and_little_more(published):
    files = [path for path in published.site.rglob("*") if path.is_file()]
    assert {"tex-chtml.js"} == {path.name for path in (published.site / "_static" / "mathjax").glob("*.js")}
    assert sum(path.stat().st_size for path in files) < 4_500_000  # the explorer's library included
    assert [path for path in files if path.suffix in (".map", ".ttf")] == []
    loads_mathjax = {name: "tex-chtml.js" in (published.site / name).read_text() for name in ("index.html", CHAPTER)}
    assert loads_mathjax == {"index.html": False, CHAPTER: True}


def test_a_site_without_an_address_names_none_and_one_with_it_has_a_sitemap_and_previews(casebook, published):
    page = (published.site / CHAPTER).read_text(encoding="utf-8")
    assert not (published.site / "sitemap.xml").exists()
    assert "og:" not in page
    assert 'rel="canonical"' not in page
    publish(casebook.results, casebook.site, "https://example.org/book/")
    page = (casebook.site / CHAPTER).read_text(encoding="utf-8")
    assert f"https://example.org/book/{CHAPTER}" in (casebook.site / "sitemap.xml").read_text()
    assert f'rel="canonical" href="https://example.org/book/{CHAPTER}"' in page
    assert 'property="og:title"' in page


@pytest.mark.parametrize("address", ["example.org", "ftp://example.org", "https://", "https://example.org/?a=1"])
def test_an_address_that_is_none_is_refused(address):
    with pytest.raises(Mistake, match="https://host/path/"):
        check_address(address)
