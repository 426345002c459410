"""The exact mean: any order has the same bits, and the result is the weighted mean within the stated resolution."""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fedretrain.contract import VariableSpec
from fedretrain.errors import RejectedUpdate, RunFailed
from strategies.base import Arrays, numpy_dtype
from strategies.weighted_mean import BOUND_BITS, WeightedMean

MEAN = WeightedMean()
RULES = st.sampled_from(["train", "average"])
COUNTS = st.integers(1, 10**6)


def spec(size: int, dtype: str = "float32", rule: Any = "train") -> VariableSpec:
    return VariableSpec(shape=(size,), dtype=dtype, rule=rule)


def mean(specs: list[VariableSpec], replies: list[tuple[Arrays, int]], total: int | None = None) -> Arrays:
    state = MEAN.init(specs, sum(w for _, w in replies) if total is None else total)
    for update, weight in replies:
        state = MEAN.fold(state, update, weight)
    return MEAN.finish(state)


def spacing(values: Any) -> Any:
    """Distance to the next number of the dtype, as float64; at the largest one, to that before it."""
    with np.errstate(over="ignore"):
        above = np.spacing(np.abs(values)).astype(np.float64)
    below = np.spacing(np.nextafter(np.abs(values), values.dtype.type(0))).astype(np.float64)
    return np.where(np.isfinite(above), above, below)


@st.composite
def rounds(draw: st.DrawFn) -> tuple[str, str, list[list[float]], list[int]]:
    """dtype, rule, values [sites, 3] within the rule's bound, and a count per site."""
    dtype = draw(st.sampled_from(["float16", "float32", "float64"]))
    rule = draw(RULES)
    top = min(2.0 ** BOUND_BITS[rule], float(np.finfo(dtype).max))
    width: Any = int(dtype.removeprefix("float"))
    value = st.floats(-top, top, width=width) | st.floats(-0.125, 0.125, width=width)
    sites = draw(st.integers(1, 8))
    values = draw(st.lists(st.lists(value, min_size=3, max_size=3), min_size=sites, max_size=sites))
    return dtype, rule, values, draw(st.lists(COUNTS, min_size=sites, max_size=sites))


@given(rounds(), st.randoms(use_true_random=False))
def test_any_order_gives_the_same_bits(case: tuple[str, str, list[list[float]], list[int]], random: Any) -> None:
    """Permuting the replies does not change a bit of the mean."""
    dtype, rule, values, counts = case
    replies = [([np.array(v, dtype)], w) for v, w in zip(values, counts, strict=True)]
    shuffled = random.sample(replies, len(replies))
    specs = [spec(3, dtype, rule)]
    assert mean(specs, replies)[0].tobytes() == mean(specs, shuffled)[0].tobytes()


@given(rounds(), st.integers(0, 10**9))
@example(("float16", "train", [[0.0, 0.0, 65504.0]], [1]), 0)  # the largest float16
def test_error_is_within_the_stated_resolution(
    case: tuple[str, str, list[list[float]], list[int]], absent: int
) -> None:
    """Against exact rational arithmetic: integer rounding, float64 arithmetic, then the dtype's own rounding."""
    dtype, rule, values, counts = case
    arrived = sum(counts)
    total = arrived + min(absent, 1000 * arrived)
    replies = [([np.array(v, dtype)], w) for v, w in zip(values, counts, strict=True)]
    (got,) = mean([spec(3, dtype, rule)], replies, total)
    s = 62 - BOUND_BITS[rule] - total.bit_length()
    for column in range(3):
        exact = sum(Fraction(v[column]) * w for v, w in zip(values, counts, strict=True)) / arrived
        largest = max(abs(Fraction(v[column])) for v in values)
        allowed = len(counts) * Fraction(2) ** (-s - 1) / arrived + largest * Fraction(2) ** -51
        assert abs(Fraction(float(got[column])) - exact) <= allowed + Fraction(float(spacing(got)[column]))


@given(rounds())
def test_agrees_with_a_float64_mean(case: tuple[str, str, list[list[float]], list[int]]) -> None:
    """Against NumPy's weighted average, which rounds at every addition."""
    dtype, rule, values, counts = case
    replies = [([np.array(v, dtype)], w) for v, w in zip(values, counts, strict=True)]
    (got,) = mean([spec(3, dtype, rule)], replies)
    expected = np.average(np.array(values), axis=0, weights=counts)
    slack = 8 * 2.0 ** (BOUND_BITS[rule] - 62) + 1e-14 * np.abs(values).max()
    assert (np.abs(got.astype(np.float64) - expected) <= spacing(got) + slack).all()


