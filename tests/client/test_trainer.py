"""Training at a site: what changes, what must not, and that the bits depend on nothing they should not depend on."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.outgoing import Difference
from client.sampling import seed_for, split
from client.trainer import Order, Result, Trainer
from fedretrain.architecture import weights_of
from fedretrain.dataset import Dataset, as_arrays
from fedretrain.digest import weights_digest
from fedretrain.errors import DeclinedRequest
from fedretrain.job import NamedConfig

from .parts import Case, case, classifier, examples, pictures

pytestmark = pytest.mark.usefixtures("tensorflow")

ROOT = Path(__file__).parents[2]


def train(
    of: Case,
    data: Dataset,
    trainer: Trainer | None = None,
    *,
    site: str = "a",
    round_: int = 1,
    received: Any = None,
) -> Result:
    order = Order(of.request, site, round_)
    return (trainer or Trainer()).train(order, lambda: of.base, of.received if received is None else received, data)


def norm(update: list[np.ndarray]) -> float:
    return float(np.sqrt(sum(np.sum(np.square(a.astype("float64"))) for a in update)))


def rules(of: Case) -> list[str]:
    return [of.contract.variables[p].rule for p in of.contract.changing]


# --- what changes and what does not


def test_variables_that_do_not_travel_keep_their_bits_and_statistics_travel() -> None:
    """A frozen convolution and a Normalization layer stay; BatchNormalization's moving statistics are in the update."""
    of = case(pictures(), freeze=("conv",))
    trainer = Trainer()
    result = train(of, examples(of, 20), trainer)
    learner = trainer._learner
    assert learner is not None
    after = weights_of(learner._model)
    for value, base, spec in zip(after, of.base, of.contract.variables, strict=True):
        assert spec.rule in {"train", "average", "local"} or value.tobytes() == base.tobytes()
    assert sorted(rules(of)) == ["average"] * 2 + ["train"] * 4
    assert all(norm([u]) > 0 for u in result.update)
    assert [u.dtype.name for u in result.update] == [s.dtype for s in of.contract.changing_specs]
    ((position, drawn),) = [
        (i, a) for i, (a, s) in enumerate(zip(after, of.contract.variables, strict=True)) if s.rule == "local"
    ]
    assert list(drawn) == [seed_for("layer", 0, "a", 1, position) % 2**31, 1]  # dropout has drawn once, in one step


def test_the_base_model_is_asked_for_once() -> None:
    """Also by a model without a variable that stays as it is."""
    of, trainer, asked = case(classifier()), Trainer(), []

    def base() -> Any:
        asked.append(1)
        return of.base

    for round_ in (1, 2):
        trainer.train(Order(of.request, "a", round_), base, of.received, examples(of, 10))
    assert len(asked) == 1


def test_a_frozen_batch_normalization_runs_in_inference_mode() -> None:
    """Its statistics do not come from the batch: the loss in training is that of inference, and not so unfrozen."""
    import keras

    keras.utils.set_random_seed(0)
    layers = [keras.layers.BatchNormalization(name="bn"), keras.layers.Dense(3, "softmax", name="head")]
    model = keras.Sequential([keras.Input((4,), name="x"), *layers])
    model.compile(loss="sparse_categorical_crossentropy")
    losses = []
    for freeze in (("bn",), ()):
        of = case(model, freeze=freeze, local_steps=1, batch_size=30)
        losses.append(train(of, data := examples(of, 30)).metrics["train-loss"])
    in_inference = model.evaluate(data.x["x"], data.y["y"], verbose=0)
    assert losses[0] == pytest.approx(in_inference, rel=1e-5)
    assert abs(losses[1] - in_inference) > 1e-3


def test_a_warm_trainer_obeys_other_freeze_patterns() -> None:
    """A step that is traced would ignore flags set later; another set of patterns is another model."""
    model, trainer = classifier(), Trainer()
    free, frozen = case(model), case(model, freeze=("base",))
    assert len(train(free, examples(free, 10), trainer).update) == 4
    result = train(frozen, examples(frozen, 10), trainer)
    assert len(result.update) == 2
    trainer._learner.check_kept()  # type: ignore[union-attr]


def test_flags_set_after_the_step_is_traced_change_nothing() -> None:
    """Why flags are set before: here the layer is frozen too late, and trains all the same."""
    of = case(classifier())
    trainer = Trainer()
    before = train(of, examples(of, 10), trainer)
    for layer in trainer._learner._model.layers:  # type: ignore[union-attr]
        layer.trainable = False
    after = train(of, examples(of, 10), trainer)
    assert weights_digest(after.update) == weights_digest(before.update)


