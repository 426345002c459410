"""What the operator's commands do and what they find: runs are asked for, stopped and gone on with, and told.

Invariants: nothing is done here but writing down what is wanted (``server.desired``); what is told of a run follows
from its folder alone and from whether `server up` is running, so that it is right after any crash.

A run's ``state`` is one of::

    waiting     `server up` is not running        running    rounds, gate or release go on
    starting    asked for, about to begin         retrying   the last start failed and there will be another
    stopping    asked to stop                     stopped    by its operator; can be resumed
    failed      only its operator can mend it     given up   too many starts without progress
    released    finished                          rejected   finished; the model in use stays
    checked     finished: a check (``server.watching``), which trains nothing
    tried       finished: a trial of a search (``server.search``), which releases nothing
"""

import json
import secrets
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedretrain import atomic
from fedretrain.errors import ConfigurationError
from fedretrain.job import Job, load_job
from fedretrain.runfolder import RunFolder
from fedretrain.standing import Standing

from . import desired, uplock
from .federation import Federation
from .kinds import is_check

FINISHED = frozenset({"released", "rejected", "checked", "tried"})
ENDED = FINISHED | {"failed", "given up", "stopped"}
EXIT_CODES = {"released": 0, "checked": 0, "tried": 0, "rejected": 3, "stopped": 1, "given up": 1}


def retrain(federation: Federation, path: Path, run_id: str | None = None) -> RunFolder:
    """Make a run's folder from a job file and ask for the run.

    Raises:
        ConfigurationError: The job is wrong, a file it names is missing, there are too few members for it, or the
            run's id belongs to another job.
        MachineError: The disk.
    """
    job = load_job(path).model_copy(update={"simulation": None})  # where a simulation's sites lie is not our concern
    check_members(federation, job, path)
    run = run_id or f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    folder = RunFolder.create(federation.folder, run, job)
    if desired.desired(folder) is None:
        desired.ask(folder, "run")
        return folder
    return resume(folder)


def resume(folder: RunFolder) -> RunFolder:
    """Ask for a run again; one that is under way goes on as it is.

    Raises:
        ConfigurationError: It is finished.
    """
    state = run_state(folder, running=True)
    if state in FINISHED:
        raise ConfigurationError(f"run {folder.run_id} is finished ({state}); start another with 'server retrain'")
    if state not in {"running", "starting"}:
        desired.ask(folder, "run")
    return folder


def stop(folder: RunFolder) -> RunFolder:
    """Ask a run to stop; raises ConfigurationError where it is finished."""
    state = run_state(folder, running=True)
    if state in FINISHED:
        raise ConfigurationError(f"run {folder.run_id} is finished ({state}); there is nothing to stop")
    desired.ask(folder, "stop")
    return folder


def find(federation: Federation, run: str) -> RunFolder:
    """The run with this id, or the only one whose id begins so; raises ConfigurationError."""
    names = sorted(folder.run_id for folder in _folders(federation))
    matches = [run] if run in names else [name for name in names if name.startswith(run)]
    if len(matches) == 1:
        return federation.runfolder(matches[0])
    known = f"there are: {', '.join(matches or names)}" if names else "there are no runs"
    raise ConfigurationError(f"{federation.runs}: expected one run that is called or begins with {run!r}; {known}")


def runs(federation: Federation, checks: bool = False) -> list[dict[str, Any]]:
    """Every run, oldest first, as ``run`` tells it, without the rounds.

    Of checks those that have not come to their end, or with ``checks`` all: there are many, and what they found stands
    in the history (``server.history``).
    """
    folders = [folder for folder in _folders(federation) if checks or not _is_past_check(folder)]
    told = [run(federation, folder) for folder in sorted(folders, key=lambda f: f.job.stat().st_mtime)]
    return [{key: value for key, value in one.items() if key != "result"} for one in told]


def run(federation: Federation, folder: RunFolder) -> dict[str, Any]:
    """One run as JSON values.

    ``bytes`` are of arrays both ways, ``seconds_left`` an estimate for its rounds, ``at`` the time of its last event;
    ``result`` is ``server.run``'s once there is one.
    """
    standing = Standing.of(folder.read_events())
    state = run_state(folder, running=is_up(federation))
    failed, result = desired.failure(folder), _json(folder.result)
    left = standing.seconds_left(time.time()) if state == "running" else None
    return {
        "run_id": folder.run_id,
        "check": is_check(folder),
        "state": state,
        "stage": standing.stage if state == "running" else None,
        "round": standing.round,
        "rounds": standing.rounds or (0 if is_check(folder) else folder.load_job().train.rounds),
        "completed": standing.completed,
        "sites": {
            "asked": list(standing.asked),
            "answered": sorted(standing.answered),
            "awaited": list(standing.awaited) if state == "running" else [],
            "quarantined": standing.quarantined,
            "declined": {site: str(event["code"]) for site, event in standing.declined.items()},
        },
        "bytes": standing.nbytes,
        "seconds_left": None if left is None else round(left, 1),
        "asked_for": _wish(folder),
        "at": None if standing.at is None else desired.utc(standing.at),
        "starts": len(desired.read_starts(folder)),
        "reason": why(folder) if state in {"failed", "given up", "retrying"} else None,
        "release": (result or {}).get("release"),
        "exit_code": exit_code(state, failed),
        "result": result,
    }


