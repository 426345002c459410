"""The inner loops by NumPy and by numba: the same bits, and all of an update or nothing."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedretrain.contract import VariableSpec
from fedretrain.errors import RejectedUpdate
from strategies import kernels
from strategies.coordinates import network
from strategies.kernels import NUMPY, Kernels, Term
from strategies.weighted_mean import WeightedMean

BOUND = 2.0**20


@pytest.fixture(scope="module")
def numba() -> Kernels:
    found = kernels.compiled()
    assert found is not NUMPY
    return found


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_both_have_the_same_bits(numba: Kernels, dtype: str) -> None:
    """Sums of one and of two, quotients and bounds; read-only, unaligned arrays and halves that round to even."""
    rng = np.random.default_rng(0)
    raw = rng.normal(scale=[1e-6, 1.0, 1e5], size=(50_000, 3)).astype(dtype)
    raw[:9, 0] = np.arange(9) / 2
    shifted = np.frombuffer(b"\0" + raw.tobytes(), np.uint8)[1:].view(dtype)
    assert not shifted.flags.aligned
    results = []
    for kernel in (NUMPY, numba):
        sums = np.zeros(raw.size, np.int64)
        means = np.empty(raw.size, dtype)
        assert kernel.within(shifted, BOUND)
        assert kernel.add(sums, Term(shifted, 3 * 2.0**20), BOUND)
        assert kernel.add_two(sums, Term(raw.reshape(-1), 2.0**21), Term(shifted[::-1], 1.0), BOUND)
        kernel.divide(sums, 6 * 2.0**20, means)
        results.append((sums.tobytes(), means.tobytes()))
    assert results[0] == results[1]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, -1.1 * BOUND, np.finfo(np.float64).max])
def test_one_value_too_many_adds_nothing(numba: Kernels, bad: float) -> None:
    """The sums are as they were, to the last bit, in whatever place the value stands."""
    for kernel in (NUMPY, numba):
        good = np.random.default_rng(1).normal(size=999)
        sums = np.arange(999) * 12345
        before = sums.copy()
        values = good.copy()
        values[500] = bad
        assert not kernel.within(values, BOUND)
        assert not kernel.add(sums, Term(values, 2.0**40), BOUND)
        assert not kernel.add_two(sums, Term(good, 2.0**40), Term(values, 2.0**39), BOUND)
        np.testing.assert_array_equal(sums, before)


@given(st.lists(st.booleans(), min_size=1, max_size=8), st.booleans())
def test_refused_updates_cost_the_others_nothing(good: list[bool], known: bool) -> None:
    """Whether an update is refused while another waits or not, the mean is that of the others, with either loops."""
    specs = [VariableSpec(shape=(3,), dtype="float32", rule="train") for _ in range(2)]
    mean, results = WeightedMean(), []
    for folded in (0, 1 << 62):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(kernels, "_folded", folded)
            state = mean.init(specs, 8)
            for i, fine in enumerate(good):
                values: list[Any] = [np.float32([i, 1, 2]), np.float32([i, 1, 2 if fine else np.nan])]
                if fine:
                    state = mean.fold(state, values, 1, 8.0 if known else np.inf)
                    continue
                with pytest.raises(RejectedUpdate, match="not-finite: array 1"):
                    mean.fold(state, values, 1)
            state = mean.settle(state)
            results.append([state.weight, *(total.tobytes() for total in state.sums)])
    counted = [i for i, fine in enumerate(good) if fine]
    scale = 2.0 ** state.exponents[0]
    expected = np.int64([[sum(counted), len(counted), 2 * len(counted)]]) * np.int64(scale)
    assert results == [[len(counted), expected.tobytes(), expected.tobytes()]] * 2


@pytest.mark.parametrize("sites", [*range(1, 18), 31, 100])
def test_the_network_sorts_any_number_of_sites(numba: Kernels, sites: int) -> None:
    """Every column ascending, equal values among them, with either loops."""
    stack = np.random.default_rng(sites).integers(-20, 20, size=(sites, 70)).astype(np.float32)
    for kernel in (NUMPY, numba):
        np.testing.assert_array_equal(kernel.sort_rows(stack.copy(), network(sites)), np.sort(stack, axis=0))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_products_have_the_same_bits(numba: Kernels, dtype: str) -> None:
    """With either loops, on and below the diagonal; they are those of the rows."""
    block = np.random.default_rng(3).normal(size=(7, 1030)).astype(dtype)
    found = []
    for kernel in (NUMPY, numba):
        products = np.zeros((7, 7))
        kernel.add_products(products, block[:, 1:])
        found.append(products)
    assert found[0].tobytes() == found[1].tobytes()
    exact = block[:, 1:].astype(np.float64)
    np.testing.assert_allclose(found[0], np.tril(exact @ exact.T), rtol=1e-12, atol=1e-12)


def test_a_short_run_does_without_numba() -> None:
    """Few values are NumPy's, many numba's, those of 16 bits always NumPy's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "_folded", 0)
        assert kernels.choose(np.zeros(1000, np.float32)) is NUMPY
        patch.setattr(kernels, "_folded", 1 << 27)
        assert kernels.choose(np.zeros(1, np.float16)) is NUMPY
        assert kernels.choose(np.zeros(1, np.float32)) is kernels.compiled()
