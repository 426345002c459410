"""Requests and kits: what is signed, what is refused, and that nothing of a damaged file is taken."""

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fedretrain.errors import ConfigurationError
from fedretrain.membership import JoinRequest, Kit, public_key, public_text, read

SIGNING = Ed25519PrivateKey.generate()
NODE = generate_private_key(SECP384R1()).public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
REQUEST = JoinRequest(name="hospital-a", node_key=NODE, signing_key=public_text(SIGNING), software="0.1.0")
KIT = {
    "federation": "trial",
    "site": "hospital-a",
    "address": "server.example:8443",
    "ca": "PEM",
    "coordinator": "0" * 64,
    "root": "{}",
    "node_key": NODE,
    "signing_key": "1" * 64,
    "bundle": "2" * 64,
}


def test_a_request_survives_the_way(tmp_path: Path) -> None:
    """Written, read and verified, a request is the same one, with no private key in the file."""
    path = tmp_path / "hospital-a.request"
    REQUEST.proven(SIGNING).write(path)
    found = read(path, JoinRequest)
    found.verify(str(path))
    assert found == REQUEST.proven(SIGNING)
    assert SIGNING.private_bytes_raw().hex() not in path.read_text()
    assert public_key(found.signing_key) == SIGNING.public_key()


@pytest.mark.parametrize(
    "change",
    [{"name": "hospital-b"}, {"software": "0.2.0"}, {"node_key": f"{NODE} "}, {"node_key": "ssh-rsa AAAA"}],
    ids=["name", "software", "node key", "another kind of key"],
)
def test_a_request_that_was_changed_is_refused(change: dict[str, str]) -> None:
    """The proof covers every field."""
    with pytest.raises(ConfigurationError, match=r"a\.request: damaged or changed on the way"):
        REQUEST.proven(SIGNING).model_copy(update=change).verify("a.request")


def test_a_request_needs_the_proof_of_its_own_key() -> None:
    """No proof, or one by another key, is refused: nobody joins with a key that is not his."""
    for request in (REQUEST, REQUEST.proven(Ed25519PrivateKey.generate())):
        with pytest.raises(ConfigurationError, match="its proof does not hold"):
            request.verify("a.request")


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"name": "../evil"}, "name"),
        ({"software": "\x1b[2J"}, "software"),
        ({"signing_key": "xyz"}, "signing_key"),
        ({"format": "fedretrain.request/2"}, "format"),
        ({"more": 1}, "more"),
    ],
)
def test_a_request_of_another_form_is_refused(tmp_path: Path, change: dict[str, object], place: str) -> None:
    """What is no name, no key, no printable text or another version is refused by the name of the field."""
    path = tmp_path / "a.request"
    path.write_text(json.dumps(REQUEST.model_dump() | change))
    with pytest.raises(ConfigurationError, match=rf"a\.request: not a request of this version \({place}: "):
        read(path, JoinRequest)


@pytest.mark.parametrize("content", [b"", b"\x00\xff", b"[]", b'{"format": "fedretrain.kit/1"'])
def test_a_damaged_kit_is_refused(tmp_path: Path, content: bytes) -> None:
    """A file that is no kit is refused in one line that says what to do."""
    path = tmp_path / "a.kit"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"a\.kit: not a kit of this version .*get it again") as caught:
        read(path, Kit)
    assert "\n" not in str(caught.value)


def test_one_file_taken_for_the_other_is_said(tmp_path: Path) -> None:
    """Which it is, and which command it is for."""
    path = tmp_path / "a"
    path.write_text(json.dumps(KIT | {"format": "fedretrain.kit/1"}))
    with pytest.raises(ConfigurationError, match=r"expected a site's request, got a kit, .*client join'"):
        read(path, JoinRequest)
    path.write_text(json.dumps(REQUEST.model_dump()))
    with pytest.raises(ConfigurationError, match=r"expected a site's kit, got a request, .*server admit'"):
        read(path, Kit)


def test_a_missing_kit_is_said() -> None:
    """A path without a file is named with what was expected there."""
    with pytest.raises(ConfigurationError, match=r"no\.kit: expected a site's kit: No such file"):
        read(Path("no.kit"), Kit)


@pytest.mark.parametrize("address", ["server.example", "https://server.example:8443", "a b:1", "server.example:port"])
def test_a_kit_names_host_and_port(address: str) -> None:
    """An address that is not host:port makes no kit."""
    with pytest.raises(ValueError, match="address"):
        Kit.model_validate(KIT | {"address": address})
