"""One optimizer step under an objective: which part of a batch it sees, and which models it refuses."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fedretrain.errors import DeclinedRequest
from strategies.fedprox import Proximal
from strategies.objective import Composed, LocalObjective, Plain
from strategies.perfedavg import Adapted

pytestmark = pytest.mark.usefixtures("tensorflow")


@pytest.mark.parametrize(
    ("count", "first", "second"),
    [(4, [0, 1], [2, 3]), (5, [0, 1], [2, 3, 4]), (1, [0], [0]), (3, [0], [1, 2])],
)
@pytest.mark.parametrize("known", [True, False])
def test_halves_of_a_batch(count: int, first: list[int], second: list[int], known: bool) -> None:
    """By XLA, which knows the size, and without; inputs, labels and weights alike, and never nothing."""
    import tensorflow as tf

    from client.descent import shared

    signature = tf.TensorSpec([count if known else None], tf.float32)

    @tf.function(input_signature=[signature])
    def halves(x: Any) -> Any:
        return [shared(([x], [x + 10], [x + 20]), *part) for part in ((0.0, 0.5), (0.5, 1.0), (0.0, 1.0))]

    found = [[tensor.numpy().tolist() for (tensor,) in parts] for parts in halves(np.arange(count, dtype=np.float32))]
    for rows, parts in zip((first, second, list(range(count))), found, strict=True):
        assert parts == [rows, [row + 10 for row in rows], [row + 20 for row in rows]]


@pytest.mark.parametrize("objective", [Adapted(0.1), Composed((Proximal(1.0), Adapted(0.1)))])
def test_scaled_gradients_are_not_bent(objective: LocalObjective) -> None:
    """A step along a gradient that was scaled for 16 bits would be thousands of times too long."""
    import keras

    from client.descent import Descent

    model = SimpleNamespace(optimizer=keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD()))
    with pytest.raises(DeclinedRequest, match=r"strategy\.objectives"):
        Descent(model, [], objective, lambda: None)
    assert Descent(model, [], Plain(), lambda: None).plain
    assert Descent(model, [], Proximal(1.0), lambda: None).others == ()
