"""The gateway over real TLS sockets, before a SuperLink that says what reached it."""

import contextlib
import re
import shutil
import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.supercore.error import FlowerError

from fedretrain.errors import ConfigurationError, MachineError
from server import provision
from server.federation import Federation
from server.gateway import FLEET, Process, door
from server.gateway.counters import Traffic, load

from .kit import (
    ACTIVATE,
    PULL,
    PUSH,
    StubSuperLink,
    drips_for,
    ends,
    gateway,
    make_federation,
    node_key,
    plain,
    raw,
    running,
    served,
    served_certificate,
    signed,
    trusting,
    until_refused,
    wait_for,
)

MB = 2**20


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Federation, dict[str, ec.EllipticCurvePrivateKey]]:
    """A federation whose gateway takes bodies of 8 MB, and its sites' keys."""
    federation, kits = make_federation(tmp_path_factory.mktemp("trial"), body_limit_bytes=8 * MB)
    return federation, {site: node_key(kit) for site, kit in kits.items()}


@pytest.fixture
def federation(made: tuple[Federation, object], tmp_path: Path) -> Federation:
    """A copy of the federation for one test."""
    shutil.copytree(made[0].folder, tmp_path / "federation")
    return replace(made[0], folder=tmp_path / "federation")


@pytest.fixture
def key(made: tuple[object, dict[str, ec.EllipticCurvePrivateKey]]) -> ec.EllipticCurvePrivateKey:
    """The node key of hospital-a."""
    return made[1]["hospital-a"]


@pytest.fixture
def superlink(federation: Federation) -> Iterator[StubSuperLink]:
    """Its SuperLink."""
    with StubSuperLink(federation).running() as stub:
        yield stub


@pytest.fixture
def site(federation: Federation, superlink: StubSuperLink) -> Iterator[httpx.Client]:
    """Its gateway, and somebody who calls it."""
    with gateway(federation) as caller:
        yield caller


def sentence(answer: httpx.Response) -> str:
    """What a stock SuperNode prints of a refusal, by Flower's own parser."""
    error = FlowerError.from_json(answer.text)
    assert error is not None
    return error.message


def traffic(federation: Federation) -> Traffic:
    """What sites.json says of hospital-a."""
    return load(federation.sites).sites.get("hospital-a", Traffic())


def test_a_members_calls_pass_unchanged(
    site: httpx.Client, superlink: StubSuperLink, key: ec.EllipticCurvePrivateKey
) -> None:
    """Path, body and Flower's headers reach SuperLink, its answer comes back, and nothing else of the request goes."""
    headers = signed(key) | {"content-type": "application/protobuf", "cookie": "x=1", "flwr-package-version": "1.41.0"}
    answer = site.post(PULL, content=b"question", headers=headers)
    assert (answer.status_code, answer.content) == (200, PULL.encode())
    assert answer.headers["content-type"] == "application/protobuf"
    [(path, passed, body)] = superlink.seen
    assert (path, body) == (PULL, b"question")
    assert headers.items() - passed.items() == {("cookie", "x=1")}


def test_nothing_but_known_fleet_calls_passes(
    site: httpx.Client, superlink: StubSuperLink, key: ec.EllipticCurvePrivateKey
) -> None:
    """Registering nodes, Control, Runtime, the docs, other methods, disguised paths: not there, for members too."""
    paths = ["/v1/fleet/register-node", "/v1/fleet/unregister-node", "/v1/fleet/", "/v1/fleet", "/", "/docs"]
    paths += ["/v1/control/list-nodes", "/v1/runtime/acquire-task", "/v1/fleet/../control/list-nodes", f"{PULL}/"]
    paths += ["/v1/fleet/%2e%2e/control/list-nodes", "/v1/fleet/pull-messages%2f..%2fregister-node", f"/{PULL}"]
    for path in paths:
        assert site.post(path, content=b"", headers=signed(key)).status_code == 404, path
    for method in ("GET", "PUT", "DELETE", "OPTIONS"):
        assert site.request(method, PULL, headers=signed(key)).status_code == 404, method
    assert superlink.seen == []
    for call in FLEET:
        assert site.post(f"/v1/fleet/{call}", content=b"", headers=signed(key)).status_code == 200, call


