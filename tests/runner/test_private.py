"""Folders of a machine and secrets are found, and named without being repeated."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casestudies_lib import paths
from casestudies_lib.runner.private import private_traces, private_traces_in

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
        ("ghp_" + "a1" * 18, "a GitHub token"),
        ("github_pat_" + "a" * 30, "a GitHub token"),
        ("glpat-" + "a" * 20, "a GitLab token"),
        ("hf_" + "aB" * 16, "a Hugging Face token"),
        ("AKIA" + "A1" * 8, "an AWS access key"),
        ("xoxb-1234567890-abc", "a Slack token"),
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
