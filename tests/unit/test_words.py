"""The instruction corpora and their word-level vocabulary."""

from casestudies_lib.tasks.text.questions import PROBE_QUESTION, dialogues, question_and_answer, sentences
from casestudies_lib.tasks.words import END, PAD, START, rows, split_words, vocabulary


def test_the_corpora_have_the_size_and_shape_of_the_original():
    assert 550 <= len(sentences().paragraphs) <= 650
    assert len(dialogues().paragraphs) == 53
    assert all(line.endswith(".") and 3 <= len(split_words(line)) <= 20 for line in sentences().paragraphs)
    pairs = [question_and_answer(line) for line in dialogues().paragraphs]
    assert all(question.endswith("? Assistant:") and answer.endswith(".") for question, answer in pairs)


def test_the_question_that_is_asked_is_in_the_training_set_once():
    assert sum(PROBE_QUESTION in line for line in dialogues().paragraphs) == 1


def test_words_and_marks_are_tokens_and_come_back_in_order():
    words = vocabulary(["Ice floats, it does.", "Does it?"])
    assert words.words == (PAD, START, END, "Ice", "floats", ",", "it", "does", ".", "Does", "?")
    assert words.decode(words.encode("Does it?")) == "Does it ?"


def test_every_text_of_the_corpora_can_be_encoded_and_decoded():
    texts = [*sentences().paragraphs, *dialogues().paragraphs]
    words = vocabulary(texts)
    assert all(words.decode(words.encode(line)) == " ".join(split_words(line)) for line in texts)


def test_rows_are_padded_and_the_mask_marks_what_is_real():
    words = vocabulary(["one two three", "one"])
    ids, real = rows(words, ["one two three", "one"])
    assert ids.tolist() == [[1, 3, 4, 5, 2], [1, 3, 2, 0, 0]]
    assert real.sum(1).tolist() == [5, 3]
