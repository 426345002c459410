"""What a site computes beside its updates: numbers by hand, and what it refuses."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.policy import Policy
from client.selection import parted
from client.site import Site
from client.store import SiteStore
from client.trainer import Order, Trainer
from fedretrain.contract import keys
from fedretrain.dataset import Dataset
from fedretrain.digest import weights_digest
from fedretrain.errors import DeclinedRequest
from fedretrain.job import NamedConfig
from fedretrain.messages import SUM, CompanionRequest, SumRequest, pack
from fedretrain.sums import unpacked

from .parts import Case, body, case, classifier, examples, site_at

pytestmark = pytest.mark.usefixtures("tensorflow")

FISHER = NamedConfig(name="fisher")
EVALUATION = NamedConfig(name="evaluation")


def dense(outputs: int, activation: str | None, kinds: Any = None, **train: Any) -> Case:
    """One dense layer on two features, all zero, in a run that asks for every sum."""
    import keras

    model = keras.Sequential(
        [keras.Input((2,), name="x"), keras.layers.Dense(outputs, activation, kernel_initializer="zeros", name="only")]
    )
    made = case(model, kinds, **train)
    return Case(made.request.model_copy(update={"sums": ("fisher", "gauss-newton")}), made.base)


def asked(of: Case, what: NamedConfig, data: Dataset, trainer: Trainer | None = None) -> Any:
    """The sum over a site's examples at the base model's values."""
    order = Order(of.request, "north", 0)
    return (trainer or Trainer()).sum(order, what, lambda: of.base, of.received, data)


def rows(of: Case, data: Dataset, part: int) -> np.ndarray:
    """The rows to train on (0) or to validate on (1)."""
    from client.sampling import split

    return split(len(data), of.request.train, "north")[part]


def test_the_fisher_information_of_a_logistic_regression_by_hand() -> None:
    """At 0 every p is 1/2, so (p - y)² = 1/4 whatever is drawn: F is the mean of x²/4, and 1/4 for the bias."""
    of = dense(1, "sigmoid", {"y": ("binary", "binary_crossentropy")})
    data = examples(of, 60)
    x = data.x["x"][rows(of, data, 0)].astype(np.float64)
    for labels in ("model", "data"):
        found = asked(of, NamedConfig(name="fisher", labels=labels), data)
        np.testing.assert_allclose(found.arrays[0][:, 0], (x**2).mean(0) / 4, rtol=1e-5)
        np.testing.assert_allclose(found.arrays[1], [0.25], rtol=1e-6)
        assert (found.examples, found.arrays[0].dtype) == (len(x), np.dtype("float32"))


def test_labels_are_drawn_from_the_models_own_answer() -> None:
    """With three equal chances Σ (p - y)² is 2/3 for every draw, and each class is drawn about as often."""
    of = dense(3, "softmax")
    found = asked(of, FISHER, examples(of, 400))
    assert found.arrays[1].sum() == pytest.approx(2 / 3, rel=1e-5)
    assert np.all(np.abs(found.arrays[1] - 2 / 9) < 0.05)
    logits = dense(
        3, None, {"y": ("multiclass", "x")}, loss=NamedConfig(name="sparse_categorical_crossentropy", from_logits=True)
    )
    again = asked(logits, FISHER, examples(logits, 400))
    np.testing.assert_allclose(again.arrays[1], found.arrays[1], rtol=1e-5)


def test_regularisation_is_no_part_of_the_information() -> None:
    """A penalty on the weights pulls at every example alike and tells nothing about the data."""
    import keras

    values = {"kernel_initializer": "ones", "use_bias": False}
    plain, held = (
        case(
            keras.Sequential(
                [keras.Input((4,), name="x"), keras.layers.Dense(3, "softmax", kernel_regularizer=r, **values)]
            )
        )
        for r in (None, keras.regularizers.L2(10.0))
    )
    found = [asked(of, FISHER, examples(of, 40)).arrays[0] for of in (plain, held)]
    np.testing.assert_array_equal(*found)


def test_old_examples_alone_count_where_their_times_are_known() -> None:
    """``since`` parts old from new; a site whose examples are all new has nothing to say."""
    of = dense(1, "sigmoid", {"y": ("binary", "binary_crossentropy")}, since=datetime.fromtimestamp(30, UTC))
    data = examples(of, 60)
    timed = Dataset(x=data.x, y=data.y, time=np.arange(60.0))
    mine, old = rows(of, data, 0), parted(timed, of.request.train, "north").old
    assert set(old) <= set(range(30))
    x = data.x["x"][old].astype(np.float64)
    found = asked(of, FISHER, timed)
    np.testing.assert_allclose(found.arrays[0][:, 0], (x**2).mean(0) / 4, rtol=1e-5)
    assert found.examples == len(x)
    assert asked(of, FISHER, data).examples == len(mine)
    with pytest.raises(DeclinedRequest) as refused:
        asked(of, FISHER, Dataset(x=data.x, y=data.y, time=np.arange(60.0) + 100))
    assert refused.value.code == "data-too-few"


def test_a_site_uses_no_more_examples_than_asked_and_the_same_ones_again() -> None:
    """The mean is over those drawn, the count is of all; a trainer that did something else has the same bits."""
    of = dense(3, "softmax")
    data, few = examples(of, 200), NamedConfig(name="fisher", examples=20)
    trainer = Trainer()
    first = asked(of, few, data, trainer)
    trainer.train(Order(of.request, "north", 1), lambda: of.base, of.received, data)
    again = asked(of, few, data, trainer)
    assert first.examples == 180
    assert [a.tobytes() for a in first.arrays] == [a.tobytes() for a in again.arrays]
    assert not np.allclose(first.arrays[0], asked(of, FISHER, data).arrays[0])


def test_the_gauss_newton_matrix_by_hand() -> None:
    """At 0: the mean of φφᵀ ⊗ (I/3 - 1/9) for softmax, of φφᵀ ⊗ 1 for a regression, whose error is the mean of y²."""
    what = NamedConfig(name="gauss-newton", kernel=0, bias=1)
    of = dense(3, "softmax")
    data = examples(of, 60)
    x = data.x["x"][rows(of, data, 0)].astype(np.float64)
    phi = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    found = asked(of, what, data)
    np.testing.assert_allclose(
        unpacked(found.arrays[0]), np.kron(phi.T @ phi / len(x), np.eye(3) / 3 - 1 / 9), atol=1e-7
    )
    assert found.arrays[1] == 0
    line = dense(1, None, {"y": ("regression", "mean_squared_error")})
    data = examples(line, 60)
    mine = rows(line, data, 0)
    found = asked(line, what, data)
    phi = np.concatenate([data.x["x"][mine], np.ones((len(mine), 1))], axis=1).astype(np.float64)
    np.testing.assert_allclose(unpacked(found.arrays[0]), phi.T @ phi / len(mine), rtol=1e-6, atol=1e-7)
    assert found.arrays[1] == pytest.approx(np.mean(data.y["y"][mine].astype(np.float64) ** 2))


def test_the_gauss_newton_matrix_is_of_the_last_layer_alone() -> None:
    """Positions of another layer are refused; a layer before the last one gives its values as features."""
    made = case(classifier())
    of = Case(made.request.model_copy(update={"sums": ("gauss-newton",)}), made.base)
    data = examples(of, 60)
    with pytest.raises(DeclinedRequest):
        asked(of, NamedConfig(name="gauss-newton", kernel=0, bias=1), data)
    x = data.x["x"][rows(of, data, 0)].astype(np.float64)
    hidden = np.maximum(x @ of.base[0] + of.base[1], 0)
    logits = hidden @ of.base[2] + of.base[3]
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    phi = np.concatenate([hidden, np.ones((len(x), 1))], axis=1)
    expected = sum(np.kron(np.outer(f, f), np.diag(q) - np.outer(q, q)) for f, q in zip(phi, p, strict=True)) / len(x)
    found = asked(of, NamedConfig(name="gauss-newton", kernel=2, bias=3), data)
    np.testing.assert_allclose(unpacked(found.arrays[0]), expected, atol=1e-5)


def test_an_evaluation_by_hand() -> None:
    """At 0 the loss is ln 3 and the first class is chosen; examples without a label count nowhere."""
    of = dense(3, "softmax")
    data = examples(of, 100)
    held = rows(of, data, 1)
    found = asked(of, EVALUATION, data)
    assert found.examples == len(held) == 10
    assert found.arrays[0] == pytest.approx(np.log(3))
    np.testing.assert_allclose(found.arrays[1], [[np.log(3), np.mean(data.y["y"][held] == 0)]], rtol=1e-6)
    with pytest.raises(DeclinedRequest):
        asked(of, EVALUATION, examples(of, 20))


def test_an_output_without_labels_counts_nowhere() -> None:
    """Of two heads one has labels for half of the examples, and one for none at all."""
    import keras

    x = keras.Input((2,), name="x")
    heads = [keras.layers.Dense(3, "softmax", kernel_initializer="zeros", name=name)(x) for name in ("a", "b")]
    kinds = dict.fromkeys(("a", "b"), ("multiclass", "sparse_categorical_crossentropy"))
    made = case(keras.Model(x, heads), kinds)
    of = Case(made.request.model_copy(update={"sums": ("fisher",)}), made.base)
    data = examples(of, 200)
    half = np.where(np.arange(200) % 2, data.y["a"], -1)
    some = Dataset(x=data.x, y={"a": half, "b": np.full_like(half, -1)})
    held = rows(of, some, 1)
    found = asked(of, EVALUATION, some).arrays
    known = np.mean(half[held] >= 0)
    np.testing.assert_allclose(found[1], [[np.log(3) * known, np.mean(half[held] == 0)], [0, 0]], rtol=1e-6)
    np.testing.assert_allclose(found[2], [known, 0])
    assert np.isfinite(found[0])
    fisher = asked(of, NamedConfig(name="fisher", labels="data"), some).arrays
    assert not fisher[2].any()
    assert not fisher[3].any()
    assert fisher[1].any()


def sum_message(of: Case, what: NamedConfig, **changes: Any) -> Any:
    """The server's request."""
    fields = {"run": of.request.run, "contract": of.contract.digest, "globals_digest": weights_digest(of.received)}
    request = SumRequest.model_validate({**fields, "sum": what, **changes})
    return pack(request, dict(zip(keys(of.contract.changing), of.received, strict=True)))


