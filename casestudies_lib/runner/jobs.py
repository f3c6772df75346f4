"""A job: one chapter with its parameters and limits, checked before any kernel starts."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from casestudies_lib.runner.chapters import Chapter, read_notebook
from casestudies_lib.runner.errors import Mistake
from casestudies_lib.runner.inputs import inputs_of
from casestudies_lib.runner.parameters import Parameter, Value, changed, read_parameters, resolve

TIME_LIMIT = 900.0  # seconds


@dataclass(frozen=True)
class Job:
    """One chapter to run; limits are in seconds."""

    chapter: Chapter
    parameters: list[Parameter]
    values: dict[str, Value]
    time_limit: float = TIME_LIMIT
    cell_limit: float = TIME_LIMIT

    @property
    def changed(self) -> dict[str, Value]:
        """Return the values that are not the chapter's defaults."""
        return changed(self.parameters, self.values)

    @property
    def command(self) -> str:
        """Return the command line that runs this job again."""
        words = ["casebook", "run", self.chapter.slug]
        for name, value in self.changed.items():
            words += ["-p", f"{name}={value}"]
        if self.time_limit != TIME_LIMIT:
            words += ["--time-limit", f"{self.time_limit:g}"]
        if self.cell_limit != self.time_limit:
            words += ["--cell-limit", f"{self.cell_limit:g}"]
        return shlex.join(words)

    def inputs(self, notebook: dict) -> dict[str, str]:
        """Return what a run of this job depends on, with the chapter's notebook as it was read."""
        return inputs_of(self.chapter.slug, notebook, self.parameters, self.values)


def prepare(
    chapter: Chapter,
    assignments: Sequence[str] = (),
    *,
    time_limit: float = TIME_LIMIT,
    cell_limit: float | None = None,
) -> Job:
    """Check everything that can be checked without a kernel, and return the job.

    Args:
        chapter: the chapter to run.
        assignments: parameters as `NAME=VALUE` texts; relative paths start at the current folder.
        time_limit: seconds for the whole run.
        cell_limit: seconds for one cell; by default as many as for the whole run.

    Raises:
        Mistake: parameters, limits, notebook or report file are wrong.
    """
    for name, limit in (("--time-limit", time_limit), ("--cell-limit", cell_limit)):
        if limit is not None and not 0 < limit < float("inf"):
            raise Mistake(f"{name} is {limit:g}; give a positive number of seconds")
    parameters = read_parameters(read_notebook(chapter.path), chapter.path.name)
    values = resolve(parameters, assignments, Path.cwd())
    _check_report(chapter)
    return Job(chapter, parameters, values, time_limit, cell_limit or time_limit)


def _check_report(chapter: Chapter) -> None:
    from casestudies_lib.reports import ReportError, load_report  # pydantic: not for every command

    try:
        load_report(chapter.slug)
    except ReportError as error:
        raise Mistake(str(error)) from error
