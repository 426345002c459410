"""The mode "online": small rounds one after the other, with the gate every few of them.

The rounds are divided into segments of ``online.gate_every``. Each is a run of its own, ``RUN.1``, ``RUN.2``, ..., in a
folder beside the job's own, from the model that is in use when it begins: what the gate passes is released and is where
the next segment starts, and what it rejects is given up. Sites read their data anew for every segment.

Invariants:

- Rounds are numbered through all segments, so that no round repeats another one's choice of sites or order of
  examples, while a site's validation part stays the same.
- What a segment is follows from the job and the results of those before it: started again, a job goes on in the segment
  where it stopped, to the same bits.
- A round never moves what is trained by more than ``online.step_norm`` (L2 over all variables with the rule "train",
  after the server's optimizer); moving statistics of BatchNormalization are not steps, and are left as they are.
- Every segment's gate counts as one more use of its holdouts.

A bounded step is the projection of online gradient descent (M. Zinkevich: Online Convex Programming and Generalized
Infinitesimal Gradient Ascent, ICML 2003) onto a ball around the model as it was before the round::

    w' = w + d min(1, step_norm / |d|)            d: what the round would change
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
from flwr.serverapp import Grid

from fedretrain.errors import ConfigurationError
from fedretrain.job import Job, OnlineSection
from fedretrain.runfolder import RunFolder
from strategies.base import Arrays

from .events import EventLog
from .norms import l2_norm

if TYPE_CHECKING:
    from .aggregate import Collector, Contribution, Memory, Method
    from .checkpoint import Checkpoint
    from .spool import Spool

Record = dict[str, Any]
Watch = Callable[[Record], None]
RunOne = Callable[[Job, RunFolder, Watch], Record]
"""Runs one segment's job in its folder to its end, tells its events, and returns its result."""

_OWN = frozenset({"failed", "released", "rejected"})
"""Events of a segment that are its own affair: of the job they would be the end."""


def is_divided(job: Job) -> bool:
    """Whether a job has to be run in segments; a segment's own job is one run."""
    return job.online is not None and job.online.begun is None


def rounds_before(job: Job) -> int:
    """How many rounds were made before a run's first one; 0 where it is no later segment."""
    return (job.online.begun if job.online else None) or 0


def whole_run(job: Job, folder: RunFolder) -> RunFolder:
    """The folder of the run that an operator knows: the whole's, where the job is of a segment."""
    if job.online is None or job.online.begun is None:
        return folder
    return RunFolder(folder.root.with_name(folder.run_id.rpartition(".")[0]))


def run_segments(
    job: Job, folder: RunFolder, emit: EventLog, run_one: RunOne, before_each: Callable[[], None] = lambda: None
) -> Record:
    """All segments, from the one where an earlier start stopped; the job's result (``server.run``), not yet written.

    The result has "segments" beside a run's own fields: ``[{"run_id", "rounds", "outcome", "release", "reasons"}]``.
    Its release is the last one, its gate that of the last segment.

    Args:
        job: Of the whole.
        folder: Of the whole.
        emit: Takes the segments' events, and ``segment-finished`` after each.
        run_one: Runs a segment.
        before_each: Called before each segment that is left; may raise to stop there.

    Raises:
        ConfigurationError: The run's id leaves no room for a segment's.
        FedretrainError: As ``run_one``.
    """
    told = {event["segment"] for event in folder.read_events() if event["event"] == "segment-finished"}
    results: list[Record] = []
    for number, (begun, end) in enumerate(_spans(job), start=1):
        part = _segment_job(job, begun, end, folder, results)
        own = RunFolder.create(folder.out, f"{folder.run_id}.{number}", part)
        if not own.result.exists():
            before_each()
        results.append(run_one(part, own, _forwarded(emit, folder.run_id, job.train.rounds)))
        if number not in told:
            emit("segment-finished", segment=number, **_summary(results[-1]))
        if len(results[-1]["rounds"]) < end - begun:  # the monitor's target is reached
            break
    return _whole(folder.run_id, results)


def _spans(job: Job) -> Iterator[tuple[int, int]]:
    """Rounds before and up to the end of each segment."""
    total, every = job.train.rounds, _section(job).gate_every
    return ((begun, min(begun + every, total)) for begun in range(0, total, every))


def _section(job: Job) -> OnlineSection:
    if job.online is None:
        raise ConfigurationError("online: expected a table [online] with step_norm, got none")
    return job.online


