"""Comparisons: their numbers by hand, their tables, what is refused, and one real run of each kind."""

import json
import math
import tempfile
from pathlib import Path

import pytest

from fedretrain import cli
from fedretrain.errors import ConfigurationError
from simulations import cli_compare
from simulations.benchmarks.environment import Environment
from simulations.comparing import plots, summary
from simulations.comparing.outcome import Outcome, Point, Refused
from simulations.comparing.run import Comparison, Found, _at_sites
from simulations.comparing.summary import Spread, Way
from simulations.scenarios import registry

WHAT = Comparison("appearance", ("one", "two", "three"), (0, 1), 5)


def outcome(old: float, new: float, best: float = 0.9, *, released: bool = True) -> Outcome:
    """The model in use has 0.9 and 0.5; ``best`` is what was between on what is old."""
    curve = [Point(0, 0.9, 0.5), Point(1, best, 0.6), Point(2, old, new)]
    return Outcome(Point(0, 0.9, 0.5), Point(2, old, new), 0.75, curve, released, 2_000_000, 3.0)


def ways() -> list[Way]:
    refused = Refused("train.mode: no")
    return [
        Way("one", {0: outcome(0.8, 0.7), 1: outcome(0.6, 0.9, released=False)}),
        Way("two", {0: outcome(0.9, 0.5), 1: refused}),
        Way("three", {0: refused, 1: refused}),
    ]


def test_backward_transfer_and_forgetting_by_hand() -> None:
    """Transfer is against the model in use, forgetting against the best there was: 0.85 - 0.9, and 0.95 - 0.85."""
    found = outcome(0.85, 0.7, best=0.95)
    assert math.isclose(found.backward_transfer, -0.05)
    assert math.isclose(found.forgetting, 0.1)
    better = outcome(0.97, 0.7)
    assert math.isclose(better.backward_transfer, 0.07)
    assert better.forgetting == 0


def test_what_a_site_has_is_its_own_model_where_it_has_one() -> None:
    """The personal number goes before the common one; without either there is none."""
    assert _at_sites({"val-accuracy": 0.5, "val-personal-accuracy": 0.7}) == 0.7
    assert _at_sites({"val-accuracy": 0.5}) == 0.5
    assert math.isnan(_at_sites({}))


def test_means_and_spreads_by_hand() -> None:
    """0.8 and 0.6 have mean 0.7 and deviation 0.1414; one value has no deviation, no value is told as a dash."""
    spread = Spread.of([0.8, 0.6])
    assert math.isclose(spread.mean, 0.7)
    assert spread.text(100) == "70.0 ± 14.1"
    assert Spread.of([0.5]).text(100) == "50.0"
    assert Spread.of([math.nan]).text() == "-"


def test_the_table_has_the_model_in_use_first_and_says_what_was_refused() -> None:
    """What is refused by every seed has the reason alone."""
    rows = list(summary.rows(ways()))
    assert rows[0] == ("model in use", "90.0 ± 0.0", "50.0 ± 0.0", "", "", "", "", "", "")
    assert rows[1][:4] == ("one", "70.0 ± 14.1", "80.0 ± 14.1", "75.0 ± 0.0")
    assert rows[1][4:] == ("-20.0 ± 14.1", "20.0 ± 14.1", "2.00", "3.00", "1 of 2")
    assert rows[2][-1] == "1 of 2; refused: train.mode: no"
    assert rows[3] == ("three", "", "", "", "", "", "", "", "refused: train.mode: no")
    made = summary.table(WHAT, ways(), Environment.now(), "fedretrain compare appearance")
    assert "| one | 70.0 ± 14.1 |" in made.markdown()
    assert made.name == "compare-appearance"


def test_json_has_every_run() -> None:
    """Numbers as fractions, refusals with their reason, and nothing that JSON has no word for."""
    found = ways()
    found[0] = Way("one", {0: outcome(0.8, math.nan)})
    value = json.loads(json.dumps(summary.as_json(WHAT, found, Environment.now()), allow_nan=False))
    assert value["modes"][0]["runs"][0]["new"] is None
    assert value["modes"][0]["runs"][0]["old"] == 0.8
    assert value["modes"][2]["runs"][1] == {"seed": 1, "refused": "train.mode: no"}


