"""The table of what combining replies takes, at a size that shows only that it is made."""

from pathlib import Path

import pytest

from simulations.benchmarks import aggregation
from simulations.benchmarks.table import Figure, read


def test_a_row_has_time_and_memory_beside_the_baseline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A process of its own measures the rule and `a += x`; one that fails is an error that names the row."""
    assert aggregation.main(["--smoke", "--rules", "Krum", "--json", str(tmp_path / "t.json")]) == 0
    [table] = read(tmp_path / "t.json")
    [row] = table.rows
    assert row[:2] == ("Krum", 5)
    assert isinstance(row[2], Figure)
    assert row[2].baseline is not None
    assert row[2].baseline > 0
    assert aggregation.main(["--smoke", "--rules", "Krum", "--folder", str(tmp_path / "missing")]) == 1
    assert "Krum, 5 replies: " in capsys.readouterr().err
