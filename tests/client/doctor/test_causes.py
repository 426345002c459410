"""The doctor: each cause of trouble is set up for real, and has to be named as the one problem there is."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from client import doctor, identity
from client.doctor import tls
from client.doctor.finding import Finding
from client.doctor.machine import examine_machine
from client.doctor.server import examine_server
from client.home import Home
from client.policy import Policy
from client.runfiles import write_problem
from fedretrain.membership import Kit, read
from fedretrain.processes import free_port
from server import provision
from server.certificates import authority_certificate, load, new_key, pem, server_certificate
from server.federation import Federation
from server.gateway import Process
from server.keyfile import read_key
from tests.server.gateway.kit import StubSuperLink, make_federation, running

pytestmark = pytest.mark.usefixtures("unflushed")
NAMES = ("127.0.0.1",)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Federation, dict[str, Path]]:
    """A federation on this machine and complete kits of two sites."""
    return make_federation(tmp_path_factory.mktemp("federation"))


@pytest.fixture(scope="module")
def federation(parts: tuple[Federation, dict[str, Path]]) -> Federation:
    return parts[0]


@pytest.fixture
def home(parts: tuple[Federation, dict[str, Path]], tmp_path: Path) -> Home:
    """A site that joined as hospital-a."""
    return joined(tmp_path / "home", parts[1]["hospital-a"])


def joined(root: Path, kit: Path) -> Home:
    home = Home(root)
    home.make()
    home.site.write_text('[data]\nformat = "npz"\npath = "data.npz"\n')
    identity.join(home, kit)
    return home


def moved(home: Home, **changes: Any) -> Home:
    """The site, with other things in its kit."""
    read(home.kit, Kit).model_copy(update=changes).write(home.kit)
    return home


@contextmanager
def server(federation: Federation, *, superlink: bool = True) -> Iterator[None]:
    """The real gateway, and something in the place of SuperLink."""
    federation.superlink_port.parent.mkdir(exist_ok=True)
    federation.superlink_port.write_text(str(free_port()))
    with running(Process(federation)):
        if not superlink:
            yield
            return
        with StubSuperLink(federation).running():
            yield


@contextmanager
def certificate(
    federation: Federation, *, born: timedelta = timedelta(), names: tuple[str, ...] = NAMES, own_authority: bool = True
) -> Iterator[None]:
    """Another certificate in place of the gateway's."""
    before = federation.certificate.read_bytes()
    key = read_key(federation.private_key, None)
    authority, authority_key = load(federation.ca.read_bytes(), "ca"), read_key(federation.authority_key, None)
    if not own_authority:
        authority_key = new_key()
        authority = authority_certificate("trial", authority_key, datetime.now(UTC))
    made = server_certificate(names, key.public_key(), authority, authority_key, datetime.now(UTC) - born)  # type: ignore[arg-type]
    federation.certificate.write_bytes(pem(made))
    try:
        yield
    finally:
        federation.certificate.write_bytes(before)


def the_problem(findings: Iterator[Finding]) -> Finding:
    """The one problem among the findings; it says what, why and what to do."""
    (found,) = [finding for finding in findings if finding.state == "problem"]
    assert found.what
    assert found.why
    assert found.do
    return found


def cause(home: Home, ahead_s: float = 0.0) -> str:
    """The cause of the one problem on the way to the server."""
    return the_problem(examine_server(home, lambda: time.time() + ahead_s)).cause


def test_nothing_is_wrong(federation: Federation, home: Home) -> None:
    """Every step is ok: address, port, certificate, clock, admission, SuperLink, bundle, software."""
    with server(federation):
        found = list(examine_server(home, time.time))
    assert {finding.state for finding in found} == {"ok"}
    subjects = ["address", "port", "certificate", "clock", "admission", "SuperLink", "bundle", "software"]
    assert [finding.subject for finding in found] == subjects
    assert "hospital-a of trial" in found[4].what


def test_a_wrong_port(federation: Federation, home: Home) -> None:
    """Nothing listens there; the steps after it are said to be skipped."""
    found = list(examine_server(moved(home, address=f"127.0.0.1:{free_port()}"), time.time))
    assert the_problem(iter(found)).cause == "port-closed"
    assert found[-1].state == "skipped"
    assert "certificate, clock, admission" in found[-1].what


