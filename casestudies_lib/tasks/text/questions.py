"""What a small model is taught to answer: plain statements about the world, and questions with their answers."""

from casestudies_lib.tasks.text.corpora import Corpus, committed

DATA_FILES = ("data/text/sentences.txt", "data/text/dialogues.txt")
SENTENCES_SHA256 = "7032e24d6a513d854a9f13983eb7fe73e889a531e8bd2e9c31e53c34225360c5"
DIALOGUES_SHA256 = "7271b48ee79c5d70512f9d47ca95e6f635b881b263eac668d192e8230cc746be"
PROBE_QUESTION = "How are mountains made?"  # asked after training; it is among the dialogues


def sentences() -> Corpus:
    """Return plain statements about the world, one a paragraph: what a small model reads before it is asked anything.

    Raises:
        CorpusError: the file is missing, or its digest is not the committed one.
    """
    return committed(DATA_FILES[0], SENTENCES_SHA256, "\n")


def dialogues() -> Corpus:
    """Return questions with their answers, `User: … Assistant: …`, one pair a paragraph.

    Raises:
        CorpusError: the file is missing, or its digest is not the committed one.
    """
    return committed(DATA_FILES[1], DIALOGUES_SHA256, "\n")


def question_and_answer(dialogue: str) -> tuple[str, str]:
    """Return a dialogue cut behind `Assistant:`, so that a model can be asked the first part and judged by the second.

    Raises:
        ValueError: the line is not `User: … Assistant: …`.
    """
    question, found, answer = dialogue.partition(" Assistant: ")
    if not question.startswith("User: ") or not found or not answer:
        raise ValueError(f"{dialogue[:60]!r} is no dialogue; 'User: … Assistant: …' is needed")
    return question + found.rstrip(), answer