def _segment_job(job: Job, begun: int, end: int, folder: RunFolder, earlier: Sequence[Record]) -> Job:
    """The job of one segment: the model is the last release of those before it."""
    released = [result["release"] for result in earlier if result["release"]]
    model = job.model
    if released:
        path = folder.out / "registry" / "releases" / released[-1] / "model.keras"
        model = model.model_copy(update={"path": path, "architecture": None})
    return job.model_copy(
        update={
            "model": model,
            "train": job.train.model_copy(update={"rounds": end}),
            "online": _section(job).model_copy(update={"begun": begun}),
        }
    )


def _forwarded(emit: EventLog, run: str, rounds: int) -> Watch:
    """Tells a segment's events as the whole job's."""

    def forward(event: Record) -> None:
        fields = {name: value for name, value in event.items() if name not in {"event", "at"}}
        if event["event"] == "run-started":
            fields |= {"run_id": run, "rounds": rounds}
        if event["event"] not in _OWN:
            emit(event["event"], **fields)

    return forward


def _summary(result: Record) -> Record:
    return {
        "run_id": result["run_id"],
        "rounds": len(result["rounds"]),
        "outcome": result["outcome"],
        "release": result["release"],
        "reasons": list(result["gate"]["reasons"]),
    }


def _whole(run: str, results: Sequence[Record]) -> Record:
    """One result of all segments'; what can be added up is."""
    released = [result["release"] for result in results if result["release"]]
    bytes_ = _added(result["bytes"] for result in results)
    whole = bytes_["whole_model_total"]
    return {
        "format": results[-1]["format"],
        "run_id": run,
        "outcome": "released" if released else "rejected",
        "release": released[-1] if released else None,
        "parent": results[0]["parent"],
        "rounds": list(chain.from_iterable(result["rounds"] for result in results)),
        "monitor": list(_readings(results)),
        "gate": results[-1]["gate"],
        "bytes": bytes_ | {"ratio": bytes_["total"] / whole if whole else 0.0},
        "seconds": {name: round(value, 3) for name, value in _added(result["seconds"] for result in results).items()},
        "segments": [_summary(result) for result in results],
    } | _energy(results)


def _energy(results: Sequence[Record]) -> Record:
    """What all segments took, where each of them says."""
    if not all("energy" in result for result in results):
        return {}
    return {"energy": results[-1]["energy"] | {"kwh": sum(result["energy"]["kwh"] for result in results)}}


def _added(tables: Iterator[Mapping[str, float]]) -> dict[str, Any]:
    total: dict[str, Any] = {}
    for table in tables:
        for name, value in table.items():
            total[name] = total.get(name, 0) + value
    return total


def _readings(results: Sequence[Record]) -> Iterator[Record]:
    """The monitor's, of each round once: a later segment begins where one before it ended."""
    known: set[int] = set()
    for result in results:
        for reading in result["monitor"]:
            if reading["round"] not in known:
                known.add(reading["round"])
                yield reading


class Bounded:
    """A method (``server.aggregate``) whose rounds move what is trained by at most ``step_norm``.

    What the method remembers is left as it is: a server optimizer's momentum is of the whole step.

    Args:
        method: What combines the updates.
        trained: Which of the travelling variables are steps, by their place among them.
        step_norm: The bound, L2 over all of them together.
    """

    def __init__(self, method: "Method", trained: Sequence[int], step_norm: float) -> None:
        self._method = method
        self._trained = tuple(trained)
        self._bound = step_norm

    def begin(self, params: Arrays) -> "Memory":
        """The method's."""
        return self._method.begin(params)

    def restore(self, memory: "Memory") -> None:
        """The method's."""
        self._method.restore(memory)

    def choose(self, before: "Checkpoint", nodes: list[int], grid: Grid) -> list[int] | None:
        """The method's."""
        return self._method.choose(before, nodes, grid)

    def collect(self, spool: "Spool", total_weight: int, *, at_once: bool) -> "Collector":
        """The method's."""
        return self._method.collect(spool, total_weight, at_once=at_once)

    def advance(
        self, collector: "Collector", admitted: "Sequence[Contribution]", before: "Checkpoint", share: float
    ) -> "tuple[Memory, Arrays]":
        """As the method's, and no further than the bound."""
        memory, params = self._method.advance(collector, admitted, before, share)
        return memory, bounded_step(before.params, params, self._trained, self._bound)


def bounded_step(before: Arrays, after: Arrays, trained: Sequence[int], bound: float) -> Arrays:
    """``after``, drawn back towards ``before`` where the step on the ``trained`` variables is longer than ``bound``."""
    steps = {i: after[i].astype(np.float64) - before[i].astype(np.float64) for i in trained}
    norm = l2_norm(list(steps.values()))
    if norm <= bound:
        return after
    drawn = {i: (before[i] + step * (bound / norm)).astype(after[i].dtype) for i, step in steps.items()}
    return [np.asarray(drawn.get(i, values)) for i, values in enumerate(after)]
