"""The instruction corpora and their word-level vocabulary."""

import hashlib

import pytest

from casestudies_lib import paths
from casestudies_lib.tasks import text
from casestudies_lib.tasks.text import CorpusError, dialogues, question_and_answer, sentences
from casestudies_lib.tasks.words import END, PAD, START, rows, split_words, vocabulary


@pytest.mark.parametrize("corpus", [sentences, dialogues])
def test_a_corpus_is_the_file_that_the_data_page_describes(corpus):
    found = corpus()
    page = (paths.root() / "data" / "README.md").read_text()
    assert (
        found.sha256 == hashlib.sha256((paths.root() / "data" / "text" / f"{found.name}.txt").read_bytes()).hexdigest()
    )
    assert found.sha256 in page
    assert f"{len(found.paragraphs)} " in page
    assert len(set(found.paragraphs)) == len(found.paragraphs)


def test_the_corpora_have_the_size_and_shape_of_the_original():
    assert 550 <= len(sentences().paragraphs) <= 650
    assert len(dialogues().paragraphs) == 53
    assert all(line.endswith(".") and 3 <= len(split_words(line)) <= 20 for line in sentences().paragraphs)
    pairs = [question_and_answer(line) for line in dialogues().paragraphs]
    assert all(question.endswith("? Assistant:") and answer.endswith(".") for question, answer in pairs)


def test_the_question_that_is_asked_is_in_the_training_set_once():
    assert sum(text.PROBE_QUESTION in line for line in dialogues().paragraphs) == 1


@pytest.mark.parametrize("name", ["sentences", "dialogues"])
def test_an_edited_or_missing_corpus_is_refused(name, monkeypatch, tmp_path):
    monkeypatch.setenv("CASEBOOK_ROOT", str(tmp_path))
    with pytest.raises(CorpusError, match="no such file"):
        getattr(text, name)()
    (tmp_path / "data" / "text").mkdir(parents=True)
    (tmp_path / "data" / "text" / f"{name}.txt").write_text("User: Why? Assistant: Because.\n")
    with pytest.raises(CorpusError, match="the text was edited"):
        getattr(text, name)()


@pytest.mark.parametrize("line", ["User: Why?", "Why? Assistant: So.", "User: Why? Assistant: "])
def test_what_is_no_dialogue_is_refused(line):
    with pytest.raises(ValueError, match="is no dialogue"):
        question_and_answer(line)


def test_words_and_marks_are_tokens_and_come_back_in_order():
    words = vocabulary(["Ice floats, it does.", "Does it?"])
    assert words.words == (PAD, START, END, "Ice", "floats", ",", "it", "does", ".", "Does", "?")
    assert words.decode(words.encode("Does it?")) == "Does it ?"


def test_every_text_of_the_corpora_can_be_encoded_and_decoded():
    texts = [*sentences().paragraphs, *dialogues().paragraphs]
    words = vocabulary(texts)
    assert all(words.decode(words.encode(line)) == " ".join(split_words(line)) for line in texts)


def test_a_word_that_is_missing_is_named():
    with pytest.raises(ValueError, match="'sinks' is not among the 5 words"):
        vocabulary(["Ice floats"]).encode("Ice sinks")


def test_rows_are_padded_and_the_mask_marks_what_is_real():
    words = vocabulary(["one two three", "one"])
    ids, real = rows(words, ["one two three", "one"])
    assert ids.tolist() == [[1, 3, 4, 5, 2], [1, 3, 2, 0, 0]]
    assert real.sum(1).tolist() == [5, 3]


@pytest.mark.parametrize("call", [lambda: vocabulary(["", " "]), lambda: rows(vocabulary(["a"]), [])])
def test_nothing_to_read_is_refused(call):
    with pytest.raises(ValueError, match="at least one"):
        call()
