"""Takes out of an executed notebook what differs from run to run, and keeps outputs and execution counts."""

import copy
import json

from casestudies_lib.runner.chapters import tags_of

_TRACES = frozenset({"injected-parameters", "papermill-error-cell-tag"})


def cleaned(notebook: dict) -> dict:
    """Return a copy of a notebook without papermill's metadata, time stamps and injected cells."""
    result = copy.deepcopy(notebook)
    result["metadata"].pop("papermill", None)
    result["metadata"].get("language_info", {}).pop("version", None)
    result["cells"] = [cell for cell in result["cells"] if not _TRACES & set(tags_of(cell))]
    for cell in result["cells"]:
        for key in ("papermill", "execution"):
            cell["metadata"].pop(key, None)
        if cell["metadata"].get("tags") == []:
            del cell["metadata"]["tags"]
        for output in cell.get("outputs", []):
            output.get("metadata", {}).pop("execution", None)
    return result


def notebook_text(notebook: dict) -> str:
    """Return the text of a notebook file, in the layout that nbformat writes."""
    return json.dumps(notebook, ensure_ascii=False, indent=1, sort_keys=True, separators=(",", ": ")) + "\n"
