"""FedAdagrad against numbers derived by hand, and against Keras' Adagrad, which is another rule."""

import numpy as np
import pytest

from strategies.server_optimizer import KerasServerOptimizer

from .rounds import built


def test_two_rounds_by_hand() -> None:
    """τ = 3, so v = 9; η = 2, β1 = 0, from x = 0.

    Δ = 4:  v = 9 + 16 = 25,    x = 0 + 2·4/(5 + 3)   = 1.
    Δ = 12: v = 25 + 144 = 169, x = 1 + 2·12/(13 + 3) = 2.5.
    """
    server = built("fedadagrad", tau=3.0, server_learning_rate=2.0).server
    params, seen = [np.float32([0])], []
    state = server.init(params)
    for delta in (4, 12):
        state, params = server.apply(state, params, [np.float32([delta])])
        seen.append(float(params[0][0]))
    assert seen == [1, 2.5]


def test_momentum_by_hand() -> None:
    """As above with β1 = 0.5: m = 0.5·4 = 2, x = 2·2/(5 + 3) = 0.5."""
    server = built("fedadagrad", tau=3.0, server_learning_rate=2.0, beta_1=0.5).server
    x = [np.float32([0])]
    assert float(server.apply(server.init(x), x, [np.float32([4])])[1][0][0]) == 0.5


def test_keras_adagrad_is_another_rule() -> None:
    """τ = ε = 1, v = 1, Δ = 1, η = 1: 1/(√2 + 1) = 0.414 here; Keras' 1/√(2 + 1) = 0.577 has ε inside the root."""
    x, delta = [np.float32([0])], [np.float32([1])]
    ours = built("fedadagrad", tau=1.0, server_learning_rate=1.0).server
    keras = KerasServerOptimizer("Adagrad", {"learning_rate": 1.0, "initial_accumulator_value": 1.0, "epsilon": 1.0})
    (_, (a,)), (_, (b,)) = ours.apply(ours.init(x), x, delta), keras.apply(keras.init(x), x, delta)
    assert float(a[0]) == pytest.approx(1 / (2**0.5 + 1))
    assert float(b[0]) == pytest.approx(1 / 3**0.5)
