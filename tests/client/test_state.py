"""What strategies have a site keep between rounds, through real training: numbers by hand, and the same bits again."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client import outgoing
from client.site import Site
from client.store import SiteStore
from client.trainer import Result, Trainer
from fedretrain.architecture import build
from fedretrain.dataset import Dataset
from fedretrain.errors import ConfigurationError
from fedretrain.job import NamedConfig
from fedretrain.messages import Declined
from fedretrain.travel import travelling
from fedretrain.variables import freeze, variable_specs
from strategies.scaffold import CONTROL

from .parts import Case, case, classifier, examples, pictures

pytestmark = pytest.mark.usefixtures("tensorflow")

SGD = NamedConfig(name="sgd", learning_rate=0.1)
Weights = list[np.ndarray]


def line(strategy: str, **settings: Any) -> Case:
    """y = w x from w = 0 with squared loss; two steps of 0.1 over all examples in a round."""
    import keras

    model = keras.Sequential(
        [keras.Input((1,), name="x"), keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros", name="w")]
    )
    kinds = {"y": ("regression", "mean_squared_error")}
    return case(
        model,
        kinds,
        strategy=NamedConfig(name=strategy, **settings),
        local_epochs=2,
        batch_size=99,
        validation_fraction=0.25,
    )


def threes(count: int = 24) -> Dataset:
    """x = 1 and y = 3, so that the gradient at w is 2 (w - 3)."""
    ones = np.ones((count, 1), np.float32)
    return Dataset(x={"x": ones}, y={"y": 3 * ones})


def site_of(of: Case, data: Dataset, folder: Path, trainer: Trainer | None = None, spool: Path | None = None) -> Site:
    store = SiteStore(folder / "store")
    store.put_base(of.contract.base, of.base)
    return Site("north", lambda _: data, store, trainer or Trainer(), spool=spool)


def updated(site: Site, of: Case, round_: int, received: Weights) -> Result:
    result = site.update(of.request, round_, received)
    assert not isinstance(result, Declined), result
    return replace(result, update=[np.array(change) for change in result.update])


def numbers(arrays: Any) -> list[float]:
    return [float(np.asarray(a).reshape(-1)[0]) for a in arrays]


def one(value: float) -> np.ndarray:
    return np.full((1, 1), value, np.float32)


@pytest.mark.parametrize("compiled", [True, False])
def test_scaffold_by_hand(tmp_path: Path, compiled: bool) -> None:
    """Steps along g - c_i + c; then c_i becomes the mean gradient, and what it changed by is sent.

    Round 1 from w = 0, c = c_i = 0: gradients -6 and -4.8, so w = 1.08; c_i = -5.4, the change as much.
    Round 2 from w = 1 with c = -2, c - c_i = 3.4: gradients -4 and -3.88, steps along -0.6 and -0.48, so w = 1.108;
    c_i = -3.94, the change 1.46.
    """
    of = line("scaffold")
    site = site_of(of, threes(), tmp_path, Trainer(compile=compiled))
    first = updated(site, of, 1, [one(0), one(0)])
    np.testing.assert_allclose(numbers(first.update), [1.08, -5.4], rtol=1e-5)
    second = updated(site, of, 2, [one(1), one(-2)])
    np.testing.assert_allclose(numbers(second.update), [0.108, 1.46], rtol=1e-4)
    specs = [spec for spec in travelling(of.contract, of.request.strategy) if spec.rule == "auxiliary"]
    kept = SiteStore(tmp_path / "store").memory("run-1", "north").read(CONTROL, 3, specs)
    np.testing.assert_allclose(numbers(kept), [-3.94], rtol=1e-4)


def test_scaffold_begins_as_fedavg(tmp_path: Path) -> None:
    """Control variates of zero change no bit of the first update."""
    plain, corrected = (case(classifier(), strategy=NamedConfig(name=name)) for name in ("fedavg", "scaffold"))
    data = examples(plain, 60)
    expected = updated(site_of(plain, data, tmp_path / "plain"), plain, 1, plain.received)
    zeros = [np.zeros_like(array) for array in corrected.received]
    found = updated(site_of(corrected, data, tmp_path / "own"), corrected, 1, [*corrected.received, *zeros])
    for a, b in zip(expected.update, found.update, strict=False):
        np.testing.assert_array_equal(a, b)


def test_ditto_by_hand(tmp_path: Path) -> None:
    """The global model trains plainly; the site's own one from where it was, pulled to what was received.

    Round 1 from w = v = 0: the second step of v is along -4.8 + 0.6, so v = 1.02, while w = 1.08.
    Round 2 from w = 1: v steps along -3.96 + 0.02 and -3.172 + 0.414, so v = 1.6898; before, its loss was 1.98².
    """
    of = line("ditto", strength=1.0)
    site = site_of(of, threes(), tmp_path)
    first = updated(site, of, 1, [one(0)])
    np.testing.assert_allclose(numbers(first.update), [1.08], rtol=1e-5)
    assert first.metrics["val-personal-loss"] == first.metrics["val-loss"] == 9.0
    second = updated(site, of, 2, [one(1)])
    np.testing.assert_allclose(numbers(second.update), [0.72], rtol=1e-5)
    np.testing.assert_allclose(second.metrics["val-personal-loss"], 1.98**2, rtol=1e-5)
    np.testing.assert_allclose(second.metrics["val-loss"], 4.0, rtol=1e-5)
    third = updated(site, of, 3, [one(1)])
    np.testing.assert_allclose(third.metrics["val-personal-loss"], (3 - 1.6898) ** 2, rtol=1e-4)


def test_a_personal_layer_is_trained_and_stays(tmp_path: Path) -> None:
    """FedPer: in the first round the shared layer changes as in FedAvg, and the head does at the site alone.

    In the second it goes on from there: as FedAvg's update from the received layer and the site's own head.
    """
    plain, personal = (case(classifier(), strategy=s) for s in (NamedConfig(name="fedavg"), fedper("head")))
    data = examples(plain, 60)
    assert [spec.rule for spec in personal.contract.variables] == ["train", "train", "personal", "personal"]
    averaging, own = (site_of(of, data, tmp_path / of.request.strategy.name) for of in (plain, personal))
    expected, found = updated(averaging, plain, 1, plain.received), updated(own, personal, 1, personal.received)
    assert len(found.update) == 2
    same(found.update, expected.update[:2])
    head = [base + change for base, change in zip(plain.base[2:], expected.update[2:], strict=True)]
    expected = updated(averaging, plain, 2, [*plain.received[:2], *head])
    found = updated(own, personal, 2, personal.received)
    for a, b in zip(found.update, expected.update[:2], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-7)
    np.testing.assert_allclose(found.metrics["val-loss"], expected.metrics["val-loss"], rtol=1e-6)


def test_another_site_has_its_own_layers(tmp_path: Path) -> None:
    """Sites that share a trainer and a store share no personal value."""
    of, trainer = case(classifier(), strategy=fedper("head")), Trainer()
    data = examples(of, 60)
    alone = updated(site_of(of, data, tmp_path / "alone"), of, 1, of.received)
    north = site_of(of, data, tmp_path / "both", trainer)
    south = Site("south", lambda _: examples(of, 60, seed=1), SiteStore(tmp_path / "both" / "store"), trainer)
    updated(south, of, 1, of.received)
    same(updated(north, of, 1, of.received).update, alone.update)


STATEFUL: Mapping[str, NamedConfig] = {
    "scaffold": NamedConfig(name="scaffold"),
    "ditto": NamedConfig(name="ditto"),
    "fedbn": NamedConfig(name="fedbn"),
}


@pytest.mark.parametrize("name", STATEFUL)
def test_a_round_asked_for_again_has_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Also once a later one was answered, and by a site that was started again and makes updates when they are used."""
    of = case(pictures(), strategy=STATEFUL[name], metrics=("accuracy",))
    data, trainer = examples(of, 60), Trainer()
    specs = travelling(of.contract, of.request.strategy)
    received = [*of.received, *(np.full(s.shape, 0.01, s.dtype) for s in specs[len(of.received) :])]
    site = site_of(of, data, tmp_path, trainer)
    first = [updated(site, of, round_, received) for round_ in (1, 2, 3)]
    monkeypatch.setattr(outgoing, "LARGE_BYTES", 0)
    again = site_of(of, data, tmp_path, trainer, spool=tmp_path)
    for round_ in (2, 3):
        found = updated(again, of, round_, received)
        same(found.update, first[round_ - 1].update)
        assert without_seconds(found) == without_seconds(first[round_ - 1])
    assert not all(np.array_equal(a, b) for a, b in zip(first[0].update, first[1].update, strict=True))


