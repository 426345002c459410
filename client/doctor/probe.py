"""A job small enough to try on any machine: two dense layers, four numbers in, three classes out, random examples."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from fedretrain.dataset import Dataset
    from fedretrain.messages import PrepareRequest


def probe() -> "tuple[PrepareRequest, list[NDArray[Any]], Dataset]":
    """What a site would be asked, the base model, and examples; imports TensorFlow."""
    import keras

    from fedretrain.architecture import fingerprint, to_json, weights_of
    from fedretrain.contract import Contract, InputSpec, OutputSpec
    from fedretrain.dataset import Dataset, as_arrays
    from fedretrain.digest import weights_digest
    from fedretrain.job import NamedConfig, TrainSection
    from fedretrain.messages import PrepareRequest
    from fedretrain.variables import variable_specs

    model = keras.Sequential(
        [keras.Input((4,), name="x"), keras.layers.Dense(8, "relu"), keras.layers.Dense(3, "softmax")]
    )
    architecture, base = to_json(model), weights_of(model)
    loss = "sparse_categorical_crossentropy"
    contract = Contract(
        inputs=(InputSpec(name="x", shape=(4,), dtype="float32"),),
        outputs=(OutputSpec(name="y", shape=(3,), kind="multiclass", loss=loss, labels=("a", "b", "c")),),
        preprocessing=None,
        architecture=fingerprint(architecture),
        base=weights_digest(base),
        variables=variable_specs(model),
    )
    request = PrepareRequest(
        run="check",
        contract=contract,
        architecture=architecture,
        train=TrainSection(optimizer=NamedConfig(name="sgd", learning_rate=0.01), loss=loss, metrics=()),
        strategy=NamedConfig(name="fedavg"),
    )
    rng = np.random.default_rng(0)
    data = Dataset(x={"x": rng.normal(size=(64, 4))}, y={"y": rng.integers(0, 3, 64)})
    return request, base, as_arrays(data, contract)