def test_a_site_answers_for_sums_its_run_asks_for_and_its_policy_lets_leave(tmp_path: Path, trainer: Trainer) -> None:
    """The answer names what it belongs to; a sum the run never mentioned, and one kept back, are refused by name."""
    of = dense(3, "softmax")
    site = site_at(of, tmp_path, trainer)
    site.handle("query.prepare", pack(of.request))
    site.handle("query.base", of.base_message())
    reply = site.handle(SUM, sum_message(of, FISHER))
    told = body(reply)
    assert (told["kind"], told["sum"], told["contract"]) == ("sum", "fisher", of.contract.digest)
    assert told["sum_digest"] == weights_digest(a.numpy() for a in reply.array_records["arrays"].values())
    assert reply.metric_records["metrics"]["num-examples"] == 54
    assert body(site.handle(SUM, sum_message(of, FISHER, contract="0" * 64)))["code"] == "request-invalid"
    assert body(site.handle(SUM, sum_message(of, FISHER, globals_digest="0" * 64)))["code"] == "request-invalid"
    silent = of.request.model_copy(update={"sums": ()})
    site.handle("query.prepare", pack(silent))
    assert body(site.handle(SUM, sum_message(of, FISHER)))["where"] == "sum"
    assert body(site.handle(SUM, sum_message(of, NamedConfig(name="everything"))))["where"] == "sum"
    careful = Site("north", site._load, site._store, trainer, policy=Policy(statistics=("val-*",)))
    careful.handle("query.prepare", pack(of.request))
    assert body(careful.handle(SUM, sum_message(of, FISHER)))["where"] == "statistics"


