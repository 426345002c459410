"""One check from a job to its document; ``check`` is all of it, and a finished one returns what it found again."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

from flwr.serverapp import Grid

from fedretrain.job import Job
from fedretrain.runfolder import RunFolder
from server.federation import Federation

from .document import Check
from .marker import is_check, mark_check

__all__ = ["check", "is_check", "mark_check"]


def check(  # noqa: PLR0913, PLR0917 - as ``server.run.execute``, and since when
    job: Job,
    grid: Grid,
    folder: RunFolder,
    on_event: Callable[[dict[str, Any]], None] | None = None,
    federation: Federation | None = None,
    since: datetime | None = None,
) -> Check:
    """Ask every site that is there what it counts, with the model in use, and write down what comes.

    Args:
        job: As loaded.
        grid: Where the sites are; with a federation one that knows its nodes' keys (``server.guarded``).
        folder: The check's own folder; the registry is that of its output folder.
        on_event: Is told every event (``server.events``).
        federation: Whose members the sites are; None in a simulation.
        since: From when on examples are recent; default: the job's ``train.since``, else the release of the model in
            use, else all of them are.

    Returns:
        The check; it also stands in the folder as ``check.json``, beside a result with the outcome "checked".

    Raises:
        ConfigurationError: Job, model, holdouts or federation are wrong, or ``watch.edges`` names no feature.
        RunFailed: No site answered.
        RunStopped: In a federation: its operator asked for it.
        UntrustedRelease: The registry does not verify.
        MachineError: Disk or network failed, or another process works on this check.
    """
    raise NotImplementedError
