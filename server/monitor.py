"""The global model measured on central data while the run goes on: for whoever watches, and to end a run early.

Invariants:

- The model after round n is measured while round n + 1 trains, in a thread with a model of its own. Round n + 1 counts
  only when what was read of round n is written down, so at most one is ever outstanding, and after a crash at most the
  last one has to be measured again. A round waits where measuring takes longer than it does; ``every`` is for that.
- Measuring changes no bit of the training. With ``stop_at`` the run ends with the model of the first measured round
  that reached it, whatever was faster: the round that trains meanwhile is dropped.
- Measuring never stops a run by failing: what goes wrong is a warning.
- The data decide about no release. Holdouts that do are to be others: a run that was ended by a holdout was selected
  on it.

Strategies written for Flower may evaluate centrally themselves; that part of them is not run (``strategies.flower``),
so there is nothing to wait for, and every strategy's rounds overlap with this.
"""

import threading
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from fedretrain.errors import FedretrainError
from fedretrain.job import MonitorSection
from fedretrain.runfolder import RunFolder
from strategies.base import Arrays

from .events import EventLog
from .holdouts import holdout_digest, load_holdout
from .online import rounds_before
from .plan import Plan
from .yardstick import Reading, Yardstick


class Monitor:
    """Watches nothing: what a job without ``[monitor]`` has."""

    def look(self, number: int, params: Arrays) -> bool:  # noqa: ARG002 - the signature of those that do watch
        """Begin to measure the model after round ``number``; whether it is known to have reached the target.

        Args:
            number: 0 for what the run starts from. One that was measured, or is not due, is not measured.
            params: Values of ``contract.changing``; nobody may change them before ``settle`` has returned.
        """
        return False

    def settle(self) -> bool:
        """Wait for what is being measured and write it down; whether the run has reached its target with it."""
        return False

    def readings(self) -> list[dict[str, Any]]:
        """``{"round", "loss", "metrics", "seconds"}`` of the measured rounds, in order."""
        return []

    def close(self) -> None:
        """Give up what is being measured."""


class Watching(Monitor):
    """Measures, in a thread of its own.

    Args:
        section: The job's.
        rounds: The run's last round at the latest; it is always measured.
        yardstick: What measures; used by one thread at a time.
        emit: Takes the events, in the thread that calls.
        events: Of earlier starts of the run.
        begun: Rounds before its first one (``server.online``).
    """

    def __init__(  # noqa: PLR0913 - each is another part of a run
        self,
        section: MonitorSection,
        rounds: int,
        yardstick: Yardstick,
        emit: EventLog,
        events: Iterable[Mapping[str, Any]] = (),
        *,
        begun: int = 0,
    ) -> None:
        self._section = section
        self._rounds = rounds
        self._begun = begun
        self._yardstick = yardstick
        self._emit = emit
        known = ("round", "loss", "metrics", "seconds")
        self._read = {e["round"]: {key: e[key] for key in known} for e in events if e["event"] == "monitored"}
        self._pending: tuple[int, Future[tuple[Reading | None, float]]] | None = None
        self._stopped = threading.Event()
        self._thread = ThreadPoolExecutor(1, "monitor")

    def look(self, number: int, params: Arrays) -> bool:
        """See ``Monitor``."""
        if number in self._read:
            return self._reached(number)
        if number % self._section.every == 0 or number == self._rounds:
            self._pending = number, self._thread.submit(self._measure, params)
        return False

    def settle(self) -> bool:
        """See ``Monitor``."""
        if self._pending is None:
            return False
        (number, future), self._pending = self._pending, None
        try:
            reading, seconds = future.result()
        except Exception as error:  # noqa: BLE001 - a run does not end because somebody watches it
            what = str(error) if isinstance(error, FedretrainError) else f"{type(error).__name__}: {error}"
            self._emit("warning", text=f"round {number} could not be monitored: {' '.join(what.split())}")
            return False
        if reading is None:
            return False
        entry = {"round": number, "loss": reading.loss, "metrics": reading.metrics, "seconds": round(seconds, 3)}
        self._read[number] = entry
        self._emit("monitored", **entry)
        return self._reached(number)

    def readings(self) -> list[dict[str, Any]]:
        """See ``Monitor``."""
        return [self._read[number] for number in sorted(self._read)]

    def close(self) -> None:
        """See ``Monitor``; returns when the batch in work is done."""
        self._stopped.set()
        self._thread.shutdown()

    def _measure(self, params: Arrays) -> tuple[Reading | None, float]:
        start = time.monotonic()
        return self._yardstick.read(params, stopped=self._stopped.is_set), time.monotonic() - start

    def _reached(self, number: int) -> bool:
        """Whether a round's reading is enough, and say so; that of round 0 never is: nothing would be trained."""
        entry, metric, target = self._read[number], self._yardstick.metric, self._section.stop_at
        value = entry["loss"] if metric == "loss" else entry["metrics"].get(metric)
        enough = number > self._begun and value is not None and self._section.reached(metric, value)
        if enough:
            self._emit("target-reached", round=number, metric=metric, value=value, target=target)
        return enough


def make_monitor(plan: Plan, folder: RunFolder, emit: EventLog, holdouts: Iterable[str] = ()) -> Monitor:
    """The monitor that a job asks for; to be closed in the end.

    Args:
        plan: What is fixed.
        folder: The run's; its log has what was read before.
        emit: Takes the events; a warning where the data are those of a holdout.
        holdouts: Digests of the holdouts that decide (``server.holdouts.holdout_digest``), in the job's order.

    Raises:
        ConfigurationError: Data that do not fit the contract, or a metric or output that does not fit the model.
    """
    section = plan.job.monitor
    if section is None:
        return Monitor()
    data = load_holdout(section.as_holdout, plan.contract, plan.train)
    digest = holdout_digest(data)
    for holdout, same in zip(plan.job.holdout, holdouts, strict=False):
        if same == digest:
            emit(
                "warning",
                text=f"monitor.path has the data of holdout '{holdout.name}', which decides about the release: what is "
                "chosen by watching them is judged on them too; take others for one of the two",
            )
    yardstick, begun = Yardstick(plan, data), rounds_before(plan.job)
    return Watching(section, plan.train.rounds, yardstick, emit, folder.read_events(), begun=begun)
