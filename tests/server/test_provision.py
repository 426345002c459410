"""Making a federation and saying who belongs to it: complete or nothing, private keys private, no key twice."""

import os
import stat
import threading
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    SECP384R1,
    EllipticCurvePrivateKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_ssh_private_key,
)
from tuf.api.metadata import Metadata, Root

from fedretrain.digest import sha256
from fedretrain.errors import ConfigurationError, FedretrainError, MachineError
from fedretrain.membership import JoinRequest, Kit, public_text, read
from server import keyfile, provision
from server.federation import Federation, Settings
from server.provision import admit, guessed_names, init, make_kits, revoke
from server.registry import Registry

SETTINGS = Settings(name="trial", address="localhost:8443")


@pytest.fixture
def quick(founded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bundle that exists already."""
    bundle = Federation.open(founded).bundle_file()

    def copy(federation: Federation) -> None:
        (federation.bundle / bundle.name).write_bytes(bundle.read_bytes())
        (federation.bundle / "sha256").write_text(sha256(bundle.read_bytes()))

    monkeypatch.setattr(provision, "renew_bundle", copy)


def request(folder: Path, name: str, node: EllipticCurvePrivateKey | None = None, signing: object = None) -> Path:
    """A request file as a site makes it."""
    key = signing if isinstance(signing, Ed25519PrivateKey) else Ed25519PrivateKey.generate()
    public = (node or generate_private_key(SECP384R1())).public_key()
    text = public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    path = folder / f"{name}.request"
    made = JoinRequest(name=name, node_key=text, signing_key=public_text(key), software="0.1.0")
    made.proven(key).write(path)
    return path


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_private_is_what_must_be(founded: Path) -> None:
    """Keys and what runs keep are for the owner alone; what an auditor needs is for everybody."""
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in founded.iterdir()}
    assert {name for name, mode in modes.items() if mode == 0o700} == {"keys", "runs", "state"}
    assert {name for name, mode in modes.items() if mode == 0o755} == {"tls", "public", "bundle", "registry"}
    private = [
        *(founded / "keys").glob("*.pem"),
        *(founded / "keys").rglob("*.key"),
        *(founded / "keys/offline").iterdir(),
    ]
    assert {stat.S_IMODE(p.stat().st_mode) for p in private} == {0o600}
    for name, data in content(founded).items():
        assert name.startswith(("keys/", "bundle/")) or b"PRIVATE KEY" not in data, name


def test_the_root_and_the_authority_lie_apart(founded: Path) -> None:
    """With keys/offline moved away no key is left that could make a root or a certificate."""
    offline = {p.name.split("-")[0] for p in (founded / "keys" / "offline").iterdir()}
    online = {p.name.split("-")[0] for p in (founded / "keys").iterdir() if p.is_file()}
    assert offline == {"ca.key", "root"}
    assert online == {"coordinator.pem", "server.key", "loopback.key", "root.json", "targets", "snapshot", "timestamp"}


def test_the_public_folder_is_what_the_keys_stand_for(founded: Path) -> None:
    """Root metadata and authority are copies of those in use."""
    made = Federation.open(founded)
    assert made.public_anchor.read_bytes() == made.anchor.read_bytes()
    assert (made.public / "ca.crt").read_bytes() == made.ca.read_bytes()
    assert sha256(made.bundle_file().read_bytes()) == made.bundle_digest()


def test_every_private_key_can_be_encrypted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None) -> None:
    """With a passphrase only the SuperLink's loopback key is in clear, and without it nothing can be signed."""
    monkeypatch.setattr(keyfile, "_given", {keyfile.VARIABLE: b"correct horse"})
    made = init(tmp_path / "f", SETTINGS)
    clear = [p.name for p in made.keys.rglob("*") if p.is_file() and b"BEGIN PRIVATE KEY" in p.read_bytes()]
    assert clear == ["loopback.key"]
    made.coordinator()
    registry = Registry.open(made.folder)
    root = registry.keys.root()[1]
    registry.keys.signers(root, ["root", "targets"])
    monkeypatch.setattr(keyfile, "_given", {})
    for use in (made.coordinator, lambda: registry.keys.signers(root, ["targets"])):
        with pytest.raises(ConfigurationError, match="encrypted; write the passphrase into a file"):
            use()


def test_the_root_takes_as_many_keys_as_asked(tmp_path: Path, quick: None) -> None:
    """Two of three root keys are in the root metadata as in the folder; a threshold out of reach makes nothing."""
    made = init(tmp_path / "f", SETTINGS, root_keys=3, root_threshold=2)
    role = Metadata[Root].from_bytes(made.anchor.read_bytes()).signed.roles["root"]
    assert (len(role.keyids), role.threshold) == (3, 2)
    assert len(list(made.offline.glob("root-*.pem"))) == 3
    with pytest.raises(ConfigurationError, match="root threshold: expected 1 to 2, the number of keys, got 3"):
        init(tmp_path / "g", SETTINGS, root_keys=2, root_threshold=3)
    assert list((tmp_path / "g").iterdir()) == []


def test_a_folder_with_something_in_it_is_left_alone(founded: Path, tmp_path: Path) -> None:
    """Neither a federation nor anything else is written over."""
    before = content(founded)
    with pytest.raises(ConfigurationError, match="expected a folder that is empty or not there; it is a federation"):
        init(founded, SETTINGS)
    assert content(founded) == before
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigurationError, match=r"it holds thesis\.txt"):
        init(tmp_path, SETTINGS)
    assert content(tmp_path) == {"thesis.txt": b"mine"}


