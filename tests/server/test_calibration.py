"""Calibration by hand: bins, sets of labels, intervals, weights."""

import math

import numpy as np
import pytest

from server import calibration


def test_calibration_error_by_hand() -> None:
    """Two bins: three answers at 0.9 of which two are right, one at 0.6 that is: 3/4·|2/3 - 0.9| + 1/4·|1 - 0.6|."""
    chances, right = np.array([0.9, 0.9, 0.9, 0.6]), np.array([True, True, False, True])
    assert calibration.calibration_error(chances, right) == pytest.approx(0.75 * (0.9 - 2 / 3) + 0.25 * 0.4)
    without = calibration.calibration_error(chances, right, np.array([1, 1, 0, 0]))
    assert without == pytest.approx(0.1)
    assert calibration.calibration_error(np.array([1.0]), np.array([True])) == 0


def test_chances_of_labels_by_hand() -> None:
    """The first set has one label and holds it; the second needs two, the third all three."""
    chances = np.array([[0.96, 0.03, 0.01], [0.6, 0.36, 0.04], [0.5, 0.3, 0.2]])
    found = calibration.of_labels(chances, np.array([0, 2, 2]))
    assert found["set_size"] == pytest.approx((1 + 2 + 3) / 3)
    assert found["coverage"] == pytest.approx(2 / 3)
    assert found["nll"] == pytest.approx(-(math.log(0.96) + math.log(0.04) + math.log(0.2)) / 3)


def test_decisions_of_yes_and_no_by_hand() -> None:
    """A no given 0.2 is a decision with 0.8."""
    found = calibration.of_decisions(np.array([[0.2], [0.7]]), np.array([[0.0], [1.0]]))
    assert found == {"ece": pytest.approx(0.25), "nll": pytest.approx(-(math.log(0.8) + math.log(0.7)) / 2)}


def test_intervals_by_hand() -> None:
    """A deviation of 1: 1.95 is within 95 %, 1.97 is not; the width is 2 · 1.96."""
    found = calibration.of_values(np.zeros((2, 1)), np.ones((2, 1)), np.array([[1.95], [-1.97]]))
    assert found["coverage"] == 0.5
    assert found["width"] == pytest.approx(3.92, abs=1e-4)
    assert found["nll"] == pytest.approx(np.mean([1.95**2, 1.97**2]) / 2 + math.log(2 * math.pi) / 2)