def test_the_bound_itself_fits_and_never_overflows() -> None:
    """Every value at the bound and every declared example used: the sum stays below 2^63 and the mean is the bound."""
    for rule, power in BOUND_BITS.items():
        top = np.full(2, 2.0**power, np.float32) * [1, -1]
        replies: list[tuple[Arrays, int]] = [([top.astype(np.float32)], 2**k - 1) for k in (1, 20, 40, 61)]
        np.testing.assert_array_equal(mean([spec(2, rule=rule)], replies)[0], top)


def test_a_value_beyond_the_bound_is_refused_whole() -> None:
    """The second array is out of bounds: nothing of the first is added, and the code is that of the norm."""
    specs = [spec(1), spec(1)]
    state = MEAN.init(specs, 2)
    with pytest.raises(RejectedUpdate, match=r"norm: array 1: expected values within ±1048576 for 'train'"):
        MEAN.fold(state, [np.float32([1]), np.float32([1.1e6])], 1)
    assert [int(total[0]) for total in state.sums] == [0, 0]


@pytest.mark.parametrize(
    ("update", "weight", "code"),
    [
        ([np.zeros(2, np.float32)], 0, "examples"),
        ([np.zeros(2, np.float32)], -1, "examples"),
        ([np.zeros(2, np.float32)], 11, "examples"),
        ([], 1, "variables"),
        ([np.zeros(1, np.float32)], 1, "shape"),
        ([np.zeros(2, np.float64)], 1, "dtype"),
        ([np.zeros(2, np.complex64)], 1, "dtype"),
    ],
)
def test_what_does_not_fit_is_refused_by_code(update: Arrays, weight: int, code: str) -> None:
    """Counts outside what was declared, and arrays other than the specs', cost their own reply only."""
    with pytest.raises(RejectedUpdate) as refused:
        MEAN.fold(MEAN.init([spec(2)], 10), update, weight)
    assert refused.value.code == code


@given(rounds(), st.integers(0, 2**8 - 1))
def test_sums_made_apart_and_merged_have_the_same_bits(
    case: tuple[str, str, list[list[float]], list[int]], split: int
) -> None:
    """However the replies are dealt to two states, merging them is folding all of them into one."""
    dtype, rule, values, counts = case
    replies = [([np.array(v, dtype)], w) for v, w in zip(values, counts, strict=True)]
    specs, total = [spec(3, dtype, rule)], sum(counts)
    states = [MEAN.init(specs, total), MEAN.init(specs, total)]
    for i, (update, weight) in enumerate(replies):
        side = split >> i & 1
        states[side] = MEAN.fold(states[side], update, weight)
    merged = MEAN.finish(MEAN.merge(states[0], states[1]))
    assert merged[0].tobytes() == mean(specs, replies)[0].tobytes()


def test_sums_of_another_round_are_not_merged() -> None:
    """Another scale, other variables, or more weight than was declared would be a wrong mean."""
    one = MEAN.fold(MEAN.init([spec(1)], 10), [np.float32([1])], 6)
    for other in (MEAN.init([spec(1)], 11), MEAN.init([spec(2)], 10), one):
        with pytest.raises(RunFailed, match="expected sums of the same variables for up to 4 more examples"):
            MEAN.merge(one, other)


def test_nothing_folded_is_no_mean() -> None:
    """A round without an admitted update fails and does not divide by zero."""
    with pytest.raises(RunFailed, match="at least one admitted update"):
        MEAN.finish(MEAN.init([spec(1)], 5))


def test_lost_resolution_is_said() -> None:
    """A site that declares 10^18 examples and stays away cannot coarsen the mean in silence."""
    with pytest.raises(RunFailed, match="declared 1000000000000000010 examples, updates for 10 arrived"):
        mean([spec(1)], [([np.float32([1e-4])], 10)], total=10**18 + 10)


def test_long_arrays_are_folded_in_pieces_alike() -> None:
    """An array longer than one chunk, not contiguous, has the mean of its parts; bfloat16 too."""
    for dtype in ("float32", "bfloat16"):
        values = np.random.default_rng(0).normal(size=(3, 100_001, 2)).astype(numpy_dtype(dtype))[:, :, ::2]
        replies: list[tuple[Arrays, int]] = [([v], w) for v, w in zip(values, (1, 2, 3), strict=True)]
        (got,) = mean([VariableSpec(shape=(100_001, 1), dtype=dtype, rule="train")], replies)
        exact = np.average(values.astype(np.float64), axis=0, weights=(1, 2, 3))
        np.testing.assert_array_equal(got, exact.astype(numpy_dtype(dtype)))