def test_an_init_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None) -> None:
    """A full disk half-way: the folder is empty again; one that was killed half-way is begun anew."""

    def fail(_: Federation) -> None:
        raise MachineError("disk full")

    real = provision.renew_bundle
    monkeypatch.setattr(provision, "renew_bundle", fail)
    with pytest.raises(MachineError, match="disk full"):
        init(tmp_path / "f", SETTINGS)
    monkeypatch.setattr(provision, "renew_bundle", real)
    assert list((tmp_path / "f").iterdir()) == []
    (tmp_path / "f" / ".init").touch()
    (tmp_path / "f" / "keys").mkdir()
    (tmp_path / "f" / "keys" / "root.json").write_text("half")
    made = init(tmp_path / "f", SETTINGS)
    assert Metadata[Root].from_bytes(made.anchor.read_bytes()).signed.version == 1
    assert not (tmp_path / "f" / ".init").exists()


def test_an_impossible_name_is_said_before_anything_is_left(tmp_path: Path, quick: None) -> None:
    """A name that no certificate can hold leaves an empty folder."""
    with pytest.raises(ConfigurationError, match="'a b': expected a host name or an IP address"):
        init(tmp_path / "f", Settings(name="trial", address="localhost:1", names=("a b",)))
    assert list((tmp_path / "f").iterdir()) == []


def test_guesses_are_names_of_this_machine() -> None:
    """The machine's own name comes first, what only it understands last."""
    names = guessed_names()
    assert names[-2:] in {("localhost", "127.0.0.1"), ("127.0.0.1", "localhost")}
    assert os.uname().nodename.lower() in names


def test_a_site_is_admitted(federation: Federation, tmp_path: Path) -> None:
    """The kit names the site, the address and everything to be trusted; the roster has the same keys; no secret."""
    asked = read(request(tmp_path, "hospital-a"), JoinRequest)
    kit = admit(federation, tmp_path / "hospital-a.request", tmp_path / "a.kit")
    assert read(tmp_path / "a.kit", Kit) == kit
    assert (kit.federation, kit.site, kit.address) == ("trial", "hospital-a", "localhost:8443")
    assert (kit.node_key, kit.signing_key) == (asked.node_key, asked.signing_key)
    assert kit.coordinator == public_text(federation.coordinator())
    assert kit.ca == federation.ca.read_text()
    assert kit.root == federation.anchor.read_text()
    assert kit.bundle == federation.bundle_digest()
    assert kit.secrets is None
    member = federation.active()["hospital-a"]
    assert (member.node_key, member.signing_key, member.software) == (asked.node_key, asked.signing_key, "0.1.0")


def test_no_kit_no_admission(federation: Federation, tmp_path: Path) -> None:
    """Where the kit cannot be written the site is not on the roster."""
    with pytest.raises(MachineError, match="nowhere"):
        admit(federation, request(tmp_path, "hospital-a"), tmp_path / "nowhere" / "a.kit")
    assert federation.members() == {}


def test_the_same_request_again_writes_the_kit_again(federation: Federation, tmp_path: Path) -> None:
    """A kit that was lost is written again; the roster stays as it was."""
    path = request(tmp_path, "hospital-a")
    first = admit(federation, path, tmp_path / "a.kit")
    before = federation.roster.read_bytes()
    assert admit(federation, path, tmp_path / "b.kit") == first
    assert federation.roster.read_bytes() == before


def test_names_and_keys_are_taken_once(federation: Federation, tmp_path: Path) -> None:
    """Another site's name or key is refused with whose it is; kit and roster are not written."""
    node, signing = generate_private_key(SECP384R1()), Ed25519PrivateKey.generate()
    admit(federation, request(tmp_path, "a", node, signing), tmp_path / "a.kit")
    before = content(federation.folder)
    for name, keys, words in (
        ("a", (), r"a was admitted with other keys on .* 'fedretrain server revoke a' first"),
        ("b", (node, None), r"its keys are those of a, admitted on"),
        ("b", (None, signing), r"its keys are those of a, admitted on"),
    ):
        with pytest.raises(ConfigurationError, match=words):
            admit(federation, request(tmp_path, name, *keys), tmp_path / "new.kit")
    assert not (tmp_path / "new.kit").exists()
    assert content(federation.folder) == before