def test_a_port_of_another_service(home: Home) -> None:
    """Something listens that speaks no TLS."""
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        assert cause(moved(home, address=f"127.0.0.1:{other.server_port}")) == "not-tls"
        other.shutdown()


def test_a_port_of_another_service_of_the_federation(federation: Federation, home: Home) -> None:
    """SuperLink's own port has a certificate by the same authority, and is no gateway all the same."""
    with StubSuperLink(federation, lambda *_: (404, b"")).running():
        port = federation.superlink_port.read_text()
        assert cause(moved(home, address=f"127.0.0.1:{port}")) == "not-a-gateway"


def test_an_unknown_name(home: Home) -> None:
    """A host that no name service knows."""
    assert cause(moved(home, address="no-such-host.invalid:8443")) == "unknown-host"


def test_a_wrong_authority(federation: Federation, home: Home) -> None:
    """A certificate by another authority, also where that has the same name as the right one."""
    with certificate(federation, own_authority=False), server(federation):
        assert cause(home) == "wrong-ca"


def test_an_expired_certificate(federation: Federation, home: Home) -> None:
    """It says when it expired, and that the server's operator renews it."""
    with certificate(federation, born=timedelta(days=400)), server(federation):
        found = the_problem(examine_server(home, time.time))
    assert found.cause == "certificate-expired"
    assert f"{datetime.now(UTC) - timedelta(days=35):%Y-%m-%d}" in found.what
    assert "server renew" in found.do


def test_a_certificate_that_expires_soon(federation: Federation, home: Home) -> None:
    """Ten days before it is a note and no problem."""
    with certificate(federation, born=timedelta(days=355)), server(federation):
        found = list(examine_server(home, time.time))
    assert [finding.subject for finding in found if finding.state == "note"] == ["certificate"]
    assert "problem" not in {finding.state for finding in found}


def test_a_name_that_is_not_in_the_certificate(federation: Federation, home: Home) -> None:
    """Both names are said: the kit's, and the certificate's."""
    with certificate(federation, names=("other.example", "10.0.0.7")), server(federation):
        found = the_problem(examine_server(home, time.time))
    assert found.cause == "wrong-name"
    assert "for other.example, 10.0.0.7, not for 127.0.0.1" in found.what


@pytest.mark.parametrize(("off_s", "word"), [(10, "ahead of"), (-10, "behind"), (-400, "behind")])
def test_fault_26_a_clock_that_is_off(federation: Federation, home: Home, off_s: float, word: str) -> None:
    """Ten seconds either way are one problem: by how much, and both times."""
    with server(federation):
        found = the_problem(examine_server(home, lambda: time.time() + off_s))
    assert found.cause == "clock"
    assert f"{abs(off_s)}." in found.what or f"{abs(off_s) - 1}.9" in found.what
    assert word in found.what
    assert ("is refused" in found.why) == (off_s in {10, -400})


def test_a_clock_that_is_off_by_years_is_not_taken_for_an_expired_certificate(
    federation: Federation, home: Home
) -> None:
    """Of a certificate that is refused for its date: where the server's time lies within it, the clock is wrong."""
    place = tls.Place.of(home.load_kit(), lambda: time.time() + 3e8)
    with server(federation):
        shown = load(federation.certificate.read_bytes(), "server.crt")
        assert tls._untimely(place, shown, expired=True).cause == "clock"
    with certificate(federation, born=timedelta(days=400)), server(federation):
        shown = load(federation.certificate.read_bytes(), "server.crt")
        assert tls._untimely(place, shown, expired=True).cause == "certificate-expired"


def test_fault_25_a_key_that_is_not_admitted(federation: Federation, home: Home, tmp_path: Path) -> None:
    """A site that made its keys, and was never admitted; the gateway's words are shown."""
    stranger = Home(tmp_path / "stranger")
    asked = identity.request(stranger, "hospital-x")
    kit = read(home.kit, Kit)
    kit.model_copy(update={"node_key": asked.node_key, "signing_key": asked.signing_key}).write(stranger.kit)
    with server(federation):
        found = the_problem(examine_server(stranger, time.time))
    assert found.cause == "not-admitted"
    assert "roster" in found.what
    assert "client request" in found.do


