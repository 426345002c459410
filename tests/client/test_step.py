"""An update against Keras' own ``fit``, in every way it can be calculated; and that the ways give the same bits."""

import logging
import time
from typing import Any

import numpy as np
import pytest

from client.compiling import chosen, suited
from client.sampling import batches
from client.trainer import Order, Result, Trainer, build_learner
from fedretrain.architecture import build, weights_of
from fedretrain.dataset import Dataset
from fedretrain.digest import weights_digest
from fedretrain.errors import DeclinedRequest
from fedretrain.job import NamedConfig, TrainSection

from .parts import Case, case, classifier, examples, pictures

pytestmark = pytest.mark.usefixtures("tensorflow")

OWN = ("tests.client.own_models",)


def train(
    of: Case,
    data: Dataset,
    trainer: Trainer,
    *,
    site: str = "a",
    seconds: float | None = None,
    allow: tuple[str, ...] = (),
) -> Result:
    order = Order(of.request, site, 1, allow, seconds)
    return trainer.train(order, lambda: of.base, of.received, data)


def dense() -> Any:
    """Regularised weights and activities, dropout that drops nothing."""
    import keras

    keras.utils.set_random_seed(0)
    layers = [
        keras.layers.Dense(8, "relu", kernel_regularizer="l2", activity_regularizer=keras.regularizers.L2(0.01)),
        keras.layers.Dropout(0.0),
        keras.layers.Dense(3, "softmax"),
    ]
    return keras.Sequential([keras.Input((4,), name="x"), *layers])


def convolution() -> Any:
    import keras

    keras.utils.set_random_seed(0)
    layers = [keras.layers.Conv2D(3, 3, activation="relu"), keras.layers.MaxPooling2D(), keras.layers.Flatten()]
    return keras.Sequential([keras.Input((8, 8, 1), name="x"), *layers, keras.layers.Dense(3, "softmax")])


def normalized() -> Any:
    import keras

    keras.utils.set_random_seed(0)
    # a bias before the normalization has no gradient but rounding errors, which Adam makes as large as any
    layers = [keras.layers.Dense(8, use_bias=False), keras.layers.BatchNormalization(), keras.layers.ReLU()]
    return keras.Sequential([keras.Input((4,), name="x"), *layers, keras.layers.Dense(3, "softmax")])


def one_number(activation: str | None) -> Any:
    import keras

    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [keras.Input((4,), name="x"), keras.layers.Dense(8, "tanh"), keras.layers.Dense(1, activation)]
    )


def two_inputs() -> Any:
    import keras

    keras.utils.set_random_seed(0)
    x = [keras.Input((3,), name="left"), keras.Input((2,), name="right")]
    return keras.Model(x, keras.layers.Dense(3, "softmax")(keras.layers.Concatenate()(x)))


SGD = {"name": "sgd", "learning_rate": 0.1}
MOMENTUM = SGD | {"momentum": 0.9}
ADAM = {"name": "adam", "learning_rate": 0.01}
WAYS = [
    (dense, None, SGD),
    (convolution, None, MOMENTUM),
    (normalized, None, ADAM),
    (two_inputs, None, {"name": "adamw", "learning_rate": 0.01, "weight_decay": 0.1}),
    (lambda: one_number("sigmoid"), ("binary", "binary_crossentropy"), MOMENTUM),
    (lambda: one_number(None), ("regression", "mse"), ADAM | {"use_ema": True}),
]


def fitted(of: Case, make: Any, data: Dataset) -> tuple[list[np.ndarray], list[float]]:
    """The weights after ``fit`` over the same batches in the same order, and the loss it gives after each."""
    import keras

    model, train_ = make(), of.request.train
    config = train_.optimizer.model_dump() if train_.optimizer else {}
    model.compile(keras.optimizers.get({"class_name": config["name"], "config": config}), train_.loss)
    steps = list(batches(len(data), train_, "a", 1))
    losses: list[float] = []

    def feed() -> Any:
        for step in steps:
            x = tuple(array[step] for array in data.x.values())
            weights = () if data.sample_weight is None else (data.sample_weight[step],)
            yield x if len(x) > 1 else x[0], next(iter(data.y.values()))[step], *weights

    note = keras.callbacks.LambdaCallback(on_train_batch_end=lambda _, logs: losses.append(logs["loss"]))
    model.fit(feed(), steps_per_epoch=len(steps), verbose=0, callbacks=[note], shuffle=False)
    return weights_of(model), losses


