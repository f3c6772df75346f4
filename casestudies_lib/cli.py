"""The command line `casebook`; each command imports what it needs, so that the light ones answer at once."""

import contextlib
import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from casestudies_lib import paths
from casestudies_lib.runner.errors import CasebookError, Failure, Mistake

app = typer.Typer(
    name="casebook",
    help="Run, check and publish the chapters of the Training Incident Casebook.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
ChapterName = Annotated[str, typer.Argument(metavar="CHAPTER", help="slug of the chapter, see casebook list")]
ChapterNames = Annotated[list[str] | None, typer.Argument(metavar="[CHAPTER]...", help="slugs; all when none is given")]
Fresh = Annotated[bool, typer.Option("--fresh", help="run, whatever results there are")]
TimeLimit = Annotated[float, typer.Option(metavar="SECONDS", help="limit for each run")]
Workers = Annotated[int | None, typer.Option(min=1, metavar="N", help="rows at once; by default one a core")]
_STOPPED = {128 + number: number.name for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
AsJson = Annotated[bool, typer.Option("--json", help="print JSON for a program")]


def main() -> NoReturn:
    """Run the command line; every error ends as one clear line on standard error and an exit status."""
    try:
        with _interruptible():
            status = app(standalone_mode=False)
    except CasebookError as error:
        _say(f"error: {error}")
        status = error.exit_code
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else Failure.exit_code
        if status in _STOPPED:
            _say(f"stopped by {_STOPPED[status]}: nothing of an unfinished run is stored, finished results stay; "
                 "to go on, give the same command again")  # fmt: skip
    except SyntaxError as error:
        _say(f"error: {error.filename}, line {error.lineno}, is not Python: {error.msg}; mend that line")
        status = Failure.exit_code
    except OSError as error:
        _say(f"error: {error.strerror or error}{f': {error.filename}' if error.filename else ''}")
        status = Failure.exit_code
    except Exception as error:
        status = _usage_error(error)
    sys.exit(status if isinstance(status, int) else 0)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Make SIGTERM and SIGHUP end this process the way Ctrl-C does, so that runs are ended and scratch is removed."""

    def leave(number: int, _frame: object) -> None:
        for each in signals:
            signal.signal(each, signal.SIG_IGN)  # tidying up is under way and takes a few seconds at most
        raise SystemExit(128 + number)

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, leave) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _usage_error(error: Exception) -> int:
    """Report a wrong command line; anything else is a defect of ours and keeps its traceback."""
    message = getattr(error, "format_message", None)
    if message is None:
        if hasattr(error, "exit_code"):
            return error.exit_code
        raise error
    if text := message():
        _say(f"error: {text} (casebook --help lists what there is)")
    return Mistake.exit_code


def _say(line: str) -> None:
    """Write a line for people to standard error, so that standard output stays clean for programs.

    What a notebook, a report or a file name brings into it can neither steer the terminal nor turn the line around.
    """
    shown = "".join(c if c.isprintable() or c in "\n\t" else f"⟨U+{ord(c):04X}⟩" for c in line)
    sys.stderr.write(shown + "\n")


def _print_json(value: object) -> None:
    sys.stdout.write(json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def _table(title: str, columns: list[str], rows: list[list[object]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, title=title, title_justify="left")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    console = Console()
    console.print(table) if console.is_terminal else Console(width=200).print(table)


def _chosen(names: list[str] | None) -> list:
    from casestudies_lib.runner.chapters import all_chapters, find_chapter

    chosen = [find_chapter(name) for name in names] if names else all_chapters()
    if not chosen:
        raise Mistake(f"no chapters in {paths.notebooks()}; make one with: casebook new SLUG")
    return chosen


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """List the chapters with their claims and the state of their last run."""
    from casestudies_lib.runner.chapters import all_chapters
    from casestudies_lib.runner.results import overview

    rows = [overview(chapter) for chapter in all_chapters()]
    if as_json:
        _print_json(rows)
        return
    columns = ["number", "slug", "title", "claims", "last_run"]
    _table("Chapters", [name.replace("_", " ") for name in columns], [[row[name] for name in columns] for row in rows])


@app.command()
def run(
    chapter: ChapterName,
    parameter: Annotated[
        list[str] | None, typer.Option("-p", "--parameter", metavar="NAME=VALUE", help="set a parameter; repeatable")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="also copy the result to this folder", metavar="DIR")] = None,
    time_limit: TimeLimit = 900.0,
    cell_limit: Annotated[float | None, typer.Option(metavar="SECONDS", help="limit for one cell")] = None,
    store: Annotated[bool, typer.Option(help="write the executed notebook back to notebooks/")] = False,
    fresh: Fresh = False,
    as_json: AsJson = False,
) -> None:
    """Run a chapter with papermill, unless nothing that it depends on has changed since its last run."""
    from casestudies_lib.runner.chapters import find_chapter
    from casestudies_lib.runner.jobs import prepare
    from casestudies_lib.runner.progress import shown
    from casestudies_lib.runner.results import check_copyable, copy_result
    from casestudies_lib.runner.run import obtain
    from casestudies_lib.runner.store import check_storable, store_notebook

    job = prepare(find_chapter(chapter), parameter or [], time_limit=time_limit, cell_limit=cell_limit)
    if store:
        check_storable(job)
    if out:
        check_copyable(out)
    with shown() as notify:
        result = obtain([job], notify, fresh=fresh, say=_say_reasons)[job.chapter.slug]
    if out:
        result = copy_result(result, out)
    if store:
        store_notebook(job, result)
        _say(f"stored {job.chapter.path}")
    if as_json:
        about = {name: result.provenance[name] for name in ("chapter", "seconds", "parameters")}
        _print_json({**about, "folder": str(result.folder), "verdicts": result.verdicts})
        return
    _verdict_table(result.verdicts)
    _say(f"result in {result.folder} ({result.provenance['seconds']} s)")


def _verdict_table(records: list[dict]) -> None:
    def number(value: float | None) -> str:
        return "—" if value is None else f"{value:.4g}"

    rows = [
        [r["chapter"], r["id"], r["kind"], r["verdict"], r["measure"], number(r["value"]),
         f"{number(r['low'])} to {number(r['high'])}", r["unit"], r["n"], r["rule"]]
        for r in records
    ]  # fmt: skip
    columns = ["chapter", "id", "kind", "verdict", "measure", "value", "interval", "unit", "n", "rule"]
    _table("Verdicts", columns, rows)


@app.command()
def verdicts(chapters: ChapterNames = None, as_json: AsJson = False) -> None:
    """Show the verdicts of runs that are fresh, else those stored in the notebooks."""
    from casestudies_lib.runner.results import current_verdicts

    records, missing = [], 0
    for chapter in _chosen(chapters):
        try:
            records += current_verdicts(chapter, _say)
        except CasebookError as error:
            _say(f"error: {error}")
            missing += 1
    if as_json:
        _print_json(records)
    elif records:
        _verdict_table(records)
    if missing:
        raise typer.Exit(Failure.exit_code)


@app.command()
def check(
    chapters: ChapterNames = None,
    cell_limit: Annotated[int, typer.Option(metavar="SECONDS", help="limit for one cell")] = 600,
) -> None:
    """Execute committed notebooks with nbval and compare their marked outputs, after the test of their contract."""
    from casestudies_lib.runner.store import compare_stored

    compare_stored(_chosen(chapters), _say, everything=not chapters, cell_limit=cell_limit)


@app.command()
def build(
    time_limit: TimeLimit = 900.0,
    fresh: Fresh = False,
    base_url: Annotated[
        str | None, typer.Option("--base-url", metavar="URL", help="where the site will be; adds a sitemap")
    ] = None,
    pdf: Annotated[bool, typer.Option("--pdf", help="print book and chapters too, and link to them")] = False,
) -> None:
    """Run the chapters that a change reaches and publish the site in _build/html."""
    from casestudies_lib.runner.jobs import prepare
    from casestudies_lib.runner.progress import shown
    from casestudies_lib.runner.run import obtain
    from casestudies_lib.site.publish import check_address, publish, set_aside_on_failure

    address = check_address(base_url) if base_url else None
    jobs = [prepare(chapter, time_limit=time_limit) for chapter in _chosen(None)]
    site = paths.build() / "html"
    with set_aside_on_failure(site, _say):
        with shown() as notify:
            results = obtain(jobs, notify, fresh=fresh, say=_say_reasons)
        publish({slug: result.folder for slug, result in results.items()}, site, address, pdf=pdf, fresh=fresh)
    _say(f"site in {site / 'index.html'}; look at it with: casebook serve")


def _say_reasons(slug: str, reasons: list[str]) -> None:
    from casestudies_lib.runner.inputs import few

    _say(f"{slug}: {'runs, ' + few(reasons) if reasons else 'nothing changed, its last run stays'}")


@app.command()
def sweep(
    chapter: ChapterName,
    grid: Annotated[
        list[str] | None, typer.Option("--grid", metavar="NAME=V,V", help="values of a parameter; repeatable")
    ] = None,
    seeds: Annotated[str | None, typer.Option(metavar="A:B", help="seeds from A up to but not including B")] = None,
    n_seeds: Annotated[int | None, typer.Option(metavar="N", help="seeds in a row; by default the chapter's")] = None,
    scheduler: Annotated[str | None, typer.Option(metavar="ADDRESS", help="Dask scheduler; else this machine")] = None,
    workers: Workers = None,
    fresh: Fresh = False,
    time_limit: TimeLimit = 900.0,
    as_json: AsJson = False,
) -> None:
    """Run a chapter once for each point of a grid and block of seeds; goes on where an earlier sweep ended."""
    from casestudies_lib.runner.chapters import find_chapter
    from casestudies_lib.runner.plan import plan
    from casestudies_lib.runner.sweep import sweep as run_sweep

    asked = plan(find_chapter(chapter), grid or [], seeds, n_seeds=n_seeds, time_limit=time_limit)
    path, provenance, tally = run_sweep(asked, scheduler=scheduler, workers=workers, fresh=fresh, say=_say)
    if as_json:
        _print_json({"file": str(path), "ran": tally["ran"], "found": tally["found"], "failed": tally["failed"],
                     "provenance": provenance})  # fmt: skip
    else:
        _say(f"{tally['ran']} rows ran, {tally['found']} were there, {tally['failed']} failed; result in {path}")
        _say(f"make it evidence with: casebook evidence update {chapter} --sweep {asked.name}")
    if tally["failed"]:
        raise Failure(f"{tally['failed']} of {len(asked.rows)} rows failed; the result holds their errors")


evidence_app = typer.Typer(help="Committed results of sweeps: update them, or check a part.", no_args_is_help=True)
app.add_typer(evidence_app, name="evidence")


@evidence_app.command("update")
def evidence_update(
    chapter: ChapterName,
    sweep: Annotated[str | None, typer.Option(metavar="NAME", help="which sweep, where there are several")] = None,
    as_json: AsJson = False,
) -> None:
    """Put a sweep's result into data/evidence, to be committed."""
    from casestudies_lib.runner.chapters import find_chapter
    from casestudies_lib.runner.evidence import update

    path, found = update(find_chapter(chapter), sweep)
    if as_json:
        _print_json({"file": str(path), "provenance": found.provenance})
        return
    _say(f"{found.provenance['rows']} rows, {len(found.lines)} lines in {path}; commit it with {path.stem}.json")


@evidence_app.command("check")
def evidence_check(
    chapters: ChapterNames = None,
    share: Annotated[float, typer.Option(min=0.0, max=1.0, help="share of the rows to run again")] = 0.1,
    draw: Annotated[int, typer.Option(metavar="SEED", help="which rows are drawn")] = 0,
    workers: Workers = None,
    time_limit: TimeLimit = 900.0,
    as_json: AsJson = False,
) -> None:
    """Ask whether evidence is older than its chapter; run a random part of it again and compare the verdicts."""
    from casestudies_lib.runner.chapters import find_chapter
    from casestudies_lib.runner.evidence import check_again, slugs

    names = chapters or slugs()
    if not names:
        raise Mistake("there is no evidence yet; make some with casebook sweep and casebook evidence update")
    chosen, checked, faults = [find_chapter(name) for name in names], {}, []
    for each in chosen:
        try:
            checked[each.slug] = check_again(each, share, draw, workers, time_limit, _say)
            faults += checked[each.slug]["differences"]
        except CasebookError as error:
            faults.append(f"{each.slug}: {error}")
    if as_json:
        _print_json({"checked": checked, "faults": faults})
    for fault in faults:
        _say(f"error: {fault}")
    if faults:
        raise typer.Exit(Failure.exit_code)


@app.command()
def serve(port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one")] = 8000) -> None:
    """Serve the built site on this machine."""
    from casestudies_lib.site.serve import serve as serve_site

    def announce(address: str) -> None:
        sys.stdout.write(f"serving {address} (end with Ctrl-C)\n")
        sys.stdout.flush()

    try:
        serve_site(paths.build() / "html", port, announce)
    except SystemExit:
        _say("ended")


@app.command()
def pdf(out: Annotated[Path | None, typer.Option(help="folder for the files", metavar="DIR")] = None) -> None:
    """Print the built site: the whole book as one PDF, and each chapter as one of its own."""
    from casestudies_lib.site.pdf import print_site

    for path in print_site(paths.build() / "html", out or paths.build() / "pdf"):
        _say(f"printed {path}")


@app.command()
def teach(
    chapter: ChapterName,
    out: Annotated[Path, typer.Option(metavar="DIR", help="folder for the student copy")] = Path("class"),
) -> None:
    """Write a student copy of a chapter, without outputs and solutions."""
    from casestudies_lib.runner.chapters import find_chapter
    from casestudies_lib.runner.store import write_student_copy

    _say(f"student copy in {write_student_copy(find_chapter(chapter), out)}")


@app.command()
def slides(
    chapter: ChapterName,
    out: Annotated[Path, typer.Option(metavar="DIR", help="folder for the file")] = Path("class"),
) -> None:
    """Write the slides of a chapter, made from its last run, as one file that needs nothing beside it."""
    from casestudies_lib.runner.chapters import find_chapter
    from casestudies_lib.site.slides import write_slides

    _say(f"slides in {write_slides(find_chapter(chapter), out)}")


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Check that everything the casebook needs is here, with a line on how to mend what is not."""
    from dataclasses import asdict

    from casestudies_lib.runner.doctor import examine

    checks = examine()
    if as_json:
        _print_json([asdict(check) for check in checks])
    else:
        _table("Doctor", ["check", "state", "found"], [[c.name, c.state, c.found] for c in checks])
        for check in checks:
            if check.fix:
                _say(f"{check.name}: {check.fix}")
    if any(check.state == "wrong" for check in checks):
        raise typer.Exit(Failure.exit_code)


@app.command()
def new(slug: Annotated[str, typer.Argument(metavar="SLUG", help="lower case letters, digits and _")]) -> None:
    """Start a chapter from the template, with a report file to fill in."""
    from casestudies_lib.runner.store import start_chapter

    notebook, report = start_chapter(slug)
    _say(f"made {notebook}\nmade {report}")
    _say(f"to do: add to book/_toc.yml under chapters the line  - file: notebooks/{notebook.stem}")


if __name__ == "__main__":
    main()
