"""A federation on the disk: its settings explain their mistakes, its roster is read anew, its keys stay closed."""

import os
from pathlib import Path

import pytest

from fedretrain.errors import ConfigurationError
from fedretrain.membership import public_text
from server.federation import Federation, Limits, Member, Settings
from server.federation_file import split_address

LEAST = 'name = "trial"\naddress = "server.example:8443"\n'


def member(name: str, revoked: str | None = None, key: str = "0") -> Member:
    return Member(name, f"ecdsa-sha2-nistp384 {name}", key * 64, "0.1.0", "2026-01-01T00:00:00Z", revoked)


def settings(folder: Path, text: str) -> Settings:
    (folder / "federation.toml").write_text(text)
    return Federation.open(folder).settings


def test_the_least_settings(tmp_path: Path) -> None:
    """A name and an address are enough; the rest has a value."""
    found = settings(tmp_path, LEAST)
    assert (found.host, found.port) == ("0.0.0.0", 8443)  # noqa: S104  # a gateway is there to be reached
    assert found.server_names == ("server.example",)
    assert (found.limits.body_limit_bytes, found.limits.requests_per_second) == (64 * 2**20, 50)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    """Every setting survives the file, whatever characters are in it."""
    wanted = Settings(
        name="trial",
        address="[::1]:1",
        names=("münchen.example", 'a"b\\c'),
        listen="[::]:65535",
        sites=("a", "b.c-d_e"),
        limits=Limits(body_limit_bytes=2**20, requests_per_second=0.5, burst=1, connections=7),
    )
    assert settings(tmp_path, wanted.toml()) == wanted
    assert (wanted.host, wanted.port) == ("::", 65535)


@pytest.mark.parametrize(
    ("text", "explained"),
    [
        ("", r"address: required, but missing"),
        (LEAST + "sties = []", r"sties: unknown key; did you mean 'sites'\?"),
        (LEAST + "[limits]\nburst = 0", r"limits\.burst: expected at least 1 .*, got 0"),
        (LEAST + 'sites = ["../x"]', r"sites\.0: expected 1 to 64 letters, .* got '\.\./x'"),
        ('name = "a"\naddress = "server.example"', r"address: expected host:port"),
        (LEAST + 'listen = "::1:80"', r"listen: expected host:port, an IPv6 address in brackets"),
        ("name = ", r"not readable as TOML"),
    ],
)
def test_a_mistake_in_the_settings_is_explained(tmp_path: Path, text: str, explained: str) -> None:
    """File, key, expected against got."""
    with pytest.raises(ConfigurationError, match=rf"federation\.toml: .*{explained}"):
        settings(tmp_path, text)


def test_another_users_federation_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Instead of a list of nothing, or of a file that cannot be read; whose it is, is said."""
    (tmp_path / "federation.toml").write_text(LEAST)
    (tmp_path / "state").mkdir()
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ConfigurationError, match=f"belongs to {tmp_path.owner()}; run the command as that user"):
        Federation.open(tmp_path)


@pytest.mark.parametrize(
    "text", ["a", ":1", "a:", "a:0", "a:65536", "a:x", "a b:1", "http://a:1", "a/b:1", "[a]:1", "²:²"]
)
def test_what_is_no_address(text: str) -> None:
    """Only host:port with a possible port is an address."""
    with pytest.raises(ValueError, match="expected host:port"):
        split_address(text)


def test_a_folder_without_federation_is_said(tmp_path: Path) -> None:
    """Another folder than a federation's is named, with the command that makes one."""
    with pytest.raises(ConfigurationError, match=r"expected a federation's folder .*fedretrain server init"):
        Federation.open(tmp_path)


def test_the_roster_is_read_at_each_question(federation: Federation) -> None:
    """What another process writes counts at once; of a name the last entry counts, unless it is revoked."""
    first = member("a", revoked="2026-02-01T00:00:00Z")
    federation.write_roster((first, member("b")))
    assert set(federation.members()) == {"a", "b"}
    assert set(federation.active()) == {"b"}
    again = member("a", key="1")
    Federation.open(federation.folder).write_roster((first, member("b"), again))
    assert federation.active() == {"a": again, "b": member("b")}
    assert federation.entries()[0] == first


@pytest.mark.parametrize(
    "content", [None, b"", b"[]", b'{"format":"fedretrain.roster/2","members":[]}', b'{"members":[{}]}']
)
def test_a_damaged_roster_lets_nobody_in(federation: Federation, content: bytes | None) -> None:
    """A roster that cannot be read is an error, never an empty one."""
    federation.roster.unlink()
    if content is not None:
        federation.roster.write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"roster\.json: not a readable roster, so no site can be let in"):
        federation.active()


def test_the_coordinator_s_key_is_the_public_one_s(federation: Federation) -> None:
    """What kits carry verifies what the key signs; a key open to others, or of another kind, is not used."""
    assert public_text(federation.coordinator()) == (federation.public / "coordinator.pub").read_text().strip()
    federation.coordinator_key.chmod(0o644)
    with pytest.raises(ConfigurationError, match=r"coordinator\.pem: a private key that others can read"):
        federation.coordinator()
    federation.coordinator_key.write_bytes(federation.loopback_key.read_bytes())
    federation.coordinator_key.chmod(0o600)
    with pytest.raises(ConfigurationError, match=r"coordinator\.pem: expected an Ed25519 key"):
        federation.coordinator()


def test_the_bundle_is_the_one_that_is_pinned(federation: Federation) -> None:
    """The digest names the file; without either it is said how to make them."""
    assert federation.bundle_file().suffix == ".fab"
    assert federation.bundle_digest()[:8] in federation.bundle_file().name
    federation.bundle_file().unlink()
    with pytest.raises(ConfigurationError, match=r"expected the bundle .* run 'fedretrain server renew'"):
        federation.bundle_file()
    (federation.bundle / "sha256").unlink()
    with pytest.raises(ConfigurationError, match=r"sha256: .* run 'fedretrain server renew'"):
        federation.bundle_digest()
