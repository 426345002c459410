"""The benchmark of the drift check: its tables, and the worlds they are measured in."""

import re
from pathlib import Path

import numpy as np
import pytest

from simulations.benchmarks.drift import CHANGES, GUARDINGS, main
from simulations.benchmarks.drift_worlds import LABELS, NOTHING, check, shares

DOCUMENT = Path(__file__).parents[2] / "docs" / "watching.md"


def test_a_smoke_run_makes_both_tables(capsys: pytest.CaptureFixture[str]) -> None:
    """Two checks of each kind; every table has its place in the document."""
    assert main(["--smoke", "--workers", "1"]) == 0
    shown = capsys.readouterr().out
    assert "where nothing changed" in shown
    assert "that find a change" in shown
    assert re.findall(r"<!-- table (drift-\w+) -->", DOCUMENT.read_text()) == ["drift-alarms", "drift-power"]


def test_a_world_changes_only_what_it_says() -> None:
    """Moved inputs keep what is right among examples of one confidence; exchanged names keep inputs and frequencies."""
    before = shares(3, NOTHING)
    swapped = shares(3, next(c for c in CHANGES if c.swapped == 0.5))
    np.testing.assert_array_equal(swapped.inputs, before.inputs)
    np.testing.assert_allclose(swapped.answers.sum(axis=(1, 2)), before.answers.sum(axis=(1, 2)), atol=0.01)
    frequencies = shares(3, next(c for c in CHANGES if c.labels == 0.25)).answers.sum(axis=(1, 2))
    assert frequencies[0] == pytest.approx(0.75 * before.answers[0].sum() + 0.25, abs=0.01)
    moved = shares(3, CHANGES[0])
    assert moved.inputs[1] == pytest.approx(before.inputs[1], abs=0.02)
    assert np.abs(moved.inputs[0] - before.inputs[0]).sum() > 0.1


def test_checks_are_drawn_the_same_again() -> None:
    """By seed, size and sites; counts below the smallest are withheld."""
    drawn = check(5, 300, 2, GUARDINGS[1], NOTHING)
    assert drawn == check(5, 300, 2, GUARDINGS[1], NOTHING)
    assert drawn != check(6, 300, 2, GUARDINGS[1], NOTHING)
    counts = [c for site in drawn.sites.values() for row in site.recent.confusion["y"] for c in row]
    assert len(counts) == 2 * LABELS**2
    assert None in counts
    assert all(c is None or c == 0 or c >= 5 for c in counts)
