"""Disks that are full, one after the other, in a federation that runs: each is a small file system of its own.

What has to be seen each time: nothing half is left, one clear sentence for whoever can make room, and everything goes
on when there is room.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from client.shelf import Shelf
from server import operations
from server.registry import Registry

from .stand import Stand, check_whole, happened, rounds_done, wait_for, write_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

MEGABYTES = 96  # of each disk: above what `server up` takes for full
FEATURES = 25_000  # so that a model, 300 kB, does not fit where small files do
A_LITTLE = 64 * 1024
FULL = "cannot write: No space left on device; free some space there"


class Disk:
    """A small disk in place of ``folder``, with what was in it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(exist_ok=True, mode=0o700)
        mode = oct(folder.stat().st_mode & 0o777)[2:]
        aside = folder.with_name(folder.name + ".aside")
        folder.rename(aside)
        folder.mkdir()
        options = f"size={MEGABYTES}m,mode={mode}"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True, capture_output=True)
        shutil.copytree(aside, folder, dirs_exist_ok=True)

    @contextmanager
    def full(self, leave: int = 0) -> Iterator[None]:
        """Within the block there are no more than ``leave`` bytes of room."""
        filler = self._folder / "filler"
        with filler.open("wb", buffering=0) as file:
            os.posix_fallocate(file.fileno(), 0, max(1, shutil.disk_usage(self._folder).free - leave))
        try:
            yield
        finally:
            filler.unlink()

    def remove(self) -> None:
        """Take it away."""
        with suppress(OSError):
            subprocess.run(["umount", "-l", self._folder], check=False, capture_output=True)


class Small(Stand):
    """A federation with two sites whose server, and north, have small disks, by the folder's name."""

    disks: dict[str, Disk]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Small]:
    """The federation, with a release in use."""
    folder = tmp_path_factory.mktemp("stand")
    _skip_without_mounts(folder / "probe")
    write_model(folder / "large.keras", FEATURES)
    stand = Small(folder, env={site: {"BACKEND_SECONDS": "0.5"} for site in ("north", "south")}, features=FEATURES)
    stand.set_up(folder / "large.keras", ("north", "south"))
    f, north = stand.federation, stand.home("north")
    stand.disks = {}
    try:
        for path in (f.state, f.runs, f.registry, north.store, north.releases):
            stand.disks[path.name] = Disk(path)
        stand.server_up()
        stand.client_up("north", "south")
        check_whole(stand, stand.retrain(1), 1)
        yield stand
    finally:
        stand.end()
        for disk in stand.disks.values():
            disk.remove()


def _skip_without_mounts(probe: Path) -> None:
    probe.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", probe]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("mounting a small file system is not permitted here")
    subprocess.run(["umount", "-l", probe], check=True)


def test_fault_38_the_superlinks_database(small: Small) -> None:
    """`server up` says which disk is full; the run goes on when there is room, and no message is half."""
    run = small.retrain(8, min_sites=1, deadline_s=15)  # rounds that are not over before there is room again
    wait_for(lambda: happened(run, "round-started", 2), 60, "round 2")
    state = small.federation.state
    with small.disks["state"].full():
        wait_for(lambda: f"! {state}: the disk is full" in small.said("server"), 20, small.said("server"))
        wait_for(lambda: "database or disk is full" in (state / "log" / "superlink.log").read_text(), 60, "it is felt")
        assert any(str(state) in problem for problem in operations.server(small.federation)["problems"])
    wait_for(lambda: f"{state}: there is room again" in small.said("server"), 20, small.said("server"))
    check_whole(small, run, 8)


@pytest.mark.endurance
def test_fault_38_a_runs_state(small: Small) -> None:
    """No checkpoint can be written: said once, and the run goes on from the last one when there is room."""
    run = small.retrain(4, min_sites=1)
    wait_for(lambda: 1 in rounds_done(run), 60, "round 1")
    said = len(small.said("server"))
    with small.disks["runs"].full():
        wait_for(lambda: f"{small.federation.runs}: the disk is full" in small.said("server")[said:], 20, "said")
        wait_for(lambda: FULL in small.said("server")[said:], 60, "its process has ended")
    check_whole(small, run, 4)
    assert small.said("server")[said:].count(FULL) == 1
    assert small.said("server")[said:].count("its process is gone") <= 1


@pytest.mark.endurance
def test_fault_38_the_registry(small: Small) -> None:
    """The candidate waits, the model in use stays, nothing half is left; it is released when there is room."""
    registry = Registry.open(small.federation.folder)
    before, files = registry.incumbent(), content(registry.folder)
    assert before is not None
    with small.disks["registry"].full(leave=A_LITTLE):
        said = len(small.said("server"))
        run = small.retrain(1)
        wait_for(lambda: FULL in small.said("server")[said:], 90, "the release fails")
        assert f"run {run.run_id}: {registry.folder}" in small.said("server")
        incumbent = registry.incumbent()
        assert incumbent is not None
        assert incumbent.id == before.id
    check_whole(small, run, 1)
    assert files <= content(registry.folder)
    assert len([e for e in run.read_events() if e["event"] == "round-started"]) == 1


def test_fault_38_a_sites_store(small: Small) -> None:
    """A base model cannot be kept: the site says so in its log, the others go on, and it is there for the next run."""
    store = small.home("north").store
    bases = set((store / "base").iterdir())
    with small.disks["store"].full(leave=A_LITTLE):
        result = check_whole(small, small.retrain(2, min_sites=1), 2)
        assert [record["sites"] for record in result["rounds"]] == [["south"], ["south"]]
        assert f"{store / 'base'}" in site_log(small)
        assert FULL in site_log(small)
        assert set((store / "base").iterdir()) == bases
    check_whole(small, small.retrain(1, min_sites=2), 1)


@pytest.mark.endurance
def test_fault_38_a_sites_releases(small: Small) -> None:
    """The old release serves, and the newest arrives when there is room."""
    shelf = Shelf(small.home("north"))
    before = shelf.in_use()
    assert before is not None
    with small.disks["releases"].full(leave=A_LITTLE):
        run = small.retrain(1)
        result = check_whole(small, run, 1)
        [trouble] = [e for e in run.read_events() if e["event"] == "delivery-failed"]
        assert (trouble["site"], trouble["code"]) == ("north", "site-failure")
        assert f"{shelf.root}" in site_log(small)
        serving = shelf.in_use()
        assert serving is not None
        assert serving.id == before.id != result["release"]
        assert not (shelf.root / "incoming").exists()
    result = check_whole(small, small.retrain(1), 1)
    wait_for(lambda: (used := shelf.in_use()) and used.id == result["release"], 60, "north has the newest release")


def content(folder: Path) -> set[Path]:
    """The release folders, whole or not."""
    return set((folder / "releases").iterdir())


def site_log(stand: Stand) -> str:
    """What north's trainer said."""
    return (stand.home("north").log / "trainer.log").read_text(errors="replace")