def test_a_variable_that_changes_against_the_rules_is_a_fault() -> None:
    """The update is withheld and the model thrown away."""
    of = case(classifier(), freeze=("base",))
    trainer = Trainer()
    train(of, examples(of, 10), trainer)
    trainer._learner._kept[0][0].assign_add(np.ones((4, 8)))  # type: ignore[union-attr]
    with pytest.raises(RuntimeError, match="must not change"):
        train(of, examples(of, 10), trainer)
    assert len(train(of, examples(of, 10), trainer).update) == 2


# --- bits


def test_the_bits_depend_on_seed_site_and_round_alone() -> None:
    """Not on the run's id, the trainer, or what it trained before; dropout and order both vary with the round."""
    of, warm = case(pictures()), Trainer()
    again = Case(of.request.model_copy(update={"run": "run-2"}), of.base)
    data = examples(of, 37)
    first = weights_digest(train(of, data, warm).update)
    others = [weights_digest(train(of, data, warm, site=s, round_=r).update) for s, r in (("a", 2), ("b", 1))]
    seeded = case(pictures(), seed=1)
    others.append(weights_digest(train(seeded, data).update))
    assert first == weights_digest(train(of, data, warm).update) == weights_digest(train(again, data).update)
    assert len({first, *others}) == 4


def test_another_run_of_the_same_job_finds_the_model_warm() -> None:
    """Nothing is built or traced again for it."""
    of, warm = case(classifier()), Trainer()
    data = examples(of, 10)
    first = train(of, data, warm)
    learner = warm._learner
    again = train(Case(of.request.model_copy(update={"run": "run-2"}), of.base), data, warm)
    assert warm._learner is learner
    assert weights_digest(first.update) == weights_digest(again.update)