def test_fault_25_a_key_that_is_not_on_the_roster_is_refused_and_told_so(
    site: httpx.Client, superlink: StubSuperLink, federation: Federation
) -> None:
    """Nothing reaches SuperLink; the site reads what to do, the server's operator who it was."""
    answer = site.post(ACTIVATE, content=b"x", headers=signed(ec.generate_private_key(ec.SECP384R1())))
    assert answer.status_code == 412
    assert "not on the roster of federation trial" in sentence(answer)
    assert "fedretrain server admit" in sentence(answer)
    assert superlink.seen == []
    wait_for(lambda: [r.code for r in load(federation.sites).strangers] == ["not-admitted"])
    assert "SHA256:" in load(federation.sites).strangers[0].text


def test_who_names_a_members_key_without_having_it_gets_nowhere(
    site: httpx.Client, superlink: StubSuperLink, key: ec.EllipticCurvePrivateKey
) -> None:
    """Another key's signature, another time's, a damaged one and none at all are refused before the body is read."""
    stranger = signed(ec.generate_private_key(ec.SECP384R1()))
    honest = signed(key)
    for change in (
        {"flwr-signature": stranger["flwr-signature"]},
        {"flwr-timestamp": signed(key, 1)["flwr-timestamp"]},
        {"flwr-signature": "AAAA"},
        {"flwr-signature": "not base64"},
        {"flwr-timestamp": "now"},
        {"flwr-public-key": ""},
    ):
        answer = site.post(PULL, content=b"x", headers=honest | change)
        assert answer.status_code == 401, change
        assert sentence(answer)
    assert site.post(PULL, content=b"x").status_code == 401
    assert superlink.seen == []


def test_fault_26_a_clock_six_seconds_ahead_is_said_with_both_times(
    site: httpx.Client, superlink: StubSuperLink, key: ec.EllipticCurvePrivateKey
) -> None:
    """One sentence: which site, how far off, what both clocks say, what to do. SuperLink would take up to 5 seconds."""
    words = sentence(site.post(ACTIVATE, content=b"x", headers=signed(key, ahead_s=6)))
    assert re.search(r"the clock of site hospital-a is [56]\.\d s ahead of the server's", words)
    assert words.count(" UTC") == 2
    assert "set the site's clock" in words
    assert "behind the server's" in sentence(site.post(ACTIVATE, content=b"x", headers=signed(key, ahead_s=-302)))
    assert superlink.seen == []
    assert site.post(ACTIVATE, content=b"x", headers=signed(key, ahead_s=3.5)).status_code == 200
    assert site.post(ACTIVATE, content=b"x", headers=signed(key, ahead_s=-290)).status_code == 200


def test_fault_23_a_body_over_the_limit_is_refused(
    site: httpx.Client, superlink: StubSuperLink, federation: Federation, key: ec.EllipticCurvePrivateKey
) -> None:
    """413, by the announced length and by counting, also to a caller that sends everything before it reads."""
    answer = site.post(PUSH, content=b"x" * (9 * MB), headers=signed(key))
    assert answer.status_code == 413
    assert "body_limit_bytes" in sentence(answer)
    answer = site.post(PUSH, content=(b"x" * MB for _ in range(40)), headers=signed(key))
    assert answer.status_code == 413
    assert superlink.seen == []
    assert site.post(PUSH, content=b"x" * (8 * MB), headers=signed(key)).status_code == 200
    wait_for(lambda: [(r.code, r.times) for r in traffic(federation).refusals] == [("too-large", 2)])


