"""An update made in one call: bit for bit the one that is made call after call, and made so where it can be."""

import logging
from collections import Counter
from typing import Any

import numpy as np
import pytest

from client.trainer import Order, Result, Trainer
from fedretrain.dataset import Dataset
from fedretrain.digest import weights_digest
from fedretrain.job import NamedConfig

from .parts import Case, case, classifier, examples, pictures

pytestmark = pytest.mark.usefixtures("tensorflow")

OWN = ("tests.client.own_models", "tests.client.uncompilable")
SGD = NamedConfig(name="sgd", learning_rate=0.1)
MOMENTUM = NamedConfig(name="sgd", learning_rate=0.1, momentum=0.9)
ADAM = NamedConfig(name="adam", learning_rate=0.01)
PROXIMAL = NamedConfig(name="fedprox", mu=0.5)
CALLS = ("start", "train", "update", "train_at_once")


def train(of: Case, data: Dataset, trainer: Trainer, *, round_: int = 1, **order: Any) -> Result:
    return trainer.train(Order(of.request, "a", round_, OWN, **order), lambda: of.base, of.received, data)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each of a learner's functions was called."""
    from client.step import Learner

    counted: Counter[str] = Counter()

    def count(name: str) -> None:
        plain = getattr(Learner, name)

        def counting(*args: Any, **kwargs: Any) -> Any:
            counted[name] += 1
            return plain(*args, **kwargs)

        monkeypatch.setattr(Learner, name, counting)

    for name in CALLS:
        count(name)
    return counted


def random(*, always: bool = False) -> Any:
    """Dropout, where ``always`` in evaluation too, and batch normalization."""
    import keras

    keras.utils.set_random_seed(0)
    x = keras.Input((4,), name="x")
    hidden = keras.layers.BatchNormalization()(keras.layers.Dense(8, "relu")(x))
    dropped = keras.layers.Dropout(0.4)(hidden, training=True if always else None)
    return keras.Model(x, keras.layers.Dense(3, "softmax")(dropped))


def drawing_always() -> Any:
    return random(always=True)


# --- bits


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (classifier, {"optimizer": SGD}),
        (classifier, {"optimizer": ADAM, "validation_fraction": 0.25, "metrics": ("accuracy",)}),
        (classifier, {"optimizer": MOMENTUM, "strategy": PROXIMAL, "freeze": ("base",)}),
        (random, {"optimizer": ADAM, "strategy": PROXIMAL, "validation_fraction": 0.25}),
        (drawing_always, {"optimizer": MOMENTUM, "validation_fraction": 0.25}),
    ],
)
def test_one_call_has_the_bits_of_many(
    make: Any, settings: dict[str, Any], compiled: bool, calls: Counter[str]
) -> None:
    """Whole batches, a smaller last one, nothing but one, weighted, the first again, several epochs: after each other.

    A time limit has the same steps in many calls.
    """
    settings = {"batch_size": 8, "local_epochs": 1, "validation_fraction": 0.0, **settings}
    of, twice = case(make(), **settings), case(make(), **settings | {"local_epochs": 2})
    weights = np.linspace(0, 2, 64, dtype="float32")
    sites = [(of, examples(of, n)) for n in (64, 37, 5)]
    sites += [(of, examples(of, 64, weights=weights)), (of, examples(of, 64)), (twice, examples(of, 32))]

    def all_of(**order: Any) -> list[tuple[str, dict[str, float]]]:
        trainer = Trainer(compile=compiled)
        results = [train(job, data, trainer, **order) for job, data in sites]
        return [(weights_digest(r.update), r.metrics | {"seconds": 0}) for r in results]

    one = all_of()
    assert (calls["train_at_once"], calls["train"]) == (len(one), 0)
    assert one[4] == one[0]
    assert len({digest for digest, _ in one}) == len(one) - 1
    assert all_of(seconds=900.0) == one
    assert calls["train_at_once"] == len(one)


def test_convolutions_and_streamed_examples_too(monkeypatch: pytest.MonkeyPatch, calls: Counter[str]) -> None:
    """A model with every kind of variable; examples that are not kept on the device."""
    from client.step import Learner

    of = case(pictures(), batch_size=8, local_epochs=2, validation_fraction=0.2, metrics=("accuracy",))
    data = examples(of, 40, weights=np.linspace(0, 2, 40, dtype="float32"))
    one = [train(of, data, Trainer(resident_bytes=room)) for room in (1 << 20, 0)]
    assert (calls["train_at_once"], calls["train"]) == (2, 0)
    monkeypatch.setattr(Learner, "at_once", False)
    one.append(train(of, data, Trainer()))
    assert len({weights_digest(r.update) for r in one}) == 1
    assert len({(r.metrics["train-loss"], r.metrics["val-accuracy"]) for r in one}) == 1


