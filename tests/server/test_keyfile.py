"""Private keys as files: their owner's alone, and nothing without the passphrase."""

import os
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedretrain.errors import ConfigurationError
from server import keyfile
from server.keyfile import VARIABLE, passphrase, read_key, use_passphrase, write_key

KEY = Ed25519PrivateKey.generate()


def raw(path: Path, secret: bytes | None = None) -> bytes:
    key = read_key(path, secret)
    assert isinstance(key, Ed25519PrivateKey)
    return key.private_bytes_raw()


@pytest.mark.parametrize("secret", [None, b"correct horse"])
def test_a_key_comes_back(tmp_path: Path, secret: bytes | None) -> None:
    """With or without a passphrase the key is the same one, in a file of mode 0600 whatever the umask."""
    before = os.umask(0)
    try:
        write_key(tmp_path / "a.pem", KEY, secret)
    finally:
        os.umask(before)
    assert raw(tmp_path / "a.pem", secret) == KEY.private_bytes_raw()
    assert stat.S_IMODE((tmp_path / "a.pem").stat().st_mode) == 0o600
    assert (b"ENCRYPTED" in (tmp_path / "a.pem").read_bytes()) == bool(secret)


def test_an_encrypted_key_needs_its_passphrase(tmp_path: Path) -> None:
    """Without a passphrase it is said how to give one, with another that it is another; neither is repeated."""
    write_key(tmp_path / "a.pem", KEY, b"correct horse")
    with pytest.raises(ConfigurationError, match=r"a\.pem: encrypted; .* name it in FEDRETRAIN_PASSPHRASE_FILE"):
        read_key(tmp_path / "a.pem")
    with pytest.raises(ConfigurationError, match="the passphrase is another one") as caught:
        read_key(tmp_path / "a.pem", b"battery staple")
    assert "battery" not in str(caught.value)


def test_a_passphrase_does_not_disturb_a_key_without(tmp_path: Path) -> None:
    """A key that is not encrypted is read whatever passphrase there is."""
    write_key(tmp_path / "a.pem", KEY)
    assert raw(tmp_path / "a.pem", b"correct horse") == KEY.private_bytes_raw()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644])
def test_a_key_or_passphrase_that_others_can_read_is_not_used(tmp_path: Path, mode: int) -> None:
    """Any permission for others is refused, with what to do."""
    path = tmp_path / "a"
    write_key(path, KEY)
    path.chmod(mode)
    for read in (read_key, keyfile.read_passphrase):
        with pytest.raises(ConfigurationError, match="that others can read; check who had it, then chmod 600"):
            read(path)


def test_the_passphrase_is_the_first_line_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the environment names is the file; its line end does not count; a person's answer goes first."""
    monkeypatch.delenv(VARIABLE, raising=False)
    assert passphrase() is None
    path = tmp_path / "passphrase"
    path.write_bytes("pässphrase \r\nmore\n".encode())
    path.chmod(0o600)
    monkeypatch.setenv(VARIABLE, str(path))
    assert passphrase() == "pässphrase ".encode()
    monkeypatch.setattr(keyfile, "_given", {})
    use_passphrase(b"typed")
    assert passphrase() == b"typed"


def test_a_passphrase_from_systemd_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A credential that systemd lets a service read through an access list shows permissions for a group."""
    path = tmp_path / "passphrase"
    path.write_bytes(b"correct horse")
    path.chmod(0o440)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "elsewhere"))
    with pytest.raises(ConfigurationError, match="others can read"):
        keyfile.read_passphrase(path)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert keyfile.read_passphrase(path) == b"correct horse"


@pytest.mark.parametrize("content", [b"", b"\n", b"x" * 1024])
def test_no_passphrase_in_the_file_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    """An empty or overlong first line is refused, never taken for "no passphrase"; so is a missing file."""
    path = tmp_path / "passphrase"
    path.write_bytes(content)
    path.chmod(0o600)
    monkeypatch.setenv(VARIABLE, str(path))
    with pytest.raises(ConfigurationError, match="passphrase: expected 1 to 1023 bytes in the first line"):
        passphrase()
    path.unlink()
    with pytest.raises(ConfigurationError, match="expected a file with the passphrase"):
        passphrase()
