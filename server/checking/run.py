"""One check from a job to its document. ``check`` is all of it; a finished one returns what it found again.

Invariants: a check trains nothing, releases nothing and counts no use of a holdout; one that was interrupted begins
anew.
"""

import json
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from flwr.serverapp import Grid

from fedretrain import atomic
from fedretrain.checks import decisions, label_names
from fedretrain.errors import FedretrainError, MachineError
from fedretrain.job import Job
from fedretrain.runfolder import RunFolder
from server.events import EventLog
from server.federation import Federation
from server.kinds import is_check, mark_check
from server.messenger import messenger_of
from server.registry import Registry
from server.run import FORMAT

from .ask import ask_check
from .document import Check
from .watched import watched

__all__ = ["DOCUMENT", "check", "is_check", "mark_check"]

DOCUMENT = "check.json"
"""File in the folder that holds what the check found; for its owner alone, as the history."""
_OWN = 0o600


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
        since: From when on examples are recent; default: the later of the job's ``train.since`` and the release of the
            model in use, where that was trained here; without either all of them are.

    Returns:
        The check; it also stands in the folder as ``check.json``, beside a result with the outcome "checked".

    Raises:
        ConfigurationError: Job, model, holdouts or federation are wrong, or ``watch.edges`` names no feature.
        RunFailed: No site answered.
        UntrustedRelease: The registry does not verify.
        MachineError: Disk or network failed, or another process works on this check.
    """
    with folder.lock():
        document = folder.root / DOCUMENT
        if folder.result.exists():
            with atomic.disk_errors(document, "read"):
                return Check.from_json(json.loads(document.read_bytes()))
        emit = EventLog(folder, on_event)
        try:
            found = _check(job, grid, folder, emit, federation, since)
        except FedretrainError as error:
            with suppress(MachineError):  # where the disk is full there is no room for this line either
                emit("failed", reason=str(error))
            raise
        atomic.write_json(document, found.to_json(), mode=_OWN)
        declined = dict(sorted(found.declined.items()))
        emit("checked", sites=sorted(found.sites), declined=declined, bytes=found.bytes)
        result = {"format": FORMAT, "run_id": folder.run_id, "outcome": "checked", "release": None}
        atomic.write_json(folder.result, result | {"parent": found.release})
        return found


def _check(  # noqa: PLR0913, PLR0917 - as ``check``
    job: Job, grid: Grid, folder: RunFolder, emit: EventLog, federation: Federation | None, since: datetime | None
) -> Check:
    start, at = time.monotonic(), datetime.now(UTC)
    messenger = messenger_of(federation, grid, folder.run_id)
    members = federation.active() if federation else None
    what = watched(job, folder.run_id, Registry.open(folder.out), members, since)
    contract = what.plan.contract
    text = None if what.since is None else what.since.isoformat()
    features = [feature.name for feature in contract.features]
    emit("check-started", sites=list(what.plan.expected), release=what.release, since=text, features=features)
    found = ask_check(what, grid, emit, messenger)
    decided = (spec for spec in contract.outputs if decisions(spec) != "none")
    return Check(
        check=folder.run_id,
        at=at.isoformat(timespec="seconds"),
        job=job.digest,
        release=what.release,
        contract=contract.digest,
        since=text,
        labels={spec.name: label_names(spec, what.settings) for spec in decided},
        features=contract.features,
        sites=dict(sorted(found.sites.items())),
        declined=dict(sorted(found.declined.items())),
        seconds=round(time.monotonic() - start, 3),
        bytes=found.bytes,
    )
