"""The arithmetic behind rounds to an accuracy and behind what a site costs, and that both benchmarks still run."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from simulations.benchmarks import codecs, compiling, mcmahan, sites
from simulations.benchmarks.curves import Curve, Point, typical
from simulations.benchmarks.mcmahan import CASES
from simulations.benchmarks.watched import Moment, Watched
from tests.server.keras_job import make_job


def curve(accuracies: Sequence[float], **made: Any) -> Curve:
    """Rounds of two seconds that begin at ten."""
    points = tuple(Point(i, accuracy, 10.0 + 2 * i) for i, accuracy in enumerate(accuracies))
    return Curve(made, points, seconds=30, cpu=40, memory=5)


def watched(*events: tuple[float, float, dict[str, Any]]) -> Watched:
    """From seconds, CPU seconds and event."""
    return Watched([Moment(event, at, cpu) for at, cpu, event in events], {}, 30, 40, 7_000_000)


def test_the_target_is_crossed_between_rounds() -> None:
    """By hand: the best so far is 0.1, 0.5, 0.5, 0.9; it is 0.7 half-way from round 2 to round 3, at 16 s there."""
    found = curve([0.1, 0.5, 0.3, 0.9])
    assert found.best == (0.1, 0.5, 0.5, 0.9)
    assert found.crossing(0.7) == pytest.approx(2.5)
    assert found.crossing(0.5) == pytest.approx(1)
    assert found.crossing(0.95) is None
    assert found.seconds_to(0.7) == 16
    assert found.seconds_per_round == 2


def test_the_typical_run_is_the_median_one() -> None:
    """Of three runs the middle one; a run that never crosses is the slowest."""
    fast, slow, never = curve([0.1, 0.9]), curve([0.1, 0.2, 0.9]), curve([0.1, 0.2, 0.3])
    assert typical([never, fast, slow], 0.8) is slow
    assert typical([never, fast], 0.8) is never


def test_a_curve_is_read_from_the_runs_events() -> None:
    """A model is there when its round is finished, however late it is measured; one that was dropped is no point."""
    run = watched(
        (8, 0, {"event": "round-started", "round": 1}),
        (9, 0, {"event": "monitored", "round": 0, "metrics": {"accuracy": 0.1}}),
        (10, 0, {"event": "round-finished", "round": 1}),
        (12, 0, {"event": "monitored", "round": 1, "metrics": {"accuracy": 0.6}}),
    )
    assert Curve.of({}, run).points == (Point(0, 0.1, 8), Point(1, 0.6, 10))


def test_what_is_measured_is_kept_for_its_setting_alone(tmp_path: Path) -> None:
    """A curve comes back as it was; one of another learning rate does not take its place."""
    made = curve([0.1, 0.2], rate=0.1)
    made.write(tmp_path / "curve.json")
    assert Curve.read(tmp_path / "curve.json", {"rate": 0.1}) == made
    assert Curve.read(tmp_path / "curve.json", {"rate": 0.2}) is None
    assert Curve.read(tmp_path / "none.json", {}) is None


def test_table_and_plots_are_made_of_what_was_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three runs of one case from their files: the median beside the paper's rounds, with the spread, and two PNGs."""
    pytest.importorskip("matplotlib")
    images = mcmahan.made_up(50)
    monkeypatch.setattr(mcmahan, "load_mnist", lambda _: (images, images))
    case = CASES["2nn-iid"]
    for seed, last in enumerate((0.98, 0.975, 0.99)):
        made = {**asdict(case.setting), "seed": seed, "images": 50}
        curve([0.1, 0.9, last], **made).write(tmp_path / f"2nn-iid-rate{case.setting.rate:g}-seed{seed}-50.json")
    options = ["--case", "2nn-iid", "--seeds", "3", "--work", str(tmp_path), "--plots", str(tmp_path / "plots")]
    assert mcmahan.main([*options, "--json", str(tmp_path / "table.json")]) == 0
    assert "2 (0.02x), 2 to 2" in capsys.readouterr().out
    [table] = json.loads((tmp_path / "table.json").read_bytes())
    assert table["rows"][0][:3] == ["2NN, IID, E=1, 97 %", case.setting.rate, "87"]
    for name in ("accuracy-rounds.png", "accuracy-seconds.png"):
        assert (tmp_path / "plots" / name).read_bytes().startswith(b"\x89PNG")


def test_a_sites_cost_leaves_the_first_round_out() -> None:
    """By hand: preparing took 3 s; rounds after the first took 2 and 4 s, and 3 and 5 CPU seconds."""
    run = watched(
        (5, 8, {"event": "run-started"}),
        (8, 9, {"event": "round-started", "round": 1}),
        (20, 30, {"event": "round-finished", "round": 1}),
        (22, 33, {"event": "round-finished", "round": 2}),
        (26, 38, {"event": "round-finished", "round": 3}),
    )
    assert sites.costs(100, run) == sites.Costs(100, prepare=3, seconds=3, cpu=4, memory=7_000_000)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="CPU time is read from /proc")
@pytest.mark.parametrize("benchmark", [codecs, mcmahan, sites])
def test_the_benchmark_runs_at_smoke_size(benchmark: Any, tmp_path: Path) -> None:
    """The real command over made-up images: one line, of whose numbers only CPU time may be too short to be seen."""
    assert benchmark.main(["--smoke", "--json", str(tmp_path / "table.json")]) == 0
    [table] = json.loads((tmp_path / "table.json").read_bytes())
    [row] = table["rows"]
    numbers = {
        c: cell["value"] if isinstance(cell, dict) else cell for c, cell in zip(table["columns"], row, strict=True)
    }
    assert all(n > 0 or ("CPU" in c and n == 0) for c, n in numbers.items() if isinstance(n, float | int))


@pytest.mark.slow
def test_both_ways_of_taking_steps_are_tried(tmp_path: Path) -> None:
    """A job's dense model is stepped with and without XLA, and the table says which of the two the job has."""
    job = make_job(tmp_path / "job", rounds=20)
    assert compiling.main([str(job), "--smoke", "--json", str(tmp_path / "table.json")]) == 0
    [table] = json.loads((tmp_path / "table.json").read_bytes())
    assert [row[0] for row in table["rows"]] == ["TensorFlow", "XLA"]
    assert all(cell["value"] > 0 for row in table["rows"] for cell in row[1:])
    assert "compiled in this job" in table["note"]
