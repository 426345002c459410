"""What a site trains with: the job's word first, the model's own otherwise, a lower learning rate by default."""

from typing import Any

import keras
import pytest
from keras import layers

from fedretrain.errors import ConfigurationError
from fedretrain.job import NamedConfig, TrainSection
from fedretrain.settings import resolve_train


def compiled(*args: Any, **kwargs: Any) -> dict[str, Any]:
    model = keras.Sequential([layers.Input((2,)), layers.Dense(3)])
    model.compile(*args, **kwargs)
    return dict(model.get_compile_config())


def resolved(own: dict[str, Any] | None = None, **train: Any) -> TrainSection:
    return resolve_train(TrainSection(**({"loss": "mse", "optimizer": NamedConfig(name="sgd")} | train)), own)


def test_everything_can_come_from_the_model() -> None:
    """Optimizer with its settings, loss with its own, metrics by name; the learning rate is a tenth."""
    own = compiled(
        keras.optimizers.Adam(0.002, beta_1=0.8, clipnorm=1.0),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[keras.metrics.SparseCategoricalAccuracy(), "accuracy"],
    )
    train = resolve_train(TrainSection(rounds=3, seed=5), own)
    assert train.optimizer == NamedConfig(name="adam", learning_rate=0.0002, beta_1=0.8, clipnorm=1.0)
    assert train.loss == NamedConfig(name="sparse_categorical_crossentropy", from_logits=True)
    assert train.metrics == ("sparse_categorical_accuracy", "accuracy")
    assert (train.rounds, train.seed) == (3, 5)


@pytest.mark.parametrize(
    ("optimizer", "rate"),
    [
        (NamedConfig(name="sgd"), 0.005),  # the model's optimizer: a tenth of its 0.05
        (NamedConfig(name="SGD", momentum=0.9), 0.005),
        (NamedConfig(name="adam"), 0.0001),  # another one: a tenth of Keras' 0.001
        (NamedConfig(name="sgd", learning_rate=0.3), 0.3),
        (NamedConfig(name="sgd", learning_rate=1), 1),
        (None, 0.005),
    ],
)
def test_the_learning_rate_is_a_tenth_unless_the_job_gives_one(optimizer: Any, rate: float) -> None:
    """Training goes on from a model in use; settings of another optimizer are not taken over."""
    found = resolve_train(TrainSection(optimizer=optimizer), compiled(keras.optimizers.SGD(0.05), "mse")).optimizer
    assert found is not None
    assert found.settings["learning_rate"] == rate
    assert found.name == found.name.lower()


def test_from_fresh_weights_the_learning_rate_is_the_models_own() -> None:
    """A tenth is for a model that is good already; Keras' default counts whole for another optimizer too."""
    own = compiled(keras.optimizers.SGD(0.05), "mse")
    for optimizer, rate in ((None, 0.05), (NamedConfig(name="adam"), 0.001)):
        found = resolve_train(TrainSection(mode="full", optimizer=optimizer), own).optimizer
        assert found is not None
        assert found.settings["learning_rate"] == rate


def test_a_schedule_counts_with_its_initial_rate() -> None:
    """Each round would start it again; one that the job itself gives is taken as it is."""
    schedule = keras.optimizers.schedules.ExponentialDecay(0.05, 10, 0.9)
    own = compiled(keras.optimizers.SGD(schedule), "mse")
    assert resolve_train(TrainSection(), own).optimizer == NamedConfig(name="sgd", learning_rate=0.005)
    given = {"name": "ExponentialDecay", "initial_learning_rate": 0.1, "decay_steps": 5, "decay_rate": 0.9}
    assert resolved(optimizer=NamedConfig(name="sgd", learning_rate=given)).optimizer == NamedConfig(
        name="sgd", learning_rate=given
    )


def test_loss_scaling_is_looked_through() -> None:
    """Mixed precision puts it around the optimizer by itself, at the site as well."""
    own = compiled(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.5)), "mse")
    assert resolve_train(TrainSection(), own).optimizer == NamedConfig(name="sgd", learning_rate=0.05)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("mse", "mean_squared_error"),
        ("MSE", "mean_squared_error"),
        ("MeanSquaredError", "mean_squared_error"),
        ("KLDivergence", "kl_divergence"),
        ("kld", "kl_divergence"),
        ("bce", "binary_crossentropy"),
        ("LogCosh", "log_cosh"),
        (NamedConfig(name="Huber", delta=2.0), NamedConfig(name="huber", delta=2.0)),
        ({"a": "mae", "b": "CTC"}, {"a": "mean_absolute_error", "b": "ctc"}),
    ],
)
def test_losses_have_one_name_each(given: Any, name: Any) -> None:
    """Aliases and classes become the function's name, which decides the kind of labels."""
    assert resolved(loss=given).loss == name


