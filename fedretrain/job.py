"""The job file: one TOML, one frozen model, read the same way by a simulation and by a deployment.

``load_job`` is the only way in. It resolves paths against the job file's folder, and turns every mistake into one
``ConfigurationError`` line that names the key, what was expected, what was found and the nearest valid key.
"""

import difflib
import glob
import json
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from .digest import json_digest
from .errors import ConfigurationError

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Reference = Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$", description="module:attribute")]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class ModelSection(_Section):
    """Which model is retrained and which of its layers stay as they are."""

    path: Path = Field(description=".keras file; SavedModel folder or weights file together with `architecture`")
    architecture: Reference | None = Field(None, description="module:function that returns the uncompiled model")
    freeze: tuple[str, ...] = Field((), description="shell patterns over layer names; nested as outer/inner")
    allow_modules: tuple[str, ...] = Field((), description="modules of your own whose layer classes may be built")


class NamedConfig(BaseModel):
    """A Keras object by name with its settings beside it, as in ``{ name = "sgd", learning_rate = 0.01 }``."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)
    name: str

    @property
    def settings(self) -> dict[str, Any]:
        """Everything but the name."""
        return dict(self.__pydantic_extra__ or {})


Loss = str | NamedConfig


class TrainSection(_Section):
    """How a site trains in one round."""

    rounds: int = Field(10, ge=1, le=100_000)
    local_epochs: int | None = Field(None, ge=1, description="passes over the site's data per round; default 1")
    local_steps: int | None = Field(None, ge=1, description="optimizer steps per round, instead of local_epochs")
    batch_size: int = Field(32, ge=1, description="examples per step")
    optimizer: NamedConfig | None = Field(None, description="any Keras optimizer; default: the model's own")
    loss: Loss | dict[str, Loss] | None = Field(None, description="any Keras loss, by output if several")
    metrics: tuple[str, ...] | None = Field(None, description="Keras metrics; default: the model's own")
    validation_fraction: float = Field(0.1, ge=0, lt=1, description="share of a site's data it evaluates on")
    seed: int = Field(0, ge=0, lt=2**32)

    @model_validator(mode="after")
    def _one_measure_of_work(self) -> "TrainSection":
        if self.local_epochs is not None and self.local_steps is not None:
            raise ValueError("give local_epochs or local_steps, not both")
        return self


class ParticipationSection(_Section):
    """Who is asked, how long is waited, what is taken."""

    fraction: float = Field(1.0, gt=0, le=1, description="share of the sites asked in a round")
    min_sites: int = Field(2, ge=1, description="fewest admitted updates a round needs")
    deadline_s: float = Field(600, gt=0, description="seconds a round waits for replies")
    max_update_norm: float | None = Field(None, gt=0, description="L2 bound on an update; default: from other sites")


class HoldoutSection(_Section):
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


class ContractSection(_Section):
    """What the model file itself cannot say about the data."""

    labels: tuple[str, ...] | None = Field(None, description="meaning of each output position, in order")
    columns: tuple[str, ...] | None = Field(None, description="names of a flat input's columns, in order")
    ranges: dict[str, tuple[float, float]] = Field({}, description="least and greatest value by input name")
    preprocessing: str | None = Field(None, description="a name for how raw data became arrays, e.g. pixels/16")


class SimulationSection(_Section):
    """Where a simulation finds its sites; a deployment ignores it."""

    sites: str = Field(description="pattern of one file per site; the file name without suffix is the site's name")


class Job(_Section):
    """A retraining job. Paths are absolute once loaded."""

    model: ModelSection
    train: TrainSection = TrainSection()
    strategy: NamedConfig = NamedConfig(name="fedavg")
    participation: ParticipationSection = ParticipationSection()
    holdout: tuple[HoldoutSection, ...] = Field(min_length=1)
    contract: ContractSection = ContractSection()
    simulation: SimulationSection | None = None

    @field_validator("holdout")
    @classmethod
    def _names_differ(cls, value: tuple[HoldoutSection, ...]) -> tuple[HoldoutSection, ...]:
        names = [h.name for h in value]
        if len(set(names)) != len(names):
            raise ValueError(f"holdout names must differ, got {names}")
        return value

    @property
    def digest(self) -> str:
        """SHA-256 of the job without its paths: the same job in another folder is the same job."""
        dump = self.model_dump(mode="json", exclude={"simulation": True, "model": {"path"}})
        for holdout in dump["holdout"]:
            del holdout["path"]
        return json_digest(dump)


def load_job(path: Path) -> Job:
    """Read and check a job file.

    Raises:
        ConfigurationError: The file is missing, is not TOML, or a key is unknown, missing or of the wrong type.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigurationError(f"{path}: no such job file") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"{path}: not readable as TOML: {error}") from None
    return parse_job(raw, path)


