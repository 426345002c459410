"""The configurations of docs/nginx.md, in a real nginx."""

import contextlib
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.supercore.error import FlowerError

from fedretrain.processes import free_port
from server.federation import Federation
from server.gateway.app import FLEET
from server.gateway.counters import Traffic, load

from .gateway.kit import (
    ACTIVATE,
    PULL,
    PUSH,
    StubSuperLink,
    client,
    gateway,
    make_federation,
    node_key,
    signed,
    until_refused,
    wait_for,
)

NGINX = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")

DOCUMENT = Path(__file__).parents[2] / "docs" / "nginx.md"
MB = 2**20
AROUND = """
daemon off;
pid {folder}/pid;
error_log {folder}/error.log;
worker_processes 1;
events {{ worker_connections 512; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    {inside}
}}
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Federation, ec.EllipticCurvePrivateKey]:
    """A federation, and the node key of hospital-a."""
    federation, kits = make_federation(tmp_path_factory.mktemp("trial"), names=("localhost",))
    return federation, node_key(kits["hospital-a"])


@contextlib.contextmanager
def nginx(federation: Federation, block: int, ports: dict[str, int], folder: Path) -> Iterator[httpx.Client]:
    """nginx with a configuration of the document, its folder and ports put in, and a client of it."""
    assert NGINX is not None
    text = re.findall(r"```nginx\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)[block]
    text = text.replace("/srv/federation", str(federation.folder)).replace(
        "listen 8443", f"listen {federation.settings.port}"
    )
    for written, port in ports.items():
        assert f"127.0.0.1:{written};" in text
        text = text.replace(f"127.0.0.1:{written};", f"127.0.0.1:{port};")
    folder.mkdir(exist_ok=True)
    (folder / "nginx.conf").write_text(AROUND.format(folder=folder, inside=text))
    process = subprocess.Popen([NGINX, "-c", str(folder / "nginx.conf"), "-p", str(folder)], stderr=subprocess.DEVNULL)
    try:
        wait_for((folder / "pid").is_file)
        with client(federation) as caller:
            yield caller
    finally:
        process.terminate()
        process.wait(10)
    assert "[emerg]" not in (folder / "error.log").read_text()


def test_before_the_gateway_its_words_and_its_counts_stay(
    made: tuple[Federation, ec.EllipticCurvePrivateKey], tmp_path: Path
) -> None:
    """Calls and large bodies pass, refusals keep their sentence, and sites.json has the address nginx saw."""
    federation, key = made
    inner = free_port()
    settings = federation.settings.model_copy(update={"listen": f"127.0.0.1:{inner}"})
    stub = StubSuperLink(federation, lambda _, body: (200, body[::-1]))
    behind = replace(federation, settings=settings)
    with stub.running(), gateway(behind), nginx(federation, 0, {"8444": inner}, tmp_path) as site:
        data = bytes(range(256)) * (4 * MB // 256)
        assert site.post(PUSH, content=data, headers=signed(key)).content == data[::-1]
        refused = site.post(ACTIVATE, content=b"x", headers=signed(key, ahead_s=6))
        assert refused.status_code == 412
        assert "ahead of the server's" in said(refused)
        large = site.post(PUSH, content=b"x" * (65 * MB), headers=signed(key))
        assert (large.status_code, "body_limit_bytes" in said(large)) == (413, True)
        assert site.get("/hello", headers=signed(key)).json()["site"] == "hospital-a"
        elsewhere = signed(key) | {"x-forwarded-for": "203.0.113.9"}
        assert site.post(PULL, content=b"x", headers=elsewhere).status_code == 200
        wait_for(lambda: load(federation.sites).sites.get("hospital-a", Traffic()).requests >= 3)
        assert load(federation.sites).sites["hospital-a"].address == "127.0.0.1"


def test_instead_of_the_gateway_only_fleet_calls_pass_within_limits(
    made: tuple[Federation, ec.EllipticCurvePrivateKey], tmp_path: Path
) -> None:
    """Paths, sizes, rates, pages and SuperLink's certificate, as the document's table says."""
    federation, key = made
    stub = StubSuperLink(federation, lambda _, body: (200, body[::-1]))
    with stub.running():
        ports = {"21234": int(federation.superlink_port.read_text())}
        with nginx(federation, 1, ports, tmp_path) as site:
            nothing_else_passes(site, stub, key)
            data = bytes(range(256)) * (4 * MB // 256)
            assert site.post(PUSH, content=data, headers=signed(key)).content == data[::-1]
            assert site.post(PUSH, content=iter([data, data]), headers=signed(key)).content == (data + data)[::-1]
            for content in (b"x" * (65 * MB), (b"x" * MB for _ in range(70))):
                large = site.post(PUSH, content=content, headers=signed(key))
                assert (large.status_code, "larger than the server takes" in said(large)) == (413, True)
            assert site.get("/health").json() == {"alive": True}
            assert site.get("/ready").status_code == 200
            assert abs(site.get("/time").json()["time"] - time.time()) < 2
            assert set(until_refused(lambda: site.get("/health").status_code)) == {200, 429}


def test_instead_of_the_gateway_a_wrong_or_missing_superlink_is_a_503(
    made: tuple[Federation, ec.EllipticCurvePrivateKey], tmp_path: Path
) -> None:
    """A server that the federation's authority did not sign gets nothing; a SuperNode tries again."""
    federation, key = made
    shutil.copytree(federation.folder, tmp_path / "other")
    other = replace(federation, folder=tmp_path / "other")
    foreign, _ = make_federation(tmp_path / "foreign")
    shutil.copy(foreign.loopback_certificate, other.loopback_certificate)
    shutil.copy(foreign.loopback_key, other.loopback_key)
    stub = StubSuperLink(other)
    with stub.running():
        ports = {"21234": int(other.superlink_port.read_text())}
        with nginx(federation, 1, ports, tmp_path / "nginx") as site:
            answer = site.post(PULL, content=b"x", headers=signed(key))
            assert (answer.status_code, "does not answer" in said(answer), stub.seen) == (503, True, [])


def nothing_else_passes(site: httpx.Client, stub: StubSuperLink, key: ec.EllipticCurvePrivateKey) -> None:
    paths = ["/v1/fleet/register-node", "/v1/fleet/unregister-node", "/", "/docs", "/v1/control/list-nodes"]
    paths += [
        "/v1/runtime/acquire-task",
        "/v1/fleet/%2e%2e/control/list-nodes",
        f"{PULL}/",
        "/v1/fleet/pull-messages%2f",
    ]
    for path in paths:
        assert site.post(path, content=b"", headers=signed(key)).status_code == 404, path
    assert site.get(PULL, headers=signed(key)).status_code == 404
    assert stub.seen == []
    for call in sorted(FLEET):
        assert site.post(f"/v1/fleet/{call}", content=b"ab", headers=signed(key)).content == b"ba", call
    assert [path for path, _, _ in stub.seen] == [f"/v1/fleet/{call}" for call in sorted(FLEET)]
    disguised = "/v1/control/list-nodes/../../fleet/pull-messages"
    site.post(httpx.URL(str(site.base_url)).copy_with(raw_path=disguised.encode()), content=b"", headers=signed(key))
    assert stub.seen[-1][0] == PULL


def said(answer: httpx.Response) -> str:
    error = FlowerError.from_json(answer.text)
    assert error is not None
    return error.message