@pytest.mark.parametrize(
    ("own", "loss"),
    [
        ("mse", "mean_squared_error"),
        (keras.losses.mean_squared_error, "mean_squared_error"),
        (keras.losses.MeanSquaredError(), "mean_squared_error"),
        (keras.losses.CategoricalCrossentropy(label_smoothing=0.1), {"label_smoothing": 0.1}),
        ({"a": "mse", "b": keras.losses.BinaryCrossentropy(from_logits=True), "c": None}, {}),
    ],
)
def test_a_models_loss_is_understood_in_every_form(own: Any, loss: Any) -> None:
    """Text, function, object, by output."""
    found = resolve_train(TrainSection(), compiled("sgd", own)).loss
    if isinstance(found, dict):
        assert found == {"a": "mean_squared_error", "b": NamedConfig(name="binary_crossentropy", from_logits=True)}
    elif isinstance(found, NamedConfig):
        assert found.settings == loss
    else:
        assert found == loss


def test_a_setting_that_keras_does_not_store_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """Huber's delta is not in a model file: the job has to repeat it."""
    assert resolve_train(TrainSection(), compiled("sgd", keras.losses.Huber(2.0))).loss == "huber"
    assert "did not store ['delta'] of Huber" in caplog.text


def test_metrics_default_to_accuracy_where_there_are_classes() -> None:
    """The job's first, then the model's, of all outputs together and without custom ones; then by loss."""
    assert resolved(metrics=("AUC", "accuracy", "AUC")).metrics == ("AUC", "accuracy")
    assert resolved(metrics=()).metrics == ()
    assert resolved().metrics == ()
    assert resolved(loss={"a": "mse", "b": "bce"}).metrics == ("accuracy",)
    nested = {"metrics": {"a": ["accuracy", {"class_name": "F1Score", "config": {}}], "b": [["own"], "mae"]}}
    assert resolved(nested).metrics == ("accuracy", "f1_score", "mae")


@pytest.mark.parametrize(
    ("train", "says"),
    [
        ({"optimizer": NamedConfig(name="sdg")}, r"train\.optimizer: Keras has no 'sdg'; did you mean 'sgd'"),
        ({"optimizer": NamedConfig(name="optimizer")}, r"train\.optimizer: Keras has no 'optimizer'"),
        ({"optimizer": NamedConfig(name="sgd", learning_rat=1)}, r"train\.optimizer\.learning_rat: .* 'learning_rate'"),
        ({"optimizer": NamedConfig(name="sgd", learning_rate="a")}, r"learning_rate: expected a number, got 'a'"),
        ({"optimizer": NamedConfig(name="sgd", learning_rate=0)}, r"learning_rate: expected a number above 0, got 0"),
        ({"optimizer": NamedConfig(name="sgd", learning_rate=True)}, r"expected a number above 0, got True"),
        ({"optimizer": NamedConfig(name="sgd", momentum=7)}, r"train\.optimizer: SGD does not take"),
        (
            {"optimizer": NamedConfig(name="sgd", learning_rate={"name": "Exponential"})},
            r"train\.optimizer\.learning_rate: Keras has no 'Exponential'; did you mean 'ExponentialDecay'",
        ),
        ({"loss": "crossentropie"}, r"train\.loss: Keras has no 'crossentropie'"),
        ({"loss": {"a": "msee"}}, r"train\.loss\.a: Keras has no 'msee'; did you mean 'mse'"),
        ({"loss": NamedConfig(name="huber", delt=1)}, r"train\.loss\.delt: unknown setting; did you mean 'delta'"),
        ({"metrics": ("acuracy",)}, r"train\.metrics: Keras has no 'acuracy'; did you mean 'accuracy'"),
    ],
)
def test_unknown_names_and_settings_name_the_nearest(train: dict[str, Any], says: str) -> None:
    """The key, what was given, what was probably meant."""
    with pytest.raises(ConfigurationError, match=says) as caught:
        resolved(**train)
    assert "\n" not in str(caught.value)


def test_what_neither_job_nor_model_say_is_asked_for() -> None:
    """An uncompiled model, and one with a loss of its own."""
    with pytest.raises(ConfigurationError, match=r"train\.loss: the model was compiled without a loss"):
        resolve_train(TrainSection(optimizer=NamedConfig(name="sgd")), None)
    with pytest.raises(ConfigurationError, match=r"train\.optimizer: the model was not compiled with one of Keras"):
        resolve_train(TrainSection(loss="mse"), None)

    def own(y, p):
        return p

    with pytest.raises(ConfigurationError, match=r"train\.loss: the model was compiled with a loss of its own, 'own'"):
        resolve_train(TrainSection(), compiled("sgd", own))


def test_resolving_twice_changes_nothing() -> None:
    """What was filled in counts as the job's own word."""
    once = resolve_train(TrainSection(), compiled("adam", keras.losses.Poisson(), metrics=["mae"]))
    assert resolve_train(once, None) == once
