"""The book's own corpus: short descriptions of a harbour town."""

from casestudies_lib.tasks.text.corpora import Corpus, committed

DATA_FILES = ("data/text/harbour.txt",)
SHA256 = "0f5c641f2bf9d45bb11dd8029d9917256432795c28423a77dfcfa12882679bf3"


def harbour() -> Corpus:
    """Return the descriptions, one a paragraph.

    Raises:
        CorpusError: the file is missing, or its digest is not the committed one.
    """
    return committed(DATA_FILES[0], SHA256)
