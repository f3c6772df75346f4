"""Runs a part of the committed evidence again and compares the verdicts."""

from collections.abc import Callable

from casestudies_lib.runner.chapters import Chapter
from casestudies_lib.runner.evidence import differences, plan_check, read_evidence
from casestudies_lib.runner.sweep import obtain_rows
from casestudies_lib.runner.sweep_cluster import Tls


def check_again(
    chapter: Chapter,
    share: float,
    draw: int,
    workers: int | None,
    time_limit: float,
    say: Callable[[str], None],
) -> dict:
    """Run a random share of a chapter's evidence again, on this machine.

    Args:
        chapter: the chapter.
        share: of the rows, rounded up to a whole row.
        draw: the seed of the draw; the same draws the same rows.
        workers: rows at once; by default one a core.
        time_limit: seconds for each row.
        say: receives a line for each row.

    Returns:
        The keys that ran, and in words each verdict that differs or row that failed.

    Raises:
        Failure: the evidence is damaged, or older than its chapter's code.
    """
    again, keys = plan_check(chapter, share, draw, time_limit)
    tally, found = obtain_rows(again, scheduler=None, workers=workers, tls=Tls(), fresh=True, say=say)
    lines, faults = read_evidence(chapter.slug).lines, []
    for row in again.rows:
        name = f"{chapter.slug}, row {keys[row.key][:10]} ({row.job.command})"
        if row.key in tally.failures:
            faults.append(f"{name} failed: {tally.failures[row.key]}")
        else:
            faults += [f"{name}: {words}" for words in differences(lines, keys[row.key], found[row.key].verdicts)]
    return {"rows": sorted(keys.values()), "differences": faults}
