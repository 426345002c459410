"""From a job to everything that is fixed before the first message is sent."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fedretrain.codecs import Codec, make_codec
from fedretrain.contract import Contract, VariableSpec, keys
from fedretrain.derive import derive_contract
from fedretrain.errors import ConfigurationError
from fedretrain.job import Job, TrainSection
from fedretrain.modelfile import BaseModel, load_base
from fedretrain.settings import resolve_train
from fedretrain.simsites import simulated_sites


@dataclass(frozen=True)
class Plan:
    """One run's constants.

    Args:
        run: The run's id.
        job: As the operator wrote it.
        train: The job's, resolved: optimizer, loss and metrics are given.
        contract: Derived from model and job.
        base: The model in use, that the run starts from.
        expected: Names of the sites that should take part, where they are known beforehand.
    """

    run: str
    job: Job
    train: TrainSection
    contract: Contract
    base: BaseModel
    expected: tuple[str, ...] = ()

    @property
    def variables(self) -> Mapping[str, VariableSpec]:
        """The variables that travel, by key."""
        return dict(zip(keys(self.contract.changing), self.contract.changing_specs, strict=True))

    @property
    def codec(self) -> Codec:
        """How updates travel."""
        return make_codec(self.job.messages.codec)


def make_plan(job: Job, run: str, members: Iterable[str] | None = None) -> Plan:
    """Open the model and derive what follows from it; loads TensorFlow.

    Args:
        job: As loaded.
        run: The run's id.
        members: Names of the federation's active members; None in a simulation.

    Raises:
        ConfigurationError: The model, or what the job asks of it, is not what it has to be; or the job asks for more
            sites than there are.
    """
    expected, what = _expected(job, members)
    if what and job.participation.min_sites > len(expected):
        raise ConfigurationError(
            f"participation.min_sites: expected at most {len(expected)}, {what}, got {job.participation.min_sites}"
        )
    base = load_base(job.model)
    train = resolve_train(job.train, base.compile_config)
    return Plan(run, job, train, derive_contract(job, base, train), base, expected)


def _expected(job: Job, members: Iterable[str] | None) -> tuple[tuple[str, ...], str]:
    """The sites that should take part, and what their number is the number of; empty where they are not known."""
    if members is not None:
        return tuple(sorted(members)), "the number of the federation's active members (admit more, or ask for fewer)"
    if job.simulation is not None:
        return tuple(simulated_sites(job)), "the number of simulated sites"
    return (), ""
