"""The benchmark of streaming: counted as a person would, and that it runs."""

from pathlib import Path

import numpy as np
import pytest

from fedretrain.detectors import DEFAULT
from fedretrain.jobtables import NamedConfig
from simulations.benchmarks import streaming
from simulations.benchmarks.table import read


def test_false_alarms_are_streams_with_an_event() -> None:
    """A stream that changes in its middle has one, one that does not has none."""

    def changes(_rng: np.random.Generator, n: int) -> np.ndarray:
        return np.repeat([0.0, 1.0], n // 2)

    assert streaming.false_alarms(DEFAULT, changes, 1000, 3, 0) == 3
    assert streaming.false_alarms(DEFAULT, lambda _rng, n: np.zeros(n), 1000, 3, 0) == 0


def test_a_delay_is_counted_from_the_change() -> None:
    """From never wrong to always wrong: at each example the sum and its bound are known, and so is the delay."""
    found = streaming.changes_found(DEFAULT, 0.0, 1.0, 2, 0)
    assert found.streams == 2
    values = np.repeat([0.0, 1.0], [streaming.BEFORE, 20])
    above = 0.0
    for k in range(1, 20):
        n = streaming.BEFORE + k
        above += 1 - k / n - 0.025
        if above > 200 * ((values[:n].var() * n + 0.25) / (n + 1) + 0.05 / 3):
            break
    assert found.delays == (k, k)


def test_no_more_false_alarms_than_are_promised() -> None:
    """At most 2 % of 50 streams of 1,000 examples, for models of any quality; documented figures are of 500."""
    for number, rate in enumerate(streaming.RATES):
        assert streaming.false_alarms(DEFAULT, streaming._errors(rate), 1000, 50, number) <= 1


def test_it_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both tables; a wrong detector is refused in a line."""
    call = ["--smoke", "--seeds", "1", "--json", str(tmp_path / "t.json")]
    assert streaming.main(call) == 0
    alarms, delay = read(tmp_path / "t.json")
    assert len(alarms.rows) == len(streaming.RATES) + 1
    assert len(delay.rows) == len(streaming.CHANGES)
    assert streaming._text(NamedConfig(name="adwin", delta=0.1)) in '{ name = "adwin", delta = 0.1 }'
    capsys.readouterr()
    assert streaming.main(["--smoke", "--detector", '{ name = "adwn" }']) == 2
    assert "did you mean 'adwin'" in capsys.readouterr().err
    assert streaming.main(["--smoke", "--detector", "adwin"]) == 2
