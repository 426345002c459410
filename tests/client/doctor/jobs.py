"""A run that a site was asked to prepare."""

import numpy as np

from fedretrain.contract import Contract, InputSpec, OutputSpec, VariableSpec
from fedretrain.digest import sha256, weights_digest
from fedretrain.job import NamedConfig, TrainSection
from fedretrain.messages import PrepareRequest

BASE = [np.zeros((3, 2), "float32"), np.zeros(2, "float32")]


def job() -> PrepareRequest:
    columns = ("age", "pulse", "weight")
    contract = Contract(
        inputs=(InputSpec(name="x", shape=(3,), dtype="float32", columns=columns),),
        outputs=(OutputSpec(name="y", shape=(2,), kind="multiclass", loss="mse", labels=("healthy", "ill")),),
        preprocessing=None,
        architecture=sha256(b"{}"),
        base=weights_digest(BASE),
        variables=tuple(VariableSpec(shape=a.shape, dtype="float32", rule="train") for a in BASE),
    )
    train = TrainSection(optimizer=NamedConfig(name="sgd"), loss="mse", metrics=())
    return PrepareRequest(
        run="run-7", contract=contract, architecture="{}", train=train, strategy=NamedConfig(name="fedavg")
    )
