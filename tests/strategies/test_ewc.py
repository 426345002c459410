"""Elastic weight consolidation: the penalty by hand, and what it is made of."""

import numpy as np
import pytest

from strategies.ewc import EWC, ElasticWeights, quadratic
from strategies.objective import Batch, Plain


def test_the_penalty_by_hand() -> None:
    """(3/2)·(2·(1-0)² + 1·(3-1)² + 0·(9-0)²) = 9; where the information is 0 a value is free."""
    import keras

    variables = [keras.Variable(np.array([1.0, 3.0], "float32")), keras.Variable(np.array(9.0, "float32"))]
    given = {
        "incumbent": [np.array([0.0, 1.0]), np.array(0.0)],
        "companion:fisher": [np.array([2.0, 1.0]), np.array(0.0)],
    }
    assert float(ElasticWeights(3.0).penalty(variables, given, Batch([], [], []))) == pytest.approx(9.0)
    assert quadratic(1.0, [], [], []) is None


def test_the_penalty_pulls_along_the_information() -> None:
    """Its gradient is λ F (θ - θ*)."""
    import tensorflow as tf

    values = tf.constant([1.0, 3.0])
    with tf.GradientTape() as tape:
        tape.watch(values)
        penalty = quadratic(2.0, [values], [tf.zeros(2)], [tf.constant([0.5, 4.0])])
    assert tape.gradient(penalty, values).numpy().tolist() == [1.0, 24.0]


def test_settings() -> None:
    """Without weight nothing is added and nothing asked; what sites are asked for follows from the settings."""
    assert EWC(strength=0.0).build() == Plain()
    assert EWC(strength=2.0).build() == ElasticWeights(2.0)
    assert EWC(examples=50, labels="data").sum.settings == {"examples": 50, "labels": "data"}
    assert ElasticWeights.groups == ("incumbent", "companion:fisher")