def test_only_expected_sites_are_admitted(federation: Federation, tmp_path: Path) -> None:
    """With sites in federation.toml another name is refused with the nearest one."""
    closed = Federation(federation.folder, federation.settings.model_copy(update={"sites": ("hospital-a",)}))
    with pytest.raises(ConfigurationError, match=r"hospital-b is not among the sites of .*did you mean hospital-a\?"):
        admit(closed, request(tmp_path, "hospital-b"), tmp_path / "b.kit")


def test_a_request_that_does_not_prove_itself_is_refused(federation: Federation, tmp_path: Path) -> None:
    """A name changed on the way, or a node key of another kind, admits nobody."""
    path = request(tmp_path, "a")
    path.write_text(path.read_text().replace('"name":"a"', '"name":"b"'))
    with pytest.raises(ConfigurationError, match=r"a\.request: damaged or changed on the way"):
        admit(federation, path, tmp_path / "a.kit")
    with pytest.raises(ConfigurationError, match=r"a\.request: its node key: expected an ECDSA key on the curve P-384"):
        admit(federation, request(tmp_path, "a", generate_private_key(SECP256R1())), tmp_path / "a.kit")
    assert federation.members() == {}


def test_a_revoked_site_is_out_and_its_keys_with_it(federation: Federation, tmp_path: Path) -> None:
    """It is no longer active and cannot come back with those keys, also under another name; with others it can."""
    node, signing = generate_private_key(SECP384R1()), Ed25519PrivateKey.generate()
    path = request(tmp_path, "a", node, signing)
    admit(federation, path, tmp_path / "a.kit")
    gone = revoke(federation, "a")
    assert federation.active() == {}
    assert federation.members() == {"a": gone}
    for again in (path, request(tmp_path, "b", node), request(tmp_path, "b", None, signing)):
        with pytest.raises(ConfigurationError, match=r"its keys were revoked, as those of a, on "):
            admit(federation, again, tmp_path / "b.kit")
    admit(federation, request(tmp_path, "a"), tmp_path / "a.kit")
    assert set(federation.active()) == {"a"}
    assert federation.entries()[0] == gone


def test_revoking_nobody_is_said(federation: Federation, tmp_path: Path) -> None:
    """An unknown name is answered with the nearest one, a second revocation with the time of the first."""
    make_kits(federation, ["hospital-a"], tmp_path)
    with pytest.raises(ConfigurationError, match=r"hospital-b: no such site; did you mean hospital-a\?"):
        revoke(federation, "hospital-b")
    gone = revoke(federation, "hospital-a")
    with pytest.raises(ConfigurationError, match=f"hospital-a: revoked since {gone.revoked}"):
        revoke(federation, "hospital-a")


def test_complete_kits_hold_the_keys_of_the_roster(federation: Federation, tmp_path: Path) -> None:
    """The private keys in a complete kit, mode 0600, are those whose public halves were admitted."""
    (path,) = make_kits(federation, ["a"], tmp_path / "kits")
    kit = read(path, Kit)
    assert kit.secrets is not None
    node = load_ssh_private_key(kit.secrets.node_key.encode(), None)
    signing = load_pem_private_key(kit.secrets.signing_key.encode(), None)
    assert isinstance(node, EllipticCurvePrivateKey)
    assert isinstance(signing, Ed25519PrivateKey)
    member = federation.active()["a"]
    assert member.node_key == node.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    assert member.signing_key == public_text(signing)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(ConfigurationError, match="a was admitted with other keys"):
        make_kits(federation, ["a"], tmp_path / "kits")
    assert read(path, Kit) == kit
    with pytest.raises(ConfigurationError, match=r"'\.\./x': expected letters"):
        make_kits(federation, ["../x"], tmp_path / "kits")


def test_two_operators_at_once_lose_nothing(federation: Federation, tmp_path: Path) -> None:
    """Admissions and revocations from several processes are all in the roster."""
    paths = [request(tmp_path, f"site-{i}") for i in range(8)]
    failures: list[FedretrainError] = []

    def work(path: Path) -> None:
        try:
            admit(Federation.open(federation.folder), path, path.with_suffix(".kit"))
        except FedretrainError as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(path,)) for path in paths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert sorted(federation.active()) == [f"site-{i}" for i in range(8)]
