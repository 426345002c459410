"""What a mode is: from what a run starts, and what model it ends with.

Invariants:

- A mode decides before the first message and after the last round; what happens in between is every mode's.
- It is a function of the job, the model in use and the run's own files, so that a run that is started again starts
  from the same bits.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fedretrain.contract import Contract
from fedretrain.job import Job
from fedretrain.labelspace import LabelSpace
from fedretrain.modelfile import BaseModel
from strategies.base import Arrays

if TYPE_CHECKING:
    from server.checkpoint import Checkpoint
    from server.plan import Plan
    from server.rounds import Rounds

InUse = Callable[[], Contract | None]
"""Asks the registry for the contract of the release that a run may replace; None where there is none."""


@dataclass(frozen=True, eq=False)
class Beginning:
    """From what a run starts.

    Attributes:
        base: What sites are sent and train from.
        start: Every variable by position, of which those that change are what the first round sends; None: the base's.
        labels: Names of the base's label space; None: as the job's [contract] says.
        space: How labels of the model in use become those of the base, where they differ.
        own_job: The job as it would be written for the model in use, where the base is another model.
    """

    base: BaseModel
    start: Arrays | None = None
    labels: tuple[str, ...] | None = None
    space: LabelSpace | None = None
    own_job: Job | None = None


@dataclass(frozen=True, eq=False)
class Candidate:
    """A whole model that may replace the one in use.

    Attributes:
        model: Architecture, every variable by position, and how it is compiled.
        contract: What it expects of data; of the same inputs and outputs as the plan's.
        about: Plain JSON that goes into the release's lineage under "mode"; empty for nothing.
    """

    model: BaseModel
    contract: Contract
    about: dict[str, Any] = field(default_factory=dict)


class Mode:
    """Goes on from the model in use, and ends with the values of the last round in it."""

    def begin(self, job: Job, incumbent: BaseModel, in_use: InUse) -> Beginning:  # noqa: ARG002 - for other modes
        """From what the run starts.

        Args:
            job: As loaded.
            incumbent: The model that the job names.
            in_use: The contract of the release in use.

        Raises:
            ConfigurationError: The model, or what the job asks of it, does not go with the mode.
        """
        return Beginning(incumbent)

    def candidate(self, plan: "Plan", state: "Checkpoint", rounds: "Rounds") -> Candidate:  # noqa: ARG002 - likewise
        """The model that comes of the rounds; the same for the same run however often it is resumed.

        Args:
            plan: What was fixed before the first message.
            state: After the last round.
            rounds: What led them, and knows the sites.
        """
        return Candidate(whole(plan, plan.own(state.params)), plan.contract, self.about(plan))

    def about(self, plan: "Plan") -> dict[str, Any]:
        """What the lineage of a release says of the mode; empty where it only goes on."""
        name = plan.job.train.mode
        return {} if name == "continue" else {"name": name}


def whole(plan: "Plan", params: Arrays) -> BaseModel:
    """The plan's base model with the values of ``contract.changing`` (``Plan.own``) in their places."""
    weights = list(plan.base.weights)
    for position, values in zip(plan.contract.changing, params, strict=True):
        weights[position] = values
    return BaseModel(plan.base.architecture, weights, plan.base.compile_config)