def test_a_line_is_the_mean_over_the_runs(tmp_path: Path) -> None:
    """After each number of rounds; a refused way has no line, and the picture is a PNG."""
    pytest.importorskip("matplotlib")
    across, up = plots.line(ways()[0].outcomes, "new")
    assert across == [0, 1, 2]
    assert up == pytest.approx([0.5, 0.6, 0.8])
    plots.draw("a title", ways(), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_one_way_that_starts_from_nothing_does_not_press_the_others_together() -> None:
    """0.7 is the lowest end and 0.9 the best value, so a tenth of 0.2 around them, wherever a line began."""
    assert plots.shown([[0.1, 0.5, 0.7], [0.9, 0.8], [0.9, 0.8], [math.nan]]) == pytest.approx((0.68, 0.92))


def test_where_most_ways_start_from_nothing_all_is_shown() -> None:
    """The median of the least values, 0, is where the picture begins."""
    assert plots.shown([[0.0, 0.9], [0.0, 0.8], [0.5, 0.9]]) == pytest.approx((0.0, 0.99))
    assert plots.shown([[math.nan], []]) is None


def test_the_command_below_a_table_makes_it_again() -> None:
    """Options that are the defaults are left out."""
    every = tuple(job.stem for job in registry.examples("meaning"))
    assert cli_compare.command(Comparison("meaning", every, (0, 1, 2), 5)) == "fedretrain compare meaning --seeds 3"
    some = Comparison("meaning", ("ewc",), (7,), 3)
    assert cli_compare.command(some) == "fedretrain compare meaning --modes ewc --seeds 1 --seed 7 --sites 3"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["weather"], "SCENARIO: expected one of appearance"),
        (["meaning", "--modes", "ewc,nothing"], "--modes: there is no 'nothing'; did you mean '"),
        (["meaning", "--modes", "repaly"], "--modes: there is no 'repaly'; did you mean 'replay'? Valid: "),
        (["meaning", "--out", "."], "--out: .: expected a folder that does not exist yet"),
        (["meaning", "--plot", "plot.jpg"], "--plot: expected a file that ends in .png"),
        (["meaning", "--into", "nowhere.md"], "--into: nowhere.md: no such file"),
    ],
)
def test_a_wrong_option_is_refused_before_anything_runs(
    options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With what was expected; and in JSON where that is asked for."""
    assert cli.run(["compare", *options, "--json"]) == ConfigurationError.exit_code
    captured = capsys.readouterr()
    assert f"error: {said}" in captured.err
    assert said in json.loads(captured.out)["error"]


def test_nothing_is_left_after_ctrl_c(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder of an interrupted comparison is gone."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def interrupted(_what: Comparison, folder: Path, *_: object) -> None:
        (folder / "run").mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr("simulations.comparing.run.compare", interrupted)
    assert cli.run(["compare", "meaning"]) == cli.INTERRUPTED
    assert list(tmp_path.iterdir()) == []


def test_a_comparison_of_refusals_alone_ends_with_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table is shown all the same; one way that ran is enough for 0."""
    found: list[Found] = [("replay", 0, Refused("train.mode: no")), ("ewc", 0, Refused("strategy: no"))]
    monkeypatch.setattr(cli_compare, "_runs", lambda *_: found)
    assert cli.run(["compare", "meaning", "--modes", "replay,ewc"]) == 2
    assert "refused: train.mode: no" in capsys.readouterr().out
    point = Point(1, 0.5, 0.5)
    found[0] = ("replay", 0, Outcome(point, point, 0.5, [point], True, 1, 1.0))
    assert cli.run(["compare", "meaning", "--modes", "replay,ewc"]) == 0


SHORT = """# for: {scenario}
# Two rounds.
holdout = [{{ name = "old", path = "old.npz" }}, {{ name = "new", path = "new.npz", must = "improve" }}]
[model]
path = "model.keras"
[train]
rounds = 2
optimizer = {{ name = "sgd", learning_rate = 0.005 }}
{more}
[simulation]
sites = "sites/*.npz"
"""
REFUSED = '[strategy]\nname = "fedavg"\nobjectives = [{ name = "distillation", labels = ["no such label"] }]'


@pytest.mark.slow
def test_one_way_is_measured_round_by_round_and_another_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """With real workers: what the gate measured is where the curve begins and ends; a refusal is a row."""
    jobs = tmp_path / "examples"
    jobs.mkdir()
    (jobs / "short.toml").write_text(SHORT.format(scenario="appearance", more=""))
    (jobs / "wrong.toml").write_text(SHORT.format(scenario="appearance", more=REFUSED))
    monkeypatch.setattr(registry, "_EXAMPLES", jobs)
    out = tmp_path / "out"
    assert cli.run(["compare", "appearance", "--sites", "2", "--workers", "1", "--out", str(out), "--json"]) == 0
    said = capfd.readouterr()
    short, wrong = json.loads(said.out)["modes"]
    assert "no such label" in wrong["runs"][0]["refused"]
    [run] = short["runs"]
    assert [point["round"] for point in run["curve"]] == [0, 1, 2]
    first, last = run["curve"][0], run["curve"][-1]
    assert (first["old"], first["new"]) == (run["old_before"], run["new_before"])
    assert (last["old"], last["new"]) == (run["old"], run["new"])
    assert 0 < run["at_sites"] <= 1
    assert run["bytes"] > 0
    assert "short, seed 0: old " in said.err
    assert (out / "appearance-0" / "short.toml").exists()
