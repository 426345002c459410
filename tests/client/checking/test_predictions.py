"""The model's answers as a check counts them, with real models."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.checking.predictions import as_probabilities
from client.trainer import Order, Trainer
from fedretrain.checks import Answer, CheckSettings
from fedretrain.contract import Feature, OutputSpec, keys
from fedretrain.digest import weights_digest
from fedretrain.errors import DeclinedRequest
from fedretrain.job import NamedConfig
from fedretrain.messages import PREPARE, SUM, SumRequest, pack
from server.checking.admit import site_check
from tests.client.parts import Case, body, case, classifier, examples, raw, site_at

SETTINGS = CheckSettings(since=50.0, labels=("9",))
FEATURES = (
    Feature(name="first", kind="column", input="x", index=0, edges=(0.0,)),
    Feature(name="projection 0", kind="projection", input="", index=0, edges=(0.0, 0.5)),
    Feature(name="projection 1", kind="projection", input="", index=1, edges=(0.0,)),
)


@pytest.fixture(scope="module")
def trainer() -> Trainer:
    return Trainer()


def watched(of: Case, features: tuple[Feature, ...] = FEATURES) -> Case:
    contract = of.contract.model_copy(update={"features": features})
    return Case(of.request.model_copy(update={"contract": contract, "check": True, "sums": ("check",)}), of.base)


def asked(of: Case, site: Any) -> Answer:
    """A site's answer to a check, admitted by the server."""
    assert body(site.handle(PREPARE, pack(of.request)))["kind"] == "prepare"
    assert body(site.handle("query.base", of.base_message()))["kind"] == "base"
    request = SumRequest(
        run="run-1",
        sum=SETTINGS.config,
        contract=of.contract.digest,
        globals_digest=weights_digest(of.received),
    )
    reply = site.handle(SUM, pack(request, dict(zip(keys(of.contract.changing), of.received, strict=True))))
    assert body(reply)["kind"] == "sum", body(reply)
    arrays = [array.numpy() for _, array in sorted(reply.array_records["arrays"].items())]
    answer = Answer.from_arrays(arrays, of.contract, SETTINGS)
    assert site_check(answer, "north", 10_000, of.contract, SETTINGS).min_count == 5
    return answer


def test_a_site_answers_about_its_model(tmp_path: Path, trainer: Trainer) -> None:
    """Confusion and histograms are those of the model's own answers; a second time, after other work, as the first."""
    import keras

    model = classifier()
    of = watched(case(model))
    arrays = raw(of, 600) | {"timestamp": np.arange(600.0)}
    site = site_at(of, tmp_path, trainer, arrays)
    got = asked(of, site)
    x, y = arrays["x"][50:], arrays["y"][50:]
    predicted = np.asarray(model(x)).argmax(axis=1)
    wanted = np.array([[((y == i) & (predicted == j)).sum() for j in range(3)] for i in range(3)])
    recent = got.windows["recent"]
    told = recent["confusion"]["y"]
    assert (told[told >= 0] == wanted[told >= 0]).all()
    assert (told >= 5).any()
    hidden = keras.Model(model.inputs, model.layers[0].output)(x)
    from fedretrain.checks import directions

    numbers = np.asarray(hidden) @ directions(of.contract, 8, 2)
    cells = np.searchsorted([0.0, 0.5], numbers[:, 0], side="right")
    assert recent["histograms"]["projection 0"].tolist() == np.bincount(cells, minlength=3).tolist()
    trainer.prepare(case(classifier(), freeze=("base",)).request)
    again = asked(of, site_at(of, tmp_path, trainer, arrays))
    pairs = zip(got.to_arrays(SETTINGS), again.to_arrays(SETTINGS), strict=True)
    assert all((first == second).all() for first, second in pairs)


def test_several_outputs_of_every_kind(tmp_path: Path, trainer: Trainer) -> None:
    """Logits are made probabilities by the job's loss; a regression is not counted, an output without labels half."""
    import keras

    keras.utils.set_random_seed(1)
    x = keras.Input((4,), name="x")
    heads = {"a": 3, "b": 1, "c": 2, "d": 1}
    model = keras.Model(x, [keras.layers.Dense(n, name=name)(x) for name, n in heads.items()])
    logits = {"from_logits": True}
    kinds = {
        "a": ("onehot", "categorical_crossentropy"),
        "b": ("binary", "binary_crossentropy"),
        "c": ("multilabel", "binary_crossentropy"),
        "d": ("regression", "mse"),
    }
    of = case(model, kinds)
    losses = {name: NamedConfig(name=loss, **logits) if name != "d" else loss for name, (_, loss) in kinds.items()}
    train = of.request.train.model_copy(update={"loss": losses})
    of = watched(Case(of.request.model_copy(update={"train": train}), of.base), FEATURES[:1])
    data = examples(of, 300)
    arrays = {"x": data.x["x"], **{f"y.{name}": data.y[name] for name in ("a", "b", "d")}}
    site = site_at(of, tmp_path, trainer, arrays)
    site._checker._load = lambda contract: _partial(arrays, contract)
    got = asked(of, site).windows["recent"]
    raw_a = np.asarray(model(data.x["x"])[0])
    assert got["predicted"]["a"].sum() == 300
    assert got["predicted"]["a"].tolist() == np.bincount(raw_a.argmax(axis=1), minlength=3).tolist()
    assert set(got["predicted"]) == {"a", "b", "c"}
    assert got["confidence"]["b"][:5].max() <= 0  # of two labels the likelier has at least one half
    assert (got["labels"]["c"] == -1).all()
    assert (got["labels"]["b"] >= 0).all()


def _partial(arrays: dict[str, Any], contract: Any) -> Any:
    from fedretrain.dataset import from_arrays

    return from_arrays(arrays, contract, partial=True)


def test_logits_become_probabilities_by_kind() -> None:
    """By hand: softmax of (0, ln 3) is (1/4, 3/4), the logistic function of ln 3 is 3/4; NaN is refused."""
    spec = OutputSpec(name="y", shape=(2,), kind="multiclass", loss="-", labels=("a", "b"))
    logits = np.array([[0, np.log(3)]], "float32")
    np.testing.assert_allclose(as_probabilities(logits, spec, from_logits=True), [[0.25, 0.75]], atol=1e-6)
    one = spec.model_copy(update={"kind": "binary", "shape": (1,)})
    np.testing.assert_allclose(as_probabilities(logits[:, 1:], one, from_logits=True), [[0.25, 0.75]], atol=1e-6)
    each = spec.model_copy(update={"kind": "multilabel"})
    np.testing.assert_allclose(as_probabilities(logits, each, from_logits=True), [[0.5, 0.75]], atol=1e-6)
    with pytest.raises(DeclinedRequest, match="training-diverged"):
        as_probabilities(np.array([[np.nan, 1]]), spec, from_logits=False)


def test_answers_are_of_the_values_that_came(trainer: Trainer) -> None:
    """Not of the base model's: the same examples at other values have other answers."""
    of = watched(case(classifier()))
    data = examples(of, 40)
    order = Order(of.request, "north", 0)
    trainer.prepare(of.request)
    first = trainer.answers(order, lambda: of.base, of.received, data).probabilities["y"]
    other = trainer.answers(order, lambda: of.base, [-array for array in of.received], data).probabilities["y"]
    assert np.abs(first - other).max() > 0.01
