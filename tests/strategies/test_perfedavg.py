"""First-order Per-FedAvg against numbers derived by hand."""

import numpy as np
import pytest

from strategies.objective import Plain
from strategies.perfedavg import PerFedAvg


def test_the_gradient_is_taken_after_one_step_on_the_other_half() -> None:
    """f(w; D) = (w - 1)², f(w; D') = (w - 3)², w = 0, alpha = 0.1.

    w' = 0 - 0.1 · 2 (0 - 1) = 0.2; the gradient is 2 (0.2 - 3) = -5.6, where w itself has -6. w is 0 again after it. A
    variable that the loss does not depend on has no gradient and stays.
    """
    import keras

    w, other = keras.Variable(np.float32([0])), keras.Variable(np.float32([7]))
    goals, asked = {(0.0, 0.5): 1, (0.5, 1.0): 3}, []

    def gradient_of(start: float, stop: float) -> list[object]:
        asked.append((start, stop))
        return [2 * (w.value - goals[start, stop]), None]

    gradient, none = PerFedAvg(inner_learning_rate=0.1).build().gradients([w, other], {}, gradient_of)
    assert float(gradient[0]) == pytest.approx(-5.6, rel=1e-6)
    assert none is None
    assert asked == [(0.0, 0.5), (0.5, 1.0)]
    assert (float(w[0]), float(other[0])) == (0, 7)


def test_no_inner_step_is_plain() -> None:
    """With a rate of 0 the gradient would be that of half a batch at the model itself."""
    assert PerFedAvg(inner_learning_rate=0).build() == Plain()
