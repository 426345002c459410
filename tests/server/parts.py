"""A plan without Keras, and runs of the round loop over numpy-only sites."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedretrain.contract import Contract
from fedretrain.digest import weights_digest
from fedretrain.job import HoldoutSection, Job, ModelSection, NamedConfig, ParticipationSection, TrainSection
from fedretrain.modelfile import BaseModel
from fedretrain.runfolder import RunFolder
from server.checkpoint import Checkpoint
from server.events import EventLog
from server.messenger import PLAIN, Messenger
from server.plan import Plan
from server.rounds import Rounds

from .grid import CONTRACT, NumpySite, ScriptedGrid


def weights(contract: Contract = CONTRACT) -> list[NDArray[Any]]:
    rng = np.random.default_rng(0)
    return [np.asarray(rng.normal(size=s.shape)).astype(s.dtype) for s in contract.variables]


def make_job(folder: Path, *, rounds: int = 3, strategy: str = "fedavg", settings: Any = None, **who: Any) -> Job:
    return Job(
        model=ModelSection(path=folder / "base.keras"),
        train=TrainSection(rounds=rounds, seed=7),
        strategy=NamedConfig(name=strategy, **(settings or {})),
        participation=ParticipationSection(**{"deadline_s": 20.0, **who}),
        holdout=(HoldoutSection(name="old", path=folder / "old.npz"),),
    )


def make_plan(job: Job, run: str = "r1", contract: Contract = CONTRACT) -> Plan:
    base = BaseModel(architecture="{}", weights=weights(contract), compile_config=None)
    contract = contract.model_copy(update={"base": weights_digest(base.weights)})
    return Plan(run, job, job.train, contract, base, base, contract)


class Loop:
    """One run of the round loop; what happened is in ``events``."""

    def __init__(
        self,
        out: Path,
        sites: Sequence[NumpySite],
        grid: ScriptedGrid | None = None,
        contract: Contract = CONTRACT,
        *,
        messenger: Messenger = PLAIN,
        run: str = "r1",
        **job: Any,
    ) -> None:
        self.plan = make_plan(make_job(out, **job), run, contract)
        self.messenger = messenger
        self.grid = grid or ScriptedGrid(sites)
        self.folder = RunFolder.create(out, self.plan.run, self.plan.job)
        self.events: list[dict[str, Any]] = []  # without their times

    def run(self) -> Checkpoint:
        return Rounds(self.plan, self.grid, self.folder, EventLog(self.folder, self._take), self.messenger).run()

    def _take(self, event: dict[str, Any]) -> None:
        self.events.append({key: value for key, value in event.items() if key != "at"})

    def named(self, event: str) -> list[dict[str, Any]]:
        return [e for e in self.events if e["event"] == event]

    def quarantined(self) -> list[tuple[int, str, str]]:
        return [(e["round"], e["site"], e["code"]) for e in self.named("quarantined")]


def bits(state: Checkpoint) -> bytes:
    return b"".join(a.tobytes() for a in state.params)
