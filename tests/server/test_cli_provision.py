"""The commands of the server's operator: guesses instead of questions, what is printed, and secrets that are not."""

import json
import re
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fedretrain.cli import run
from fedretrain.membership import JoinRequest, Kit, public_text, read
from server import keyfile, provision, renewal
from server.federation import Federation

pytestmark = pytest.mark.usefixtures("unflushed")


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder to work in, no passphrase left from another test, no bundle to build."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(keyfile.VARIABLE, raising=False)
    monkeypatch.setattr(keyfile, "_given", {})
    for module in (provision, renewal):
        monkeypatch.setattr(module, "renew_bundle", lambda f: (f.bundle / "sha256").write_text("2" * 64) and None)


def asked(name: str) -> JoinRequest:
    signing, node = Ed25519PrivateKey.generate(), generate_private_key(SECP384R1()).public_key()
    text = node.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    request = JoinRequest(name=name, node_key=text, signing_key=public_text(signing), software="0.1.0").proven(signing)
    request.write(Path(f"{name}.request"))
    return request


def test_init_asks_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """Without options the folder, the name, the address and the certificate's names are guessed, and said."""
    assert run(["server", "init"]) == 0
    made = Federation.open(Path("federation"))
    assert made.settings.name == "federation"
    assert re.fullmatch(r"\S+:8443", made.settings.address)
    assert made.settings.listen == "0.0.0.0:8443"  # a gateway is there to be reached
    assert "localhost" in made.settings.server_names
    out = capsys.readouterr().out
    for said in (made.settings.address, str(made.offline), "fedretrain server admit SITE.request"):
        assert said in out


@pytest.mark.parametrize(
    ("address", "expected", "listen"),
    [
        ("server.example", "server.example:8443", "0.0.0.0:8443"),
        ("server.example:9000", "server.example:9000", "0.0.0.0:9000"),
        ("10.0.0.7:9000", "10.0.0.7:9000", "0.0.0.0:9000"),
        ("fd00::7", "[fd00::7]:8443", "0.0.0.0:8443"),
        ("[fd00::7]:9000", "[fd00::7]:9000", "0.0.0.0:9000"),
    ],
)
def test_an_address_may_lack_its_port(address: str, expected: str, listen: str) -> None:
    """Host names and addresses of both kinds, with and without port."""
    assert run(["server", "init", "f", "--address", address]) == 0
    settings = Federation.open(Path("f")).settings
    assert (settings.address, settings.listen) == (expected, listen)


def test_init_takes_what_it_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    """Every option ends up in federation.toml, and --json ends with one object."""
    options = "--name trial --address a.example:1 --listen 127.0.0.1:2 --also b.example --site x --site y --json"
    assert run(["server", "init", "f", *options.split()]) == 0
    settings = Federation.open(Path("f")).settings
    assert (settings.name, settings.address, settings.port, settings.sites) == ("trial", "a.example:1", 2, ("x", "y"))
    value = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert value["names"][:2] == ["a.example", "b.example"]


@pytest.mark.parametrize(
    "options", ["--address http://a", "--name a/b", "--listen x", "--site ../x", "--root-threshold 2"]
)
def test_impossible_options_leave_nothing(options: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, exit code 2, an empty folder at most."""
    assert run(["server", "init", "f", *options.split()]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not Path("f").exists() or not list(Path("f").iterdir())


def test_from_request_to_kit_and_out(capsys: pytest.CaptureFixture[str]) -> None:
    """admit prints the fingerprint the site has and writes the kit beside the request; revoke shuts the site out."""
    run(["server", "init"])
    request = asked("hospital-a")
    assert run(["server", "admit", "hospital-a.request"]) == 0
    assert f"admitted hospital-a; fingerprint {request.fingerprint}" in capsys.readouterr().out
    assert read(Path("hospital-a.kit"), Kit).signing_key == request.signing_key
    assert run(["server", "revoke", "hospital-a", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["site"] == "hospital-a"
    assert Federation.open(Path("federation")).active() == {}
    assert run(["server", "admit", "hospital-a.request"]) == 2
    assert "its keys were revoked" in capsys.readouterr().err


def test_complete_kits_for_all_expected_sites(capsys: pytest.CaptureFixture[str]) -> None:
    """Without names those of federation.toml get kits; the next time there is none left to make."""
    run(["server", "init", "--site", "a", "--site", "b"])
    assert run(["server", "kits"]) == 0
    assert {read(path, Kit).site for path in Path("kits").iterdir()} == {"a", "b"}
    assert "private keys" in capsys.readouterr().out
    assert run(["server", "kits"]) == 2
    assert "no site without a kit" in capsys.readouterr().err


def test_renew_says_until_when(capsys: pytest.CaptureFixture[str]) -> None:
    """The dates of everything that expires, and what could not be renewed without the keys kept elsewhere."""
    run(["server", "init"])
    capsys.readouterr()
    Path("federation/keys/offline").rename("safe")
    assert run(["server", "renew"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^\d{4}-\d\d-\d\dT\S+Z  the server's certificate$", out, re.MULTILINE)
    assert "certificates not renewed: that takes" in out
    assert run(["server", "renew", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["skipped"]) == 2


def test_a_passphrase_comes_from_a_file_or_a_person(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Either way the keys are encrypted and the passphrase stands nowhere; renewing needs it again."""
    Path("passphrase").write_text("correct horse\n")
    Path("passphrase").chmod(0o600)
    assert run(["server", "init", "f", "--passphrase-file", "passphrase"]) == 0
    monkeypatch.setattr(keyfile, "_given", {})
    monkeypatch.setattr("typer.prompt", lambda *_, **__: "correct horse")
    assert run(["server", "init", "g", "--passphrase"]) == 0
    for name in ("f", "g"):
        monkeypatch.setattr(keyfile, "_given", {})
        files = [path for path in Path(name).rglob("*") if path.is_file()]
        assert b"ENCRYPTED" in (Path(name) / "keys" / "coordinator.pem").read_bytes()
        assert not any(b"correct horse" in path.read_bytes() for path in files)
        assert run(["server", "renew", "--folder", name]) == 2
        assert run(["server", "renew", "--folder", name, "--passphrase-file", "passphrase"]) == 0
    said = capsys.readouterr()
    assert "correct horse" not in said.out + said.err
