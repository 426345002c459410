"""Several models in one: a run trains one member alone, and the members are weighed by what they lose at the sites.

While there are fewer than ``ensemble.members`` a run adds one: a copy of the member that counts most, trained on. A
full ensemble changes as ``ensemble.change`` says: "weakest" trains the member that counts least on from where it is;
"add" trains a further one all the same, and the one that then does worst leaves. Whatever is in use is one member to
begin with.

After the rounds every member is evaluated once at all sites, on their validation parts (``fedretrain.sums``,
"evaluation"), and the weights follow from the mean losses L_i, the job's own::

    w_i = (1 / L_i) / sum_j (1 / L_j)

The selection by recent data is that of accuracy-weighted ensembles (H. Wang, W. Fan, P. S. Yu, J. Han: Mining
Concept-Drifting Data Streams using Ensemble Classifiers, KDD 2003), where members are trained on one period each and
the weakest makes room. The weights are those of J. M. Bates and C. W. J. Granger (The Combination of Forecasts,
Operational Research Quarterly 20, 1969), inverse mean squared errors; here inverse means of any loss, where the first
paper takes the gain over a model that guesses. No covariances of the members' errors are estimated.

Invariants: only the member in training travels; what is frozen has the same values in all members, because sites have
it once; the exported model is one Keras model with the contract of a single member's inputs and outputs.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from fedretrain import atomic
from fedretrain.architecture import build
from fedretrain.contract import Contract
from fedretrain.derive import contract_of
from fedretrain.digest import weights_digest
from fedretrain.errors import ConfigurationError, RunFailed
from fedretrain.job import EnsembleSection, Job, NamedConfig
from fedretrain.modelfile import BaseModel
from fedretrain.variables import freeze, variable_specs
from server.members import Members, join, split
from strategies.base import Arrays

from .base import Beginning, Candidate, InUse, Mode, whole

if TYPE_CHECKING:
    from server.checkpoint import Checkpoint
    from server.plan import Plan
    from server.rounds import Rounds

FORMAT: Final = "fedretrain.members/1"
_BY_OUTPUT: Final = "00001"  # of an evaluation: loss and share of right decisions, by output
_LEAST: Final = 1e-9
_EVALUATION: Final = NamedConfig(name="evaluation")


class Ensemble(Mode):
    """See the module docstring."""

    def begin(self, job: Job, incumbent: BaseModel, in_use: InUse) -> Beginning:  # noqa: ARG002 - as any mode's
        """See ``Mode``; sites are sent the member that is trained."""
        if job.train.validation_fraction == 0:
            raise ConfigurationError(
                "train.validation_fraction: expected more than 0 in mode 'ensemble', whose members are weighed by what "
                "they lose on the sites' validation parts, got 0; leave it out for 0.1"
            )
        members = split(incumbent, job.model.allow_modules)
        if len(members.models) == 1:
            return Beginning(incumbent)
        _check_frozen(job, members)
        return Beginning(members.models[_source(job, members)], own_job=_of_the_whole(job))

    def candidate(self, plan: "Plan", state: "Checkpoint", rounds: "Rounds") -> Candidate:
        """See ``Mode``; asks the sites once for each member.

        Raises:
            RunFailed: Too few sites answer, or a loss has no inverse.
            MachineError: The disk, or the way to the sites.
        """
        members = split(plan.incumbent, plan.job.model.allow_modules)
        trained = whole(plan, plan.own(state.params))
        models = [*members.models, trained]
        if not _adds(plan.job, members):
            models[_source(plan.job, members)] = models.pop()
        losses = _losses(plan, models, trained, rounds)
        models, losses = _strongest(models, losses, _section(plan.job).members)
        weights = inverse(losses)
        joined = join(models, weights, plan.job.model.allow_modules)
        about = [
            {"loss": loss, "weight": weight, "trained": model is trained}
            for model, loss, weight in zip(models, losses, weights, strict=True)
        ]
        return Candidate(joined, _contract(plan, joined), {**self.about(plan), "members": about})


def inverse(losses: Sequence[float]) -> list[float]:
    """Weights in inverse proportion to the losses, adding up to 1; a loss below 1e-9 counts as that.

    Raises:
        RunFailed: A loss is below 0, or not finite.
    """
    if not all(np.isfinite(loss) and loss >= 0 for loss in losses):
        raise RunFailed(
            "ensemble: expected mean losses of 0 or more, whose inverses are the members' weights, got "
            f"{list(losses)}; take another train.loss"
        )
    shares = [1 / max(loss, _LEAST) for loss in losses]
    return [share / sum(shares) for share in shares]


def _section(job: Job) -> EnsembleSection:
    return job.ensemble or EnsembleSection()


def _adds(job: Job, members: Members) -> bool:
    section = _section(job)
    return section.change == "add" or len(members.models) < section.members


def _source(job: Job, members: Members) -> int:
    """Which member training starts from: the strongest to add one, else the weakest; of equals the first."""
    weights = list(members.weights)
    return weights.index(max(weights) if _adds(job, members) else min(weights))


def _strongest(models: Sequence[BaseModel], losses: Sequence[float], most: int) -> tuple[list[BaseModel], list[float]]:
    """Those with the smallest losses, in their order; of equals the last ones stay."""
    ranked = sorted(range(len(models)), key=lambda i: (losses[i], -i))
    kept = sorted(ranked[:most])
    return [models[i] for i in kept], [losses[i] for i in kept]


def _losses(plan: "Plan", models: Sequence[BaseModel], trained: BaseModel, rounds: "Rounds") -> list[float]:
    """The mean loss of each at the sites, over all outputs; what an earlier start found stands."""
    path = rounds.folder.root / "members.json"
    of = weights_digest(trained.weights)
    kept = atomic.read_json(path, FORMAT, "delete it and resume") or {}
    if kept.get("trained") == of:
        losses: list[float] = kept["losses"]
        return losses
    answers = [rounds.ask_sum(_EVALUATION, _changing(plan, model)) for model in models]
    found = [float(answer.arrays[_BY_OUTPUT][:, 0].sum()) for answer in answers]
    atomic.write_json(path, {"format": FORMAT, "trained": of, "losses": found})
    return found


def _changing(plan: "Plan", model: BaseModel) -> Arrays:
    return [model.weights[i] for i in plan.contract.changing]


def _check_frozen(job: Job, members: Members) -> None:
    """Raise ConfigurationError where members differ in what the run would not send."""
    model = build(members.models[0].architecture, job.model.allow_modules)
    freeze(model, job.model.freeze)
    for position, spec in enumerate(variable_specs(model, job.strategy)):
        first, *others = (member.weights[position] for member in members.models)
        if spec.rule == "keep" and not all(np.array_equal(first, other) for other in others):
            raise ConfigurationError(
                f"model.freeze: expected to freeze only what is the same in all members, got {list(job.model.freeze)}, "
                f"and variable {position} ('{model.variables[position].path}') differs; freeze what the runs before "
                "this one froze, or less"
            )


def _of_the_whole(job: Job) -> Job:
    """The job as it would be written for the ensemble: patterns over a member's layers mean nothing there."""
    return job.model_copy(update={"model": job.model.model_copy(update={"freeze": ()})})


def _contract(plan: "Plan", joined: BaseModel) -> Contract:
    """The joined model's, with the plan's ranges."""
    found = contract_of(_of_the_whole(plan.job), joined, plan.train)
    return found.model_copy(update={"inputs": plan.contract.inputs})
