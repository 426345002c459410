"""Watching a run from the command line until it ends: progress on standard error, the result on standard output.

Invariants: watching changes nothing, and Ctrl-C ends the watching and not the run; the exit code is that of the run: 0
released, 3 rejected, and for a failure that of its error.
"""

import json
import signal
import time
from pathlib import Path
from typing import Any, Final

import typer
from rich.console import Console

from fedretrain.errors import ConfigurationError, FedretrainError, MachineError, RunFailed
from fedretrain.progress import Progress
from fedretrain.report import show_result, show_rounds
from fedretrain.runfolder import RunFolder

from . import operations
from .federation import Federation
from .logs import POLL_S, Tail, read_events
from .options import to_type

INTERRUPTED: Final = 128 + signal.SIGINT
_STEPS: Final = {
    "waiting": "waiting for 'fedretrain server up'",
    "starting": "starting the run",
    "retrying": "starting the run again",
    "stopping": "stopping the run",
}
_ERRORS: Final = {error.exit_code: error for error in (MachineError, ConfigurationError, RunFailed)}


def follow(folder: Path, run_id: str, as_json: bool) -> int:
    """Show a run until it ends; returns the exit code of one with a verdict, or that was stopped.

    Raises:
        FedretrainError: The run failed, with its reason.
    """
    federation = Federation.open(folder)
    run = federation.runfolder(run_id)
    try:
        with Progress(Console(stderr=True)) as progress:
            state = until_ended(federation, run, progress)
    except KeyboardInterrupt:
        typer.echo(f"no longer watching; run {run_id} goes on: fedretrain server status {run_id}", err=True)
        return _show(federation, run, folder, as_json, INTERRUPTED)
    if state in {"failed", "given up"}:
        raise _error(federation, run, as_json)
    return _show(federation, run, folder, as_json, operations.EXIT_CODES[state])


def until_ended(federation: Federation, run: RunFolder, progress: Progress) -> str:
    """Tell what happens until the run, or check, has ended; its state then."""
    tail = Tail(run.events)
    told = ""
    progress.recall(read_events(tail))
    while True:
        state = operations.run_state(run, running=operations.is_up(federation))
        events = read_events(tail)
        if state != told and state in _STEPS and not events:
            if state == "retrying":
                progress.warn(operations.why(run))
            progress.say(_STEPS[state])
        told = state
        for event in events:
            progress(event)
        if state in operations.ENDED:
            return state
        time.sleep(POLL_S)


def _show(federation: Federation, run: RunFolder, folder: Path, as_json: bool, code: int) -> int:
    """Print the result, or where the run stands; ``code`` is passed on."""
    value = operations.run(federation, run)
    if as_json:
        typer.echo(json.dumps(value, allow_nan=False))
    elif value["check"]:
        typer.echo(f"check {run.run_id}: to write down and show what it found: {to_type('drift', folder)}")
    elif value["state"] == "tried":
        typer.echo(f"trial {run.run_id}: finished; to go on with its search, start that again")
    elif value["result"] is not None:
        show_result(Console(), value["result"], folder.resolve(), _events(run, "site-declined"), "--folder")
    return code


def _error(federation: Federation, run: RunFolder, as_json: bool) -> FedretrainError:
    """What to raise for a run that failed; what is known of its rounds is shown before."""
    value: dict[str, Any] = operations.run(federation, run)
    if not as_json:
        show_rounds(Console(), _events(run, "round-finished"), _events(run, "site-declined"))
    kind = _ERRORS.get(value["exit_code"], MachineError)
    return kind(f"run {run.run_id}: {value['reason']}; when mended: fedretrain server resume {run.run_id}")


def _events(run: RunFolder, kind: str) -> list[dict[str, Any]]:
    return [event for event in run.read_events() if event["event"] == kind]
