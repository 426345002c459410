"""What a check is about: the model in use, and the contract that sites count by."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from fedretrain.architecture import fingerprint
from fedretrain.checks import CheckSettings
from fedretrain.contract import Contract, InputSpec
from fedretrain.derive import contract_of
from fedretrain.digest import weights_digest
from fedretrain.job import Job, WatchSection
from fedretrain.modelfile import BaseModel, load_base
from fedretrain.release import Release
from fedretrain.settings import resolve_train
from fedretrain.simsites import simulated_sites
from server.plan import Plan
from server.registry import Registry

from .edges import inputs_of, watched_features

_OF_MODES = ("transfer", "extend", "ensemble", "online", "monitor", "uncertainty")


@dataclass(frozen=True, eq=False)
class Watched:
    """One check's constants.

    Attributes:
        plan: As a run's that would go on from the model in use; its contract has the features.
        settings: What sites are asked.
        release: Id of the release in use, None where there is none.
        since: From when on examples are recent, in UTC.
    """

    plan: Plan
    settings: CheckSettings
    release: str | None
    since: datetime | None


def watched(
    job: Job, run: str, registry: Registry, members: Iterable[str] | None = None, since: datetime | None = None
) -> Watched:
    """Find the model in use and derive what follows from it; loads TensorFlow.

    The model in use is the registry's, else the job's. Labels and ranges are the release's; ranges that the job gives
    go before them.

    Args:
        job: As loaded.
        run: The check's id.
        registry: Where releases are.
        members: Names of the federation's active members; None in a simulation.
        since: As ``server.checking.run.check``.

    Raises:
        ConfigurationError: The model, a holdout or ``watch.edges`` are not what they have to be.
        UntrustedRelease: The registry does not verify.
    """
    section = job.watch or WatchSection()
    plain = _without_mode(job)
    state, release = registry.state(), registry.incumbent()
    base = _in_use(plain, release)
    if release is not None:
        labels = plain.contract.model_copy(update={"labels": None})
        plain = plain.model_copy(update={"contract": labels})
    train = resolve_train(plain.train, base.compile_config)
    contract = contract_of(plain, base, train)
    contract = _as_released(contract, release.contract) if release is not None else _with_ranges(contract, plain)
    if "histogram" in section.statistics:
        contract = contract.model_copy(update={"features": watched_features(plain, contract, base)})
    published = None if release is None or state is None else state.ledger.releases[release.id].published
    begun = since or _begun(job, release, published)
    settings = CheckSettings(
        since=None if begun is None else begun.timestamp(),
        statistics=section.statistics,
        labels=section.labels,
        metrics=section.metrics if "business" in section.statistics else (),
        detector=section.detector if "stream" in section.statistics else None,
    )
    train = train.model_copy(update={"since": begun})  # a site declares its examples by window
    names = members if members is not None else simulated_sites(job) if job.simulation is not None else ()
    plan = Plan(run, plain, train, contract, base, base, contract, expected=tuple(sorted(names)))
    return Watched(plan, settings, None if release is None else release.id, begun)


def _begun(job: Job, release: Release | None, published: str | None) -> datetime | None:
    """Since when examples are new to the model in use: its release, or ``train.since`` where that is later.

    A release that was brought in as it is learned nothing when it was signed.
    """
    if release is None or published is None or release.lineage.get("imported"):
        return job.train.since
    at = datetime.fromisoformat(published)
    return at if job.train.since is None else max(at, job.train.since)


def _without_mode(job: Job) -> Job:
    """The job as one that goes on from the model in use: nothing is trained, so nothing of its mode matters."""
    train = job.train.model_copy(update={"mode": "continue", "replay": None, "stages": ()})
    return job.model_copy(update={"train": train, **dict.fromkeys(_OF_MODES)})


def _in_use(job: Job, release: Release | None) -> BaseModel:
    """The model in use; how it is compiled, no release says."""
    own = load_base(job.model)
    if release is None:
        return own
    same = (fingerprint(own.architecture), weights_digest(own.weights)) == (
        release.contract.architecture,
        release.lineage["weights"],
    )
    return own if same else BaseModel(release.architecture, release.weights, own.compile_config)


def _as_released(contract: Contract, released: Contract) -> Contract:
    """The contract with the outputs of the release's, and its ranges where the job gives none."""

    def ranged(own: InputSpec, other: InputSpec) -> InputSpec:
        bounds = {} if own.low is not None else {"low": other.low, "high": other.high}
        return own.model_copy(update={**bounds, "columns": own.columns or other.columns})

    inputs = (ranged(own, other) for own, other in zip(contract.inputs, released.inputs, strict=True))
    return contract.model_copy(update={"inputs": tuple(inputs), "outputs": released.outputs})


def _with_ranges(contract: Contract, job: Job) -> Contract:
    """The contract with ranges from the holdouts' inputs, as a run's (``fedretrain.derive``)."""
    found = [inputs_of(holdout, contract).x for holdout in job.holdout]

    def widened(spec: InputSpec) -> InputSpec:
        if spec.low is not None:
            return spec
        low = min(float(x[spec.name].min()) for x in found)
        high = max(float(x[spec.name].max()) for x in found)
        span = high - low or 1.0
        return spec.model_copy(update={"low": low - span, "high": high + span})

    return contract.model_copy(update={"inputs": tuple(map(widened, contract.inputs))})
