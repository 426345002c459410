"""FGSM and PGD against numbers derived by hand."""

from typing import Any

import numpy as np
import pytest

from fedretrain.contract import Contract, InputSpec
from fedretrain.errors import ConfigurationError
from fedretrain.job import TrainSection
from strategies.adversarial import FGSM, PGD
from strategies.objective import ObjectiveSettings, Plain


def attacked(settings: ObjectiveSettings, x: Any, loss: Any, bounds: tuple[float, float] = (0, 1), u: float = 0) -> Any:
    import tensorflow as tf

    spec = InputSpec(name="x", shape=(1,), dtype="float32", low=bounds[0], high=bounds[1])
    fitted = settings.build().fitted(with_inputs(spec), TrainSection())
    (moved,) = fitted.inputs([tf.constant(x, tf.float32)], lambda xs: tf.reduce_sum(loss(xs[0])), lambda t: 0 * t + u)
    return moved.numpy()


def with_inputs(*specs: InputSpec) -> Contract:
    return Contract(inputs=specs, outputs=(), preprocessing=None, architecture="", base="", variables=())


def test_fgsm_by_hand() -> None:
    """J = 2 x_0 - 3 x_1, ε = 0.1: (0.5, 0.2) goes to (0.6, 0.1); to (0.55, 0.1) where nothing is above 0.55."""
    weights = np.float32([2, -3])
    everything = FGSM(epsilon=0.1, share=1)
    np.testing.assert_allclose(attacked(everything, [[0.5, 0.2]], lambda x: x * weights), [[0.6, 0.1]], rtol=1e-6)
    moved = attacked(everything, [[0.5, 0.2]], lambda x: x * weights, (0, 0.55))
    np.testing.assert_allclose(moved, [[0.55, 0.1]], rtol=1e-6)


def test_a_share_of_the_batch_by_hand() -> None:
    """Half of four examples are the first two; of a single one there is always that."""
    half = FGSM(epsilon=0.25, share=0.5)
    np.testing.assert_array_equal(attacked(half, [[0.5]] * 4, lambda x: x), [[0.75], [0.75], [0.5], [0.5]])
    np.testing.assert_array_equal(attacked(half, [[0.5]], lambda x: x), [[0.75]])


def test_pgd_by_hand() -> None:
    """J = (x - 1)², x = 0.5, ε = 0.3, s = 0.2: downhill is up, so 0.5 → 0.3 → 0.1, which is held at x - ε = 0.2.

    Where 0.25 is the least value it is that.
    """
    settings = PGD(epsilon=0.3, step=0.2, steps=2, random_start=False)
    np.testing.assert_allclose(attacked(settings, [[0.5]], lambda x: (x - 1) ** 2), [[0.2]], rtol=1e-6)
    np.testing.assert_allclose(attacked(settings, [[0.5]], lambda x: (x - 1) ** 2, (0.25, 1)), [[0.25]], rtol=1e-6)


def test_a_random_start_by_hand() -> None:
    """J = (x - 0.6)²: from 0.5 it goes down, to 0.3; from 0.5 + 0.3 u with u = 1 it goes up, to 0.8 = x + ε."""
    still, started = (PGD(epsilon=0.3, step=0.2, steps=1, random_start=start) for start in (False, True))
    np.testing.assert_allclose(attacked(still, [[0.5]], lambda x: (x - 0.6) ** 2, u=1), [[0.3]], rtol=1e-6)
    np.testing.assert_allclose(attacked(started, [[0.5]], lambda x: (x - 0.6) ** 2, u=1), [[0.8]], rtol=1e-6)


def test_the_default_step_reaches_the_bound() -> None:
    """2.5 ε / steps, Madry et al.'s: 7 steps go 2.5 ε, so that one from the far side still comes to ε."""
    assert PGD(epsilon=0.7).build().step == pytest.approx(0.25)  # type: ignore[attr-defined]


def test_inputs_without_a_small_change_or_without_bounds() -> None:
    """Token numbers stay as they are; a model with nothing else, or values without a range, is refused."""
    tokens = InputSpec(name="tokens", shape=(3,), dtype="int32", low=0, high=9)
    values = InputSpec(name="x", shape=(1,), dtype="float32", low=0, high=1)
    objective = FGSM(epsilon=0.1).build()
    fitted = objective.fitted(with_inputs(tokens, values), TrainSection())
    assert fitted.bounds == (None, (0, 1))  # type: ignore[attr-defined]
    with pytest.raises(ConfigurationError, match=r"needs an input of a floating dtype.* got tokens int32"):
        objective.fitted(with_inputs(tokens), TrainSection())
    with pytest.raises(ConfigurationError, match=r"contract\.ranges\.x: expected a least and a greatest value"):
        objective.fitted(with_inputs(values.model_copy(update={"low": None})), TrainSection())


@pytest.mark.parametrize("nothing", [{"epsilon": 0}, {"epsilon": 0.1, "share": 0}])
def test_no_change_is_plain(nothing: dict[str, Any]) -> None:
    """Then there is no second pass through the model either."""
    assert FGSM(**nothing).build() == PGD(**nothing).build() == Plain()
