"""The job file: one TOML, one frozen model, read the same way by a simulation and by a deployment.

``load_job`` is the only way in. It resolves paths against the job file's folder, and turns every mistake into one
``ConfigurationError`` line that names the key, what was expected, what was found and the nearest valid key.
"""

import glob
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from .digest import json_digest
from .errors import ConfigurationError
from .jobtables import (
    STAGED,
    EnsembleSection,
    ExtendSection,
    Loss,
    Mode,
    Name,
    NamedConfig,
    OnlineSection,
    QuietSection,
    Reference,
    ReplaySection,
    StageSection,
    TransferSection,
    UncertaintySection,
)
from .planning import PlanSection
from .searchspace import SearchSection
from .tomlfile import Section, check_toml, in_utc, read_toml
from .watching import WatchSection

__all__ = [
    "ContractSection",
    "EnsembleSection",
    "ExtendSection",
    "HoldoutSection",
    "Job",
    "Loss",
    "MessagesSection",
    "ModelSection",
    "MonitorSection",
    "Name",
    "NamedConfig",
    "OnlineSection",
    "ParticipationSection",
    "PlanSection",
    "Reference",
    "ReplaySection",
    "SimulationSection",
    "StageSection",
    "TrainSection",
    "TransferSection",
    "UncertaintySection",
    "WatchSection",
    "load_job",
    "parse_job",
    "site_files",
]


class ModelSection(Section):
    """Which model is retrained and which of its layers stay as they are."""

    path: Path = Field(description=".keras file; SavedModel folder or weights file together with `architecture`")
    architecture: Reference | None = Field(None, description="module:function that returns the uncompiled model")
    freeze: tuple[str, ...] = Field((), description="shell patterns over layer names; nested as outer/inner")
    allow_modules: tuple[str, ...] = Field((), description="modules of your own whose layer classes may be built")