@pytest.mark.slow
def test_another_process_has_the_same_bits() -> None:
    """Which process trains a site does not matter."""
    code = (
        "from client.trainer import configure_process; configure_process()\n"
        "from tests.client.test_trainer import *\n"
        "of = case(pictures())\n"
        "print(weights_digest(of.base), weights_digest(train(of, examples(of, 37)).update))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    of = case(pictures())
    assert done.stdout.split() == [weights_digest(of.base), weights_digest(train(of, examples(of, 37)).update)]


def test_the_step_is_traced_once() -> None:
    """Over three rounds, two sites of different size, and the smaller last batch of each epoch."""
    of, trainer = case(classifier(), batch_size=8, local_epochs=2), Trainer()
    seen = []
    for round_ in (1, 2, 3):
        for site, count in (("a", 60), ("b", 71)):
            train(of, examples(of, count), trainer, site=site, round_=round_)
            seen.append(list(trainer._learner.graph._functions.values()))  # type: ignore[union-attr]
    assert all(steps == seen[0] for steps in seen)
    assert len(seen[0]) == 2


@pytest.mark.parametrize(
    "optimizer",
    [
        {"name": "sgd", "learning_rate": 0.1, "momentum": 0.9, "use_ema": True, "ema_momentum": 0.5},
        {"name": "nadam", "learning_rate": 0.01, "gradient_accumulation_steps": 2},
        {"name": "ScheduleFreeAdamW", "learning_rate": 0.01},
    ],
)
def test_the_optimizer_starts_afresh_in_every_update(optimizer: dict[str, Any]) -> None:
    """Moments, step counters, averages and schedules carry nothing over, also where they start from the weights."""
    of, trainer = case(classifier(), optimizer=NamedConfig(**optimizer)), Trainer()
    data, elsewhere = examples(of, 40), [a + 1 for a in of.received]
    first = train(of, data, trainer)
    train(of, data, trainer, received=elsewhere)
    assert weights_digest(train(of, data, trainer).update) == weights_digest(first.update)


# --- the right numbers


def test_fedprox_pulls_towards_what_was_received() -> None:
    """One step starts at the anchor, so the term adds nothing to it; over many, a larger mu keeps closer."""

    def moved(mu: float | None, steps: int) -> float:
        strategy = NamedConfig(name="fedprox", mu=mu) if mu is not None else None
        of = case(classifier(), strategy=strategy, local_steps=steps)
        return norm(train(of, examples(of, 40)).update)

    assert moved(2, 1) == pytest.approx(moved(None, 1), rel=1e-6)
    assert moved(4, 10) < 0.9 * moved(1, 10) < 0.9 * moved(None, 10)


def test_sample_weights_count() -> None:
    """SGD with all weights 2 goes twice as far in a step; an example of weight 0 leaves no trace."""
    of = case(classifier(), local_steps=1, batch_size=50)
    data = examples(of, 40)
    plain, twice = (train(of, examples(of, 40, weights=w)).update for w in (None, np.full(40, 2, "float32")))
    for one, two in zip(plain, twice, strict=True):
        np.testing.assert_allclose(two, 2 * one, rtol=1e-4, atol=1e-6)
    only_first = np.eye(1, 40, dtype="float32")[0]
    garbage = data.x["x"].copy()
    garbage[1:] = 7
    of_data, of_garbage = (Dataset({"x": x}, data.y, only_first) for x in (data.x["x"], garbage))
    for one, two in zip(train(of, of_data).update, train(of, of_garbage).update, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-6)


def test_weights_of_sequences_belong_to_examples() -> None:
    """With labels [n, t], an example's weight multiplies all its steps."""
    import keras

    x = keras.Input((5, 2), name="x")
    of = case(keras.Model(x, keras.layers.Dense(3, "softmax", name="head")(x)), local_steps=1)
    data, (scale,) = examples(of, 5, weights=np.array([1, 0, 0, 0, 0], "float32")), [5.0]
    alone = Dataset({"x": data.x["x"][:1]}, {"y": data.y["y"][:1]})
    for weighted, one in zip(train(of, data).update, train(of, alone).update, strict=True):
        np.testing.assert_allclose(scale * weighted, one, rtol=1e-4, atol=1e-6)


def two_by_three() -> Any:
    """Two inputs (one of whole numbers), three outputs of different kinds."""
    import keras

    keras.utils.set_random_seed(0)
    word, size = keras.Input((2,), dtype="int32", name="word"), keras.Input((3,), name="size")
    both = keras.layers.Concatenate()([keras.layers.Flatten()(keras.layers.Embedding(9, 4)(word)), size])
    outputs = [keras.layers.Dense(3, "softmax", name="sort")(both), keras.layers.Dense(1, name="price")(both)]
    return keras.Model({"word": word, "size": size}, [*outputs, keras.layers.Dense(1, "sigmoid", name="old")(both)])


def test_several_inputs_and_outputs_train_and_are_evaluated_each() -> None:
    """A metric goes to the outputs it fits, under the output's name."""
    kinds = {
        "sort": ("multiclass", "sparse_categorical_crossentropy"),
        "price": ("regression", "huber"),
        "old": ("binary", "binary_crossentropy"),
    }
    of = case(two_by_three(), kinds, metrics=("accuracy", "mae"), validation_fraction=0.5)
    data = examples(of, 40)
    data.x["word"][:] = np.random.default_rng(0).integers(0, 9, data.x["word"].shape)
    result = train(of, data)
    assert all(norm([u]) > 0 for u in result.update)
    names = {"val-loss", "val-sort-accuracy", "val-price-mae", "val-old-accuracy", "val-old-mae"}
    assert set(result.metrics) == names | {"train-loss", "seconds"}


@pytest.mark.parametrize("kind", ["onehot", "multilabel", "regression"])
def test_every_kind_of_output_trains(kind: str) -> None:
    """One-hot, multi-label and regression of several numbers, on the same layers."""
    loss = {"onehot": "categorical_crossentropy", "multilabel": "binary_crossentropy", "regression": "mse"}[kind]
    of = case(classifier(), {"y": (kind, loss)}, metrics=("accuracy", "mse"))
    result = train(of, examples(of, 50))
    assert norm(result.update) > 0
    assert ("val-accuracy" in result.metrics) == (kind != "regression")
    assert "val-mse" in result.metrics


def test_binary_labels_are_the_same_with_and_without_their_axis() -> None:
    """[n] and [n, 1] give the same bits; without care, [n] against predictions [n, 1] would make [n, n]."""
    import keras

    model = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(1, "sigmoid")])
    of = case(model, {"y": ("binary", "binary_crossentropy")}, metrics=("accuracy",), validation_fraction=0.3)
    data = examples(of, 40)
    flat = as_arrays(Dataset(data.x, {"y": data.y["y"][:, 0]}), of.contract)
    one, two = train(of, data), train(of, flat)
    assert weights_digest(one.update) == weights_digest(two.update)
    assert one.metrics["val-accuracy"] == two.metrics["val-accuracy"]


@pytest.mark.parametrize("dtype", ["float16", "mixed_float16"])
def test_updates_have_the_dtype_of_their_variables(dtype: str) -> None:
    """Half precision is kept, and with mixed precision the loss is scaled and the update float32."""
    import keras

    model = keras.Sequential(
        [keras.Input((4,), name="x"), keras.layers.Dense(3, dtype=dtype), keras.layers.Softmax(dtype="float32")]
    )
    of = case(model)
    result = train(of, examples(of, 10))
    assert [u.dtype.name for u in result.update] == ["float32" if "mixed" in dtype else dtype] * 2
    assert norm(result.update) > 0


