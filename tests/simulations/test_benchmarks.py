"""The frame of the benchmarks: tables, timing from outside, and a short run of the race between the contenders."""

import json
import sys
from argparse import ArgumentParser, Namespace
from dataclasses import replace
from math import prod
from pathlib import Path

import pytest

from fedretrain.errors import ConfigurationError, MachineError
from simulations.benchmarks import all as everything
from simulations.benchmarks import table as tables
from simulations.benchmarks import updates
from simulations.benchmarks.baselines import floor, ours, pfl_runs
from simulations.benchmarks.race import Case, Command, Contender, Mark, Work, race
from simulations.benchmarks.setting import made_up, split_evenly
from simulations.benchmarks.table import Figure, Table

_SCRIPT = """
import json, sys, time
def burn(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end: pass
def say(n):
    with open(sys.argv[1], "a") as file: file.write(json.dumps({"updates": n, "at": time.time()}) + "\\n")
burn(0.3)
say(0)
for number in range(int(sys.argv[2])):
    burn(0.5 if number == 0 else 0.05)
    say(2)
"""


def some_table() -> Table:
    """A table with every kind of cell."""
    table = Table("some-name", "A title", ("", "s", "MB"), note="A note.", command="python -m x")
    table.add("base", 0.5, 100)
    table.add("other", 0.75, None)
    return table.against("base")


def test_a_figure_stands_beside_its_ratio_to_the_baseline() -> None:
    """Markdown has the ratio in brackets, and says below to what; an empty cell stays empty."""
    text = some_table().markdown()
    assert "| base | 0.500 | 100 |" in text
    assert "| other | 0.750 (1.50x) |  |" in text
    assert "In brackets: times base." in text


def test_a_table_survives_its_json(tmp_path: Path) -> None:
    """What ``emit`` writes as JSON is read as the same table, with machine and load."""
    options = Namespace(json=tmp_path / "t.json", markdown=tmp_path / "t.md", into=None, smoke=False)
    tables.emit([some_table()], options)
    [found] = tables.read(options.json)
    assert found.markdown() == options.markdown.read_text()
    assert found.rows[1][1] == Figure(0.75, 0.5)
    assert found.environment.load_after is not None
    assert json.loads(options.json.read_bytes())[0]["rows"][1][1]["ratio"] == 1.5


def test_a_smoke_run_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In title and command, wherever the table is written; and no document takes its figures."""
    options = Namespace(json=tmp_path / "t.json", markdown=None, into=None, smoke=True)
    tables.emit([replace(some_table(), command="python -m x --mnist mnist.npz --seeds 2")], options)
    assert "**A title (smoke run: shows only that it runs)**" in capsys.readouterr().out
    assert tables.read(options.json)[0].command == "python -m x --seeds 2 --smoke"
    parser = ArgumentParser()
    tables.common_arguments(parser)
    with pytest.raises(SystemExit, match="2"):
        parser.parse_args(["--smoke", "--into", "page.md"])
    assert "not allowed with argument" in capsys.readouterr().err


def test_a_table_goes_between_its_markers_and_nowhere_else(tmp_path: Path) -> None:
    """Inserting twice replaces; the text around stays, and a document without the markers is refused."""
    document = tmp_path / "page.md"
    document.write_text("before\n<!-- table some-name -->\nold\n<!-- end some-name -->\nafter\n")
    for _ in range(2):
        tables.insert(document, some_table())
    text = document.read_text()
    assert text.startswith("before\n<!-- table some-name -->\n")
    assert text.endswith("<!-- end some-name -->\nafter\n")
    assert text.count("**A title**") == 1
    assert "old" not in text
    document.write_text("nothing")
    with pytest.raises(ConfigurationError, match="some-name"):
        tables.insert(document, some_table())


@pytest.mark.parametrize(
    ("value", "text"), [(0.0059, "0.00590"), (12.345, "12.3"), (1234.6, "1,235"), (60_000, "60,000"), (0.0, "0")]
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    """Three significant digits, never fewer than stand before the point."""
    assert tables.number(value) == text


def contender(rounds: int) -> Contender:
    """A process that burns CPU time: 0.3 s, then 0.5 s for the first two updates, then 0.05 s for each two."""

    def prepare(folder: Path, _: Work) -> Command:
        return Command([sys.executable, "-c", _SCRIPT, str(folder / "marks.jsonl"), str(rounds)], {})

    return Contender("burner", prepare)


def work(folder: Path) -> Work:
    """Two sites a round."""
    return Work(Case("2nn", 1), folder, per_round=2, processes=1)


def test_the_rate_leaves_out_start_and_first_rounds(tmp_path: Path) -> None:
    """Start and first round are seen for themselves; CPU time for an update is that of the later ones alone."""
    timing = race(contender(10_000), work(tmp_path), tmp_path, 0.3)
    assert 0.3 <= timing.begun < timing.first
    assert timing.first_cpu >= 0.7
    assert timing.updates >= 6
    assert 0.01 < timing.cpu_per_update < 0.05  # 0.025, by a clock of hundredths


def test_a_contender_that_ends_early_is_an_error(tmp_path: Path) -> None:
    """It is said how far it came."""
    with pytest.raises(MachineError, match="after 4 updates"):
        race(contender(2), work(tmp_path), tmp_path, 0.5)


def test_a_run_is_timed_by_its_events() -> None:
    """A round's beginning counts nothing, its end as many updates as were admitted, all else is no mark."""
    at = "2026-01-01T00:00:00.500+00:00"
    assert ours._mark({"event": "round-started", "at": at}) == Mark(0, 1767225600.5)
    assert ours._mark({"event": "round-finished", "at": at, "admitted": [{}, {}]}) == Mark(2, 1767225600.5)
    assert ours._mark({"event": "reply", "at": at}) is None