class TrainSection(QuietSection):
    """How a site trains in one round, and from what the run starts."""

    quiet = frozenset({"mode", "since", "replay", "stages"})

    rounds: int = Field(10, ge=1, le=100_000)
    local_epochs: int | None = Field(None, ge=1, description="passes over the site's data per round; default 1")
    local_steps: int | None = Field(None, ge=1, description="optimizer steps per round, instead of local_epochs")
    batch_size: int = Field(32, ge=1, description="examples per step")
    optimizer: NamedConfig | None = Field(None, description="any Keras optimizer; default: the model's own")
    loss: Loss | dict[str, Loss] | None = Field(None, description="any Keras loss, by output if several")
    metrics: tuple[str, ...] | None = Field(None, description="Keras metrics; default: the model's own")
    jit_compile: bool | None = Field(None, description="steps by XLA; default: small dense models in runs of 20 rounds")
    validation_fraction: float = Field(0.1, ge=0, lt=1, description="share of a site's data it evaluates on")
    seed: int = Field(0, ge=0, lt=2**32)
    mode: Mode = Field("continue", description="what the run starts from and trains on")
    since: datetime | None = Field(None, description="examples from then on are new; UTC where no zone is given")
    replay: ReplaySection | None = None
    stages: tuple[StageSection, ...] = Field((), description="staged unfreezing, in order")

    @field_validator("since", mode="before")
    @classmethod
    def _a_day_begins_at_midnight(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return datetime.fromisoformat(value)
        except ValueError:
            return value

    @field_validator("since")
    @classmethod
    def _in_utc(cls, value: datetime | None) -> datetime | None:
        return None if value is None else in_utc(value)

    @model_validator(mode="after")
    def _stages_fill_the_rounds(self) -> "TrainSection":
        total = sum(stage.rounds for stage in self.stages)
        if self.stages and "rounds" not in self.model_fields_set:
            object.__setattr__(self, "rounds", total)  # theirs, and need not be said twice
        if self.stages and total != self.rounds:
            raise ValueError(f"stages: expected rounds that sum to train.rounds, {self.rounds}, got {total}")
        if self.stages and self.mode not in STAGED:
            raise ValueError(f"stages: expected one of the modes {', '.join(STAGED)}, got {self.mode!r}")
        return self

    @model_validator(mode="after")
    def _replays_in_its_mode(self) -> "TrainSection":
        if self.replay is not None and self.mode != "replay":
            raise ValueError(f"replay: no such table where train.mode is {self.mode!r}; set it to 'replay'")
        return self

    @model_validator(mode="after")
    def _one_measure_of_work(self) -> "TrainSection":
        if self.local_epochs is not None and self.local_steps is not None:
            raise ValueError("give local_epochs or local_steps, not both")
        return self


class ParticipationSection(Section):
    """Who is asked, how long is waited, what is taken."""

    fraction: float = Field(1.0, gt=0, le=1, description="share of the sites asked in a round")
    min_sites: int = Field(2, ge=1, description="fewest admitted updates a round needs")
    deadline_s: float = Field(600, gt=0, description="seconds a round waits for replies")
    max_update_norm: float | None = Field(None, gt=0, description="L2 bound on an update; default: from other sites")


class MessagesSection(Section):
    """How updates travel."""

    codec: NamedConfig = Field(
        NamedConfig(name="float32"), description="float32, float16, int8 or topk; with settings as { name = ... }"
    )

    @field_validator("codec", mode="before")
    @classmethod
    def _by_name_alone(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("codec")
    @classmethod
    def _one_of_ours(cls, value: NamedConfig) -> NamedConfig:
        from .codecs import make_codec

        try:
            make_codec(value)
        except ConfigurationError as error:
            raise ValueError(str(error)) from None
        return value


class HoldoutSection(Section):
    """A central holdout and what the candidate must achieve on it."""

    name: Name
    path: Path
    must: Literal["not-worse", "improve"] = "not-worse"
    margin: float = Field(0.01, ge=0, description="not-worse: tolerated loss; improve: gain asked, default 0")
    metric: Literal["accuracy", "auc", "loss"] | None = Field(None, description="default: from the job's metrics")
    output: str | None = Field(None, description="which output is judged, where the model has several")

    @model_validator(mode="before")
    @classmethod
    def _improve_asks_for_any_gain(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("must") == "improve":
            return {"margin": 0.0, **data}
        return data


class MonitorSection(Section):
    """Data that the global model is measured on while the run goes on; they decide about no release."""

    path: Path = Field(description=".npz file as a holdout's; should be none of the holdouts")
    metric: Literal["accuracy", "auc", "loss"] | None = Field(None, description="default: from the job's metrics")
    output: str | None = Field(None, description="which output is measured, where the model has several")
    every: int = Field(1, ge=1, description="rounds from one measurement to the next; the last round always has one")
    stop_at: float | None = Field(None, description="value of the metric that is enough: the run then ends early")

    @field_validator("stop_at")
    @classmethod
    def _can_be_meant(cls, value: float | None, info: ValidationInfo) -> float | None:
        if value is not None and (expected := unmeant_target(info.data.get("metric"), value)):
            raise ValueError(f"expected {expected}, got {value:g}")
        return value

    @property
    def as_holdout(self) -> HoldoutSection:
        """What it shares with a holdout, under the name "monitor"."""
        return HoldoutSection(name="monitor", path=self.path, metric=self.metric, output=self.output)

    def reached(self, metric: str, value: float) -> bool:
        """Whether a value of the metric is enough; a loss is the better the smaller it is."""
        if self.stop_at is None:
            return False
        return value <= self.stop_at if metric == "loss" else value >= self.stop_at


def unmeant_target(metric: str | None, value: float) -> str | None:
    """What is expected of a target in place of ``value``; None where it can be meant, or ``metric`` is not settled."""
    if metric in {"accuracy", "auc"} and not 0 < value <= 1:
        return f"above 0 and at most 1, as {metric} is a share"
    return None


class ContractSection(Section):
    """What the model file itself cannot say about the data."""

    labels: tuple[str, ...] | None = Field(None, description="meaning of each output position, in order")
    columns: tuple[str, ...] | None = Field(None, description="names of a flat input's columns, in order")
    ranges: dict[str, tuple[float, float]] = Field({}, description="least and greatest value by input name")
    preprocessing: str | None = Field(None, description="a name for how raw data became arrays, e.g. pixels/16")


class SimulationSection(Section):
    """Where a simulation finds its sites; a deployment ignores it."""

    sites: str = Field(
        description="pattern of one npz file per site, named after it; or a folder that `fedretrain partition` wrote"
    )
    first: int | None = Field(None, ge=1, description="only so many sites, the first by name; default: all")


_TABLES = ("transfer", "extend", "ensemble", "online")
"""Tables that belong to the mode of the same name."""
_NEEDED = ("transfer", "extend", "online")


class Job(QuietSection):
    """A retraining job. Paths are absolute once loaded."""

    quiet = frozenset({*_TABLES, "search", "uncertainty", "watch", "plan"})

    model: ModelSection
    train: TrainSection = TrainSection()
    strategy: NamedConfig = NamedConfig(name="fedavg")
    participation: ParticipationSection = ParticipationSection()
    messages: MessagesSection = MessagesSection()
    holdout: tuple[HoldoutSection, ...] = Field(min_length=1)
    monitor: MonitorSection | None = None
    contract: ContractSection = ContractSection()
    simulation: SimulationSection | None = None
    transfer: TransferSection | None = None
    extend: ExtendSection | None = None
    ensemble: EnsembleSection | None = None
    online: OnlineSection | None = None
    search: SearchSection | None = None
    uncertainty: UncertaintySection | None = None
    watch: WatchSection | None = None
    plan: PlanSection | None = None

    @model_validator(mode="after")
    def _tables_of_the_mode(self) -> "Job":
        mode = self.train.mode
        for name in _TABLES:
            if getattr(self, name) is not None and mode != name:
                raise ValueError(f"{name}: no such table where train.mode is {mode!r}; set it to {name!r}")
        if mode in _NEEDED and getattr(self, mode) is None:
            raise ValueError(f"{mode}: required with train.mode = {mode!r}, but missing")
        if self.online is not None and "rounds" not in self.train.model_fields_set:
            object.__setattr__(self.train, "rounds", self.online.gate_every * self.online.segments)
        return self

    @field_validator("holdout")
    @classmethod
    def _names_differ(cls, value: tuple[HoldoutSection, ...]) -> tuple[HoldoutSection, ...]:
        names = [h.name for h in value]
        if len(set(names)) != len(names):
            raise ValueError(f"holdout names must differ, got {names}")
        return value

    @property
    def digest(self) -> str:
        """SHA-256 of the job without its paths and what no run looks at: in another folder it is the same job."""
        unused = dict.fromkeys(("simulation", "search", "watch", "plan"), True)
        dump = self.model_dump(mode="json", exclude={**unused, "model": {"path"}})
        for holdout in dump["holdout"]:
            del holdout["path"]
        if dump["monitor"] is None:
            del dump["monitor"]
        else:
            del dump["monitor"]["path"]
        return json_digest(dump)


def load_job(path: Path) -> Job:
    """Read and check a job file.

    Raises:
        ConfigurationError: The file is missing, is not TOML, or a key is unknown, missing or of the wrong type.
    """
    return parse_job(read_toml(path, "job file"), path)


def parse_job(raw: dict[str, Any], path: Path) -> Job:
    """Check the tables of a job file that was read from ``path``; raises ConfigurationError as ``load_job``."""
    job = check_toml(raw, Job, path)
    if job.online is not None and job.online.begun is not None:
        raise ConfigurationError(f"{path}: online.begun: set in the jobs of segments alone; leave it out")
    _check_segments(job, path)
    folder = path.parent.resolve()
    job = job.model_copy(
        update={
            "model": job.model.model_copy(update={"path": folder / job.model.path}),
            "holdout": tuple(h.model_copy(update={"path": folder / h.path}) for h in job.holdout),
            "monitor": job.monitor and job.monitor.model_copy(update={"path": folder / job.monitor.path}),
            "simulation": job.simulation
            and job.simulation.model_copy(update={"sites": str(Path(glob.escape(str(folder))) / job.simulation.sites)}),
        }
    )
    named = {"model.path": job.model.path} | {f"holdout.{h.name}.path": h.path for h in job.holdout}
    named |= {"monitor.path": job.monitor.path} if job.monitor else {}
    for key, file in named.items():
        if not file.exists() and not (key == "model.path" and Path(f"{file}.index").is_file()):
            raise ConfigurationError(f"{path}: {key}: expected an existing file, got {file}")
    return job


def _check_segments(job: Job, path: Path) -> None:
    """Refuse rounds, and segments of rounds, that are all given and differ; raises ConfigurationError.

    Not in ``Job`` itself: the job of a run or a segment, as it is kept, names all of them.
    """
    online, rounds = job.online, job.train.rounds
    if online is None or "rounds" not in job.train.model_fields_set:
        return
    if {"gate_every", "segments"} <= online.model_fields_set and rounds != online.gate_every * online.segments:
        raise ConfigurationError(
            f"{path}: online.segments: expected as many of {online.gate_every} rounds as make train.rounds, "
            f"{rounds}, got {online.segments}; leave one of them out"
        )


def site_files(job: Job) -> dict[str, Path]:
    """The simulation's sites by name, in the order of their names.

    Raises:
        ConfigurationError: The job has no [simulation] sites, or the pattern matches no file.
    """
    if job.simulation is None:
        raise ConfigurationError(
            "simulation.sites: expected a pattern of site files, got none; add a [simulation] table"
        )
    pattern = Path(job.simulation.sites)
    files = sorted(Path(pattern.anchor).glob(str(pattern.relative_to(pattern.anchor))))
    if not files:
        raise ConfigurationError(f"simulation.sites: expected at least one site file, none matches {pattern}")
    return {f.stem: f for f in sorted(files, key=lambda f: f.stem)}
