"""Two kinds of error end a command: what the user can mend in the command, and what failed while it ran."""


class CasebookError(Exception):
    """An error whose message is one clear line: what came, what is allowed, what to do."""

    exit_code = 1


class Mistake(CasebookError):
    """The command, or a file that it names, is wrong; nothing was run."""

    exit_code = 2


class Failure(CasebookError):
    """Something failed while it ran."""
