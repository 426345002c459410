"""One trial of a search: the rounds of a job, and then what the sites' validation parts say of the model.

Invariants: no holdout is looked at but for the ranges of its inputs, which the contract takes from it; nothing is
judged by a gate, released or signed, and no registry is opened. A trial that is finished stands in its folder and is
not made again.

Format ``fedretrain.trial/1`` of ``trial.json`` in the trial's folder::

    {"format", "loss": mean over the sites' validation examples, of all outputs together,
     "accuracy": share of right decisions, by output with labels, their mean | null, "examples", "sites": [name],
     "bytes": of arrays both ways, "seconds", "reason": why there is no number, else ""}
"""

import time
from collections.abc import Callable
from typing import Any, Final

from flwr.serverapp import Grid

from fedretrain import atomic
from fedretrain.errors import RunFailed
from fedretrain.job import Job, NamedConfig
from fedretrain.runfolder import RunFolder

from .events import EventLog
from .federation import Federation
from .messenger import limit_replies, messenger_of
from .plan import Plan, make_plan
from .rounds import Rounds
from .sums import Sum

FORMAT: Final = "fedretrain.trial/1"
_FILE: Final = "trial.json"
_BY_OUTPUT: Final = "00001"  # of an evaluation: loss and share of right decisions, by output

Record = dict[str, Any]


def run_trial(
    job: Job,
    grid: Grid,
    folder: RunFolder,
    watcher: Callable[[dict[str, Any]], None] | None = None,
    federation: Federation | None = None,
) -> Record:
    """The trial's record, see the module docstring.

    Args:
        job: Of the trial.
        grid: Where the sites are.
        folder: The trial's own.
        watcher: Takes the events.
        federation: Whose members the sites are; None in a simulation.

    Raises:
        ConfigurationError: Job or model are wrong.
        MachineError: The disk, or the way to the sites.
    """
    with folder.lock():
        record = read_trial(folder)
        if record is None:
            record = _made(job, grid, folder, EventLog(folder, watcher), federation)
            atomic.write_json(folder.root / _FILE, record)
        if not folder.result.exists():  # by which `server up` knows that there is nothing left to do
            atomic.write_json(folder.result, {"outcome": "tried", "release": None})
        return record


def read_trial(folder: RunFolder) -> Record | None:
    """The record in a trial's folder, None where it is not finished; raises ConfigurationError where it is damaged."""
    return atomic.read_json(folder.root / _FILE, FORMAT, "delete it to have the trial made again")


def is_finished(folder: RunFolder) -> bool:
    """Whether a trial stands in its folder, so that ``run_trial`` does not make it again."""
    return (folder.root / _FILE).exists()


def _made(job: Job, grid: Grid, folder: RunFolder, emit: EventLog, federation: Federation | None) -> Record:
    """The record, with the reason where these settings lead to no number: others may do better."""
    began = time.monotonic()
    try:
        record = _measured(job, grid, folder, emit, federation)
    except RunFailed as failed:
        record = {"loss": None, "accuracy": None, "examples": 0, "sites": [], "bytes": 0, "reason": str(failed)}
    return {"format": FORMAT, **record, "seconds": round(time.monotonic() - began, 3)}


def _measured(job: Job, grid: Grid, folder: RunFolder, emit: EventLog, federation: Federation | None) -> Record:
    """Rounds, and the sites' evaluation of what they came to."""
    plan = make_plan(job, folder.run_id, federation.active() if federation else None)
    limit_replies(grid, plan.variables.values())
    rounds = Rounds(plan, grid, folder, emit, messenger_of(federation, grid, folder.run_id))
    state = rounds.run()
    found = rounds.ask_sum(NamedConfig(name="evaluation"), plan.own(state.params))
    sent = sum(record[f"bytes_{kind}"] for record in state.history for kind in ("down", "up", "base"))
    return {
        **_numbers(plan, found),
        "examples": found.examples,
        "sites": list(found.sites),
        "bytes": sent + found.bytes_down + found.bytes_up,
        "reason": "",
    }


def _numbers(plan: Plan, found: Sum) -> Record:
    by_output = found.arrays[_BY_OUTPUT]
    decided = [i for i, spec in enumerate(plan.contract.outputs) if spec.kind != "regression"]
    accuracy = float(by_output[decided, 1].mean()) if decided else None
    return {"loss": float(by_output[:, 0].sum()), "accuracy": accuracy}
