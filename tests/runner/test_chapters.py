"""Chapters are found by their slug; what cannot be used is named together with what to do."""

import pytest

from casestudies_lib.runner import chapters
from casestudies_lib.runner.chapters import ChapterError


def test_chapters_come_in_the_order_of_their_numbers_and_drafts_are_none(book):
    book.write_chapter("late", number=10)
    book.write_chapter("second", number=2)
    (book.root / "notebooks" / "_template.ipynb").write_text("{}")
    (book.root / "notebooks" / "Untitled.ipynb").write_text("{}")
    found = [(chapter.number, chapter.slug) for chapter in chapters.all_chapters()]
    assert found == [(1, "tiny"), (2, "second"), (10, "late")]


@pytest.mark.parametrize(("number", "slug"), [(1, "other"), (2, "tiny")])
def test_two_chapters_may_not_share_number_or_slug(book, number, slug):
    book.write_chapter(slug, number=number)
    with pytest.raises(ChapterError, match="two notebooks have the"):
        chapters.all_chapters()


def test_a_misspelt_chapter_gets_the_nearest_as_a_suggestion(book):
    book.write_chapter("head_routing", number=2)
    with pytest.raises(
        ChapterError, match=r"no chapter 'head_ruoting'; did you mean head_routing\? .*: tiny, head_routing"
    ):
        chapters.find_chapter("head_ruoting")


def test_a_name_like_no_other_gets_the_list_only(book):
    with pytest.raises(ChapterError, match="no chapter 'qqq'; known chapters: tiny"):
        chapters.find_chapter("qqq")


def test_the_title_is_the_first_heading(book):
    assert chapters.title_of(chapters.read_notebook(book.root / "notebooks" / "1_tiny.ipynb")) == "The tiny incident"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"cells": [', "1_tiny.ipynb is not valid JSON: .* line 1 column"),
        (b"", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[]", "no notebook of format 4"),
        (b'{"nbformat": 3, "worksheets": []}', "no notebook of format 4"),
        (b'{"nbformat": 4, "cells": ["x"]}', "no notebook of format 4"),
    ],
)
def test_a_broken_notebook_is_named(book, content, says):
    path = book.root / "notebooks" / "1_tiny.ipynb"
    path.write_bytes(content)
    with pytest.raises(ChapterError, match=says):
        chapters.read_notebook(path)


def test_claim_ids_stand_in_the_order_of_the_report(book):
    book.write_report("tiny", ("T2", "T10", "T1"))
    assert chapters.claim_ids("tiny") == ["T2", "T10", "T1"]


@pytest.mark.parametrize(
    ("content", "says"),
    [("[[claims]", "tiny.toml is not valid TOML"), ("", r"needs at least one \[\[claims\]\]"), ("claims = 3", "needs")],
)
def test_a_broken_report_is_named(book, content, says):
    (book.root / "data" / "reports" / "tiny.toml").write_text(content)
    with pytest.raises(ChapterError, match=says):
        chapters.claim_ids("tiny")


def test_a_missing_report_is_named(book):
    with pytest.raises(ChapterError, match="chapter other has no report file"):
        chapters.claim_ids("other")