def test_a_revoked_site(federation: Federation, parts: tuple[Federation, dict[str, Path]], tmp_path: Path) -> None:
    """It is told so, and since when."""
    other = joined(tmp_path / "other", parts[1]["hospital-b"])
    with server(federation):
        roster = federation.roster.read_bytes()
        provision.revoke(federation, "hospital-b")
        found = the_problem(examine_server(other, time.time))
        federation.roster.write_bytes(roster)
    assert found.cause == "revoked"
    assert f"{datetime.now(UTC):%Y-%m-%d}" in found.what


def test_the_gateway_is_up_and_superlink_is_down(federation: Federation, home: Home) -> None:
    """It is not this site's fault, and who has to act is said."""
    with server(federation, superlink=False):
        found = the_problem(examine_server(home, time.time))
    assert found.cause == "superlink-down"
    assert "this site is not the cause" in found.why


def test_another_bundle_than_the_kit_pins(federation: Federation, home: Home) -> None:
    """Refused tasks are foretold, unless the policy names the bundle."""
    moved(home, bundle="0" * 64)
    with server(federation):
        assert cause(home) == "bundle"
        accepted = Policy(bundles=(federation.bundle_digest(),))
        assert all(f.state == "ok" for f in examine_server(home, time.time, accepted))


def test_a_site_that_has_not_joined(tmp_path: Path) -> None:
    """One problem, and nothing is asked of any server."""
    home = Home(tmp_path / "home")
    (only,) = doctor.examine(home)
    assert only.cause == "no-home"
    identity.request(home, "hospital-a")
    assert the_problem(examine_machine(home)).cause == "not-joined"
    assert [finding.state for finding in examine_server(home, time.time)] == ["skipped"]


def test_keys_that_do_not_belong_to_the_kit(home: Home, tmp_path: Path) -> None:
    """Restored from the wrong backup, or open to others: named before the server refuses them."""
    other = Home(tmp_path / "other")
    identity.request(other, "hospital-a")
    home.node_key.write_bytes(other.node_key.read_bytes())
    assert the_problem(examine_machine(home)).cause == "keys"
    home.node_key.chmod(0o644)
    assert "chmod 600" in the_problem(examine_machine(home)).what


def test_a_read_only_disk(home: Home) -> None:
    """A real mount that takes nothing: the folder is named, and nothing was changed."""
    with read_only(home.store):
        found = the_problem(examine_machine(home))
    assert found.cause == "disk-read-only"
    assert str(home.store) in found.what
    assert list(home.root.rglob(".check.*")) == []


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    command = ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"needs a read-only mount: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_what_the_processes_wrote_down_is_shown(home: Home) -> None:
    """A refusal that the SuperNode met is a note."""
    write_problem(home, "the server refused this site")
    assert [f.what for f in doctor._running(home)] == ["the server refused this site"]


def test_a_finding_in_words() -> None:
    """State, subject and what; why and what to do below it; the last line counts."""
    found = Finding("clock", "problem", "off", "it matters", "set it", "clock")
    text = list(doctor.lines(found))
    assert text[0].split() == ["PROBLEM", "clock", "off"]
    assert [line.strip() for line in text[1:]] == ["why: it matters", "do:  set it"]
    assert doctor.summary([found]) == "1 problem: clock."
    assert doctor.value([found])["ok"] is False
    assert doctor.summary([Finding("clock", "ok", "on")]) == "ok: nothing stands in the way."


@pytest.mark.slow
def test_check_as_a_command(federation: Federation, home: Home) -> None:
    """Exit code 1 and the cause in JSON; then 0, with a step of training of our own."""
    command = [sys.executable, "-m", "fedretrain.cli", "client", "check", "--home", str(home.root), "--json"]

    def run(*more: str) -> tuple[int, dict[str, Any]]:
        done = subprocess.run([*command, *more], capture_output=True, text=True, timeout=300, check=False)
        return done.returncode, json.loads(done.stdout.splitlines()[-1])

    with server(federation):
        code, value = run("--no-step")
        assert (code, [f["cause"] for f in value["findings"] if f["state"] == "problem"]) == (1, ["data-unreadable"])
        (home.root / "data.npz").touch()
        code, value = run()
    assert (code, value["ok"]) == (0, True)
    (step,) = [f for f in value["findings"] if f["subject"] == "step"]
    assert step["state"] == "ok"
    assert "s a step of a small model" in step["what"]
