"""Finds code of ours that reads files through native code, which no audit hook sees and which must be declared.

`sys.audit("casebook.input", path)` declares one file, or a folder with its listing. The search is by name, so that it
errs on the side of running again.
"""

import re
from pathlib import Path

from casestudies_lib.runner.cache_key import places
from casestudies_lib.runner.chapters import source_of

_READERS = re.compile(
    r"\b(?:safe_open|load_file|from_file|from_pretrained|read_table|ParquetFile|ParquetDataset|memory_map|OSFile|"
    r"open_dataset|PyTorchFileReader|HDF5Store|HDFStore|read_hdf|read_feather|read_orc)\s*\("
)


def native_readers(source: dict, recorded: dict) -> list[str]:
    """Return the names of cells and modules of ours that call a native reader.

    Args:
        source: the notebook that ran.
        recorded: what the recorder found, see `cache_recorder`.
    """
    texts = {
        f"code cell {number}": source_of(cell)
        for number, cell in enumerate((cell for cell in source["cells"] if cell["cell_type"] == "code"), start=1)
    }
    where = places()
    for name in recorded["reads"]:
        path = Path(where.path(name))
        if name.endswith(".py") and not name.startswith("casestudies_lib/runner/") and path.is_file():
            texts[name] = path.read_text(encoding="utf-8", errors="replace")
    return [name for name, text in texts.items() if _READERS.search(text)]
