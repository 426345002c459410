"""The contract of a job: what follows from the base model, the job's words and its holdouts.

The architecture in a contract is the base's own, unfrozen; whoever builds it freezes by the request's patterns.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .architecture import build, fingerprint, variable_paths
from .contract import Contract, InputSpec, VariableSpec
from .dataset import as_arrays, check_dataset, load_npz
from .digest import weights_digest
from .errors import ConfigurationError, DataMismatch
from .foreign import with_label
from .job import HoldoutSection, Job, TrainSection
from .modelfile import BaseModel
from .signature import input_specs, output_specs
from .variables import freeze, variable_specs

_STILL = frozenset({"keep", "local"})


def derive_contract(job: Job, base: BaseModel, train: TrainSection) -> Contract:
    """The contract of a job.

    Ranges the job does not give come from its holdouts: from the least value less the span to the greatest plus the
    span, by input.

    Args:
        job: A loaded job.
        base: The model it retrains.
        train: As ``resolve_train`` returns it.

    Raises:
        ConfigurationError: The job's [contract], losses or holdout outputs do not belong to the model.
        DataMismatch: A holdout does not fit; its name stands before the input or output.
    """
    contract = contract_of(job, base, train)
    _check_outputs_exist(job.holdout, [output.name for output in contract.outputs])
    return _with_ranges(contract, job)


def contract_of(job: Job, base: BaseModel, train: TrainSection) -> Contract:
    """The contract without ranges but those that the job gives; no holdout is looked at.

    Raises:
        ConfigurationError: As ``derive_contract``.
    """
    model = build(base.architecture, job.model.allow_modules)
    freeze(model, job.model.freeze)
    variables = variable_specs(model, job.strategy)
    if train.stages:
        _check_stages(job, base, train, variables)
    return Contract(
        inputs=input_specs(model, job.contract),
        outputs=output_specs(model, train, job.contract.labels),
        preprocessing=job.contract.preprocessing,
        architecture=fingerprint(base.architecture),
        base=weights_digest(base.weights),
        variables=variables,
    )


def _check_stages(job: Job, base: BaseModel, train: TrainSection, wanted: tuple[VariableSpec, ...]) -> None:
    """Raises ConfigurationError where a pattern of a stage does not fit, or what is to change changes in no stage."""
    changes: set[int] = set()
    for number, stage in enumerate(train.stages):
        model = build(base.architecture, job.model.allow_modules)
        freeze(model, job.model.freeze)
        freeze(model, stage.freeze, f"train.stages.{number}.freeze")
        changes |= {i for i, spec in enumerate(variable_specs(model, job.strategy)) if spec.rule not in _STILL}
    never = [i for i, spec in enumerate(wanted) if spec.rule not in _STILL and i not in changes]
    if never:
        path = variable_paths(build(base.architecture, job.model.allow_modules))[never[0]]
        raise ConfigurationError(
            f"train.stages: expected each variable that model.freeze leaves to train to train in some stage, got "
            f"'{path}', which none does; freeze its layer in model.freeze"
        )


def _check_outputs_exist(holdouts: Sequence[HoldoutSection], names: list[str]) -> None:
    for holdout in holdouts:
        if holdout.output is not None and holdout.output not in names:
            raise ConfigurationError(
                f"holdout.{holdout.name}.output: expected one of the model's outputs {names}, got '{holdout.output}'"
            )


def _with_ranges(contract: Contract, job: Job) -> Contract:
    """The contract with ranges from the holdouts for the inputs that have none; every holdout is checked."""
    least: dict[str, float] = {}
    greatest: dict[str, float] = {}
    for holdout in job.holdout:
        data = _holdout(holdout, contract)
        for name, array in data.items():
            least[name] = min(least.get(name, np.inf), float(array.min()))
            greatest[name] = max(greatest.get(name, -np.inf), float(array.max()))

    def widened(spec: InputSpec) -> InputSpec:
        if spec.low is not None:
            return spec
        low, high = least[spec.name], greatest[spec.name]
        span = high - low or 1.0
        return spec.model_copy(update={"low": low - span, "high": high + span})

    return contract.model_copy(update={"inputs": tuple(widened(spec) for spec in contract.inputs)})


def _holdout(holdout: HoldoutSection, contract: Contract) -> dict[str, NDArray[Any]]:
    """A holdout's inputs by name."""
    try:
        data = load_npz(holdout.path, contract)
        check_dataset(data, contract)
    except DataMismatch as mismatch:
        error = with_label(mismatch, holdout.path, contract)  # the operator's own data, which may be named
        where = f"holdout '{holdout.name}' {error.where}".strip()
        raise DataMismatch(error.code, where, error.expected) from None
    return as_arrays(data, contract).x
