"""From a job to everything that is fixed before the first message is sent."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fedretrain.architecture import fingerprint
from fedretrain.codecs import Codec, make_codec
from fedretrain.contract import Contract, VariableSpec
from fedretrain.derive import contract_of, derive_contract
from fedretrain.errors import ConfigurationError
from fedretrain.job import Job, TrainSection
from fedretrain.labelspace import LabelSpace
from fedretrain.modelfile import BaseModel, load_base
from fedretrain.settings import resolve_train
from fedretrain.simsites import simulated_sites
from fedretrain.travel import apart, travelling_variables
from strategies.base import Arrays
from strategies.registry import check_job, local_objective

from .modes import Beginning, InUse, Mode, mode_of


@dataclass(frozen=True)
class Plan:
    """One run's constants.

    Args:
        run: The run's id.
        job: As the operator wrote it.
        train: The job's, resolved: optimizer, loss and metrics are given.
        contract: Derived from base model and job.
        base: What sites are sent and train from; the model in use unless the mode changes it.
        incumbent: The model in use: what a candidate is compared with and may replace.
        in_use: The incumbent's contract.
        start: Values of the variables that travel that the first round sends; None: the base model's.
        space: How the incumbent's labels become those of the contract, where they differ.
        expected: Names of the sites that should take part, where they are known beforehand.
    """

    run: str
    job: Job
    train: TrainSection
    contract: Contract
    base: BaseModel
    incumbent: BaseModel
    in_use: Contract
    start: Arrays | None = None
    space: LabelSpace | None = None
    expected: tuple[str, ...] = ()

    @property
    def variables(self) -> Mapping[str, VariableSpec]:
        """What travels in a round, by key: the contract's changing variables, then what the strategy sends beside."""
        return travelling_variables(self.contract, self.job.strategy)

    def own(self, params: Arrays) -> Arrays:
        """The values of ``contract.changing``, of all that travels."""
        return apart(self.contract, self.job.strategy, params)[0]

    @property
    def codec(self) -> Codec:
        """How updates travel."""
        return make_codec(self.job.messages.codec)

    @property
    def mode(self) -> Mode:
        """What the run starts from and ends with."""
        return mode_of(self.job.train.mode)


def make_plan(job: Job, run: str, members: Iterable[str] | None = None, in_use: InUse = lambda: None) -> Plan:
    """Open the model and derive what follows from it; loads TensorFlow.

    Args:
        job: As loaded.
        run: The run's id.
        members: Names of the federation's active members; None in a simulation.
        in_use: Gives the contract of the release in use; it knows what labels are called where the job does not say.

    Raises:
        ConfigurationError: The model, or what the job asks of it, is not what it has to be; or the job asks for more
            sites than there are.
        UntrustedRelease: The release in use is asked for, and the registry does not verify.
    """
    mode = mode_of(job.train.mode)
    check_job(job)
    expected, what = _expected(job, members)
    if what and job.participation.min_sites > len(expected):
        raise ConfigurationError(
            f"participation.min_sites: expected at most {len(expected)}, {what}, got {job.participation.min_sites}"
        )
    incumbent = load_base(job.model)
    beginning = mode.begin(job, incumbent, in_use)
    base = beginning.base
    train = resolve_train(job.train, base.compile_config)
    labels = beginning.labels or _released_labels(job, base, in_use)
    contract = _named(derive_contract(_with_labels(job, labels), base, train), beginning.space)
    local_objective(job.strategy).fitted(contract, train)
    return Plan(
        run=run,
        job=job,
        train=train,
        contract=contract,
        base=base,
        incumbent=incumbent,
        in_use=_in_use(beginning, incumbent, contract),
        start=beginning.start and [beginning.start[i] for i in contract.changing],
        space=beginning.space,
        expected=expected,
    )


def _released_labels(job: Job, base: BaseModel, in_use: InUse) -> tuple[str, ...] | None:
    """Names that the release in use has for the labels of this very model, where the job names none."""
    if job.contract.labels is not None:
        return None
    released = in_use()
    if released is None or released.architecture != fingerprint(base.architecture):
        return None
    named = [spec.labels for spec in released.outputs if spec.labels]
    return named[0] if len(named) == 1 else None


def _with_labels(job: Job, labels: tuple[str, ...] | None) -> Job:
    """The job with the names that its mode gives the labels."""
    if labels is None:
        return job
    return job.model_copy(update={"contract": job.contract.model_copy(update={"labels": labels})})


def _named(contract: Contract, space: LabelSpace | None) -> Contract:
    """The contract, which asks data to name their labels where a position does not mean what it meant."""
    if space is None or space.stays:
        return contract
    outputs = (s.model_copy(update={"named": True}) if s.name == space.output else s for s in contract.outputs)
    return contract.model_copy(update={"outputs": tuple(outputs)})


def _in_use(beginning: Beginning, incumbent: BaseModel, contract: Contract) -> Contract:
    """The contract of the model in use, with the ranges of inputs that the base has as well."""
    own = beginning.own_job
    if own is None:
        return contract
    found = contract_of(own, incumbent, resolve_train(own.train, incumbent.compile_config))
    return found.model_copy(update={"inputs": contract.inputs})


def _expected(job: Job, members: Iterable[str] | None) -> tuple[tuple[str, ...], str]:
    """The sites that should take part, and what their number is the number of; empty where they are not known."""
    if members is not None:
        return tuple(sorted(members)), "the number of the federation's active members (admit more, or ask for fewer)"
    if job.simulation is not None:
        return tuple(simulated_sites(job)), "the number of simulated sites"
    return (), ""
