"""Optimizers, losses and metrics from a request: Keras' own, with plain settings, and nothing else."""

from typing import Any

import numpy as np
import pytest

from fedretrain.contract import OutputSpec
from fedretrain.errors import DeclinedRequest
from fedretrain.job import NamedConfig, TrainSection

pytestmark = pytest.mark.usefixtures("tensorflow")

CLASSES = OutputSpec(name="y", shape=(3,), kind="multiclass", loss="x", labels=("a", "b", "c"))
ONEHOT = CLASSES.model_copy(update={"kind": "onehot"})
BINARY = OutputSpec(name="b", shape=(1,), kind="binary", loss="x", labels=("no", "yes"))
NUMBER = OutputSpec(name="n", shape=(1,), kind="regression", loss="x")


@pytest.mark.parametrize(
    ("name", "settings", "found"),
    [
        ("sgd", {"learning_rate": 0.5, "momentum": 0.9}, "SGD"),
        ("AdamW", {"learning_rate": 1, "weight_decay": 0.01}, "AdamW"),
        ("rmsprop", {"learning_rate": {"name": "ExponentialDecay", "initial_learning_rate": 0.1, "decay_steps": 5,
                                       "decay_rate": 0.5}}, "RMSprop"),
        ("sgd", {"learning_rate": {"class_name": "PiecewiseConstantDecay", "module": "keras.optimizers.schedules",
                                   "config": {"boundaries": [1], "values": [0.1, 0.2]}}}, "SGD"),
    ],
)  # fmt: skip
def test_an_optimizer_is_keras_own_with_its_settings(name: str, settings: dict[str, Any], found: str) -> None:
    """Any optimizer of Keras, a whole number as learning rate, and schedules in our form and in Keras'."""
    from client.settings import make_optimizer

    optimizer = make_optimizer(NamedConfig(name=name, **settings))
    assert type(optimizer).__name__ == found
    config = optimizer.get_config()
    assert all(config[k] == v for k, v in settings.items() if k != "learning_rate")


@pytest.mark.parametrize(
    "config",
    [
        None,
        NamedConfig(name="sdg"),
        NamedConfig(name="os:system"),
        NamedConfig(name="sgd", momentun=0.9),
        NamedConfig(name="sgd", learning_rate="fast"),
        NamedConfig(name="sgd", learning_rate={"name": "sleep"}),
        NamedConfig(name="sgd", learning_rate={"class_name": "function", "module": "os", "config": "system"}),
        NamedConfig(
            name="sgd",
            learning_rate={"name": "CosineDecay", "initial_learning_rate": 0.1, "decay_steps": {"module": "os"}},
        ),
        NamedConfig(name="sgd", clipnorm={"class_name": "system", "module": "os", "config": {}}),
        NamedConfig(name="sgd", clipnorm=[[1]]),
        NamedConfig(name="LossScaleOptimizer", inner_optimizer={"class_name": "SGD", "config": {}}),
    ],
)
def test_what_is_no_optimizer_of_keras_is_refused(config: NamedConfig | None) -> None:
    """Unknown names and settings, and settings that name modules."""
    from client.settings import make_optimizer

    with pytest.raises(DeclinedRequest, match=r"request-invalid at train\.optimizer"):
        make_optimizer(config)


@pytest.mark.parametrize(
    "loss",
    [
        "mse",
        "mean_squared_error",
        "MeanSquaredError",
        NamedConfig(name="mse", reduction="sum_over_batch_size"),
        NamedConfig(name="MeanSquaredError"),
    ],
)
def test_a_loss_goes_by_any_of_keras_names(loss: Any) -> None:
    """Short and long names, function and class, with settings."""
    from client.settings import make_losses

    assert float(make_losses(TrainSection(loss=loss), (NUMBER,))(np.ones((2, 1)), np.zeros((2, 1)))) == 1


def test_losses_of_several_outputs_come_in_their_order() -> None:
    """By output's name; an output without one has none."""
    from client.settings import make_losses

    logits = NamedConfig(name="binary_crossentropy", from_logits=True)
    found = make_losses(TrainSection(loss={"b": logits, "n": "mae"}), (NUMBER, BINARY, CLASSES))
    assert [type(loss).__name__ for loss in found] == ["MeanAbsoluteError", "BinaryCrossentropy", "NoneType"]
    assert found[1].get_config()["from_logits"] is True


@pytest.mark.parametrize(
    "loss",
    ["msq", "Loss", NamedConfig(name="mse", axes=3), NamedConfig(name="huber", delta={"module": "os"})],
)
def test_what_is_no_loss_of_keras_is_refused(loss: Any) -> None:
    """Unknown names and settings."""
    from client.settings import make_losses

    with pytest.raises(DeclinedRequest, match=r"request-invalid at train\.loss"):
        make_losses(TrainSection(loss=loss), (NUMBER,))


def metrics_of(names: tuple[str, ...], *outputs: OutputSpec, loss: Any = "x") -> list[dict[str, str]]:
    from client.settings import make_metrics

    found = make_metrics(TrainSection(metrics=names, loss=loss), outputs)
    return [{name: type(metric).__name__ for name, metric in by_name.items()} for by_name in found]


def test_accuracy_is_the_one_for_the_labels() -> None:
    """By the output's kind; a regression has none."""
    assert metrics_of(("accuracy",), CLASSES) == [{"accuracy": "SparseCategoricalAccuracy"}]
    assert metrics_of(("accuracy",), ONEHOT) == [{"accuracy": "CategoricalAccuracy"}]
    assert metrics_of(("accuracy", "mae"), BINARY, NUMBER) == [
        {"b-accuracy": "BinaryAccuracy", "b-mae": "MeanAbsoluteError"},
        {"n-mae": "MeanAbsoluteError"},
    ]


def test_metrics_that_do_not_fit_are_left_out() -> None:
    """Of class numbers, AUC and mean error say nothing; unknown names and metrics that are no single number go too."""
    assert metrics_of(("AUC", "mae", "nonsense", "F1Score", "PrecisionAtRecall"), CLASSES) == [{}]
    assert metrics_of(("AUC", "R2Score"), ONEHOT, NUMBER) == [{"y-AUC": "AUC", "y-R2Score": "R2Score"},
                                                             {"n-AUC": "AUC", "n-R2Score": "R2Score"}]  # fmt: skip


def test_accuracy_of_logits_is_cut_at_zero() -> None:
    """A logit of 0.2 says yes, as its probability of 0.55 does."""
    from client.settings import make_metrics

    loss = NamedConfig(name="binary_crossentropy", from_logits=True)
    ((metric,),) = [m.values() for m in make_metrics(TrainSection(metrics=("accuracy",), loss=loss), (BINARY,))]
    metric.update_state(np.array([[1.0], [0.0]]), np.array([[0.2], [-0.2]]))
    assert float(metric.result()) == 1


def test_a_metric_starts_empty() -> None:
    """Trying whether it fits leaves nothing behind."""
    from client.settings import make_metrics

    ((metric,),) = [m.values() for m in make_metrics(TrainSection(metrics=("mae",)), (NUMBER,))]
    metric.update_state(np.ones((1, 1)), np.zeros((1, 1)))
    assert float(metric.result()) == 1