# --- where it is used


def test_an_update_is_one_call_where_it_can_be(calls: Counter[str]) -> None:
    """Evaluation before it needs the received values in place, and a call for that."""
    plain, validating = case(classifier(), validation_fraction=0.0), case(classifier(), validation_fraction=0.5)
    for of in (plain, validating):
        data, trainer = examples(of, 40), Trainer()
        for round_ in (1, 2, 3):
            train(of, data, trainer, round_=round_)
        assert calls == {"train_at_once": 3} | ({"start": 3} if of is validating else {})
        calls.clear()


@pytest.mark.parametrize(
    ("settings", "order"),
    [
        ({}, {"seconds": 900.0}),
        ({}, {"later": True}),
        ({"local_epochs": 3}, {}),
        ({"optimizer": NamedConfig(name="sgd", learning_rate=0.1, use_ema=True)}, {}),
        ({"optimizer": NamedConfig(name="ScheduleFreeAdamW", learning_rate=0.01)}, {}),
    ],
)
def test_what_cannot_be_one_call_is_not(
    settings: dict[str, Any], order: dict[str, Any], calls: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit, an update made later, more steps than a piece has, and optimizers with something to do outside."""
    monkeypatch.setattr("client.graph._MOST_STEPS", 8)
    monkeypatch.setattr("client.outgoing.LARGE_BYTES", 0)
    of = case(classifier(), **{"batch_size": 8, "local_epochs": 1, "validation_fraction": 0.0, **settings})
    data = examples(of, 40)
    assert all(np.abs(np.asarray(each)).max() > 0 for each in train(of, data, Trainer(), **order).update)
    assert calls["train_at_once"] == 0
    assert (calls["start"], calls["update"]) == (1, 0 if order.get("later") else 1)


def test_mixed_precision_keeps_the_scale_of_its_loss_outside(calls: Counter[str]) -> None:
    """Keras wraps its optimizer in another, which has a last step of its own."""
    import keras

    layers = [keras.layers.Dense(3, dtype="mixed_float16"), keras.layers.Softmax(dtype="float32")]
    of = case(keras.Sequential([keras.Input((4,), name="x"), *layers]), optimizer=SGD)
    train(of, examples(of, 10), Trainer())
    assert of.request.train.optimizer == SGD
    assert calls["train_at_once"] + calls["train"] == 1


# --- what a model does not take


def test_what_xla_refuses_is_trained_without(caplog: pytest.LogCaptureFixture, calls: Counter[str]) -> None:
    """Said once; the update is that of a trainer that never compiles, and later ones are one call again."""
    import keras

    from .uncompilable import Outside

    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,), name="x"), Outside(), keras.layers.Dense(3, "softmax")])
    for fraction in (0.0, 0.25):
        of = case(model, allow=OWN, batch_size=8, validation_fraction=fraction)
        data, trainer = examples(of, 40), Trainer(compile=True)
        never = Trainer(compile=False)
        caplog.clear()
        with caplog.at_level(logging.WARNING, "client.step"):
            found = [weights_digest(train(of, data, trainer, round_=r).update) for r in (1, 2, 3)]
        assert len([r for r in caplog.records if "XLA does not take" in r.getMessage()]) == 1
        assert calls["train_at_once"] == 3
        assert found == [weights_digest(train(of, data, never, round_=r).update) for r in (1, 2, 3)]
        calls.clear()


def test_what_cannot_be_traced_goes_to_fit(caplog: pytest.LogCaptureFixture, calls: Counter[str]) -> None:
    """Said once, and tried once."""
    import keras

    from .own_models import Looks

    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,), name="x"), Looks(), keras.layers.Dense(3, "softmax")])
    of, trainer = case(model, allow=OWN, validation_fraction=0.0), Trainer()
    with caplog.at_level(logging.WARNING, "client.step"):
        first, again = (train(of, examples(of, 40), trainer) for _ in range(2))
    assert len([r for r in caplog.records if "cannot be traced" in r.getMessage()]) == 1
    assert (calls["train_at_once"], calls["start"]) == (1, 2)
    assert weights_digest(first.update) == weights_digest(again.update)
    assert all(np.abs(each).max() > 0 for each in first.update)


def test_values_that_do_not_fit_are_an_error_and_no_fault_of_the_model() -> None:
    """It is not left to ``fit`` for them."""
    of, trainer = case(classifier(), validation_fraction=0.0), Trainer()
    data = examples(of, 20)
    order = Order(of.request, "a", 1)
    with pytest.raises(TypeError):
        trainer.train(order, lambda: of.base, [a[..., :1] for a in of.received], data)
    assert trainer._learner.at_once  # type: ignore[union-attr]
    assert all(np.abs(each).max() > 0 for each in train(of, data, trainer).update)
