"""The words that notebooks, runner and site share about a run: kinds of output, verdicts, tags of cells.

Light on purpose: whoever lists chapters imports this without pydantic or PyTorch.
"""

VERDICTS_MIME = "application/vnd.casebook.verdicts+json"
MEASUREMENTS_MIME = "application/vnd.casebook.measurements+json"
SYMBOLS = {"upheld": "✓", "refuted": "✗", "inconclusive": "≈", "uninformative": "∅", "untested": "…"}
PARAMETERS, INJECTED = "parameters", "injected-parameters"
COMPARED = "nbval-check-output"
CHECK, STUB, SOLUTION = "exercise-check", "exercise-stub", "exercise-solution"
