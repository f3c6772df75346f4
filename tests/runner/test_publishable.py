"""Only known kinds of data reach a page, HTML that runs and fetches nothing, and no trace of a machine or a person."""

import html
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casestudies_lib import paths
from casestudies_lib.records import VERDICTS_MIME
from casestudies_lib.runner.publishable import private_traces, private_traces_in, unpublishable, unsafe_html

HARMLESS = [
    '<div class="casebook-table" tabindex="0" role="region" aria-label="x"><table><caption>A &amp; B</caption><tr>'
    '<th scope="col">a &lt; b</th></tr></table></div>',
    '<img class="casebook-figure" style="max-width:100%" alt="a message" src="data:image/png;base64,iVBOR/+=">',
    '<a href="https://example.org/a?b=c&amp;d#e">x</a> <a href="#m1">y</a> <a href="../a.html">z</a>',
    "<style scoped>.dataframe td { vertical-align: top; }</style><table border='1' class='dataframe'></table>",
    "one<br>two, 3 < 4 & 5 > 4, fish &chips",
]
HOSTILE = [
    "<script>alert(1)</script>", "<SCRIPT SRC=//example.invalid/x.js></SCRIPT>", "<scr\x00ipt>alert(1)</script>",
    "<img src=x onerror=alert(1)>", '<img src="data:image/png;base64,AAAA" onload="alert(1)">',
    "<img src='https://example.invalid/pixel.png'>", "<img src='data:text/html,<script>1</script>'>",
    "<img srcset='https://example.invalid/pixel.png 1x'>", "<svg onload=alert(1)></svg>", "<svg/onload=alert(1)>",
    "<math><mi xlink:href='javascript:alert(1)'>x</mi></math>", "<iframe srcdoc='<script>1</script>'></iframe>",
    "<object data='x.swf'></object>", "<embed src='x.swf'>", "<base href='https://example.invalid/'>",
    "<link rel='stylesheet' href='https://example.invalid/x.css'>", "<meta http-equiv='refresh' content='0;url=x'>",
    "<form action='https://example.invalid'><input name=a></form>", "<button formaction='javascript:1'>x</button>",
    "<a href='javascript:alert(1)'>x</a>", "<a href='java\tscript:alert(1)'>x</a>", "<a href=' javascript:1'>x</a>",
    "<a href='java&#115;cript:alert(1)'>x</a>", "<a href='data:text/html,x'>x</a>", "<a href='vbscript:1'>x</a>",
    "<a href='http://[x'>x</a>", "<div style='background:url(https://example.invalid/x)'>x</div>",
    "<div style='width:expression(alert(1))'>x</div>", "<style>@import 'https://example.invalid/x.css';</style>",
    "<style>td { background: u\\rl(x) }</style>", "<div onclick='alert(1)'>x</div>", "<p data-bs-html='true'>x</p>",
    "<video autoplay src=x></video>", "<template><script>1</script></template>", "<noscript><p title='</noscript>'>",
    "<!-- --!><script>alert(1)</script> -->", "<!doctype html>", "<![CDATA[<script>1</script>]]>",
    "<?xml version='1'?>",
    "<x-y>custom</x-y>", "</div></div>leaves its box", "<img src=x onerror=alert(1) ", "text <script", "<a href='x",
]  # fmt: skip


def cell_showing(kind, data, **metadata):
    output = {"output_type": "display_data", "data": {kind: data}, "metadata": {}}
    return {"cell_type": "code", "source": "x", "metadata": metadata, "outputs": [output], "execution_count": 1}


def problems(*cells):
    return unpublishable({"cells": list(cells)})


@pytest.mark.parametrize("text", HARMLESS)
def test_what_the_casebook_and_pandas_show_is_allowed(text):
    assert unsafe_html(text) == []


@pytest.mark.parametrize("text", HOSTILE)
def test_what_runs_fetches_or_leaves_its_place_is_refused(text):
    assert unsafe_html(text)
    assert problems(cell_showing("text/html", [text]))


@pytest.mark.parametrize("text", ["<script>alert(1)</script>", "x <img src=x onerror=1> y", "![x](https://e.invalid/)"])
def test_html_and_fetches_in_a_markdown_output_are_refused(text):
    assert problems(cell_showing("text/markdown", text))


@pytest.mark.parametrize("text", ["`<script>` is *shown*, a < b", "[link](https://example.org)", "    <script>as code"])
def test_markdown_that_only_shows_markup_is_allowed(text):
    assert problems(cell_showing("text/markdown", text)) == []


@given(st.text())
def test_escaped_text_is_always_allowed(text):
    assert unsafe_html(f"<p>{html.escape(text)}</p>") == []


