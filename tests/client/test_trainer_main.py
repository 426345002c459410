"""The trainer's process on its own: no network, its limits, its end."""

import shutil
import subprocess
import time
from pathlib import Path

import pytest

from client import flowerside, wire
from client.home import Home
from client.identity import load_signing_key
from client.refusal import Refuser
from client.trainer_main import TOO_LARGE, load_backend
from fedretrain.errors import ConfigurationError
from fedretrain.processes import Child
from tests.server.fleet import eventually

from .sites import BASE, PREPARE, TRAIN, Job, joined, opened, process, started

JOB = Job()


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A joined site."""
    return joined(tmp_path / "h", None, JOB)


def ask(
    home: Home, kind: str, id_: str = "", timeout_s: float = 60.0, decline: wire.Decline | None = None
) -> dict[str, object]:
    """What the trainer answers to a signed request."""
    content = flowerside.to_bytes(JOB.signed(kind, "north"))
    header = wire.Question(size=len(content), id=kind, message_type=kind)
    return opened(flowerside.from_bytes(wire.ask(home.socket, header, content, timeout_s)), home)


def without_network(child: Child) -> Child:
    """The same, in a network namespace with nothing in it."""
    child.argv = ["unshare", "--net", *child.argv]
    return child


@pytest.fixture(scope="module")
def namespaces() -> None:
    """Whether this system lets us have one."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "--net", "true"], check=False).returncode:
        pytest.skip("network namespaces need root, or a kernel that lets users have them")


@pytest.mark.slow
def test_it_trains_without_any_network(home: Home, namespaces: None) -> None:
    """The whole of a round, in a namespace without even a loopback that is up; SIGTERM ends it at once."""
    child = without_network(process(home, "client.trainer_main"))
    with started(child):
        assert ask(home, PREPARE)["train_examples"] == 20
        assert ask(home, BASE)["kind"] == "base"
        answer = ask(home, TRAIN)
        assert (answer["kind"], answer["unsigned"]) == ("train", False)
        child.ask_to_stop()
        assert eventually(lambda: not child.alive, 5.0)
        assert child.returncode == 0
        assert not home.socket.exists()


@pytest.mark.slow
def test_it_ends_when_it_takes_more_memory_than_allowed(home: Home) -> None:
    """Before the machine runs out of it; the log says what it used and where the limit stands."""
    home.site.write_text(home.site.read_text() + "memory_mb = 500\n")
    child = process(home, "client.trainer_main", BACKEND_MEGABYTES="600", BACKEND_SECONDS="20")
    with started(child):
        for kind in (PREPARE, BASE):
            ask(home, kind)
        with pytest.raises(wire.TrainerLost) as lost:
            ask(home, TRAIN)
        assert not lost.value.late
        assert eventually(lambda: child.returncode == TOO_LARGE, 5.0)
    assert "memory_mb allows 500" in (home.log / "trainer_main.log").read_text()


@pytest.mark.slow
def test_sigterm_does_not_wait_for_a_training(home: Home) -> None:
    """Nor does it answer it."""
    child = process(home, "client.trainer_main", BACKEND_SECONDS="30")
    with started(child):
        for kind in (PREPARE, BASE):
            ask(home, kind)
        with pytest.raises(wire.TrainerLost):
            ask(home, TRAIN, timeout_s=0.5)
        start = time.monotonic()
        child.ask_to_stop()
        assert eventually(lambda: not child.alive, 5.0)
        assert time.monotonic() - start < 3.0


@pytest.mark.parametrize("name", ["no.such:Backend", "tests.client.numpy_backend:Nothing"])
def test_a_backend_that_is_not_there_is_a_configuration_error(name: str) -> None:
    """It names the key of site.toml."""
    with pytest.raises(ConfigurationError, match=r"\[trainer\] backend"):
        load_backend(name, 1)


def test_a_refusal_is_signed_for_what_the_coordinator_asked_alone(home: Home) -> None:
    """The executor cannot have anything else signed; the site's record has it."""
    refuser = Refuser(home.load_kit(), load_signing_key(home), home.record)
    decline = wire.Decline(code="policy", where="bundles", expected="another")
    answer = opened(refuser.refuse(JOB.signed(TRAIN, "north"), decline), home)
    assert (answer["code"], answer["where"], answer["unsigned"]) == ("policy", "bundles", False)
    assert '"bundles"' in home.record.read_text()
    for other in (Job().signed(TRAIN, "north"), JOB.signed(TRAIN, "south"), JOB.request(TRAIN)):
        assert opened(refuser.refuse(other, decline), home)["unsigned"] is True
