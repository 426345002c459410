"""Server optimizers that are Keras': exact where they stand for a paper's rule, and honest where they cannot be."""

import numpy as np
import pytest

from fedretrain.errors import RunFailed
from strategies.base import numpy_dtype
from strategies.server_optimizer import KerasServerOptimizer, Sum, gradient_descent

from .rounds import bits


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_sum_is_keras_sgd_to_the_bit(dtype: str) -> None:
    """Leaving TensorFlow out for learning rate 1 changes no bit."""
    rng = np.random.default_rng(0)
    params, update = ([rng.normal(size=1000).astype(dtype)] for _ in range(2))
    keras = KerasServerOptimizer("SGD", {"learning_rate": 1.0})
    assert bits(keras.apply(keras.init(params), params, update)[1]) == bits(Sum().apply([], params, update)[1])
    assert isinstance(gradient_descent(1.0), Sum)


def test_any_keras_optimizer_continues_from_its_state() -> None:
    """Adam rebuilt from arrays every round has the bits of one Adam object that was kept."""
    import keras

    rng = np.random.default_rng(1)
    start, updates = rng.normal(size=5).astype(np.float32), rng.normal(size=(4, 5)).astype(np.float32)
    kept, variable = keras.optimizers.Adam(0.1), keras.Variable(start)
    server, params = KerasServerOptimizer("Adam", {"learning_rate": 0.1}), [start]
    state = server.init(params)
    for update in updates:
        kept.apply([keras.ops.convert_to_tensor(-update)], [variable])
        state, params = server.apply(state, params, [update])
    np.testing.assert_array_equal(params[0], variable.numpy())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sixteen_bits_keep_their_momentum_in_float32(dtype: str) -> None:
    """The momentum of one update of 1 is 0.9^3 after three rounds without, to float32's accuracy."""
    one, zero = np.ones(1, numpy_dtype(dtype)), np.zeros(1, numpy_dtype(dtype))
    server = gradient_descent(1.0, 0.9)
    state, params = server.apply(server.init([zero]), [zero], [one])
    for _ in range(3):
        state, params = server.apply(state, params, [zero])
    assert [s.dtype.name for s in state] == ["int64", "float32", "float32"]
    assert (params[0].dtype.name, float(state[2][0])) == (dtype, pytest.approx(0.9**3, rel=1e-6))


@pytest.mark.parametrize("server", [Sum(), gradient_descent(0.5), gradient_descent(1.0, 0.9)])
def test_a_parameter_out_of_range_fails_the_round(server: Sum | KerasServerOptimizer) -> None:
    """float16 ends at 65504: the step is refused with the variable's position, infinity is never returned."""
    params = [np.float16([0]), np.float16([6e4])]
    with pytest.raises(RunFailed, match="train variable 1: expected finite float16 parameters"):
        server.apply(server.init(params), params, [np.float16([0]), np.float16([3e4])])
