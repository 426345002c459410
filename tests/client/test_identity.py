"""Joining: keys that never leave, a request that proves them, a kit that has to belong to them."""

import stat
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key

from client import identity
from client.home import Home
from fedretrain.errors import ConfigurationError
from fedretrain.membership import JoinRequest, Kit, fingerprint, read
from server import provision
from server.federation import Federation, Settings

pytestmark = pytest.mark.usefixtures("unflushed")


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    settings = Settings(name="north", address="fedserver.example:8443", listen="127.0.0.1:8443")
    return provision.init(tmp_path_factory.mktemp("server") / "federation", settings)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def kit_for(federation: Federation, home: Home, folder: Path, name: str) -> Path:
    """The kit that the server makes of the site's request."""
    request, kit = folder / f"{name}.request", folder / f"{name}.kit"
    identity.request(home, name).write(request)
    provision.admit(federation, request, kit)
    return kit


def changed(kit: Path, **changes: Any) -> Path:
    """The kit with something else in it, under another name."""
    other = kit.with_name("changed.kit")
    read(kit, Kit).model_copy(update=changes).write(other)
    return other


def content(home: Home) -> dict[str, bytes]:
    return {str(p.relative_to(home.root)): p.read_bytes() for p in home.root.rglob("*") if p.is_file()}


def test_a_name_that_is_none_is_explained(tmp_path: Path) -> None:
    """In words, with an example, before any key is made."""
    home = Home(tmp_path / "home")
    with pytest.raises(ConfigurationError) as caught:
        identity.request(home, "Klinik A")
    expected = "1 to 64 letters, digits, dots, hyphens or underscores, with a letter or digit first"
    assert str(caught.value) == f"--name: expected {expected}, got 'Klinik A'; for example hospital-a"
    assert not home.root.exists()


def test_a_request_holds_public_keys_and_their_proof(home: Home, tmp_path: Path) -> None:
    """It verifies, no private key is in it, and Flower can read the node key."""
    made = identity.request(home, "hospital-a")
    file = tmp_path / "hospital-a.request"
    made.write(file)
    read(file, JoinRequest).verify(str(file))
    assert "PRIVATE" not in file.read_text()
    node = load_ssh_private_key(home.node_key.read_bytes(), None)
    assert load_ssh_public_key(made.node_key.encode()) == node.public_key()
    assert node.curve.name == "secp384r1"
    assert (home.keys / "node.pub").read_text() == made.node_key + "\n"


def test_private_keys_are_the_owners_alone(home: Home) -> None:
    """Keys 0600 in folders 0700."""
    identity.request(home, "hospital-a")
    assert [stat.S_IMODE(path.stat().st_mode) for path in (home.node_key, home.signing_key)] == [0o600, 0o600]
    assert [stat.S_IMODE(path.stat().st_mode) for path in (home.root, home.keys, home.run)] == [0o700] * 3


def test_asking_again_gives_the_same_request(home: Home) -> None:
    """Nothing is made anew; a key that is missing is."""
    first = identity.request(home, "hospital-a")
    before = content(home)
    assert identity.request(home, "hospital-a") == first
    assert content(home) == before
    home.signing_key.unlink()
    second = identity.request(home, "hospital-a")
    assert second.node_key == first.node_key
    assert second.signing_key != first.signing_key


def test_both_sides_read_the_same_fingerprint(home: Home, federation: Federation, tmp_path: Path) -> None:
    """Of the request, of the roster's entry and of the kit: 128 bits in groups of four."""
    asked = identity.request(home, "hospital-f")
    kit = read(kit_for(federation, home, tmp_path, "hospital-f"), Kit)
    member = federation.members()["hospital-f"]
    assert asked.fingerprint == fingerprint(member.name, member.node_key, member.signing_key)
    assert asked.fingerprint == fingerprint(kit.site, kit.node_key, kit.signing_key)
    assert [len(group) for group in asked.fingerprint.split()] == [4] * 8
    assert asked.model_copy(update={"name": "hospital-g"}).fingerprint != asked.fingerprint


@pytest.mark.parametrize("name", ["", "-a", "a b", "a/b", "x" * 65])
def test_a_name_that_cannot_be(home: Home, name: str) -> None:
    """Refused in one line before anything is made."""
    with pytest.raises(ConfigurationError, match="for example hospital-a"):
        identity.request(home, name)
    assert not home.root.exists()


