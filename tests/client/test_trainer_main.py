"""The trainer's process on its own: no network, its limits, its end."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client import wire
from client.home import Home
from client.identity import load_signing_key
from client.refusal import Refuser
from client.trainer_main import TOO_LARGE, load_backend
from fedretrain import parcel
from fedretrain.errors import ConfigurationError
from fedretrain.processes import Child
from tests.server.fleet import eventually

from .sites import BASE, PREPARE, ROOT, TRAIN, Job, joined, message_in, opened, pieces, process, started

COORDINATOR = Ed25519PrivateKey.from_private_bytes(bytes(32))
JOB = Job(coordinator=COORDINATOR)
GROUP = 64_000


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A joined site."""
    return joined(tmp_path / "h", None, JOB)


def ask(
    home: Home, kind: str, id_: str = "", timeout_s: float = 60.0, decline: wire.Decline | None = None
) -> dict[str, object]:
    """What the trainer answers to a signed request."""
    sent = pieces(JOB.message(kind, "north"), id=kind, message_type=kind)
    return opened(message_in(wire.ask(home.socket, sent, timeout_s, home.run)), home)


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


KNOCK = """
import sys
from tests.client.test_trainer_main import BASE, PREPARE, TRAIN, Home, Path, ask
home = Home(Path(sys.argv[1]))
print(*(ask(home, kind)["kind"] for kind in (PREPARE, BASE, TRAIN)))
"""


def as_user(user: int, command: list[str]) -> list[str]:
    """The command as another user, of the group that both users of the site are in."""
    return ["setpriv", f"--reuid={user}", f"--regid={GROUP}", "--clear-groups", "--bounding-set=-all", *command]


@pytest.mark.slow
@pytest.mark.skipif(os.getuid() != 0 or shutil.which("setpriv") is None, reason="only root can be two users")
def test_it_runs_as_another_user_than_the_executor() -> None:
    """As ``client up --systemd`` describes it: a group for both, and the executor's number in site.toml."""
    trainer, executor = 64_001, 64_002
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        home = joined(Path(name) / "h", None, JOB)
        home.site.write_text(home.site.read_text() + f"allowed_uids = [{executor}]\n")
        for path in (home.root, *home.root.rglob("*")):
            os.chown(path, -1, GROUP)
            if path.is_dir():
                path.chmod(0o2770)
        os.chown(home.signing_key, trainer, -1)
        os.chown(home.node_key, executor, -1)
        child = process(home, "client.trainer_main")
        child.argv = as_user(trainer, child.argv)
        with started(child):
            asking = as_user(executor, [sys.executable, "-c", KNOCK, str(home.root)])
            done = subprocess.run(asking, capture_output=True, text=True, check=False, cwd=ROOT, timeout=90)
        assert done.stdout.split() == ["prepare", "base", "train"], done.stderr + child.log.read_text()


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
    answer = opened(refuser.refuse(parcel.opened(JOB.signed(TRAIN, "north")), decline), home)
    assert (answer["code"], answer["where"], answer["unsigned"]) == ("policy", "bundles", False)
    assert '"bundles"' in home.record.read_text()
    for other in (Job().signed(TRAIN, "north"), JOB.signed(TRAIN, "south"), JOB.request(TRAIN)):
        assert opened(refuser.refuse(parcel.opened(other), decline), home)["unsigned"] is True
