"""The commands of the server's daily work: `up`, `retrain`, and what happens to runs and sites.

Invariants: importing this module loads neither TensorFlow nor Flower; the commands change nothing but what they write
for `up` (``server.desired``), so that they work beside it, without it, and after any crash.
"""

import signal
from pathlib import Path
from typing import Annotated

import typer

from fedretrain.answers import Json, answers, say

from .options import DEFAULT_FOLDER, Folder

RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run's id, or its beginning.")]
Follow = Annotated[bool, typer.Option("--follow", help="Go on showing what happens; Ctrl-C ends only that.")]
INTERRUPTED = 128 + signal.SIGINT


def register(app: typer.Typer) -> None:
    """Mount the commands on ``fedretrain server``."""
    for command in (up, retrain, runs, status, logs, stop, resume, sites):
        app.command()(command)


def up(
    folder: Folder = DEFAULT_FOLDER,
    systemd: Annotated[
        bool, typer.Option("--systemd", help="Print a unit for systemd, with what to do with it; start nothing.")
    ] = False,
    passphrase_file: Annotated[
        Path | None, typer.Option(help="File with the passphrase of the keys; also FEDRETRAIN_PASSPHRASE_FILE.")
    ] = None,
) -> None:
    """Run the server: SuperLink, executor and gateway, started and kept running until Ctrl-C.

    It admits and shuts out sites as the roster says, starts and resumes runs that are asked for, and brings releases
    to sites that lack them.
    """
    if systemd:
        from .systemd import unit

        typer.echo(unit(folder, passphrase_file))
        return
    from .up import main

    raise typer.Exit(main(folder, passphrase_file))


def retrain(
    job: Annotated[Path, typer.Argument(metavar="JOB.toml", help="The job.")],
    follow: Follow = False,
    run_id: Annotated[str | None, typer.Option("--run-id", help="Default: date, time and four letters.")] = None,
    folder: Folder = DEFAULT_FOLDER,
    as_json: Json = False,
) -> None:
    """Ask for a run of a job; `server up` starts it, and resumes it after crashes.

    With --follow the exit code is that of the run: 0 released, 3 rejected, 4 too few sites.
    """
    with answers(as_json):
        from . import operations
        from .federation import Federation

        federation = Federation.open(folder)
        run = operations.retrain(federation, job, run_id)
        if follow:
            _follow(folder, run.run_id, as_json)
        say(as_json, *operations.asked(federation, run, "asked for"))


def runs(
    checks: Annotated[bool, typer.Option("--checks", help="Checks that came to their end too.")] = False,
    folder: Folder = DEFAULT_FOLDER,
    as_json: Json = False,
) -> None:
    """List the runs, oldest first, and what became of each."""
    with answers(as_json):
        from . import operations, operations_text
        from .federation import Federation

        rows = operations.runs(Federation.open(folder), checks)
        say(as_json, operations_text.run_lines(rows), {"runs": rows})


def status(
    run: Annotated[str | None, typer.Argument(metavar="[RUN]", help="A run's id, or its beginning.")] = None,
    folder: Folder = DEFAULT_FOLDER,
    as_json: Json = False,
) -> None:
    """Say how the server is, or how a run stands: round, sites, bytes, time left, problems, verdict."""
    with answers(as_json):
        from . import operations, operations_text
        from .federation import Federation

        federation = Federation.open(folder)
        if run is None:
            value = operations.server(federation)
            say(as_json, operations_text.server_lines(value), value)
            return
        value = operations.run(federation, operations.find(federation, run))
        say(as_json, operations_text.status_lines(value, folder), value)


def logs(
    run: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="A run's id; without: what the server's processes say.")
    ] = None,
    follow: Follow = False,
    folder: Folder = DEFAULT_FOLDER,
    as_json: Json = False,
) -> None:
    """Show what happened: a run's events with their times, or the last lines of the server's processes.

    With --json, one JSON object per line.
    """
    with answers(as_json):
        from . import logs as reader
        from .federation import Federation

        federation = Federation.open(folder)
        try:
            for line in reader.lines(federation, run, follow, as_json):
                typer.echo(line)
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None


def stop(run: RunArgument, folder: Folder = DEFAULT_FOLDER, as_json: Json = False) -> None:
    """Stop a run. What was finished is kept; `resume` goes on from there."""
    with answers(as_json):
        from . import operations
        from .federation import Federation

        federation = Federation.open(folder)
        found = operations.stop(operations.find(federation, run))
        say(as_json, *operations.asked(federation, found, "asked to stop"))


def resume(run: RunArgument, follow: Follow = False, folder: Folder = DEFAULT_FOLDER, as_json: Json = False) -> None:
    """Go on with a run that was stopped or failed, from its last complete round."""
    with answers(as_json):
        from . import operations
        from .federation import Federation

        federation = Federation.open(folder)
        found = operations.resume(operations.find(federation, run))
        if follow:
            _follow(folder, found.run_id, as_json)
        say(as_json, *operations.asked(federation, found, "asked to go on with"))


def sites(folder: Folder = DEFAULT_FOLDER, as_json: Json = False) -> None:
    """List the sites: admitted or revoked, who is there, software, release, last seen, last problem."""
    with answers(as_json):
        from . import operations_text
        from .federation import Federation
        from .sites import site_rows

        rows = site_rows(Federation.open(folder))
        say(as_json, operations_text.site_lines(rows), {"sites": rows})


def _follow(folder: Path, run_id: str, as_json: bool) -> None:
    """Watch a run to its end and exit as it ended."""
    from .watch import follow

    raise typer.Exit(follow(folder, run_id, as_json))
