"""The round loop: sites prepare, then round after round of send, admit, aggregate, checkpoint.

Invariants:

- One site can never stop a run: whatever it sends or withholds costs its own reply, within the deadline.
- What a round decides does not depend on the order in which replies arrive.
- A round counts when its checkpoint is in place, and not before; nothing is announced earlier. The next round's
  requests may be out by then, but nothing that comes of them counts before.
- A round without enough updates changes nothing, and the run gives up after a bounded number of them.

It cannot tell a deployment from a simulation: it sees a Flower ``Grid``.
"""

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from flwr.serverapp import Grid

from fedretrain.crashpoint import crash_point
from fedretrain.digest import weights_digest
from fedretrain.errors import ConfigurationError, RunFailed
from fedretrain.job import NamedConfig
from fedretrain.runfolder import RunFolder
from strategies.base import Arrays

from .admission import Expected
from .aggregate import Memory, make_method
from .asking import Asking, ByMessage, Round, Together, combining
from .attendance import Attendance
from .beside import beside
from .checkpoint import Checkpoint, Checkpoints
from .companions import Companions
from .events import EventLog
from .intake import Bounds, Intake
from .messenger import PLAIN, Messenger
from .monitor import Monitor
from .norms import l2_norm
from .online import rounds_before
from .plan import Plan
from .prepare import Site
from .prior import InUse
from .saving import Saver
from .spool import Spool
from .sums import Line, Sum, ask_sum

ABANDONED_IN_A_ROW = 2  # after so many rounds without enough updates the run stops


@dataclass
class Traffic:
    """Bytes of arrays since the last round that counted, and the messages that carried them."""

    base: int = 0
    down: int = 0
    up: int = 0
    requests: int = 0
    replies: int = 0


