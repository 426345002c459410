"""One run, from a job to its result: rounds, gate, release. ``execute`` is all of it, and starting it again resumes.

Invariants:

- Whatever was finished before a crash is not done again: rounds are checkpointed, the verdict is written down before
  anything is released, and a run's candidate is released at most once.
- Only a candidate that the gate passed is released, and only in place of the model it was trained from.
- A federation's run that was asked to stop releases nothing until it is asked to go on.
- A finished run returns its result, whoever asks how often.
- An online job is a run for each of its segments, with a result of its own beside theirs (``server.online``).
- In a federation every message is sealed (``server.messenger``), and a release is brought to the connected sites before
  the run is finished; what goes wrong there is the sites' affair and changes nothing about the run.

The result, ``fedretrain.result/1``, is a JSON object::

    {"format", "run_id", "outcome": "released" | "rejected", "release": id | null, "parent": id | null,
     "rounds": [...], "monitor": [{"round", "loss", "metrics", "seconds"}], "gate": {...},
     "bytes": {"down", "up", "base", "total", "whole_model_total", "ratio"},
     "seconds": {"total", "open", "prepare", "rounds", "earlier", "gate", "release"}}     release: with its delivery

Where codecarbon is installed it has "energy" too, of this start: ``{"kwh", "of": "machine", "method"}``
(``server.deciding.energy``).
An online job's has "segments" too (``server.online``); what is of one gate there is of the last segment's.

Bytes are those of arrays as they travelled; ``base`` is what sites without the base model were sent, ``total`` the sum
of the three, ``whole_model_total`` what the same requests and replies of the rounds would have taken with every
variable in them, and ``ratio`` = total / whole_model_total. Seconds are of this start, those of ``rounds`` of all
starts, of which ``earlier`` are those before this one; bytes are of all rounds, and of what this start asked the sites
after them (``server.sums``).
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from typing import Any

from flwr.serverapp import Grid
from numpy.typing import NDArray
from safetensors.numpy import load

from fedretrain import atomic
from fedretrain.contract import Contract
from fedretrain.crashpoint import crash_point
from fedretrain.digest import weights_digest
from fedretrain.errors import ConfigurationError, FedretrainError, MachineError, RunStopped
from fedretrain.job import Job
from fedretrain.modelfile import BaseModel
from fedretrain.runfolder import RunFolder

from .checkpoint import Checkpoint
from .deciding.energy import Meter, metered
from .deliver import deliver
from .desired import desired
from .events import EventLog
from .federation import Federation
from .gate import judge
from .holdouts import holdout_digest, load_holdouts, record_use
from .keras_file import keras_writer
from .lineage import lineage_of_import, lineage_of_run
from .messenger import limit_replies, messenger_of
from .modes import Candidate
from .monitor import make_monitor
from .online import is_divided, run_segments, whole_run
from .plan import make_plan
from .registry import Registry, Release, ReleaseDraft
from .rounds import Rounds
from .uncertainty import assess, check_uncertainty

FORMAT = "fedretrain.result/1"


def execute(
    job: Job,
    grid: Grid,
    folder: RunFolder,
    on_event: Callable[[dict[str, Any]], None] | None = None,
    federation: Federation | None = None,
) -> dict[str, Any]:
    """Run the job to its end, from wherever an earlier start left it.

    Args:
        job: As loaded.
        grid: Where the sites are; with a federation one that knows its nodes' keys (``server.guarded``).
        folder: The run's folder; the registry is that of its output folder.
        on_event: Is told every event (``server.events``).
        federation: Whose members the sites are; None in a simulation, where they are processes of this machine.

    Returns:
        The result, see the module docstring; it also stands in the run folder.

    Raises:
        ConfigurationError: Job, model, holdouts or federation are wrong, or the model is not the one in use.
        RunFailed: Too few sites, or rounds that could not be completed; the run can be resumed.
        RunStopped: In a federation: its operator asked for it before anything was released; it can be resumed.
        UntrustedRelease: The registry does not verify.
        MachineError: Disk or network failed, or another process works on this run; the run can be resumed.
    """
    with folder.lock():
        if folder.result.exists():
            return _read_json(folder.result)
        emit = EventLog(folder, on_event)
        try:
            if is_divided(job):
                return _in_segments(job, grid, folder, emit, federation)
            with metered() as meter:
                return _Run(job, grid, folder, emit, federation).finish(meter)
        except FedretrainError as error:
            with suppress(MachineError):  # where the disk is full there is no room for this line either
                emit("failed", reason=str(error))
            raise


def _in_segments(
    job: Job, grid: Grid, folder: RunFolder, emit: EventLog, federation: Federation | None
) -> dict[str, Any]:
    """``execute`` for an online job: each segment is executed, and what they come to is the result."""
    result = run_segments(
        job,
        folder,
        emit,
        lambda part, own, watch: execute(part, grid, own, watch, federation),
        lambda: _check_wish(folder, federation, "stopped by its operator between two segments; to go on"),
    )
    if result["release"] is not None:
        emit("released", release=result["release"])
    else:
        emit("rejected", reasons=result["gate"]["reasons"])
    atomic.write_json(folder.result, result)
    crash_point("result-written")
    return result


class _Run:
    """The steps of ``execute``."""

    def __init__(self, job: Job, grid: Grid, folder: RunFolder, emit: EventLog, federation: Federation | None) -> None:
        self._start = time.monotonic()
        self._folder = folder
        self._emit = emit
        self._grid = grid
        self._federation = federation
        messenger = messenger_of(federation, grid, folder.run_id)
        self._registry = Registry.open(folder.out)
        members = federation.active() if federation else None
        self._plan = make_plan(job, folder.run_id, members, self._contract_in_use)
        check_uncertainty(self._plan)
        limit_replies(grid, self._plan.variables.values())
        self._holdouts = [holdout_digest(data) for _, data in load_holdouts(job, self._plan.contract, self._plan.train)]
        self._monitor = make_monitor(self._plan, folder, emit, self._holdouts)
        self._rounds = Rounds(self._plan, grid, folder, emit, messenger, self._monitor, self._certainty_in_use)
        self._opened = time.monotonic()

    def finish(self, meter: Meter) -> dict[str, Any]:
        """All that is left to do; the meter runs since it began."""
        parent = self._parent()
        with closing(self._monitor):
            state = self._rounds.run()
        candidate = self._plan.mode.candidate(self._plan, state, self._rounds)
        judging = time.monotonic()
        report = self._judge(candidate)
        releasing = time.monotonic()
        release = self._publish(candidate, report, state, parent) if report["passed"] else None
        if release is not None:
            self._emit("released", release=release.id)
            self._deliver()
        else:
            self._emit("rejected", reasons=report["reasons"])
        end = time.monotonic()
        seconds = {
            "total": end - self._start,
            "open": self._opened - self._start,
            "prepare": self._rounds.prepare_seconds,
            "rounds": sum(record["seconds"] for record in state.history),
            "earlier": self._rounds.earlier_seconds,
            "gate": releasing - judging,
            "release": end - releasing,
        }
        result = {
            "format": FORMAT,
            "run_id": self._plan.run,
            "outcome": "rejected" if release is None else "released",
            "release": None if release is None else release.id,
            "parent": parent,
            "rounds": list(state.history),
            "monitor": self._monitor.readings(),
            "gate": report,
            "bytes": _bytes(state.history, self._plan.contract.nbytes, self._rounds.bytes_beside),
            "seconds": {name: round(value, 3) for name, value in seconds.items()},
        }
        energy = meter.read()
        result |= {"energy": energy} if energy else {}
        atomic.write_json(self._folder.result, result)
        crash_point("result-written")
        return result

    def _contract_in_use(self) -> Contract | None:
        """That of the release this run may replace, as its first start found it."""
        identity = self._release_in_use()
        return None if identity is None else self._registry.load(identity)[0].contract

    def _certainty_in_use(self) -> Mapping[str, NDArray[Any]]:
        """What that release keeps of its certainty; nothing where it keeps none."""
        identity = self._release_in_use()
        content = None if identity is None else self._registry.uncertainty(identity)
        return {} if content is None else load(content)

    def _release_in_use(self) -> str | None:
        state = self._registry.state()
        if state is None or state.ledger.incumbent is None:
            return None
        published = [i for i, entry in state.ledger.releases.items() if entry.run == self._folder.run_id]
        if not published:
            return state.ledger.incumbent
        parent: str | None = self._registry.load(published[0])[0].lineage["parent"]
        return parent

    def _parent(self) -> str | None:
        """Id of the release this run may replace; the base model becomes the first release where there is none."""
        state, plan = self._registry.state(), self._plan
        if state is None or state.ledger.incumbent is None:
            draft = self._draft(plan.incumbent, plan.in_use, {}, lineage_of_import(plan))
            return self._registry.publish(draft, None).id
        published = [i for i, entry in state.ledger.releases.items() if entry.run == plan.run]
        if published:  # by an earlier start, which died before it could say so
            parent: str | None = self._registry.load(published[0])[0].lineage["parent"]
            return parent
        incumbent, _ = self._registry.load(state.ledger.incumbent)
        if (weights_digest(incumbent.weights), incumbent.contract.architecture) != (
            plan.in_use.base,
            plan.in_use.architecture,
        ):
            raise ConfigurationError(
                f"model.path: expected the model in use, release {incumbent.id[:16]} in {self._registry.folder}, got "
                f"another: {plan.job.model.path}. Point model.path at {incumbent.folder / 'model.keras'}, or choose "
                "another output folder"
            )
        return incumbent.id

    def _judge(self, candidate: Candidate) -> dict[str, Any]:
        """The gate's report; one that is written down already stands."""
        digest = weights_digest(candidate.model.weights)
        kept = _read_json(self._folder.gate) if self._folder.gate.exists() else {}
        if kept.get("candidate") != digest:
            crash_point("gate-started")
            plan = self._plan
            uses = record_use(self._folder.out, plan.run, self._holdouts)
            report = judge(
                plan.job, plan.contract, plan.train, plan.incumbent, candidate.model, uses=uses, space=plan.space
            )
            kept = {"candidate": digest, "report": report.as_dict()}
            certainty = assess(plan, candidate, self._rounds, self._folder.uncertainty, self._emit)
            if certainty is not None:
                kept["report"]["uncertainty"] = certainty
            atomic.write_json(self._folder.gate, kept)
            crash_point("gate-finished")
        self._emit("gate", **kept["report"])
        verdict: dict[str, Any] = kept["report"]
        return verdict

    def _publish(self, candidate: Candidate, report: dict[str, Any], state: Checkpoint, parent: str | None) -> Release:
        lineage = lineage_of_run(self._plan, state.history, parent, candidate.about)
        draft = self._draft(candidate.model, candidate.contract, report, lineage)
        if self._folder.uncertainty.exists():
            with atomic.disk_errors(self._folder.uncertainty, "read"):
                draft = replace(draft, uncertainty=self._folder.uncertainty.read_bytes())
        whole = whole_run(self._plan.job, self._folder)
        kept = "stopped by its operator before it released the candidate; the verdict is kept, and to release it"
        _check_wish(whole, self._federation, kept)
        return self._registry.publish(draft, expected_parent=parent)

    def _deliver(self) -> None:
        """Bring the release to the federation's sites; those that it does not reach now get it when they are back."""
        if self._federation is None:
            return
        try:
            deliver(self._federation, self._grid, self._emit, self._plan.run)
        except FedretrainError as error:
            self._emit("warning", text=f"the release could not be brought to all sites: {error}")

    def _draft(
        self, model: BaseModel, contract: Contract, report: dict[str, Any], lineage: dict[str, Any]
    ) -> ReleaseDraft:
        allowed = self._plan.job.model.allow_modules
        writer = keras_writer(model.architecture, model.weights, model.compile_config, allowed)
        return ReleaseDraft(model.architecture, model.weights, contract, report, lineage, writer)


def _check_wish(folder: RunFolder, federation: Federation | None, what: str) -> None:
    """Raise RunStopped where a federation's operator has asked for it."""
    wish = desired(folder) if federation else None  # SuperLink ends a process only some time later
    if wish is not None and wish.state == "stop":
        raise RunStopped(f"{what}: fedretrain server resume {folder.run_id}")


def _bytes(history: Sequence[Mapping[str, Any]], model_bytes: int, beside: tuple[int, int]) -> dict[str, Any]:
    down, up, base = (sum(record[f"bytes_{kind}"] for record in history) for kind in ("down", "up", "base"))
    down, up = down + beside[0], up + beside[1]
    whole = model_bytes * sum(record["requests"] + record["replies"] for record in history)
    total = down + up + base
    ratio = total / whole if whole else 0.0
    return {"down": down, "up": up, "base": base, "total": total, "whole_model_total": whole, "ratio": ratio}


def _read_json(path: Any) -> dict[str, Any]:
    with atomic.disk_errors(path, "read"):
        value: dict[str, Any] = json.loads(path.read_bytes())
        return value
