"""Signing keys: private, one per role, and only those that the root names are used."""

import stat
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, Root

from fedretrain.errors import ConfigurationError, UntrustedRelease
from server.keys import ONLINE, ROLES, KeyStore
from server.metadata import first_root, next_root
from tests.signing import NOW


@pytest.fixture
def store(tmp_path: Path) -> KeyStore:
    return KeyStore(tmp_path / "keys")


@pytest.fixture
def root(store: KeyStore) -> Root:
    return Metadata[Root].from_bytes(first_root(store.generate(ROLES), NOW)).signed


def file_of(store: KeyStore, role: str) -> Path:
    (file,) = store.folder.rglob(f"{role}-*.pem")
    return file


def test_keys_are_for_their_owner_alone(store: KeyStore, root: Root) -> None:
    """The folders have mode 0700 and each role one file of mode 0600, whatever the umask; the root's lies apart."""
    assert stat.S_IMODE(store.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((store.folder / "offline").stat().st_mode) == 0o700
    assert file_of(store, "root").parent == store.folder / "offline"
    files = sorted(store.folder.rglob("*.pem"), key=lambda file: file.name)
    assert [f.name.split("-")[0] for f in files] == sorted(ROLES)
    assert {stat.S_IMODE(f.stat().st_mode) for f in files} == {0o600}


def test_a_folder_that_others_could_read_is_closed(tmp_path: Path) -> None:
    """A keys folder that exists with other permissions is restricted before a key goes in."""
    (tmp_path / "keys").mkdir(mode=0o755)
    KeyStore(tmp_path / "keys").generate(ROLES)
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o700


def test_every_role_has_a_key_of_its_own(store: KeyStore, root: Root) -> None:
    """What is read back are the keys the root names, four different ones."""
    signers = store.signers(root, ROLES)
    assert {role: signer.public_key.keyid for role, (signer,) in signers.items()} == {
        role: root.roles[role].keyids[0] for role in ROLES
    }
    assert len({s.public_key.keyid for (s,) in signers.values()}) == 4


def test_the_root_key_is_not_needed_to_sign_releases(store: KeyStore, root: Root) -> None:
    """With the root key kept elsewhere the online roles still sign; asking for it says where it belongs."""
    file_of(store, "root").unlink()
    assert set(store.signers(root, ONLINE)) == set(ONLINE)
    with pytest.raises(
        ConfigurationError, match=r"root-\w+\.pem: expected the private key of role root, it is missing; bring"
    ):
        store.signers(root, ["root"])


def test_a_key_that_others_can_read_is_not_used(store: KeyStore, root: Root) -> None:
    """A private key with permissions for others is refused, with what to do."""
    file_of(store, "targets").chmod(0o640)
    with pytest.raises(ConfigurationError, match=r"targets-\w+\.pem: a private key that others can read; .* chmod 600"):
        store.signers(root, ONLINE)


@pytest.mark.parametrize("content", [b"", b"not a key", CryptoSigner.generate_ed25519().private_bytes])
def test_a_key_that_is_not_the_named_one_is_not_used(store: KeyStore, root: Root, content: bytes) -> None:
    """A damaged file, or another key under the name, is refused before anything is signed with it."""
    file_of(store, "snapshot").write_bytes(content)
    with pytest.raises(
        ConfigurationError, match=r"snapshot-\w+\.pem: not (the private key of role snapshot|a private key)"
    ):
        store.signers(root, ONLINE)


def test_keys_out_of_use_are_removed(store: KeyStore, root: Root) -> None:
    """Keys that the root does not name are deleted; those it names stay."""
    store.generate(ONLINE)
    assert len(list(store.folder.rglob("*.pem"))) == 7
    store.remove_unused(root)
    assert len(list(store.folder.rglob("*.pem"))) == 4
    assert set(store.signers(root, ROLES)) == set(ROLES)


def three_root_keys(store: KeyStore) -> Root:
    """A root that takes two of three keys."""
    data = first_root(store.generate(ROLES, 3), NOW, 2)
    store.anchor.write_bytes(data)
    return store.root()[1]


def test_a_threshold_takes_so_many_root_keys(store: KeyStore) -> None:
    """Two of three sign; any two will do; with one it is said how many are missing, and where the next belongs."""
    root = three_root_keys(store)
    files = sorted((store.folder / "offline").iterdir())
    assert len(files) == 3
    files[0].unlink()
    assert store.present(root, "root")
    assert len(store.signers(root, ["root"])["root"]) == 2
    files[1].unlink()
    assert not store.present(root, "root")
    with pytest.raises(
        ConfigurationError, match=r"role root: expected 2 of 3 private keys, got 1; .*is missing; bring"
    ):
        store.signers(root, ["root"])


def test_a_root_signed_by_its_threshold_verifies(store: KeyStore) -> None:
    """The first root carries the three signatures of its three keys, the next one, by two of them, is its successor."""
    first = three_root_keys(store)
    next(iter((store.folder / "offline").iterdir())).unlink()
    made = Metadata[Root].from_bytes(next_root(first, store.signers(first, ["root"]), {}, NOW))
    first.verify_delegate("root", made.signed_bytes, made.signatures)
    made.signed.verify_delegate("root", made.signed_bytes, made.signatures)
    assert made.signed.roles == first.roles
    assert made.signed.version == 2


def test_root_keys_may_lie_with_the_others(store: KeyStore, root: Root) -> None:
    """A root key beside the online ones is found too."""
    file = file_of(store, "root")
    file.rename(store.folder / file.name)
    assert set(store.signers(root, ROLES)) == set(ROLES)


def test_a_missing_anchor_is_said(store: KeyStore) -> None:
    """Without readable root metadata nothing is guessed."""
    with pytest.raises(UntrustedRelease, match=r"root\.json: No such file"):
        store.root()