def parse_job(raw: dict[str, Any], path: Path) -> Job:
    """Check the tables of a job file that was read from ``path``; raises ConfigurationError as ``load_job``."""
    try:
        # Through JSON, where strict means "5" is no number while a string may still be a path and a list a tuple.
        job = Job.model_validate_json(json.dumps(raw, default=str))
    except ValidationError as error:
        raise ConfigurationError("\n".join(f"{path}: {line}" for line in _explain_all(error))) from None
    folder = path.parent.resolve()
    job = job.model_copy(
        update={
            "model": job.model.model_copy(update={"path": folder / job.model.path}),
            "holdout": tuple(h.model_copy(update={"path": folder / h.path}) for h in job.holdout),
            "simulation": job.simulation
            and job.simulation.model_copy(update={"sites": str(Path(glob.escape(str(folder))) / job.simulation.sites)}),
        }
    )
    named = {"model.path": job.model.path} | {f"holdout.{h.name}.path": h.path for h in job.holdout}
    for key, file in named.items():
        if not file.exists():
            raise ConfigurationError(f"{path}: {key}: expected an existing file, got {file}")
    return job


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


_EXPECTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "text in quotes",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "dict_type": "a table",
    "model_type": "a table",
    "too_short": "at least one",
}


def _explain_all(error: ValidationError) -> list[str]:
    """One line per key, the innermost first to be found; a list that is short for its bad items is not said twice."""
    lines: dict[str, str] = {}
    for e in error.errors():
        key, line = _explain(e)
        if e["type"] != "too_short" or not any(known.startswith(f"{key}.") for known in lines):
            lines.setdefault(key, f"{key}: {line}")
    return list(lines.values())


def _explain(error: Any) -> tuple[str, str]:
    """The key of one pydantic error, and in words: expected, got, nearest valid key."""
    where = [str(part) for part in error["loc"]]
    if error["type"] == "extra_forbidden":
        valid = sorted(_section_at([*where[:-1], "?"])[0].model_fields)
        near = difflib.get_close_matches(where[-1], valid, n=1, cutoff=0.0)
        return ".".join(where), f"unknown key; did you mean '{near[0]}'? Valid here: {', '.join(valid)}"
    section, known = _section_at(where)
    if error["type"] == "missing":
        return ".".join(known if known == where else [*known, where[-1]]), "required, but missing"
    field = section.model_fields.get(known[-1]) if known else None
    if error["type"] == "value_error" or field is None:
        return ".".join(known), error["msg"].removeprefix("Value error, ")
    expected = _EXPECTED.get(error["type"]) or error["msg"].removeprefix("Input should be ").removeprefix(
        "String should "
    )
    purpose = f" ({field.description})" if field.description else ""
    got = "" if known != where else f", got {error['input']!r}"
    return ".".join(known), f"expected {expected}{purpose}{got}"


def _section_at(where: list[str]) -> tuple[type[BaseModel], list[str]]:
    """The innermost section on the way to an error, and as much of its place as the user wrote in the file."""
    section: type[BaseModel] = Job
    known: list[str] = []
    for part in where:
        if not part.isdigit():
            if part not in section.model_fields:
                break
            nested = _model_in(section.model_fields[part].annotation)
            section = nested if nested and part != where[-1] else section
        known.append(part)
    return section, known


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The section class inside an annotation such as ``tuple[HoldoutSection, ...]`` or ``X | None``."""
    for candidate in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(candidate, type) and issubclass(candidate, _Section):
            return candidate
    return None
