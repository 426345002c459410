"""Every named step at which a process can die, in a federation that runs: what was begun is finished without a person.

What dies is a real ServerApp, or a real trainer, in the middle of its work (``dying/sitecustomize.py``).
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from client.shelf import Shelf
from fedretrain.crashpoint import CRASH_POINTS
from fedretrain.runfolder import RunFolder
from server.registry import Registry

from .stand import ROOT, SITES, Stand, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

AT_SERVER = (  # a run reaches only one of the steps after its pointer has moved, and the next start passes over them
    ("aggregated", "checkpoint-written", "checkpoint-committed", "gate-started", "gate-finished", "release-staged",
     "delivered", "result-written"),
    ("release-moved", "metadata-written", "timestamp-swapped"),
    ("trust-recorded",),
)  # fmt: skip
AT_SITE = ("release-received", "release-placed", "release-installed")


@pytest.fixture(scope="module")
def dying(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that says who is to die where."""
    return tmp_path_factory.mktemp("dying")


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory, model: Path, dying: Path) -> Iterator[Stand]:
    """A federation with three sites; server and north are those whose processes can be told to die."""
    path = os.pathsep.join([str(Path(__file__).parent / "dying"), str(ROOT)])
    mortal = {"PYTHONPATH": path, "DYING": str(dying)}
    stand = Stand(tmp_path_factory.mktemp("stand"), env={"server": mortal, "north": mortal}).set_up(model)
    try:
        stand.server_up()
        stand.client_up(*SITES)
        yield stand
    finally:
        stand.end()


def test_no_step_is_forgotten() -> None:
    """A step that is added has to be swept too."""
    assert {point for points in (*AT_SERVER, AT_SITE) for point in points} == set(CRASH_POINTS)


@pytest.mark.endurance
@pytest.mark.parametrize("points", AT_SERVER, ids="-".join)
def test_fault_36_a_run_dies_at_every_step(stand: Stand, dying: Path, points: tuple[str, ...]) -> None:
    """Its ServerApp dies at one step after the other: the run is released once, and every site has the release."""
    orders = dying / "server.serverapp"
    orders.write_text("\n".join(points))
    released(stand, stand.retrain(1), orders)


@pytest.mark.endurance
@pytest.mark.parametrize("point", AT_SITE)
def test_a_trainer_dies_while_it_takes_a_release_in(stand: Stand, dying: Path, point: str) -> None:
    """The site has the release in the end, and nothing half."""
    orders = dying / "client.trainer_main"
    orders.write_text(point)
    stand.kill("client.trainer_main", "north")  # the next one reads the order
    released(stand, stand.retrain(1), orders)
    shelf = Shelf(stand.home("north"))
    assert not (shelf.root / "incoming").exists()
    assert all(shelf.is_whole(identity) for identity in shelf.ids())


def released(stand: Stand, run: RunFolder, orders: Path) -> None:
    """All died who were to, and the run came to exactly one release, which all sites use."""
    result = stand.ended(run, 300)
    assert result["outcome"] == "released", result
    assert [r["round"] for r in result["rounds"]] == [1]
    wait_for(lambda: not orders.read_text(), 30, f"died at {orders.read_text()}")
    registry = Registry.open(stand.federation.folder)
    assert registry.verify().ok
    state = registry.state()
    assert state is not None
    assert state.ledger.incumbent == result["release"]
    assert [entry.run for entry in state.ledger.releases.values()].count(run.run_id) == 1
    for site in SITES:
        wait_for(lambda site=site: used(stand, site) == result["release"], 60, f"{site} has the release")


def used(stand: Stand, site: str) -> str | None:
    """The release a site serves, verified."""
    release = Shelf(stand.home(site)).in_use()
    return release.id if release else None