def test_a_kit_is_taken_in(home: Home, federation: Federation, tmp_path: Path) -> None:
    """Kit, authority and root lie as files; a site.toml is there to fill in; again is no harm and keeps site.toml."""
    kit = kit_for(federation, home, tmp_path, "hospital-b")
    joined = identity.join(home, kit)
    assert (joined.federation, joined.site) == ("north", "hospital-b")
    assert home.load_kit() == joined
    assert home.ca.read_text() == joined.ca
    assert home.anchor.read_text() == joined.root
    assert "[data]" in home.site.read_text()
    home.site.write_text("mine")
    identity.join(home, changed(kit, address="fedserver.example:9443"))
    assert home.site.read_text() == "mine"
    assert home.load_kit().address == "fedserver.example:9443"


def test_a_complete_kit_brings_the_keys(home: Home, federation: Federation, tmp_path: Path) -> None:
    """They are written 0600, and kit.json has none of them; the same kit again is no harm."""
    (kit,) = provision.make_kits(federation, ["hospital-c"], tmp_path)
    identity.join(home, kit)
    secrets = read(kit, Kit).secrets
    assert secrets is not None
    assert load_ssh_private_key(home.node_key.read_bytes(), None).private_numbers() == (
        load_ssh_private_key(secrets.node_key.encode(), None).private_numbers()
    )
    assert stat.S_IMODE(home.signing_key.stat().st_mode) == 0o600
    assert "PRIVATE" not in home.kit.read_text()
    identity.join(home, kit)
    other = Home(tmp_path / "other")
    identity.request(other, "hospital-c")
    with pytest.raises(ConfigurationError, match="brings other keys"):
        identity.join(other, kit)


def test_a_kit_for_other_keys_is_refused(home: Home, federation: Federation, tmp_path: Path) -> None:
    """It names what to do; nothing is written."""
    kit = kit_for(federation, home, tmp_path, "hospital-d")
    other = Home(tmp_path / "other")
    identity.request(other, "hospital-d")
    before = content(other)
    with pytest.raises(ConfigurationError, match="made for hospital-d, with other keys than those in"):
        identity.join(other, kit)
    assert content(other) == before
    with pytest.raises(ConfigurationError, match="client request --name"):
        identity.join(Home(tmp_path / "third"), kit)


def test_a_site_takes_part_in_one_federation(home: Home, federation: Federation, tmp_path: Path) -> None:
    """Another federation's kit, or another name, needs another home."""
    kit = kit_for(federation, home, tmp_path, "hospital-e")
    identity.join(home, kit)
    for changes in ({"federation": "south"}, {"site": "hospital-x"}):
        with pytest.raises(ConfigurationError, match="another --home"):
            identity.join(home, changed(kit, **changes))
    with pytest.raises(ConfigurationError, match="takes part in north as hospital-e"):
        identity.request(home, "hospital-x")


@pytest.mark.parametrize("part", [{"ca": "-"}, {"root": "{}"}, {"root": '{"signed": {}}'}])
def test_a_damaged_kit_is_refused(home: Home, federation: Federation, tmp_path: Path, part: dict[str, str]) -> None:
    """A certificate or root metadata that cannot be read are found when joining, not when a release arrives."""
    name = f"hospital-{time.monotonic_ns()}"
    kit = kit_for(federation, home, tmp_path, name)
    with pytest.raises(ConfigurationError, match="damaged"):
        identity.join(home, changed(kit, **part))
    assert not home.kit.exists()


def test_root_metadata_that_nobody_signed_are_refused(home: Home, federation: Federation, tmp_path: Path) -> None:
    """A kit whose root was changed on the way, its signature no longer holding."""
    kit = kit_for(federation, home, tmp_path, "hospital-r")
    root = read(kit, Kit).root
    spoiled = root.replace('"version":1', '"version":2')
    assert spoiled != root
    with pytest.raises(ConfigurationError, match="damaged"):
        identity.join(home, changed(kit, root=spoiled))


def test_keys_that_cannot_be_used_are_named(home: Home) -> None:
    """Missing, open to others, of another kind, damaged: the file and what to do, nothing of its content."""
    with pytest.raises(ConfigurationError, match=r"node\.pem: expected this site's private key, it is missing"):
        identity.load_node_key(home)
    identity.request(home, "hospital-a")
    home.signing_key.chmod(0o640)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        identity.load_signing_key(home)
    home.node_key.write_bytes(home.signing_key.read_bytes())
    with pytest.raises(ConfigurationError, match="expected a P-384 private key"):
        identity.load_node_key(home)
    home.node_key.write_bytes(b"-----BEGIN OPENSSH PRIVATE KEY-----\nsecret\n")
    with pytest.raises(ConfigurationError, match="not readable as a private key") as caught:
        identity.load_node_key(home)
    assert "BEGIN" not in str(caught.value)
