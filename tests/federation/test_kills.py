"""Processes of a federation are killed in the middle of a run; the run is released all the same, and nothing is torn.

The trainer needs no Keras (``softmax``), so that a round takes about a second. What is judged is what lies on the disk.
"""

import pytest

from fedretrain.runfolder import RunFolder

from .conftest import TRAINING
from .stand import SITES, Stand, check_whole, happened, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

ROUNDS = 5


def begun(stand: Stand, event: str, round_: int) -> RunFolder:
    """A run that has come so far."""
    run = stand.retrain(ROUNDS, deadline_s=20)
    wait_for(lambda: happened(run, event, round_), 120, f"{event} {round_}; {stand.said('server')[-500:]}")
    return run


@pytest.mark.endurance
@pytest.mark.parametrize("module", ["client.executor", "client.trainer_main"])
def test_fault_29_a_sites_executor_or_trainer_is_killed(stand: Stand, module: str) -> None:
    """Another one takes the message over: the round it was killed in has the site's update."""
    run = begun(stand, "round-started", 2)
    stand.kill(module, "north")
    rounds = check_whole(stand, run, ROUNDS)["rounds"]
    assert "north" in {update["site"] for update in rounds[1]["admitted"]}


def test_fault_29_a_sites_supernode_is_killed(stand: Stand) -> None:
    """The run goes on with the others, and the site is back within 90 s without a person."""
    run = begun(stand, "round-started", 2)
    stand.kill("client.supernode", "north")
    check_whole(stand, run, ROUNDS)
    wait_for(lambda: set(SITES) <= set(stand.online()), 90, "north is connected again")


@pytest.mark.parametrize(
    ("module", "event", "round_"),
    [
        ("server.serverapp", "round-started", 2),
        pytest.param("server.serverapp", "checkpoint", 4, marks=pytest.mark.endurance),
        pytest.param("server.executor", "round-started", 2, marks=pytest.mark.endurance),
        ("server.gateway", "round-started", 2),
    ],
)
def test_a_process_of_the_server_is_killed(stand: Stand, module: str, event: str, round_: int) -> None:
    """The run is resumed without a person, and every round counts once."""
    run = begun(stand, event, round_)
    stand.kill(module)
    check_whole(stand, run, ROUNDS)


@pytest.mark.parametrize("seconds", [10, pytest.param(90, marks=pytest.mark.endurance)])
def test_fault_37_superlink_is_dead_for_a_while(stand: Stand, seconds: int) -> None:
    """The run completes, or is resumed, with at most one round lost."""
    run = begun(stand, "round-started", 3)
    stand.kill("server.superlink", for_s=seconds)
    check_whole(stand, run, ROUNDS)
    started = [e["round"] for e in run.read_events() if e["event"] == "round-started"]
    assert len(started) - ROUNDS <= 2, started


def test_the_servers_supervisor_is_killed(stand: Stand) -> None:
    """No process is left to block the next start, which resumes the run."""
    run = begun(stand, "checkpoint", 2)
    stand.kill_up("server")
    stand.server_up()
    check_whole(stand, run, ROUNDS)


@pytest.mark.endurance
def test_a_sites_supervisor_is_killed(stand: Stand) -> None:
    """The run goes on with the others; the next start at the site works at once."""
    run = begun(stand, "round-started", 2)
    stand.kill_up("south")
    check_whole(stand, run, ROUNDS)
    stand.env["south"] = TRAINING
    stand.client_up("south")