def test_all_contenders_train_models_of_the_papers_size() -> None:
    """The floor's variables are as many as McMahan et al. state."""
    sizes = {model: sum(map(prod, floor._shapes(model))) for model in ("2nn", "cnn")}
    assert sizes == {"2nn": 199_210, "cnn": 1_663_370}


def test_sites_share_no_image_while_there_are_enough() -> None:
    """An even split hands every image out once before any a second time."""
    images = made_up(60)
    once = [label for part in split_evenly(images, 6, 10) for label in part.y]
    assert sorted(once) == sorted(images.y)
    assert [len(part) for part in split_evenly(images, 7, 10)] == [10] * 7


def test_the_environment_of_pfl_is_one_for_each_state_of_its_requirements(tmp_path: Path, monkeypatch) -> None:
    """It lies in the user's cache, outside this project, and every requirement is pinned."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert pfl_runs.environment_folder().is_relative_to(tmp_path)
    lines = (pfl_runs._APP / "requirements.txt").read_text().splitlines()
    assert all("==" in line for line in lines if line and not line.startswith("#"))


def test_all_tables_are_made_once_and_a_failure_costs_one(tmp_path: Path, monkeypatch) -> None:
    """What is there is kept, what fails is named, and the document gets what was made."""
    asked = []

    def run(call: list[str], _: Path) -> int:
        asked.append(call[call.index("-m") + 1].rpartition(".")[2])
        if asked[-1] == "sites":
            return 1
        tables.emit(
            [some_table()], Namespace(json=Path(call[call.index("--json") + 1]), markdown=None, into=None, smoke=False)
        )
        return 0

    monkeypatch.setattr(everything, "_run", run)
    document = tmp_path / "page.md"
    document.write_text("<!-- table some-name -->\n<!-- end some-name -->\n")
    command = ["--out", str(tmp_path / "out"), "--into", str(document), "--only", "updates", "sites"]
    assert everything.main(command) == 1
    assert everything.main(command) == 1
    assert asked == ["updates", "sites", "sites"]
    assert "**A title**" in document.read_text()
    assert "**A title**" in (tmp_path / "out" / "benchmarks.md").read_text()


@pytest.mark.slow
def test_client_updates_are_measured_beside_tensorflow_alone(tmp_path: Path) -> None:
    """The smoke run makes all three tables, with a ratio for every figure of ours."""
    assert updates.main(["--smoke", "--json", str(tmp_path / "t.json")]) == 0
    found = tables.read(tmp_path / "t.json")
    assert [table.name for table in found] == ["cpu-per-update", "updates-per-second", "start-up"]
    for table in found:
        assert [row[0] for row in table.rows] == [updates.FLOOR, updates.OURS]
        assert all(isinstance(cell, Figure) and cell.value > 0 and cell.ratio for cell in table.rows[1][1:])
