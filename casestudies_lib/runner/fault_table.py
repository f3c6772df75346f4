"""The table of faults: what a user sees of each, the exit code, and what was checked afterwards; filled by the tests.

`make faults` runs the tests that carry the mark `fault` and writes what they observe to `data/faults.json`. Every other
test run compares its observations with that file, so that the page made from it cannot say what is no longer true.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from casestudies_lib import paths
from casestudies_lib.runner.errors import Failure


@dataclass(frozen=True)
class FaultRow:
    """One fault as a test observed it.

    `sees` is what standard error says, progress aside; `exit_code` is the shell's; `proof` holds statements that the
    test has checked.
    """

    fault: str
    sees: str
    exit_code: int
    proof: tuple[str, ...]


def table_file() -> Path:
    """Return where the table is committed."""
    return paths.root() / "data" / "faults.json"


def read_table(path: Path) -> list[FaultRow]:
    """Return the rows of a table file.

    Raises:
        Failure: the file is missing or is not such a table.
    """
    try:
        return [FaultRow(**row | {"proof": tuple(row["proof"])}) for row in json.loads(path.read_text("utf-8"))]
    except OSError as error:
        raise Failure(f"{path} cannot be read ({error.strerror}); restore it, or make it with: make faults") from error
    except (ValueError, TypeError, KeyError) as error:
        raise Failure(f"{path} is no table of faults ({error}); make it again with: make faults") from error


def table_text(rows: list[FaultRow]) -> str:
    """Return the text of a table file."""
    return json.dumps([asdict(row) for row in rows], indent=1, ensure_ascii=False) + "\n"
