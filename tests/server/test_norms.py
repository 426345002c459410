"""The norm rule, with its numbers by hand."""

import numpy as np
import pytest

from fedretrain.errors import RejectedUpdate
from server.norms import check_norm, l2_norm, norm_bound, sum_of_squares


def test_the_norm_is_taken_in_float64() -> None:
    """3e20² overflows float32: the norm of (3e20, 4e20) over two arrays is 5e20."""
    assert l2_norm([np.float32([3e20]), np.float32([[4e20]])]) == pytest.approx(5e20)
    assert l2_norm([np.zeros((0, 3), np.float32)]) == 0.0


def test_nan_and_infinity_show_in_the_sum() -> None:
    """So that one pass over the array serves both checks."""
    assert np.isnan(sum_of_squares(np.float32([1, np.nan])))
    assert np.isinf(sum_of_squares(np.float32([1, -np.inf])))


def test_long_arrays_are_summed_in_pieces() -> None:
    """2²¹ + 3 ones, many chunks, measure exactly their root."""
    n = (1 << 21) + 3
    assert sum_of_squares(np.ones(n, np.float32)) == n


@pytest.mark.parametrize(
    ("previous", "global_norm", "fixed", "bound"),
    [
        ([1.0, 2.0, 3.0], 1.0, None, 20.0),  # 10 times the median
        ([1.0, 2.0, 3.0, 400.0], 1.0, None, 20.0),  # of an even number the lower one
        ([1.0, 1e6], 1.0, None, 10.0),  # one of two cannot lift its own bound
        ([1e-6, 1e-6], 300.0, None, 3.0),  # a hundredth of the model's norm is never too much
        ([0.0], 0.0, None, 0.01),
        ([], 5.0, None, 0.05),
        ([1.0], 1.0, 7.0, 7.0),  # the job's own bound stands alone
    ],
)
def test_the_bound(previous: list[float], global_norm: float, fixed: float | None, bound: float) -> None:
    """max(10 · lower median, 0.01 · max(global norm, 1)), or what the job says."""
    assert norm_bound(previous, global_norm, fixed) == pytest.approx(bound)


def test_fault_14_a_norm_above_the_bound_says_both() -> None:
    """The operator sees by how much."""
    check_norm(20.0, 20.0)
    with pytest.raises(RejectedUpdate, match="norm: expected an L2 norm of at most 20, got 20000"):
        check_norm(20000.0, 20.0)
