"""Distillation: the divergence for every kind of output, and its gradient, against numbers derived by hand."""

import math
from typing import Any

import numpy as np
import pytest

from fedretrain.contract import Contract, InputSpec, Kind, OutputSpec
from fedretrain.errors import ConfigurationError
from fedretrain.job import NamedConfig, TrainSection
from strategies.distillation import Distillation
from strategies.objective import Batch, LocalObjective

KL = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)  # of (1/2, 1/2) from (3/4, 1/4): 0.130812


def contract(kind: Kind, labels: tuple[str, ...], shape: tuple[int, ...]) -> Contract:
    output = OutputSpec(name="y", shape=shape, kind=kind, loss="any", labels=labels)
    inputs = (InputSpec(name="x", shape=(1,), dtype="float32"),)
    return Contract(inputs=inputs, outputs=(output,), preprocessing=None, architecture="", base="", variables=())


def fitted(kind: Kind, of: tuple[str, ...] = (), *, logits: bool = False, **settings: Any) -> LocalObjective:
    loss = NamedConfig.model_validate({"name": "any", "from_logits": logits})
    shape = (len(of),) if kind in {"multiclass", "onehot", "multilabel"} else (1,)
    return Distillation(**settings).build().fitted(contract(kind, of, shape), TrainSection(loss=loss))


def penalty(objective: LocalObjective, mine: Any, theirs: Any) -> float:
    return float(objective.penalty([], {}, Batch([], [], [np.float32(mine)], [np.float32(theirs)])))


def test_classes_by_hand() -> None:
    """T = 2 and p⁰ = (0.9, 0.1), whose square roots are as 3 to 1: (3/4, 1/4); p = (1/2, 1/2). 3 · 2² · KL = 1.56975.

    Two examples of which the second agrees have half of it. Logits (ln 9, 0) and (0, 0) say the same.
    """
    objective = fitted("multiclass", ("a", "b"), weight=3.0)
    assert penalty(objective, [[0.5, 0.5]], [[0.9, 0.1]]) == pytest.approx(12 * KL, rel=1e-5)
    assert penalty(objective, [[0.5, 0.5], [0.2, 0.8]], [[0.9, 0.1], [0.2, 0.8]]) == pytest.approx(6 * KL, rel=1e-5)
    logits = fitted("onehot", ("a", "b"), logits=True, weight=3.0)
    assert penalty(logits, [[0, 0]], [[math.log(9), 0]]) == pytest.approx(12 * KL, rel=1e-5)


def test_the_labels_the_incumbent_knows_are_compared_alone() -> None:
    """Of (0.45, 0.5, 0.05) and (0.25, 0.5, 0.25), the labels "a" and "c" are as 9 to 1 and 1 to 1: the same numbers."""
    objective = fitted("multiclass", ("a", "new", "c"), labels=["c", "a"])
    assert penalty(objective, [[0.25, 0.5, 0.25]], [[0.45, 0.5, 0.05]]) == pytest.approx(4 * KL, rel=1e-5)
    with pytest.raises(ConfigurationError, match=r"distillation\.labels: expected some of .*, got 'd'"):
        fitted("multiclass", ("a", "b"), labels=["a", "d"])
    with pytest.raises(ConfigurationError, match=r"distillation\.labels: expected at least two"):
        fitted("multiclass", ("a", "b"), labels=["a"])


def test_where_labels_are_added_the_old_ones_must_be_said() -> None:
    """A row that is fresh has predictions, but the incumbent never made them."""
    Distillation(labels=["a", "b"]).check_mode("extend")
    Distillation().check_mode("continue")
    with pytest.raises(ConfigurationError, match=r"distillation\.labels: expected the labels of the model in use"):
        Distillation().check_mode("extend")


def test_decisions_by_hand() -> None:
    """Yes with 0.9 has the logit ln 9, half of it is that of 3/4; so has each position on its own, and their mean."""
    assert penalty(fitted("binary", ("n", "y")), [[0.5]], [[0.9]]) == pytest.approx(4 * KL, rel=1e-5)
    objective = fitted("multilabel", ("a", "b"))
    assert penalty(objective, [[0.5, 0.3]], [[0.1, 0.3]]) == pytest.approx(2 * KL, rel=1e-5)
    assert penalty(fitted("binary", ("n", "y"), logits=True), [[0]], [[math.log(9)]]) == pytest.approx(4 * KL, rel=1e-5)


def test_numbers_by_hand() -> None:
    """(1, 2) where the incumbent says (0, 0): (1 + 4) / 2 = 2.5, whatever the temperature."""
    assert penalty(fitted("regression", temperature=7.0), [[1.0], [2.0]], [[0.0], [0.0]]) == 2.5


def test_gradient_by_hand() -> None:
    """Of T² KL by the model's logits: T (p - p⁰) = 2 · (1/2 - 3/4) = -1/2, and 1/2; none by the incumbent's."""
    import tensorflow as tf

    mine, theirs = tf.constant([[0.0, 0.0]]), tf.constant([[math.log(9), 0.0]])
    with tf.GradientTape() as tape:
        tape.watch([mine, theirs])
        loss = fitted("onehot", ("a", "b"), logits=True).penalty([], {}, Batch([], [], [mine], [theirs]))
    gradients = tape.gradient(loss, [mine, theirs])
    np.testing.assert_allclose(gradients[0], [[-0.5, 0.5]], rtol=1e-5)
    assert gradients[1] is None


def test_certainty_is_finite() -> None:
    """Probabilities of exactly 0 and 1 that disagree are a large number, not an infinite one."""
    assert 0 < penalty(fitted("multiclass", ("a", "b")), [[1.0, 0.0]], [[0.0, 1.0]]) < 100
    assert 0 < penalty(fitted("binary", ("n", "y")), [[1.0]], [[0.0]]) < 100
