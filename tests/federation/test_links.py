"""Cables that are cut, cables that are slow, and sites that say nothing, in the middle of a run over a real network.

One server and three sites have a network namespace each. Their model is large enough for a slow link to be felt.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fedretrain.runfolder import RunFolder
from server import operations
from tests.network import Network, reason_against

from .stand import SITES, Stand, check_whole, happened, wait_for, write_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(500),
    pytest.mark.skipif(reason_against() is not None, reason=str(reason_against())),
]

HOST = "fedserver.example"
FEATURES = 25_000
MODEL_BYTES = 4 * 3 * FEATURES
LONG = 1000  # rounds: more than there will be, such a run is stopped by its operator
SLOW_KBIT = 600
WAIT_S = 200.0  # each run sends the app's bundle too, 1 MB, over a slow link
SLOWEST_S = MODEL_BYTES * 8 / (SLOW_KBIT * 1000)  # for one way of the model over the slow link, nothing else on it


@dataclass
class Wired:
    """A federation and its cables; ``mute`` is the file that keeps west's trainer from ending."""

    stand: Stand
    network: Network
    mute: Path

    @contextmanager
    def cut(self, *sites: str) -> Iterator[None]:
        """Within the block these cables are pulled out."""
        for site in sites:
            self.network.cut(site)
        try:
            yield
        finally:
            for site in sites:
                self.network.restore(site)

    @contextmanager
    def slow(self, site: str) -> Iterator[None]:
        """Within the block the site's cable lets little through."""
        self.network.slow(site, SLOW_KBIT)
        try:
            yield
        finally:
            self.network.slow(site, 1_000_000)


@pytest.fixture(scope="module")
def wired(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wired]:
    """Three sites that are up, each behind a cable of its own."""
    folder = tmp_path_factory.mktemp("stand")
    model, mute = folder / "large.keras", folder / "mute"
    write_model(model, FEATURES)
    training = {"BACKEND_SECONDS": "0.7"}
    env = {"north": training, "south": training, "west": training | {"BACKEND_HANGS": str(mute)}}
    with Network(("server", *SITES), HOST) as network:
        stand = Stand(folder, HOST, network.inside, env, FEATURES).set_up(model)
        try:
            stand.server_up()
            stand.client_up(*SITES)
            yield Wired(stand, network, mute)
        finally:
            stand.end()


@pytest.mark.endurance
def test_fault_27_a_slow_link(wired: Wired) -> None:
    """A round waits for a site that makes it by the deadline, leaves out one that does not, and invites it again."""
    stand = wired.stand
    check_whole(stand, stand.retrain(1, min_sites=3), 1)  # the base model is where it has to be
    with wired.slow("north"):
        [patient] = check_whole(stand, stand.retrain(1), 1)["rounds"]
    assert named(patient["admitted"]) == set(SITES)
    assert patient["seconds"] > 2 * SLOWEST_S
    with endless(stand, deadline_s=1.5 * SLOWEST_S) as run:
        with wired.slow("north"):
            wait_for(lambda: len(without(run, "north")) >= 2, WAIT_S, "two rounds without north")
        wait_for(lambda: "north" in named(finished(run)[-1]["admitted"]), WAIT_S, "north is invited again")
    for record in without(run, "north"):
        assert record["sites"] == sorted(SITES)
        assert named(record["admitted"]) == {"south", "west"}


@pytest.mark.endurance
def test_fault_28_a_site_that_never_answers(wired: Wired) -> None:
    """It is left out at every deadline, and takes part again as soon as it answers."""
    deadline = 4.0
    wired.mute.touch()
    with endless(wired.stand, deadline) as run:
        wait_for(lambda: len(without(run, "west")) >= 2, WAIT_S, "two rounds without west")
        wired.mute.unlink()
        wait_for(lambda: "west" in named(finished(run)[-1]["admitted"]), WAIT_S, "west is invited again")
    for record in without(run, "west")[:2]:
        assert deadline <= record["seconds"] < deadline + 3


@pytest.mark.parametrize("seconds", [30, pytest.param(105, marks=pytest.mark.endurance)])
def test_fault_30_a_link_is_cut(wired: Wired, seconds: int) -> None:
    """The run goes on with the others; the site is in a later round of the same run, without a person."""
    stand = wired.stand
    with endless(stand, deadline_s=6) as run:
        wait_for(lambda: happened(run, "round-started", 2), WAIT_S, "round 2")
        with wired.cut("north"):
            time.sleep(seconds)
            last = finished(run)[-1]
        wait_for(lambda: "north" in named(finished(run)[-1]["admitted"]), WAIT_S, "north is back")
    assert last["round"] >= 4
    assert named(last["admitted"]) == {"south", "west"}
    check_whole(stand, stand.retrain(1, min_sites=3), 1)


@pytest.mark.endurance
def test_fault_31_below_the_quorum(wired: Wired) -> None:
    """The round is abandoned in bounded time and the run says why; resumed, it goes on from where it was."""
    stand, rounds = wired.stand, 4
    run = stand.retrain(rounds, deadline_s=5)
    wait_for(lambda: happened(run, "round-started", 2), WAIT_S, "round 2")
    with wired.cut("north", "south"):
        state = wait_for(lambda: ended_badly(stand, run), WAIT_S, "the run is abandoned")
    assert (state["state"], state["exit_code"]) == ("failed", 4)
    assert "participation.min_sites" in state["reason"]
    assert "can be resumed" in state["reason"]
    completed = state["completed"]
    assert 1 <= completed < rounds
    wait_for(lambda: set(stand.online()) == set(SITES), WAIT_S, "the sites are back")
    operations.resume(run)
    check_whole(stand, run, rounds)
    resumed = [event["completed"] for event in run.read_events() if event["event"] == "run-started"]
    assert resumed == [0, completed]


@contextmanager
def endless(stand: Stand, deadline_s: float) -> Iterator[RunFolder]:
    """A run that its operator stops at the end of the block; every round of it counted once."""
    run = stand.retrain(LONG, deadline_s=deadline_s)
    try:
        yield run
    finally:
        operations.stop(run)
        wait_for(lambda: operations.run(stand.federation, run)["state"] == "stopped", WAIT_S, "stopped")
    numbers = [record["round"] for record in finished(run)]
    assert numbers == list(range(1, len(numbers) + 1))


def named(entries: list[dict[str, Any]]) -> set[str]:
    """The sites of a round's entries."""
    return {entry["site"] for entry in entries}


def finished(run: RunFolder) -> list[dict[str, Any]]:
    """The records of the rounds that count so far."""
    return [event for event in run.read_events() if event["event"] == "round-finished"]


def without(run: RunFolder, site: str) -> list[dict[str, Any]]:
    """Those of them that the site was late for."""
    return [r for r in finished(run) if [(q["site"], q["code"]) for q in r["quarantined"]] == [(site, "late")]]


def ended_badly(stand: Stand, run: RunFolder) -> dict[str, Any] | None:
    """What is told of the run, once it has failed."""
    told = operations.run(stand.federation, run)
    assert told["state"] not in {"released", "rejected"}, told
    return told if told["state"] == "failed" else None
