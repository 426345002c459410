"""What a run takes in kWh, where codecarbon is installed."""

from pathlib import Path

import pytest

from server.deciding import energy
from server.deciding.energy import Meter, kwh_of, metered
from server.online import _energy


class Tracker:
    """Measures what it is told."""

    def __init__(self, kwh: float) -> None:
        self.final_emissions_data = type("Data", (), {"energy_consumed": kwh})
        self.stopped = 0

    def stop(self) -> None:
        self.stopped += 1


def test_a_meter_says_what_was_measured_and_how() -> None:
    """Once; nothing is measured twice."""
    tracker = Tracker(0.25)
    meter = Meter(tracker, "3.0")

    assert meter.read() == {"kwh": 0.25, "of": "machine", "method": "codecarbon 3.0, offline"}
    assert (meter.read(), tracker.stopped) == ({}, 1)


@pytest.mark.parametrize("kwh", [float("nan"), float("inf"), -1.0])
def test_what_is_no_amount_is_not_recorded(kwh: float) -> None:
    """So a result stays JSON."""
    assert Meter(Tracker(kwh)).read() == {}


def test_without_codecarbon_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing stands in the result."""
    monkeypatch.setattr(energy, "PACKAGE", "no_such_package_here")

    with metered() as meter:
        assert meter.read() == {}


def test_a_run_that_fails_stops_its_meter(monkeypatch: pytest.MonkeyPatch) -> None:
    """No thread goes on measuring."""
    tracker = Tracker(1.0)
    monkeypatch.setenv(energy.SWITCH, "on")
    monkeypatch.setattr(energy, "PACKAGE", "json")  # is there
    monkeypatch.setattr(energy, "_started", lambda: Meter(tracker))

    with pytest.raises(ValueError, match="the run"), metered():
        raise ValueError("the run")

    assert tracker.stopped == 1


def test_codecarbon_measures_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It gives a number, asks nobody for it, and leaves no file behind."""
    pytest.importorskip("codecarbon", reason="needs the extra energy")
    monkeypatch.chdir(tmp_path)
    with metered() as meter:
        assert meter.read() == {}  # tests switch it off
    monkeypatch.setenv(energy.SWITCH, "on")

    with metered() as meter:
        found = meter.read()

    assert found["kwh"] >= 0
    assert list(tmp_path.iterdir()) == []


def test_a_result_without_a_measurement_has_no_kwh() -> None:
    """Neither an old one nor one of another machine."""
    assert kwh_of({}) is None
    assert kwh_of({"energy": {"kwh": 0.5}}) == 0.5


def test_segments_of_an_online_job_are_added_up() -> None:
    """0.25 and 0.5 kWh are 0.75; where one was not measured the whole is not known."""
    measured = [{"energy": {"kwh": kwh, "of": "machine"}} for kwh in (0.25, 0.5)]

    assert _energy(measured) == {"energy": {"kwh": 0.75, "of": "machine"}}
    assert _energy([*measured, {}]) == {}