@given(st.text(), st.sampled_from(["<script>", "<img onerror=x>", "<iframe>", "<a href=javascript:x>"]), st.text())
def test_no_text_around_it_hides_a_hostile_element(before, element, after):
    assert unsafe_html(before + element + after)


@pytest.mark.parametrize(
    "kind",
    ["application/javascript", "text/javascript", "application/vnd.jupyter.widget-view+json", "image/svg+xml",
     "application/pdf", "application/vnd.vegalite.v5+json", "text/latex", "TEXT/HTML", ""],
)  # fmt: skip
def test_a_kind_of_data_that_is_not_on_the_list_is_refused_by_cell_and_name(kind):
    (problem,) = problems(cell_showing(kind, "x"))
    assert problem.startswith("code cell 1 (`x`) shows ")
    assert kind in problem
    assert "allowed: image/jpeg, image/png, text/html" in problem


def test_records_are_known():
    assert problems(cell_showing(VERDICTS_MIME, [{"id": "T1"}])) == []


def test_a_raw_cell_is_refused():
    assert "is a raw cell" in problems({"cell_type": "raw", "source": "<script>1</script>", "metadata": {}})[0]


def test_a_cell_may_not_choose_how_its_outputs_are_read():
    """MyST in place of plain Markdown would bring directives, `raw` and `include` among them."""
    assert problems(cell_showing("text/plain", "x", mystnb={"image": {"alt": "a message"}})) == []
    assert "markdown_format" in problems(cell_showing("text/plain", "x", mystnb={"markdown_format": "myst"}))[0]


ENVIRONMENT = {
    "HF_TOKEN": "abcdefgh12345678",
    "DB_PASSWORD": "short",
    "EDITOR": "a-long-enough-value",
    "LANG": "C.UTF-8",
}


def traces(text):
    return private_traces(text, ENVIRONMENT)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("File /home/someone/project/x.py, line 3", "a folder of one machine (/home/someone)"),
        ("saved to /Users/someone/x", "/Users/someone"),
        ('"C:\\\\Users\\\\someone\\\\x"', "a folder of one machine"),
        ("C:\\Users\\someone\\x", "a folder of one machine"),
        ("/tmp/ipykernel_1234/567.py:1: UserWarning", "/tmp/ipykernel_1234"),
        ("at /root/.cache/x", "/root/.cache"),
        ("token abcdefgh12345678!", "the value of the environment variable HF_TOKEN"),
        ("ghp_" + "a1" * 18, "a token of a code host"),
        ("github_pat_" + "a" * 30, "a token of a code host"),
        ("glpat-" + "a" * 20, "a token of a code host"),
        ("hf_" + "aB" * 16, "a Hugging Face token"),
        ("AKIA" + "A1" * 8, "an AWS access key"),
        ("xoxb-1234567890-abc", "an API key"),
        ("key sk-" + "a" * 30, "an API key"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----", "a private key"),
        ("eyJhbGciOiJIUzI1.eyJzdWIiOiIxMjM0.x", "a signed web token"),
        ("https://user:pass@example.org/simple", "a password in an address"),
    ],
)
def test_each_trace_is_found_and_a_secret_is_not_repeated(text, says):
    (found,) = traces(f"before\n{text}\nafter")
    assert says in found
    assert "abcdefgh" not in found


def test_the_folders_of_this_machine_are_found(monkeypatch):
    monkeypatch.setenv("CASEBOOK_ROOT", "/srv/book")
    monkeypatch.setattr(Path, "home", lambda: Path("/data/people/someone"))
    assert traces("see /srv/book/notebooks/1.ipynb") == ["the folder of this casebook"]
    assert traces("see /data/people/someone/.config") == ["the folder of your home"]
    assert traces("see /srv/bookkeeping and /data/people") == []


@pytest.mark.parametrize(
    "text",
    [
        "the root of the tree, /root mean square/, a/home/b", "https://example.org/home/page", "a short word",
        "a-long-enough-value", "`make book` leaves the site in _build/html", "and/or", "mean square: 3/4",
        "task-sk-learn", "git@github.com:owner/name", "http://127.0.0.1:8000/", "",
    ],
)  # fmt: skip
def test_what_anybody_may_read_is_left_alone(text):
    assert traces(text) == []


@given(st.recursive(st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_a_secret_is_found_wherever_it_stands_in_a_notebook(value):
    assert "a private key" in private_traces_in([value, {"x": ["-----BEGIN PRIVATE KEY-----"]}])


def test_a_text_in_json_is_read_as_text_and_not_as_its_escapes():
    """In the file, the letter n of a line's end stands before the path."""
    assert private_traces(json.dumps("one\n/home/someone/x"), {}) == []
    assert private_traces_in({"text": "one\n/home/someone/x"})


def test_the_root_of_this_repository_is_found():
    assert private_traces(f'"{paths.root() / "notebooks" / "x"}"', {})
