"""FedAdam against numbers derived by hand, and against Keras' Adam, which is another rule."""

import numpy as np
import pytest

from strategies.server_optimizer import KerasServerOptimizer

from .rounds import built


def test_two_rounds_by_hand() -> None:
    """τ = 3, so v = 9; η = 4, β1 = 0.5, β2 = 0.75, from x = 0.

    Δ = 3:  m = 1.5,                     v = 0.75·9 + 0.25·9 = 9,    x = 0 + 4·1.5/(3 + 3)  = 1.
    Δ = 13: m = 0.5·1.5 + 0.5·13 = 7.25, v = 0.75·9 + 0.25·169 = 49, x = 1 + 4·7.25/(7 + 3) = 3.9.
    """
    server = built("fedadam", tau=3.0, server_learning_rate=4.0, beta_1=0.5, beta_2=0.75).server
    params, seen = [np.float32([0])], []
    state = server.init(params)
    for delta in (3, 13):
        state, params = server.apply(state, params, [np.float32([delta])])
        seen.append(float(params[0][0]))
    assert seen == pytest.approx([1, 3.9])


def test_keras_adam_is_another_rule() -> None:
    """With Δ = 1 for ever Keras' bias-corrected steps stay at η; the paper's grow to 2.1 η in round 13."""
    ours = built("fedadam", server_learning_rate=1.0).server
    keras = KerasServerOptimizer("Adam", {"learning_rate": 1.0, "beta_2": 0.99, "epsilon": 1e-3})
    steps = {}
    for name, server in (("ours", ours), ("keras", keras)):
        params = [np.zeros(1, np.float32)]
        state, seen = server.init(params), [0.0]
        for _ in range(16):
            state, params = server.apply(state, params, [np.ones(1, np.float32)])
            seen.append(float(params[0][0]))
        steps[name] = np.diff(seen)
    assert steps["ours"][0] == pytest.approx(1, abs=0.02)
    assert (int(steps["ours"].argmax()) + 1, float(steps["ours"].max())) == (13, pytest.approx(2.1, abs=0.05))
    assert steps["keras"] == pytest.approx(1, abs=0.02)
