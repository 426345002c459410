"""A site under ``client up`` with a real SuperLink: its life, and the deaths of its processes (fault 29)."""

import os
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from client import identity, runfiles, up
from client.home import Home
from fedretrain.errors import MachineError
from fedretrain.processes import Child
from tests.server.fleet import Link, eventually, make_bundle, make_federation, running

from . import sites
from .sites import BASE, PREPARE, TRAIN, Job, federation, process, started, wait_until_online

pytestmark = pytest.mark.slow

NAMES = {"trainer": "client.trainer_main", "supernode": "client.supernode", "executor": "client.executor"}


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Short enough for sockets."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@pytest.fixture(scope="module")
def link(folder: Path) -> Iterator[Link]:
    """A SuperLink that the sites reach directly."""
    with running(make_federation(folder / "server")) as link:
        yield link


class Site:
    """A site that runs under ``up``; training takes a second and is counted."""

    def __init__(self, folder: Path, link: Link) -> None:
        self.mark, self.bundle_mark = folder / "trainings", folder / "bundle-was-run"
        at_import = f"pass\nopen({str(self.bundle_mark)!r}, 'w').close()"
        self.home, self.coordinator = federation(folder / "s", link, Job(), make_bundle(folder / "b", at_import))
        self.up = sites.up(self.home, BACKEND_SECONDS="1.0", BACKEND_MARK=str(self.mark))
        self.rounds = 0

    def start(self) -> None:
        self.up.start()
        wait_until_online(self.coordinator)

    def pid(self, name: str) -> int:
        """Of a child of ``up``."""
        for child in Path(f"/proc/{self.up.pid}/task/{self.up.pid}/children").read_text().split():
            if NAMES[name].encode() in Path(f"/proc/{child}/cmdline").read_bytes():
                return int(child)
        return 0

    def begin(self) -> str:
        """Ask for the next round; returns the message's id when training has started."""
        before, self.rounds = len(self.trainings()), self.rounds + 1
        asked = self.coordinator.ask(TRAIN, self.rounds, 120)
        assert eventually(lambda: len(self.trainings()) > before), self.coordinator.logs()
        return asked

    def trainings(self) -> list[str]:
        return self.mark.read_text().split() if self.mark.exists() else []


@pytest.fixture(scope="module")
def site(folder: Path, link: Link) -> Iterator[Site]:
    """Prepared and with its base model."""
    made = Site(folder, link)
    with started(made.up):
        made.start()
        assert made.coordinator.put(PREPARE)["needs_base"] is True
        assert made.coordinator.put(BASE)["kind"] == "base"
        yield made
    made.coordinator.close()


def test_a_round_is_trained_and_no_code_of_the_bundle_is_run(site: Site) -> None:
    """The bundle would leave a file if any process of the site so much as imported it."""
    assert site.coordinator.answer(site.begin())["kind"] == "train"
    assert not site.bundle_mark.exists()
    assert not list((site.home.run / "flwr").glob("**/*.py"))


def test_a_second_up_says_which_process_is_the_first(site: Site) -> None:
    """And does nothing."""
    with pytest.raises(MachineError, match=f"as process {site.up.pid}"):
        up.main(site.home)


def test_fault_29_the_executor_is_killed_in_the_middle_of_a_round(site: Site) -> None:
    """The next one takes the task over; the round has its update, and nothing was trained twice."""
    asked, before, trained = site.begin(), site.pid("executor"), len(site.trainings())
    os.kill(before, signal.SIGKILL)
    assert site.coordinator.answer(asked)["kind"] == "train"
    assert len(site.trainings()) == trained
    assert site.pid("executor") != before


def test_fault_29_the_trainer_is_killed_in_the_middle_of_a_round(site: Site) -> None:
    """The executor asks the next one again; the round has its update."""
    asked, before, trained = site.begin(), site.pid("trainer"), len(site.trainings())
    os.kill(before, signal.SIGKILL)
    assert site.coordinator.answer(asked)["kind"] == "train"
    assert len(site.trainings()) == trained + 1


def test_fault_29_the_supernode_is_killed_in_the_middle_of_a_round(site: Site) -> None:
    """That round goes without this site; it takes part in the next one long before the server's minute is over."""
    site.begin()
    start, before = time.monotonic(), site.pid("supernode")
    os.kill(before, signal.SIGKILL)
    assert site.coordinator.answer(site.begin())["kind"] == "train"
    assert site.pid("supernode") != before
    assert time.monotonic() - start < 45


def test_a_server_that_was_away_is_told_of_and_waited_for(site: Site, link: Link) -> None:
    """The SuperNode goes on by itself; what was wrong is no longer told once the server answers."""
    link.kill()
    assert eventually(lambda: "nothing listens" in runfiles.read_problem(site.home))
    link.start()
    assert site.coordinator.answer(site.begin())["kind"] == "train"
    assert runfiles.read_problem(site.home) == ""


def test_nothing_outlives_up_and_it_starts_again(site: Site) -> None:
    """Also where ``up`` itself is killed."""
    pids = [site.pid(name) for name in NAMES]
    assert site.up.pid
    os.kill(site.up.pid, signal.SIGKILL)
    assert eventually(lambda: not any(map(alive, pids)), 10)
    site.up.stop()
    site.start()
    assert site.coordinator.answer(site.begin())["kind"] == "train"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_ends_it_and_all_it_started(site: Site, number: signal.Signals, code: int) -> None:
    """With the exit code of what happened, and within seconds."""
    site.up.start()
    assert eventually(lambda: all(site.pid(name) for name in NAMES))
    pids = [site.pid(name) for name in NAMES]
    assert site.up.pid
    os.kill(site.up.pid, number)
    assert eventually(lambda: not site.up.alive, 15)
    assert site.up.returncode == code
    assert not any(map(alive, pids))


def test_a_bundle_the_site_does_not_pin_is_refused(folder: Path, link: Link) -> None:
    """Signed, with the rule, and nothing was trained."""
    bundle = make_bundle(folder / "b2", "pass", name="other")
    home, coordinator = federation(folder / "s2", link, Job(), bundle, pinned="0" * 64)
    with started(sites.up(home)):
        wait_until_online(coordinator)
        answer = coordinator.put(PREPARE)
    coordinator.close()
    assert (answer["code"], answer["where"], answer["unsigned"]) == ("policy", "bundles", False)


def alone(home: Home) -> Child:
    """The SuperNode without ``up``."""
    return process(home, "client.supernode")


def test_fault_25_a_key_that_is_not_on_the_roster_is_told_so(folder: Path, link: Link) -> None:
    """In one line instead of a traceback; and it is let in as soon as the server has its key."""
    home = sites.joined(folder / "s3", link, Job())
    with started(alone(home)):
        assert eventually(lambda: "the site is not admitted" in runfiles.read_problem(home))
        link.control().register(identity.request(home, "north").node_key, "third")
        assert eventually(lambda: not runfiles.read_problem(home))
    assert "Traceback" not in (home.log / "supernode.log").read_text()


def test_a_server_that_is_not_the_kits_is_told_so(folder: Path, link: Link) -> None:
    """Its certificate is by another authority."""
    other = make_federation(folder / "other")
    home = sites.joined(folder / "s4", link, Job())
    kit = home.load_kit().model_copy(update={"ca": other.ca.read_text()})
    kit.write(home.kit)
    with started(alone(home)):
        assert eventually(lambda: "by another authority" in runfiles.read_problem(home))
    assert "Traceback" not in (home.log / "supernode.log").read_text()


def alive(pid: int) -> bool:
    """Whether it runs; one that waits for its parent to notice does not."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