@pytest.mark.parametrize(("make", "kind", "optimizer"), WAYS)
def test_an_update_is_what_keras_fit_does(make: Any, kind: Any, optimizer: dict[str, Any]) -> None:
    """Two epochs with a smaller last batch, for each optimizer, model and loss; by XLA where it takes it."""
    of = case(make(), {"y": kind} if kind else None, optimizer=NamedConfig(**optimizer), batch_size=8, local_epochs=2)
    data = examples(of, 30, weights=np.linspace(0, 2, 30, dtype="float32") if kind else None)
    weights, losses = fitted(of, make, data)
    after = [weights[p] for p in of.contract.changing]
    for compiled in (False, True) if suited(build(of.request.architecture)) else (False,):
        result = train(of, data, Trainer(compile=compiled))
        for update, expected, before in zip(result.update, after, of.received, strict=True):
            np.testing.assert_allclose(before + update, expected, rtol=1e-5, atol=2e-6)
        assert result.metrics["train-loss"] == pytest.approx(losses[-1], rel=1e-5)


def test_how_examples_are_fed_and_work_is_divided_changes_no_bit() -> None:
    """Streamed or resident, in one call or in many for a time limit, over epochs that end with a smaller batch."""
    of = case(pictures(), batch_size=8, local_epochs=3, validation_fraction=0.3, metrics=("accuracy",))
    data = examples(of, 100, weights=np.linspace(0, 2, 100, dtype="float32"))
    results = [
        train(of, data, Trainer(resident_bytes=room), seconds=limit) for room, limit in ((1 << 20, None), (0, 900.0))
    ]
    one, two = results
    assert weights_digest(one.update) == weights_digest(two.update)
    assert one.metrics["val-accuracy"] == two.metrics["val-accuracy"]
    assert one.metrics["train-loss"] == two.metrics["train-loss"]


def test_compiled_steps_divide_alike() -> None:
    """A limit changes no bit there either, whatever the size of a site; all sizes share the one function."""
    of, trainer = case(classifier(), batch_size=8, local_epochs=2), Trainer(compile=True)
    whole = [weights_digest(train(of, examples(of, n), trainer).update) for n in (60, 71, 5)]
    parts = [weights_digest(train(of, examples(of, n), trainer, seconds=900.0).update) for n in (60, 71, 5)]
    assert whole == parts
    assert ("compiled", False) in trainer._learner.graph._functions  # type: ignore[union-attr]


def test_a_limit_ends_an_update() -> None:
    """Within a fraction of the time that all its steps would take."""
    of, trainer = case(classifier(), local_steps=10_000_000), Trainer()
    trainer.prepare(of.request)
    started = time.monotonic()
    with pytest.raises(DeclinedRequest, match="policy"):
        train(of, examples(of, 40), trainer, seconds=1.0)
    assert time.monotonic() - started < 60


# --- what is kept


def test_examples_stay_within_the_budget_and_go_with_their_site() -> None:
    """The least recently used goes first; what is dropped elsewhere is dropped here."""
    of = case(classifier(), batch_size=8)
    sites = [examples(of, 30, seed) for seed in range(3)]
    size = sum(a.nbytes for a in (*sites[0].x.values(), *sites[0].y.values()))
    trainer = Trainer(resident_bytes=2 * size)
    first = weights_digest(train(of, sites[0], trainer).update)
    for data in sites[1:]:
        train(of, data, trainer)
    kept = trainer._partitions
    assert kept.nbytes == 2 * size
    assert list(kept._kept) == [id(data) for data in sites[1:]]
    assert weights_digest(train(of, sites[0], trainer).update) == first
    del data
    sites.clear()
    assert kept.nbytes == 0


