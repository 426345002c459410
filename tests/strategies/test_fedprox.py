"""FedProx: the proximal term, its gradient, and local steps against numbers derived by hand."""

import numpy as np
import pytest

from strategies.fedprox import Proximal
from strategies.objective import Batch, Plain

from .rounds import built

NO_BATCH = Batch([], [], [])


def test_penalty_and_gradient_by_hand() -> None:
    """μ = 0.5, x = (1, 2), 3 and x_t = (0, 0), 1.

    (μ/2) Σ (x - x_t)² = 0.25 · (1 + 4 + 4) = 2.25; its gradient μ (x - x_t) = (0.5, 1), 1.
    """
    import keras
    import tensorflow as tf

    variables = [keras.Variable(np.float32([1, 2])), keras.Variable(np.float32(3))]
    with tf.GradientTape() as tape:
        penalty = Proximal(0.5).penalty(variables, {"received": [np.float32([0, 0]), np.float32(1)]}, NO_BATCH)
    gradients = tape.gradient(penalty, [v.value for v in variables])
    assert float(penalty) == 2.25
    np.testing.assert_array_equal(gradients[0], [0.5, 1])
    assert float(gradients[1]) == 1


def test_two_local_steps_by_hand() -> None:
    """F(x) = x², x_t = 1, μ = 1, steps of 0.1 · (2x + μ (x - 1)).

    1 - 0.1·(2 + 0) = 0.8;  0.8 - 0.1·(1.6 - 0.2) = 0.66. Without the term it would be 0.64.
    """
    import keras
    import tensorflow as tf

    x, anchor, local = keras.Variable(np.float32([1])), np.float32([1]), built("fedprox", mu=1.0).local
    for _ in range(2):
        with tf.GradientTape() as tape:
            loss = keras.ops.sum(keras.ops.square(x)) + local.penalty([x], {"received": [anchor]}, NO_BATCH)
        x.assign_sub(0.1 * tape.gradient(loss, x.value))
    assert float(x[0]) == pytest.approx(0.66, rel=1e-6)


def test_mixed_dtypes_give_one_float32_scalar() -> None:
    """float16 and float64 variables of one model add up without a dtype error."""
    import keras

    variables = [keras.Variable(np.ones(2), dtype=d) for d in ("float16", "float64")]
    penalty = Proximal(2.0).penalty(variables, {"received": [np.zeros(2, np.float16), np.zeros(2)]}, NO_BATCH)
    assert (penalty.dtype.name, penalty.shape.rank, float(penalty)) == ("float32", 0, 4.0)


def test_mu_zero_adds_nothing() -> None:
    """μ = 0 is FedAvg: there is no term to compute."""
    assert built("fedprox", mu=0.0).local == Plain()
