"""What Flower's own SuperNode makes of the gateway's words, before a real SuperLink."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from fedretrain.membership import Kit, read
from fedretrain.processes import clean_environment, free_port
from server import provision
from server.federation import Federation
from server.gateway.counters import load
from tests.server.fleet import Link

from .kit import gateway, make_federation, wait_for

pytestmark = pytest.mark.slow

PATIENCE_S = 60
SUPERNODE = """
import datetime, sys
import flwr.supernode.node_auth_http_interceptor as auth
late = datetime.timedelta(seconds=float(sys.argv.pop(1)))
auth.now = lambda: datetime.datetime.now(datetime.UTC) + late
from flwr.supernode.cli.flower_supernode import flower_supernode
flower_supernode()
"""


class SuperNode:
    """Flower's SuperNode, its clock set, as a process."""

    def __init__(self, federation: Federation, key: Path, folder: Path, ahead_s: float = 0) -> None:
        folder.mkdir()
        shutil.copy(federation.ca, folder / "ca.pem")
        (folder / "secret").write_text("s" * 64)
        (folder / "secret").chmod(0o600)
        self.log = folder / "log"
        options = [f"--superlink={federation.settings.address}", f"--root-certificates={folder / 'ca.pem'}"]
        options += [f"--auth-supernode-private-key={key}", "--isolation=process", f"--port={free_port()}"]
        options += [f"--superexec-auth-secret-file={folder / 'secret'}"]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", SUPERNODE, str(ahead_s), *options],
                stdout=log,
                stderr=log,
                cwd=folder,
                env=clean_environment(FLWR_HOME=str(folder / "flwr")),
            )

    def said(self) -> str:
        """Everything it printed so far, in one line."""
        return " ".join(self.log.read_text().split())

    def last_words(self) -> str:
        """What it has printed when it has ended by itself."""
        self.process.wait(PATIENCE_S)
        return self.said()


def refusals(federation: Federation) -> list[str]:
    """Why calls of hospital-a were refused, as its operator is told."""
    return [refusal.code for refusal in load(federation.sites).sites["hospital-a"].refusals]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Federation, dict[str, Path]]]:
    """A federation whose SuperLink and gateway run and whose sites are registered, and its node keys' files."""
    folder = tmp_path_factory.mktemp("live")
    federation, kits = make_federation(folder)
    keys = {}
    for site, kit in kits.items():
        secrets = read(kit, Kit).secrets
        assert secrets is not None
        keys[site] = folder / f"{site}.pem"
        keys[site].write_text(secrets.node_key)
    federation.log.mkdir(parents=True, exist_ok=True)
    link = Link(federation)
    try:
        link.start()
        control = link.control()
        for member in federation.active().values():
            control.register(member.node_key, member.name)
        with gateway(federation):
            yield federation, keys
    finally:
        link.child.stop()


@pytest.fixture
def nodes() -> Iterator[list[SuperNode]]:
    """SuperNodes that are ended with the test."""
    started: list[SuperNode] = []
    yield started
    for node in started:
        node.process.kill()
        node.process.wait()


def test_fault_25_and_26_a_stock_supernode_says_why_it_ends(
    live: tuple[Federation, dict[str, Path]], nodes: list[SuperNode], tmp_path: Path
) -> None:
    """A key that nobody admitted, a clock six seconds ahead: it ends by itself, with our sentence and no traceback."""
    federation, keys = live
    foreign = ec.generate_private_key(ec.SECP384R1()).private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    (tmp_path / "foreign.pem").write_bytes(foreign)
    nodes.append(SuperNode(federation, tmp_path / "foreign.pem", tmp_path / "stranger"))
    nodes.append(SuperNode(federation, keys["hospital-b"], tmp_path / "ahead", ahead_s=6))
    stranger, ahead = (node.last_words() for node in nodes)
    assert "is not on the roster of federation trial: send the site's request file" in stranger
    assert "s ahead of the server's: it says 20" in ahead
    assert "set the site's clock" in ahead
    for words in (stranger, ahead):
        assert "Traceback" not in words


def test_fault_24_the_second_supernode_with_one_key_is_refused_and_both_sides_see_why(
    live: tuple[Federation, dict[str, Path]], nodes: list[SuperNode], tmp_path: Path
) -> None:
    """The second ends with a sentence that names the first; the first goes on until its site is revoked."""
    federation, keys = live
    nodes.append(SuperNode(federation, keys["hospital-a"], tmp_path / "first"))
    wait_for(lambda: "SuperNode ID" in nodes[0].said(), PATIENCE_S)
    nodes.append(SuperNode(federation, keys["hospital-a"], tmp_path / "second"))
    words = nodes[1].last_words()
    assert "site hospital-a is connected already, from 127.0.0.1" in words
    assert "one key is for one SuperNode" in words
    assert "Traceback" not in words
    wait_for(lambda: "connected" in refusals(federation))
    assert nodes[0].process.poll() is None
    provision.revoke(federation, "hospital-a")
    nodes[0].last_words()  # it ends with its next call
    wait_for(lambda: "revoked" in refusals(federation))  # written once a second


def test_the_gateways_process_ends_when_told_and_says_where_it_listens(tmp_path: Path) -> None:
    """SIGTERM ends it within seconds; gateway.json names the address; no federation, one line and exit code 2."""
    federation, _ = make_federation(tmp_path)
    command = [sys.executable, "-P", "-m", "server.gateway", "--folder"]
    process = subprocess.Popen([*command, str(federation.folder)], stderr=subprocess.PIPE, env=clean_environment())
    try:
        wait_for(federation.gateway.is_file, PATIENCE_S)
        assert f'"port":{federation.settings.port}' in federation.gateway.read_text()
        os.kill(process.pid, 15)
        _, printed = process.communicate(timeout=10)
        assert b"Traceback" not in printed
    finally:
        process.kill()
        process.wait()
    wrong = subprocess.run([*command, str(tmp_path)], capture_output=True, check=False, env=clean_environment())
    assert wrong.returncode == 2
    assert b"fedretrain server init" in wrong.stderr
    assert b"Traceback" not in wrong.stderr
