"""Elastic weight consolidation: the penalty by hand, and what it is made of."""

import numpy as np
import pytest

from fedretrain.errors import ConfigurationError
from fedretrain.job import NamedConfig
from strategies.ewc import EWC, ElasticWeights, quadratic
from strategies.objective import Batch, Plain
from strategies.posterior import Posterior, Prior
from strategies.registry import check_objectives


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


def test_the_posterior_is_a_prior_of_the_same_form() -> None:
    """The same parabola, with what its companion says instead of the Fisher information."""
    assert Posterior().build() == Prior(1.0)
    assert Posterior(strength=0.0).build() == Plain()
    given = {"incumbent": [np.array([0.0])], "companion:posterior": [np.array([4.0])]}
    assert float(Prior(0.5).penalty([np.float32([3.0])], given, Batch([], [], []))) == 9.0  # (0.5/2) * 4 * 3^2


@pytest.mark.parametrize(
    ("strategy", "names", "mode", "says"),
    [
        ("fedavg", ("ewc", "posterior"), "continue", "'ewc' and 'posterior' cannot stand together: both hold"),
        ("fedbn", ("ewc",), "continue", "'fedbn' and 'ewc' cannot stand together: it is summed over sites"),
        ("fedbn", ("posterior",), "continue", "'fedbn' and 'posterior' cannot stand together"),
        ("fedavg", ("ewc",), "full", "'ewc' has no meaning with train.mode = 'full'"),
        ("fedavg", ("posterior",), "extend", "'posterior' has no meaning with train.mode = 'extend'"),
        ("fedavg", ("posterior",), "ensemble", "'posterior' has no meaning with train.mode = 'ensemble'"),
    ],
)
def test_what_has_no_meaning_is_refused_by_name(strategy: str, names: tuple[str, ...], mode: str, says: str) -> None:
    """With the reason, before anything starts."""
    config = {"name": strategy, "objectives": [{"name": name} for name in names]}
    with pytest.raises(ConfigurationError, match=says):
        check_objectives(NamedConfig.model_validate(config), mode)
