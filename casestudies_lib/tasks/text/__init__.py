"""English text to learn from, and byte-level tokenizers trained on it; a module for each source, so that a chapter
depends only on the files that it reads."""
