"""SCAFFOLD's control variates: numbers by hand, and the jobs it refuses."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fedretrain.contract import VariableSpec
from fedretrain.errors import ConfigurationError, RejectedUpdate
from fedretrain.job import NamedConfig, StageSection, TrainSection
from server.admission import finite_norm
from server.aggregate import BuiltIn, Contribution
from server.beside import Beside
from server.checkpoint import Checkpoint
from strategies.scaffold import control_changes, learning_rate

from .rounds import built

SPECS = (
    VariableSpec(shape=(2,), dtype="float32", rule="train"),
    VariableSpec(shape=(2,), dtype="float32", rule="auxiliary"),
)


def train(**optimizer: Any) -> TrainSection:
    return TrainSection(optimizer=NamedConfig(**optimizer))


def test_control_changes_by_hand() -> None:
    """Two steps of 0.5 moved a value by -0.3: its mean gradient is 0.3; less c = 0.1 that is Δc_i = 0.2."""
    update, control = [np.array([-0.3, 1.0], np.float32)], [np.array([0.1, 0.0], np.float32)]
    (change,) = control_changes(update, control, steps=2, rate=0.5)
    np.testing.assert_allclose(change, [0.2, -1.0], rtol=1e-6)
    assert change.dtype == np.float32


def test_the_server_adds_control_changes_with_the_share_of_all_examples() -> None:
    """Sites with 1 and 3 of 8 examples changed by 0.8 and 1.6: (0.8 + 3 · 1.6) / 4 · 4 / 8 = 0.7."""
    method = BuiltIn(built("scaffold"), SPECS)
    before = Checkpoint("r", "c", 0, [np.zeros(2, np.float32), np.full(2, 0.5, np.float32)], {}, (), ())
    collector = method.collect(None, 4, at_once=True)  # type: ignore[arg-type]  # nothing waits
    for site, examples, y, c in (("a", 1, 1.0, 0.8), ("b", 3, 2.0, 1.6)):
        update = [np.full(2, y, np.float32), np.full(2, c, np.float32)]
        collector.add(site, update, examples, norm=y)
    admitted = [Contribution("a", 1, 1, {}), Contribution("b", 2, 3, {})]
    _, (x, control) = method.advance(collector, admitted, before, 4 / 8)
    np.testing.assert_allclose(x, (1.0 + 3 * 2.0) / 4)
    np.testing.assert_allclose(control, 0.5 + 0.7, rtol=1e-6)


@pytest.mark.parametrize(("name", "rest"), [("scaffold", 0.6), ("fedavg", 3 * (1 - 0.9**5) / (2 - 0.9**5 - 0.6**5))])
def test_two_sites_that_differ_meet_at_the_optimum(name: str, rest: float) -> None:
    """(w - 3)² at one site and (2 w)² at the other have their least sum at 0.6, as 2 (w - 3) + 8 w = 0 there.

    Five steps of 0.05 without correction come to rest where 0.9⁵ (w - 3) + 3 + 0.6⁵ w = 2 w instead, at 0.92.
    """
    gradients: dict[str, Callable[[Any], Any]] = {"a": lambda w: 2 * (w - 3), "b": lambda w: 8 * w}
    method = BuiltIn(built(name), SPECS[: 2 if name == "scaffold" else 1])
    own = {site: np.zeros(2, np.float32) for site in gradients}
    params = [np.zeros(2, np.float32) for _ in method.collect(None, 2, at_once=True).empty()[1].specs]  # type: ignore[arg-type]
    for _ in range(100):
        before = Checkpoint("r", "c", 0, params, {}, (), ())
        collector = method.collect(None, 2, at_once=True)  # type: ignore[arg-type]
        for site, gradient in gradients.items():
            y, correction = params[0].copy(), params[1] - own[site] if name == "scaffold" else 0
            for _ in range(5):
                y -= 0.05 * (gradient(y) + correction)
            update = [y - params[0]]
            if name == "scaffold":
                update += control_changes(update, params[1:], 5, 0.05)
                own[site] = own[site] + update[1]
            collector.add(site, update, 1)
        admitted = [Contribution(site, 0, 1, {}) for site in gradients]
        _, params = method.advance(collector, admitted, before, 1.0)
    np.testing.assert_allclose(params[0], rest, rtol=1e-3)


def test_auxiliaries_are_in_no_norm_but_finite_and_bounded() -> None:
    """The norm is 5 whatever they are; NaN is refused, and so is what cannot be summed exactly."""
    variables = dict(zip(("00000", "00001"), SPECS, strict=True))
    y = np.array([3.0, 4.0], np.float32)
    assert finite_norm([y, np.full(2, 9.0, np.float32)], variables) == 5.0
    with pytest.raises(RejectedUpdate, match="not-finite"):
        finite_norm([y, np.array([np.nan, 0.0], np.float32)], variables)
    aggregation = built("scaffold").aggregation
    state = aggregation.init(SPECS, 9)  # type: ignore[union-attr]
    with pytest.raises(RejectedUpdate, match="norm"):
        aggregation.fold(state, [y, np.full(2, 2e6, np.float32)], 1, largest=5.0)  # type: ignore[union-attr]


def test_control_changes_that_no_training_makes_are_refused() -> None:
    """With η = 0.1, an update of norm 5 in one step is gradients of norm 50; more than ten times that is refused."""
    control = [np.array([1.0, -1.0], np.float32)]
    rule = Beside(control, 0.1)
    y = np.array([3.0, 4.0], np.float32)
    (honest,) = control_changes([y], control, steps=1, rate=0.1)
    rule.check([y, honest], 5.0)
    rule.check([y, honest - control[0] * 9], 5.0)
    with pytest.raises(RejectedUpdate, match=r"control variate: expected an L2 norm of at most 500, got"):
        rule.check([y, honest * 11], 5.0)


@pytest.mark.parametrize(
    ("optimizer", "got"),
    [
        ({"name": "adam", "learning_rate": 0.1}, "'adam'"),
        ({"name": "sgd", "learning_rate": 0.1, "momentum": 0.9}, "'sgd' with momentum"),
        ({"name": "sgd", "learning_rate": 0.1, "clipnorm": 1.0}, "'sgd' with clipnorm"),
        ({"name": "sgd", "learning_rate": {"name": "CosineDecay"}}, "'sgd' with a schedule"),
    ],
)
def test_other_optimizers_are_refused_by_name(optimizer: dict[str, Any], got: str) -> None:
    """One line with what was expected and what was got."""
    with pytest.raises(ConfigurationError, match=rf"^train\.optimizer: expected [^\n]*, got {got}: [^\n]*$"):
        learning_rate(train(**optimizer))


def test_plain_steps_are_taken() -> None:
    """Settings that say nothing do no harm; the rate is the float32 number that steps are made with."""
    rate = learning_rate(train(name="sgd", learning_rate=0.1, momentum=0.0, nesterov=False))
    assert rate == float(np.float32(0.1))


def test_stages_are_refused() -> None:
    """A layer that a stage holds still has no mean gradient."""
    stage = StageSection(rounds=1)
    staged = TrainSection(rounds=1, stages=(stage,), optimizer=NamedConfig(name="sgd", learning_rate=0.1))
    with pytest.raises(ConfigurationError, match=r"train\.stages: expected none"):
        built("scaffold").local.fitted(None, staged)  # type: ignore[arg-type]