# --- what leaves


def test_the_metrics_are_of_what_was_received() -> None:
    """Validation is before training, on examples that are not trained on, as Keras computes it."""
    of = case(classifier(kernel_regularizer="l2"), metrics=("accuracy",), validation_fraction=0.4, batch_size=7)
    data = examples(of, 50)
    result = train(of, data)
    _, held = split(50, of.request.train, "a")
    model = classifier(kernel_regularizer="l2")
    model.compile(loss=of.request.train.loss, metrics=["accuracy"])
    expected = model.evaluate(data.x["x"][held], data.y["y"][held], verbose=0, return_dict=True)
    assert result.examples == 30
    assert result.metrics["val-loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert result.metrics["val-accuracy"] == pytest.approx(expected["accuracy"])
    assert all(type(v) is float and np.isfinite(v) for v in result.metrics.values())


@pytest.mark.parametrize(
    ("count", "names"), [(4, set()), (49, {"train-loss"}), (50, {"train-loss", "val-loss", "val-accuracy"})]
)
def test_nothing_is_said_about_a_handful_of_examples(count: int, names: set[str]) -> None:
    """A mean over fewer than five examples does not leave."""
    of = case(classifier(), metrics=("accuracy",))
    assert set(train(of, examples(of, count)).metrics) == names | {"seconds"}


def test_a_diverged_training_is_declined() -> None:
    """Weights that overflow are no update; the trainer goes on to serve the next request."""
    of, good = case(classifier(), optimizer=NamedConfig(name="sgd", learning_rate=1e38), local_epochs=3), Trainer()
    with pytest.raises(DeclinedRequest, match="training-diverged"):
        train(of, examples(of, 40), good)
    broken = [np.full_like(a, np.nan) for a in of.received]
    with pytest.raises(DeclinedRequest, match="training-diverged"):
        train(of, examples(of, 80), good, received=broken)
    fine = case(classifier())
    assert norm(train(fine, examples(fine, 40), good).update) > 0


def test_weights_that_overflow_in_the_last_step_are_no_update() -> None:
    """The loss before that step was finite."""
    of = case(classifier(), optimizer=NamedConfig(name="sgd", learning_rate=1e38), local_steps=1)
    with pytest.raises(DeclinedRequest, match="training-diverged"):
        train(of, examples(of, 40, weights=np.full(40, 1e5, "float32")))


@pytest.mark.parametrize(
    ("change", "code", "where"),
    [
        ({"freeze": ("nothing*",)}, "request-invalid", "freeze"),
        ({"freeze": ("*",)}, "request-invalid", "freeze"),
        ({"freeze": ("base",)}, "model-mismatch", "variable 00000"),
        ({"strategy": NamedConfig(name="fedsgd")}, "request-invalid", "strategy"),
        ({"architecture": '{"class_name":"Lambda"}'}, "model-refused", "architecture"),
    ],
)
def test_a_request_that_does_not_fit_together_is_declined(change: dict[str, Any], code: str, where: str) -> None:
    """Patterns, strategy and layers the site does not take, and a contract that describes another model."""
    request = case(classifier()).request.model_copy(update=change)
    with pytest.raises(DeclinedRequest) as refused:
        Trainer().prepare(request)
    assert (refused.value.code, refused.value.where) == (code, where)


def test_a_strategy_of_the_servers_own_is_not_imported() -> None:
    """Its module need not exist here; the site trains plainly."""
    plain, own = (case(classifier(), strategy=s) for s in (None, NamedConfig(name="no_such_module:Strategy")))
    data = examples(plain, 20)
    assert weights_digest(train(own, data).update) == weights_digest(train(plain, data).update)


def test_an_update_made_later_has_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Received values taken one by one from read-only arrays, and differences made when they are used."""
    monkeypatch.setattr("client.outgoing.LARGE_BYTES", 0)
    of = case(pictures(), strategy=NamedConfig(name="fedprox", mu=0.1))
    data, trainer = examples(of, 20), Trainer()
    received = [array.view() for array in of.received]
    for array in received:
        array.setflags(write=False)
    for round_ in (1, 2):
        at_once = weights_digest(train(of, data, trainer, round_=round_).update)
        order = Order(of.request, "a", round_, later=True)
        later = Trainer().train(order, lambda: of.base, received, data).update
        assert all(isinstance(each, Difference) for each in later)
        assert weights_digest(map(np.asarray, later)) == at_once