def test_large_bodies_pass_in_both_directions(
    site: httpx.Client, superlink: StubSuperLink, federation: Federation, key: ec.EllipticCurvePrivateKey
) -> None:
    """Megabytes arrive as they were sent, with and without an announced length, and are counted."""
    data = bytes(range(256)) * (4 * MB // 256)
    superlink.answer = lambda _, body: (200, body[::-1])
    assert site.post(PUSH, content=data, headers=signed(key)).content == data[::-1]
    assert site.post(PUSH, content=iter([data[:MB], data[MB:]]), headers=signed(key)).content == data[::-1]
    wait_for(lambda: traffic(federation).bytes_in == 8 * MB)
    counted = traffic(federation)
    assert (counted.requests, counted.bytes_out, counted.address) == (2, 8 * MB, "127.0.0.1")
    assert counted.last_seen == pytest.approx(time.time(), abs=10)


def test_a_revoked_site_is_shut_out_with_its_next_request(
    site: httpx.Client, superlink: StubSuperLink, federation: Federation, key: ec.EllipticCurvePrivateKey
) -> None:
    """The connection that was let in a moment ago is refused, with the reason; others go on."""
    assert site.post(PULL, content=b"x", headers=signed(key)).status_code == 200
    provision.revoke(federation, "hospital-a")
    answer = site.post(PULL, content=b"x", headers=signed(key))
    assert answer.status_code == 401
    assert "site hospital-a was revoked at 20" in sentence(answer)
    assert site.get("/hello", headers=signed(key)).json()["code"] == "revoked"
    assert len(superlink.seen) == 1


def test_a_damaged_roster_leaves_the_one_before_in_force(
    site: httpx.Client, federation: Federation, key: ec.EllipticCurvePrivateKey
) -> None:
    """An operator's slip in the file neither shuts all sites out nor lets anybody in."""
    assert site.post(PULL, content=b"x", headers=signed(key)).status_code == 200
    federation.roster.write_text("{")
    assert site.post(PULL, content=b"x", headers=signed(key)).status_code == 200
    assert site.post(PULL, headers=signed(ec.generate_private_key(ec.SECP384R1()))).status_code == 401


def test_a_check_is_not_taking_part(
    site: httpx.Client, federation: Federation, key: ec.EllipticCurvePrivateKey
) -> None:
    """A site whose operator only looks whether all is well does not count as there."""
    assert site.get("/hello", headers=signed(key)).status_code == 200
    assert site.post(PULL, headers=signed(ec.generate_private_key(ec.SECP384R1()))).status_code == 401
    wait_for(lambda: load(federation.sites).strangers)
    assert traffic(federation).last_seen is None


def test_the_pages_say_what_a_doctor_asks(
    site: httpx.Client, federation: Federation, key: ec.EllipticCurvePrivateKey
) -> None:
    """Time, health and readiness for everybody; what a member may know for members."""
    assert site.get("/health").json() == {"alive": True}
    assert site.get("/ready").json() == {"ready": True}
    assert site.get("/time").json()["time"] == pytest.approx(time.time(), abs=2)
    hello = site.get("/hello", headers=signed(key)).json()
    assert hello.pop("time") == pytest.approx(time.time(), abs=2)
    digest = federation.bundle_digest()
    assert hello == {"site": "hospital-a", "bundle": digest, "ready": True, "software": hello["software"]}
    cases = [({}, 401, "unsigned"), (signed(ec.generate_private_key(ec.SECP384R1())), 403, "not-admitted")]
    cases += [(signed(key, 6), 401, "clock"), (signed(key) | {"flwr-signature": "AAAA"}, 401, "signature")]
    for headers, status, code in cases:
        answer = site.get("/hello", headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (status, code)
        assert answer.json()["message"]


def test_a_superlink_that_is_down_or_elsewhere_is_told_and_found_again(
    federation: Federation, key: ec.EllipticCurvePrivateKey
) -> None:
    """Without it calls get the 503 that a SuperNode retries; started again on another port it is used at once."""
    with gateway(federation) as site:
        for _ in range(2):
            with StubSuperLink(federation).running() as stub:
                assert site.post(PULL, content=b"x", headers=signed(key)).status_code == 200
                assert len(stub.seen) == 1
            answer = site.post(PULL, content=b"x", headers=signed(key))
            assert answer.status_code == 503
            assert "SuperLink does not answer" in sentence(answer)
        assert site.get("/health").status_code == 200
        assert site.get("/ready").json()["code"] == "superlink-down"
        assert site.get("/hello", headers=signed(key)).json()["ready"] is False


def test_fault_24_the_second_node_with_one_key_learns_why_it_is_refused(
    site: httpx.Client, superlink: StubSuperLink, federation: Federation, key: ec.EllipticCurvePrivateKey
) -> None:
    """SuperLink's bare refusal becomes: connected already, from where, and what to do; the operator sees it too."""
    honest, bare = superlink.answer, b'{"code": 2004, "detail": "Failed to activate SuperNode."}'
    superlink.answer = lambda *_: (412, bare)
    assert site.post(ACTIVATE, content=b"x", headers=signed(key)).status_code == 503  # nobody has the place: try again
    superlink.answer = honest
    assert site.post(ACTIVATE, content=b"x", headers=signed(key)).status_code == 200
    superlink.answer = lambda *_: (412, bare)
    words = sentence(site.post(ACTIVATE, content=b"x", headers=signed(key)))
    assert "site hospital-a is connected already, from 127.0.0.1, last heard 0 s ago" in words
    assert "if a second one runs with it, stop it" in words
    wait_for(lambda: [r.code for r in traffic(federation).refusals] == ["not-ready", "connected"])


def test_strangers_are_slowed_down_and_members_are_not(
    site: httpx.Client, superlink: StubSuperLink, key: ec.EllipticCurvePrivateKey
) -> None:
    """A flood without a member's key turns into 429; a member at the same address is served."""
    stranger = signed(ec.generate_private_key(ec.SECP384R1()))
    statuses = until_refused(lambda: site.post(PULL, content=b"x", headers=stranger).status_code)
    assert (len(statuses) >= 50, set(statuses)) == (True, {401, 429})
    forged = signed(key) | {"flwr-signature": "AAAA"}
    until_refused(lambda: site.post(PULL, content=b"x", headers=forged).status_code)
    time.sleep(0.5)
    assert site.post(PULL, content=b"x", headers=signed(key)).status_code == 200


def test_counters_go_on_after_a_restart(
    superlink: StubSuperLink, federation: Federation, key: ec.EllipticCurvePrivateKey
) -> None:
    """What sites.json held is added to; its file is the operator's alone."""
    for _ in range(2):
        with gateway(federation) as site:
            site.post(PULL, content=b"12345", headers=signed(key))
    assert (traffic(federation).bytes_in, federation.sites.stat().st_mode & 0o777) == (10, 0o600)


def test_callers_that_never_finish_are_cut_off(
    federation: Federation, key: ec.EllipticCurvePrivateKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No handshake, half a head, a dripping head and an endless one: each connection ends, and no other suffers."""
    monkeypatch.setattr(door, "HANDSHAKE_S", 1.0)
    monkeypatch.setattr(door, "HEAD_S", 1.0)
    with gateway(federation) as site:
        with (
            raw(federation) as silent,
            plain(federation) as no_tls,
            raw(federation) as half,
            raw(federation) as endless,
        ):
            half.sendall(b"POST /v1/fleet/pull-messages HTTP/1.1\r\nhost: x\r\nflwr-public")
            with contextlib.suppress(OSError):
                endless.sendall(b"GET /health HTTP/1.1\r\nhost: " + b"x" * 200_000)
            assert site.get("/health").status_code == 200
            for slow in (silent, no_tls, half, endless):
                assert ends(slow)
        with raw(federation) as dripping:
            assert not drips_for(dripping, 5)
        assert site.get("/health").status_code == 200


def test_connections_are_bounded_per_address(federation: Federation) -> None:
    """Half of all connections is what one address gets; a connection that ends makes room."""
    limits = federation.settings.limits.model_copy(update={"connections": 6})
    few = replace(federation, settings=federation.settings.model_copy(update={"limits": limits}))
    with running(Process(few)), contextlib.ExitStack() as held:
        first = [held.enter_context(raw(few)) for _ in range(3)]
        with plain(few) as fourth:
            assert ends(fourth)
        first[0].close()
        wait_for(lambda: served(few))


def test_a_renewed_certificate_is_used_without_a_restart(site: httpx.Client, federation: Federation) -> None:
    """New connections see it within a second or two; a damaged one changes nothing."""
    before = served_certificate(federation)
    renewed = Path(federation.loopback_certificate).read_bytes(), federation.loopback_key.read_bytes()
    federation.private_key.write_bytes(renewed[1])
    federation.certificate.write_bytes(renewed[0])
    wait_for(lambda: served_certificate(federation) != before)
    now = served_certificate(federation)
    federation.certificate.write_bytes(b"damaged")
    time.sleep(1.5)
    assert served_certificate(federation) == now


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
def test_tls_is_at_least_1_2(site: httpx.Client, federation: Federation) -> None:
    """A client that knows only TLS 1.1 is not served."""
    context = trusting(federation)
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    with plain(federation) as connection, pytest.raises(OSError, match=r"(?i)ssl|protocol|version"):
        context.wrap_socket(connection, server_hostname="127.0.0.1")


def test_what_an_operator_can_mend_is_said_in_one_line(federation: Federation) -> None:
    """A port in use, a missing certificate and an open key each name the file or address and the cure."""
    address = federation.settings.host, federation.settings.port
    with socket.create_server(address), pytest.raises(MachineError, match="change 'listen' in federation"):
        Process(federation)
    federation.private_key.chmod(0o644)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        Process(federation)
    federation.private_key.chmod(0o600)
    federation.certificate.unlink()
    with pytest.raises(ConfigurationError, match="fedretrain server renew"):
        Process(federation)
