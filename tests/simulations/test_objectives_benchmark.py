"""The benchmark of objectives: its attack by hand, its sites' looks, and that it runs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simulations.benchmarks import objectives
from simulations.benchmarks.setting import made_up
from simulations.benchmarks.table import read


def test_the_attack_by_hand() -> None:
    """Two pixels, p = softmax of them: the loss of label 0 falls with the first and rises with the second.

    So every step takes the first down and the second up, until both have moved by the bound, or are at 0 or 1.
    """
    import tensorflow as tf

    def model(x: Any, training: bool) -> Any:
        return tf.nn.softmax(x)

    x, y = np.array([[0.5, 0.5], [0.05, 0.98]], np.float32), np.array([0, 0])
    moved = objectives.pgd(model, x, y, 0.1, 5)
    assert moved == pytest.approx(np.array([[0.4, 0.6], [0.0, 1.0]]), abs=1e-6)


def test_every_site_looks_different_and_stays_within_bounds() -> None:
    """The same images, none alike at two sites, from 0 to 1."""
    images = made_up(20).inputs("cnn")
    seen = [np.asarray(look(images)) for look in objectives._looks(0).values()]
    assert all(x.shape == images.shape for x in seen)
    assert all(x.min() >= 0 and x.max() <= 1 for x in seen)
    assert len({x.astype(np.float32).tobytes() for x in seen}) == len(seen)


@pytest.mark.slow
def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The smoke run of FedBN makes its table: accuracies at all sites and at the worst."""
    monkeypatch.setattr(objectives, "_NORMS", {"FedBN": objectives._NORMS["FedBN"]})
    call = ["--smoke", "--seeds", "1", "--only", "feature-shift", "--json", str(tmp_path / "t.json")]
    assert objectives.main(call) == 0
    [table] = read(tmp_path / "t.json")
    [[name, mean, worst]] = table.rows
    assert name == "FedBN"
    assert 0 <= worst <= mean <= 100