def run_state(folder: RunFolder, *, running: bool) -> str:
    """One word of the module docstring's table; ``running`` is whether `server up` runs."""
    result = _json(folder.result)
    if result is not None:
        return str(result["outcome"])
    wish, starts = desired.desired(folder), desired.read_starts(folder)
    going_on = running and desired.going_on(starts)
    if wish is None or wish.state == "stop":
        return "stopping" if going_on else "stopped"
    if going_on:
        return "running"
    if desired.is_final(desired.failure(folder), starts[-1] if starts else None):
        return "failed"
    vain = desired.fruitless(starts, wish, desired.progress(folder))
    if vain >= desired.FRUITLESS:
        return "given up"
    return ("retrying" if vain else "starting") if running else "waiting"


def why(folder: RunFolder) -> str:
    """Why the run's last start stopped, in the words it left."""
    failed = desired.failure(folder) or {}
    return str(failed.get("message") or "its process ended without a word; see 'fedretrain server logs'")


def is_up(federation: Federation) -> bool:
    """Whether `server up` is running."""
    return uplock.running(federation.up_lock) is not None


def exit_code(state: str, failed: dict[str, Any] | None) -> int | None:
    """What a command that waited for the run ends with; None while it goes on."""
    if state == "failed":
        return int((failed or {}).get("exit_code", 1))
    return EXIT_CODES.get(state)


def asked(federation: Federation, folder: RunFolder, what: str) -> tuple[list[str], dict[str, Any]]:
    """What a command says after it wrote down a wish: lines and JSON values."""
    running = is_up(federation)
    option = f"--folder {federation.folder}"
    lines = [f"run {folder.run_id}: {what}"]
    if running:
        lines.append(f"to watch it: fedretrain server status {folder.run_id} {option}")
    else:
        lines.append(f"it waits until the server is up: fedretrain server up {option}")
    return lines, {"run_id": folder.run_id, "state": run_state(folder, running=running), "server_up": running}


def server(federation: Federation) -> dict[str, Any]:
    """The server as a whole, as JSON values."""
    from .registry import Registry
    from .sites import site_rows

    up = uplock.running(federation.up_lock)
    state = Registry.open(federation.folder).state()
    rows = site_rows(federation)
    return {
        "federation": federation.settings.name,
        "folder": str(federation.folder),
        "address": federation.settings.address,
        "up": None if up is None else {key: up.get(key) for key in ("pid", "since", "processes")},
        "problems": (up or {}).get("problems") or [],
        "sites": {
            "admitted": [row["site"] for row in rows if not row["revoked"]],
            "online": [row["site"] for row in rows if row["online"]],
        },
        "runs": [one for one in runs(federation) if one["state"] not in ENDED],
        "release": state.ledger.incumbent if state else None,
    }


def check_members(federation: Federation, job: Job, path: Path) -> None:
    """What can be seen to be wrong without opening the model; raises ConfigurationError, which names the job's file."""
    from strategies.registry import check_job  # waits for NumPy, which nothing else here needs

    check_job(job)
    members = len(federation.active())
    if members < job.participation.min_sites:
        raise ConfigurationError(
            f"{path}: participation.min_sites: expected at most {members}, the number of admitted sites, got "
            f"{job.participation.min_sites}; admit more with 'fedretrain server admit', or lower it"
        )


def _folders(federation: Federation) -> list[RunFolder]:
    """Every run's folder; the segments of an online job (``server.online``) are part of that."""
    folders = [RunFolder(file.parent) for file in federation.runs.glob("*/job.json")]
    return [folder for folder in folders if not _is_segment(folder)]


def _is_past_check(folder: RunFolder) -> bool:
    return is_check(folder) and folder.result.exists()


def _is_segment(folder: RunFolder) -> bool:
    whole, _, number = folder.run_id.rpartition(".")
    if not (whole and number.isdecimal() and (folder.root.parent / whole / "job.json").exists()):
        return False
    job = folder.load_job()
    return job.online is not None and job.online.begun is not None


def _wish(folder: RunFolder) -> str | None:
    wish = desired.desired(folder)
    return None if wish is None else wish.at


def _json(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    with atomic.disk_errors(path, "read"):
        value: dict[str, Any] = json.loads(path.read_bytes())
    return value
