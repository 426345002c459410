"""Several tasks on one trunk: what a site has no labels for stays as it is, to the bit, and nothing else notices."""

from typing import Any

import numpy as np
import pytest

from client.labelled import absent, lacking, untouched
from client.trainer import Order, Result, Trainer
from fedretrain.architecture import build
from fedretrain.dataset import Dataset
from fedretrain.digest import weights_digest
from fedretrain.job import NamedConfig
from fedretrain.labels import no_labels

from .parts import Case, case, examples

pytestmark = pytest.mark.usefixtures("tensorflow")

KINDS = {"sort": ("multiclass", "sparse_categorical_crossentropy"), "size": ("regression", "mse")}


def two_heads() -> Any:
    """Trunk, and two heads: "sort" with a normalization of its own, "size" with weight decay."""
    import keras

    keras.utils.set_random_seed(0)
    x = keras.Input((4,), name="x")
    trunk = keras.layers.Dense(6, "relu", name="trunk")(x)
    own = keras.layers.BatchNormalization(name="norm")(keras.layers.Dense(5, name="hidden")(trunk))
    sort = keras.layers.Dense(3, "softmax", name="sort")(own)
    size = keras.layers.Dense(1, name="size", kernel_regularizer="l2")(trunk)
    return keras.Model(x, [sort, size])


def of_two(**train: Any) -> Case:
    return case(two_heads(), KINDS, batch_size=8, validation_fraction=0.3, metrics=("accuracy", "mae"), **train)


def without(of: Case, data: Dataset, name: str) -> Dataset:
    spec = next(s for s in of.contract.outputs if s.name == name)
    return Dataset(data.x, data.y | {name: no_labels(spec, len(data))}, data.sample_weight)


def train(of: Case, data: Dataset, trainer: Trainer) -> Result:
    received = [array + np.float32(0.1) for array in of.received]
    return trainer.train(Order(of.request, "a", 1), lambda: of.base, received, data)


def layers_of(of: Case) -> list[str]:
    """The layer of each variable that travels."""
    variables = build(of.request.architecture).variables
    return [variables[p].path.split("/")[0] for p in of.contract.changing]


@pytest.mark.parametrize(
    ("name", "alone", "compiled"), [("sort", {"hidden", "norm", "sort"}, False), ("size", {"size"}, True)]
)
def test_a_head_without_labels_stays_to_the_bit(name: str, alone: set[str], compiled: bool) -> None:
    """Weight decay, a penalty towards other values and moving averages included; trunk and other head train.

    Numbers about the head are left out; with its labels everything trains.
    """
    strategy = NamedConfig.model_validate({"name": "fedavg", "objectives": [{"name": "l2sp", "strength": 1.0}]})
    adamw = NamedConfig(name="adamw", learning_rate=0.01, weight_decay=0.1)
    of, trainer = of_two(strategy=strategy, optimizer=adamw), Trainer(compile=compiled)
    data = examples(of, 60)
    result = train(of, without(of, data, name), trainer)
    assert {layer for layer, u in zip(layers_of(of), result.update, strict=True) if not u.any()} == alone
    assert all(np.isfinite(u).all() for u in result.update)
    assert np.isfinite(result.metrics["train-loss"])
    found = {metric for metric in result.metrics if metric.startswith(f"val-{name}-")}
    assert not found
    assert {"val-loss", "val-sort-accuracy" if name == "size" else "val-size-mae"} < set(result.metrics)
    all_there = train(of, data, trainer)
    assert all(u.any() for u in all_there.update)


def test_the_other_head_learns_what_it_would_alone() -> None:
    """The update of trunk and "sort" is that of a model that has "sort" alone."""
    import keras

    of = of_two()
    data = examples(of, 60)
    both = two_heads()
    single = case(
        keras.Model(both.inputs, both.outputs[0]), {"sort": KINDS["sort"]}, batch_size=8, validation_fraction=0.3
    )
    alone = train(single, Dataset(data.x, {"sort": data.y["sort"]}), Trainer(compile=False))
    shared = train(of, without(of, data, "size"), Trainer(compile=False))
    names = layers_of(of)
    mine = [u for u, layer in zip(shared.update, names, strict=True) if layer != "size"]
    for one, other in zip(mine, alone.update, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_streamed_or_resident_is_the_same() -> None:
    """Missing labels change no bit by the way the examples come to the device; sample weights go on counting."""
    of = of_two()
    data = without(of, examples(of, 60, weights=np.linspace(0, 2, 60, dtype="float32")), "sort")
    one, two = (train(of, data, Trainer(resident_bytes=room, compile=False)) for room in (1 << 20, 0))
    assert weights_digest(one.update) == weights_digest(two.update)
    assert one.metrics["val-loss"] == two.metrics["val-loss"]


def test_single_labels_may_be_missing() -> None:
    """An example without the label of an output weighs nothing there, and the head trains with the others."""
    of = of_two()
    data = examples(of, 60)
    sort = data.y["sort"].copy()
    sort[::6] = -1
    trainer = Trainer(compile=False)
    result = train(of, Dataset(data.x, data.y | {"sort": sort}), trainer)
    assert all(u.any() for u in result.update)
    assert "val-sort-accuracy" in result.metrics
    sort[4:] = -1  # three labels are left: no number is about so few
    assert "val-sort-accuracy" not in train(of, Dataset(data.x, data.y | {"sort": sort}), trainer).metrics
    assert lacking(Dataset(data.x, data.y | {"sort": sort}), of.contract) == frozenset()
    assert absent(sort, of.contract.outputs[0]).tolist() == [i not in {1, 2, 3} for i in range(60)]


def test_what_serves_one_output_alone() -> None:
    """By the graph of layers, whatever their names; of all outputs it is everything, of none nothing."""
    of, model = of_two(), two_heads()
    changing, names = of.contract.changing, layers_of(of)
    for lacked, layers in ({"sort"}, {"hidden", "norm", "sort"}), ({"size"}, {"size"}):
        assert {names[i] for i in untouched(model, of.contract, frozenset(lacked))} == layers
    assert untouched(model, of.contract, frozenset()) == ()
    assert untouched(model, of.contract, frozenset({"sort", "size"})) == tuple(range(len(changing)))