def test_the_global_values_are_on_the_device_once_for_a_round() -> None:
    """The same arrays give the same tensors, others give others, and nothing is held once they are gone."""
    of, trainer = case(classifier()), Trainer()
    trainer.prepare(of.request)
    arrays = [a.copy() for a in of.received]
    tensors = trainer._received.tensors(arrays)
    assert trainer._received.tensors(list(arrays)) is tensors
    other = [a + 1 for a in arrays]
    assert trainer._received.tensors(other) is not tensors
    del other
    assert trainer._received._tensors == []


# --- whether to compile


def test_the_rule_asks_the_job_alone() -> None:
    """Small dense models in long runs; no convolution, nothing recurrent, none of a site's own, none that is large."""
    import keras

    from .own_models import Looks

    def of(*layers: Any, shape: tuple[int | None, ...] = (4,)) -> Any:
        return keras.Sequential([keras.Input(shape, name="x"), *layers])

    assert suited(classifier())
    assert suited(normalized())
    assert suited(two_inputs())
    refused = [of(keras.layers.LSTM(2), shape=(5, 2)), of(Looks()), of(keras.layers.Dense(1_000_000)), pictures()]
    assert not any(suited(model) for model in refused)
    assert not suited(of(keras.layers.Dense(2), shape=(None, 4)))
    assert [chosen(classifier(), TrainSection(rounds=n)) for n in (19, 20)] == [False, True]


def test_the_job_can_decide() -> None:
    """What a job says of compiling stands above the rule, in both directions, and a learner follows it."""
    assert chosen(pictures(), TrainSection(rounds=1, jit_compile=True))
    assert not chosen(classifier(), TrainSection(rounds=20, jit_compile=False))
    of = case(classifier(), jit_compile=True)
    assert build_learner(of.request, ()).compiled


# --- models that train themselves


def halved() -> Any:
    from .own_models import Halved

    plain = classifier()
    return Halved(plain.inputs, plain.outputs)


def test_a_training_step_of_the_models_own_is_kept(caplog: pytest.LogCaptureFixture) -> None:
    """It goes through Keras, and the log says so once; a strategy that adds to the loss is refused."""
    of, trainer = case(halved(), allow=OWN, batch_size=8, local_epochs=2, validation_fraction=0.0), Trainer()
    data = examples(of, 30)
    with caplog.at_level(logging.WARNING, "client.step"):
        first, again = (train(of, data, trainer, allow=OWN) for _ in range(2))
    weights, losses = fitted(of, halved, data)
    for update, after, before in zip(first.update, weights, of.received, strict=True):
        np.testing.assert_allclose(before + update, after, rtol=1e-5, atol=1e-6)
    assert weights_digest(first.update) == weights_digest(again.update)
    assert first.metrics["train-loss"] == pytest.approx(np.average(losses, weights=[8, 8, 8, 6] * 2), rel=1e-5)
    assert len([r for r in caplog.records if "step of its own" in r.getMessage()]) == 1
    [note] = trainer.notes
    assert note.endswith("it has a training step of its own; it trains through Keras' fit, more slowly")
    proximal = case(halved(), allow=OWN, strategy=NamedConfig(name="fedprox", mu=1.0))
    with pytest.raises(DeclinedRequest, match="strategy"):
        train(proximal, data, Trainer(), allow=OWN)


def test_a_layer_that_cannot_be_traced_trains_all_the_same() -> None:
    """Operation by operation, evaluation included."""
    import keras

    from .own_models import Looks

    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,), name="x"), Looks(), keras.layers.Dense(3, "softmax")])
    of = case(model, allow=OWN, metrics=("accuracy",), validation_fraction=0.3)
    result = train(of, examples(of, 40), trainer := Trainer(), allow=OWN)
    assert all(np.abs(update).max() > 0 for update in result.update)
    assert {"val-loss", "val-accuracy", "train-loss"} < set(result.metrics)
    assert "cannot be traced" in trainer.notes[0]
