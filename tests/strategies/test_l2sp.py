"""L2-SP against numbers derived by hand."""

import numpy as np

from strategies.l2sp import L2SP
from strategies.objective import Batch, Plain


def test_penalty_and_gradient_by_hand() -> None:
    """alpha = 0.5, w = (1, 2), 3 and w⁰ = (0, 0), 1.

    (alpha/2) Σ (w - w⁰)² = 0.25 · (1 + 4 + 4) = 2.25; its gradient alpha (w - w⁰) = (0.5, 1), 1. What was received
    this round does not matter.
    """
    import keras
    import tensorflow as tf

    variables = [keras.Variable(np.float32([1, 2])), keras.Variable(np.float32(3))]
    given = {"incumbent": [np.float32([0, 0]), np.float32(1)], "received": [np.float32([9, 9]), np.float32(9)]}
    with tf.GradientTape() as tape:
        penalty = L2SP(strength=0.5).build().penalty(variables, given, Batch([], [], []))
    gradients = tape.gradient(penalty, [v.value for v in variables])
    assert float(penalty) == 2.25
    np.testing.assert_array_equal(gradients[0], [0.5, 1])
    assert float(gradients[1]) == 1


def test_strength_zero_adds_nothing() -> None:
    """There is no term to compute, and nothing it would have to be given."""
    assert L2SP(strength=0).build() == Plain()