def test_fedbn_keeps_all_of_a_batch_normalization() -> None:
    """Scale, offset and both moving statistics; a frozen one is no choice, and one is needed."""
    of = case(pictures(), strategy=NamedConfig(name="fedbn"))
    assert [s.rule for s in of.contract.variables].count("personal") == 4
    assert "average" not in {s.rule for s in of.contract.variables}
    with pytest.raises(ConfigurationError, match="expected BatchNormalization layers that are not frozen"):
        case(pictures(), freeze=("bn",), strategy=NamedConfig(name="fedbn"))


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        (("hed",), r"strategy\.layers: expected patterns that match layers, got 'hed', .* nearest layer is 'head'"),
        (("base",), "expected patterns in strategy.layers over layers that train"),
        (("head",), "expected some variables that train to be shared"),
        ((), "expected patterns in strategy.layers over layers that train"),
    ],
)
def test_personal_layers_that_make_no_sense_are_refused(layers: tuple[str, ...], said: str) -> None:
    """No such layer, a frozen one, everything that trains, or none."""
    model = build(case(classifier()).request.architecture, ())
    freeze(model, ("base",))
    with pytest.raises(ConfigurationError, match=said):
        variable_specs(model, NamedConfig(name="fedper", layers=list(layers)))


def fedper(*layers: str) -> NamedConfig:
    return NamedConfig(name="fedper", layers=list(layers))


def same(found: Any, expected: Any) -> None:
    for a, b in zip(found, expected, strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def without_seconds(result: Result) -> dict[str, float]:
    return {name: value for name, value in result.metrics.items() if name != "seconds"}