def test_what_objectives_need_is_kept_by_digest_and_asked_for_where_it_is_lost(
    tmp_path: Path, trainer: Trainer
) -> None:
    """A companion with another digest or form is refused; one that was never brought makes the site ask for it."""
    strategy = NamedConfig.model_validate({"name": "fedavg", "objectives": [{"name": "ewc", "strength": 1.0}]})
    of = dense(3, "softmax", strategy=strategy)
    site = site_at(of, tmp_path, trainer)
    site.handle("query.prepare", pack(of.request))
    site.handle("query.base", of.base_message())
    arrays = [np.ones((2, 3), "float32"), np.ones(3, "float32")]
    digest = weights_digest(arrays)
    order = of.train_message(companions={"fisher": digest})
    assert (body(site.handle("train", order))["code"], body(site.handle("train", order))["where"]) == (
        "model-missing",
        "companion",
    )

    def bring(companion: str, given: dict[str, Any]) -> Any:
        return body(site.handle("query.companion", pack(CompanionRequest(run="run-1", companion=companion), given)))

    named = dict(zip(("00000", "00001"), arrays, strict=True))
    assert bring("0" * 64, named)["code"] == "request-invalid"
    assert bring(digest, {"00000": arrays[0]})["code"] == "request-invalid"
    assert bring("../../x", named)["code"] == "request-invalid"
    assert bring(digest, named) == {"kind": "companion", "run": "run-1", "site": "north", "companion": digest}
    kept = SiteStore(tmp_path / "store").companion(digest)
    assert kept is not None
    np.testing.assert_array_equal(kept[0], arrays[0])
    assert body(site.handle("train", order))["kind"] == "train"


def test_a_companion_holds_values_in_a_step(trainer: Trainer) -> None:
    """The second step of SGD at 0.1 is the plain one less 0.1 · λ F (θ₁ - θ*); the first one is the same."""

    def updated(steps: int, strength: float) -> Any:
        objectives = [{"name": "ewc", "strength": strength}]
        strategy = NamedConfig.model_validate({"name": "fedavg", "objectives": objectives})
        of = dense(3, "softmax", strategy=strategy, local_steps=steps, batch_size=8)
        given = {"companion:fisher": [np.full((2, 3), 2.0, "float32"), np.float32([0.0, 1.0, 5.0])]}
        order = Order(of.request, "north", 1, given=given)
        return [np.asarray(a) for a in trainer.train(order, lambda: of.base, of.received, examples(of, 60)).update]

    first, plain, held = updated(1, 3.0), updated(2, 0.0), updated(2, 3.0)
    np.testing.assert_allclose(updated(1, 0.0)[0], first[0], atol=1e-7)
    np.testing.assert_allclose(held[0], plain[0] - 0.1 * 3.0 * 2.0 * first[0], atol=1e-6)
    np.testing.assert_allclose(held[1], plain[1] - 0.1 * 3.0 * np.float32([0, 1, 5]) * first[1], atol=1e-6)