class Rounds:
    """The rounds of one run.

    Args:
        plan: What is fixed.
        grid: Where the sites are.
        folder: Where checkpoints and waiting updates lie.
        emit: Takes the events.
        messenger: How messages go out and come back.
        monitor: Measures the model after a round while the next one trains.
        in_use: Gives what the release in use knows of its certainty (``server.prior``).

    Raises:
        ConfigurationError: The strategy's name or settings are wrong, or the run began with another model or data.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - each is another part of a run
        self,
        plan: Plan,
        grid: Grid,
        folder: RunFolder,
        emit: EventLog,
        messenger: Messenger = PLAIN,
        monitor: Monitor | None = None,
        in_use: InUse = dict,
    ) -> None:
        self._plan = plan
        self._grid = grid
        self._folder = folder
        self._emit = emit
        self._method = make_method(plan.job, plan.contract)
        self._messenger = messenger
        self._combining = combining(grid, messenger, plan.codec)
        self._monitor = monitor or Monitor()
        self._attendance = Attendance(plan, grid, emit, messenger)
        self._line = Line(plan, grid, folder.spool, emit, messenger)
        self.companions = Companions(self._line, folder.state, in_use)
        self._forgetful: set[int] = set()
        self._traffic = Traffic()
        self.prepare_seconds = 0.0
        self.earlier_seconds = 0.0
        self.bytes_beside = 0, 0  # down and up, of sums that were asked outside the rounds

    @property
    def folder(self) -> RunFolder:
        """The run's folder."""
        return self._folder

    def run(self) -> Checkpoint:
        """From where the run stands to the state after its last round, or after the one that reached the target.

        Raises:
            RunFailed: Too few sites, or too many rounds in a row that could not be completed. The state is kept.
            MachineError: The disk, or the way to the sites.
        """
        checkpoints = Checkpoints(self._folder.state)
        self._saver = Saver(checkpoints, self._emit)
        with closing(self._saver):
            return self._run(self._resume(checkpoints) or self._begin())

    def ask_sum(self, what: NamedConfig, params: Arrays, *, at_least: int | None = None) -> Sum:
        """A sum over the sites that can take part at the moment (``server.sums.ask_sum``), outside the rounds.

        Args:
            what: The sum, with its settings.
            params: Values of ``contract.changing``.
            at_least: How many answers are needed; default: the job's ``participation.min_sites``.

        Raises:
            RunFailed: Too few sites, or too few answers.
            MachineError: The disk, or the way to the sites.
        """
        if not self._attendance.gathered:
            self._gather()
        sites = self._attendance.next_round(self._forgetful)
        self._forgetful = set()
        found = ask_sum(self._line, what, params, list(sites.values()), at_least=at_least)
        self.bytes_beside = self.bytes_beside[0] + found.bytes_down, self.bytes_beside[1] + found.bytes_up
        return found

    def _run(self, state: Checkpoint) -> Checkpoint:
        contract = self._plan.contract
        self.earlier_seconds = sum(record["seconds"] for record in state.history)
        self._emit(
            "run-started",
            run_id=self._plan.run,
            sites=list(self._plan.expected),
            rounds=self._plan.train.rounds,
            completed=state.round,
            changing_bytes=sum(spec.nbytes for spec in self._plan.variables.values()),
            model_bytes=contract.nbytes,
        )
        enough = self._monitor.look(state.round, self._plan.own(state.params))
        if state.round < self._plan.train.rounds and not enough:
            self._gather()
        while state.round < self._plan.train.rounds and not enough:
            advanced = self._next(state)
            enough = advanced is None
            state = advanced or state
        self._saver.wait()
        self._monitor.settle()
        return state

    def _begin(self) -> Checkpoint:
        plan = self._plan
        params = list(plan.start) if plan.start else [plan.base.weights[i] for i in plan.contract.changing]
        beside = list(self._plan.variables.values())[len(params) :]
        params += [np.zeros(spec.shape, spec.dtype) for spec in beside]
        memory = self._method.begin(params)
        return Checkpoint(plan.run, plan.contract.digest, rounds_before(plan.job), params, memory, (), ())

    def _resume(self, checkpoints: Checkpoints) -> Checkpoint | None:
        """The newest checkpoint that verifies, None where the run begins."""
        state = checkpoints.newest
        for file in checkpoints.corrupt:
            self._emit("checkpoint-corrupt", file=file, used=state.round if state else 0)
        if state is None:
            return None
        if (state.run, state.contract) != (self._plan.run, self._plan.contract.digest):
            raise ConfigurationError(
                f"{self._folder.root}: the model, or data the contract is derived from, changed since the run began; "
                "put them back, or start another run"
            )
        self._method.restore(state.server)
        return state

    def _gather(self) -> None:
        """Prepare the sites."""
        start = time.monotonic()
        try:
            self._attendance.gather()
        finally:
            self.prepare_seconds = time.monotonic() - start

    def _next(self, state: Checkpoint) -> Checkpoint | None:
        """The state after one more round, tried again where it had to be abandoned; None where none is needed."""
        number = state.round + 1
        reason = ""
        for attempt in range(ABANDONED_IN_A_ROW):
            try:
                return self._round(state, number, attempt)
            except RunFailed as failed:
                reason = str(failed)
                self._saver.wait()
                self._method.restore(state.server)
                self._emit("round-abandoned", round=number, reason=reason)
                if self._monitor.settle():
                    return None
        raise RunFailed(
            f"round {number}: abandoned {ABANDONED_IN_A_ROW} times in a row, the last time because {reason}; "
            f"the state after round {state.round} is kept and the run can be resumed"
        )

    def _round(self, state: Checkpoint, number: int, attempt: int) -> Checkpoint | None:
        """One round, None where the one before turns out to be enough; raises RunFailed where it is abandoned."""
        start = time.monotonic()
        if self._forgetful:
            self._saver.wait()  # what follows may take its time
        sites = self.companions.bring(self._attendance.next_round(self._forgetful), self._forgetful)
        self._forgetful = set()
        down, up = self.companions.take_bytes()
        self._traffic.down, self._traffic.up = self._traffic.down + down, self._traffic.up + up
        self._traffic.base += self._attendance.take_base_bytes()
        asked = self._choose(sites, state, number, attempt)
        with Spool(self._folder.spool, tuple(self._plan.variables.values())) as spool:
            asking, intake = self._send(state, number, asked, spool)
            self._saver.wait()
            self._emit("round-started", round=number, sites=[site.name for site in asked])
            self._take(asking, intake)
            memory, params = self._combine(intake, state)
        crash_point("aggregated")
        if self._monitor.settle():
            return None
        record = self._record(intake, number, asked, time.monotonic() - start)
        norms = tuple(intake.admitted[name].norm for name in sorted(intake.admitted))
        advanced = Checkpoint(state.run, state.contract, number, params, memory, norms, (*state.history, record))
        self._saver.begin(advanced, defer=self._combining is not None)  # workers wait for the next order
        self._traffic = Traffic()
        self._monitor.look(number, self._plan.own(params))
        return advanced

    def _choose(self, sites: Mapping[str, Site], state: Checkpoint, number: int, attempt: int) -> list[Site]:
        """Those of ``sites`` that are asked in a round, by name."""
        names, nodes = sorted(sites), {site.node: site for site in sites.values()}
        in_order = [sites[name].node for name in names]
        wanted = self._method.choose(state, in_order, self._grid)
        if wanted is not None:
            return [nodes[node] for node in wanted]
        participation = self._plan.job.participation
        seed = (self._plan.train.seed, number, attempt)
        return [sites[name] for name in sample(names, participation.fraction, participation.min_sites, seed)]

    def _send(self, state: Checkpoint, number: int, asked: Sequence[Site], spool: Spool) -> tuple[Asking, Intake]:
        """Send the global values to the sites; where their replies go."""
        plan, participation = self._plan, self._plan.job.participation
        digest = weights_digest(state.params)
        rule = beside(plan.contract, plan.job.strategy, plan.train, state.params)
        expected = Expected(plan.run, number, state.contract, digest, plan.variables, plan.codec, rule)
        bounds = Bounds(state.norms, l2_norm(plan.own(state.params)), participation.max_update_norm)
        declared = sum(site.train_examples for site in asked)
        at_once = bounds.known or self._combining is not None
        collect = partial(self._method.collect, spool, declared, at_once=at_once)
        intake = Intake(expected, asked, bounds, collect(), self._emit)
        round_ = Round(expected, state.params, asked, participation.deadline_s, self.companions.digests)
        asking: Asking
        if self._combining is not None and intake.collector.folds:
            asking = Together(self._combining, round_, collect, intake)
        else:
            asking = ByMessage(self._grid, self._messenger, round_)
        self._traffic.down += asking.bytes_down
        self._traffic.requests += len(asked)
        return asking, intake

    def _take(self, asking: Asking, intake: Intake) -> None:
        """Take the replies until all are in or the deadline has passed."""
        asking.take(intake)
        self._forgetful = intake.forgetful
        self._traffic.up += intake.bytes_up
        self._traffic.replies += intake.replies

    def _combine(self, intake: Intake, state: Checkpoint) -> tuple[Memory, Arrays]:
        """What the admitted updates make of the global values; raises RunFailed where they are too few."""
        quorum = self._plan.job.participation.min_sites
        if len(intake.admitted) < quorum:
            reasons = "; ".join(f"{q.site}: {q.code}" for q in intake.quarantined)
            raise RunFailed(
                f"expected at least {quorum} updates (participation.min_sites), got {len(intake.admitted)} ({reasons})"
            )
        contributions = intake.contributions()
        share = sum(c.examples for c in contributions) / max(1, self._attendance.examples)
        return self._method.advance(intake.collector, contributions, state, min(1.0, share))

    def _record(self, intake: Intake, number: int, asked: Sequence[Site], seconds: float) -> dict[str, Any]:
        """What is kept of a round for ever; plain JSON."""
        traffic = self._traffic
        return {
            "round": number,
            "sites": [site.name for site in asked],
            "admitted": [dict(vars(intake.admitted[name])) for name in sorted(intake.admitted)],
            "quarantined": [dict(vars(q)) for q in sorted(intake.quarantined, key=lambda q: (q.site, q.code))],
            "metrics": intake.metrics(),
            "seconds": round(seconds, 3),
            "bytes_base": traffic.base,
            "bytes_down": traffic.down,
            "bytes_up": traffic.up,
            "requests": traffic.requests,
            "replies": traffic.replies,
        }


def sample(names: Sequence[str], share: float, at_least: int, seed: Sequence[int]) -> list[str]:
    """A share of the names, rounded up, and never fewer than ``at_least``, drawn without replacement; sorted."""
    count = min(len(names), max(at_least, math.ceil(round(share * len(names), 9))))
    drawn = np.random.default_rng(list(seed)).choice(len(names), count, replace=False)
    return [sorted(names)[i] for i in sorted(drawn.tolist())]
