"""What a site accepts from a registry: only what was signed, only the newest, and nothing of it in part."""

import re
import shutil
import stat
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, Role, Root

from fedretrain.digest import canonical_json
from fedretrain.errors import FedretrainError, UntrustedRelease
from fedretrain.ledger import FIELD
from fedretrain.release import IDENTIFYING, KERAS_FILE, WEIGHTS, encode
from fedretrain.trust import Trust
from server.keys import ONLINE
from tests.drafts import draft, flip, weights
from tests.signing import NOW, YEAR, current, incumbent, open_registry, resign, sign_release, site

pytestmark = pytest.mark.usefixtures("unflushed")
GOLDEN = Path(__file__).parent / "golden" / "registry-1"
DAY = timedelta(days=1)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry with two releases, the second in use; not to be changed."""
    out = tmp_path_factory.mktemp("published")
    registry = open_registry(out)
    registry.publish(draft("run-1", 1))
    registry.publish(draft("run-2", 2, gate={"passed": True}))
    return out


@pytest.fixture
def out(published: Path, tmp_path: Path) -> Path:
    """A copy of ``published`` to do anything to."""
    return Path(shutil.copytree(published, tmp_path / "out"))


@pytest.fixture
def trust(out: Path, tmp_path: Path) -> Trust:
    """A site that has already accepted the present state."""
    trust = site(out, tmp_path / "memory")
    incumbent(trust)
    return trust


def refusal(trust: Trust) -> str:
    with pytest.raises(UntrustedRelease) as caught:
        incumbent(trust)
    return str(caught.value)


def metadata(out: Path) -> Path:
    return out / "registry" / "metadata"


def in_use(out: Path) -> Path:
    return out / "registry" / "releases" / str(current(out).ledger.incumbent)


def test_a_site_loads_the_release_in_use(out: Path, tmp_path: Path) -> None:
    """With nothing but the root metadata a site gets the incumbent's parts, and remembers in its own folder only."""
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    release = incumbent(site(out, tmp_path / "memory"))
    assert release.lineage["run"] == "run-2"
    np.testing.assert_array_equal(release.weights[0], weights(2)[0])
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*")} == before
    assert stat.S_IMODE((tmp_path / "memory").stat().st_mode) == 0o700


def test_an_older_release_stays_loadable(out: Path, trust: Trust) -> None:
    """Every release that was ever signed can be loaded under the present metadata."""
    state = trust.state(NOW)
    runs = {trust.open_release(i, state).lineage["run"] for i in state.ledger.releases}
    assert runs == {"run-1", "run-2"}


def test_a_release_of_the_first_format_is_verified_for_ever(tmp_path: Path) -> None:
    """A registry written by version 1 of the format verifies and loads, at a time when it was valid."""
    trust = Trust(GOLDEN / "registry", tmp_path, (GOLDEN / "root.json").read_bytes())
    release = incumbent(trust, NOW + DAY)
    assert release.id == "bb8e78b7d0e14d4f422f347a31fabc521dfac33d1c6ae354e24b34fdb4505d66"
    assert release.lineage["run"] == "golden"
    np.testing.assert_array_equal(release.weights[0], np.arange(6, dtype=np.float32).reshape(2, 3))


def test_nothing_new_needs_no_write_access(out: Path, trust: Trust) -> None:
    """A site, or an auditor, verifies again without changing its memory."""
    before = {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in trust.memory.rglob("*")}
    incumbent(trust)
    assert {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in trust.memory.rglob("*")} == before


@pytest.mark.parametrize("known", [False, True], ids=["first-contact", "known"])
def test_fault_41_a_flipped_byte_anywhere_is_refused(out: Path, tmp_path: Path, known: bool) -> None:
    """A bit changed in any file a site reads, at any of many places, is refused with the file's name."""
    trust = site(out, tmp_path / "memory")
    if known:
        incumbent(trust)
    files = [p for p in metadata(out).iterdir() if p.name[0] in "2t" or "root" in p.name]
    files += [in_use(out) / name for name in IDENTIFYING]
    assert len(files) == 9
    for file in files:
        whole = file.read_bytes()
        for step, position in enumerate(range(0, len(whole), max(1, len(whole) // 8))):
            flip(file, position, (0, 5, 1, 7)[step % 4])
            if not known:
                shutil.rmtree(trust.memory, ignore_errors=True)
            assert str(file) in refusal(trust), (file, position)
            file.write_bytes(whole)
    assert incumbent(trust).lineage["run"] == "run-2"


def test_another_spelling_of_the_same_metadata_is_refused(out: Path, tmp_path: Path) -> None:
    """White space, and letters of the other case in a signature or a time, change no meaning; refused all the same."""
    file = metadata(out) / "timestamp.json"
    whole = file.read_bytes()
    capital = re.sub(rb'"sig":"[^"]*"', lambda m: b'"sig":"' + m[0][7:-1].upper() + b'"', whole)
    for spelling in (whole.replace(b",", b", "), whole + b"\n", whole.replace(b'Z"', b'z"'), capital):
        file.write_bytes(spelling)
        assert f"{file}: expected canonical JSON" in refusal(site(out, tmp_path / "fresh"))
        shutil.rmtree(tmp_path / "fresh")


def test_fault_42_an_older_state_put_back_is_refused(out: Path, tmp_path: Path, trust: Trust) -> None:
    """A whole older state, validly signed, is refused: both versions are named."""
    shutil.copytree(out / "registry", tmp_path / "old")
    open_registry(out).publish(draft("run-3", 3))
    assert incumbent(trust).lineage["run"] == "run-3"
    shutil.rmtree(out / "registry")
    shutil.copytree(tmp_path / "old", out / "registry")
    message = refusal(trust)
    assert f"{metadata(out) / 'timestamp.json'}: version 2 is older than version 3, verified here before" in message


def test_two_states_under_one_version_are_refused(out: Path, trust: Trust) -> None:
    """A second, validly signed state with the version of one already seen is refused."""
    first = (metadata(out) / "timestamp.json").read_bytes()
    resign(out, {})
    forged = (metadata(out) / "timestamp.json").read_bytes()
    (metadata(out) / "timestamp.json").write_bytes(first)
    resign(out, {"timestamp": lambda t: setattr(t, "expires", NOW + DAY)})
    incumbent(trust)
    (metadata(out) / "timestamp.json").write_bytes(forged)
    assert "timestamp.json: expected the content verified before under this version" in refusal(trust)


@pytest.mark.parametrize("known", [False, True], ids=["first-contact", "known"])
@pytest.mark.parametrize("role", ["root", *ONLINE])
def test_fault_43_expired_metadata_are_refused(tmp_path: Path, role: str, known: bool) -> None:
    """Each role's expiry is checked; the message says which file, since when, and the command that helps."""
    out, expiry = tmp_path / "out", NOW + DAY
    open_registry(out, NOW - 3 * YEAR + DAY if role == "root" else NOW).publish(draft())
    if role == "root":
        file, cure = "1.root.json", "rotate"
        open_registry(out).renew()
    else:
        file, cure = {"timestamp": "timestamp.json"}.get(role, f"2.{role}.json"), "renew"
        resign(out, {role: lambda part: setattr(part, "expires", expiry)})
    trust = site(out, tmp_path / "memory")
    if known:
        incumbent(trust, expiry - DAY / 2)
    with pytest.raises(UntrustedRelease) as caught:
        incumbent(trust, expiry + DAY / 2)
    assert f"{metadata(out) / file}: expired since 2026-01-02T00:00:00Z" in str(caught.value)
    assert f"releases {cure}" in str(caught.value)


@pytest.mark.parametrize("role", ONLINE)
def test_fault_44_a_wrong_key_is_refused(out: Path, trust: Trust, role: str) -> None:
    """Metadata signed by a key that the root does not name for the role are refused."""
    right = open_registry(out).keys.signers(current(out).root, ONLINE)
    resign(out, {}, {**right, role: (CryptoSigner.generate_ed25519(),)})
    file = "timestamp.json" if role == "timestamp" else f"3.{role}.json"
    assert f"{metadata(out) / file}: too few valid signatures" in refusal(trust)


def test_fault_44_a_key_of_another_role_is_refused(out: Path, trust: Trust) -> None:
    """The key of one role does not sign for another."""
    right = open_registry(out).keys.signers(current(out).root, ONLINE)
    resign(out, {}, {**right, "targets": right["timestamp"]})
    assert "3.targets.json: too few valid signatures" in refusal(trust)


def test_fault_44_too_few_signatures_are_refused(out: Path, trust: Trust) -> None:
    """Where the root asks for two keys, one valid signature is too few: 1 of 2 is said."""
    keys = open_registry(out).keys
    root = current(out).root
    second = CryptoSigner.generate_ed25519()
    root.version += 1
    root.keys[second.public_key.keyid] = second.public_key
    root.roles["timestamp"] = Role([*root.roles["timestamp"].keyids, second.public_key.keyid], 2)
    signed = Metadata(root)
    signed.sign(keys.signers(root, ["root"])["root"][0])
    (metadata(out) / "2.root.json").write_bytes(canonical_json(signed.to_dict()))
    assert "timestamp.json: too few valid signatures by the keys that count: timestamp was signed by 1/2" in refusal(
        trust
    )


def test_a_root_that_its_predecessor_did_not_sign_is_refused(out: Path, tmp_path: Path, trust: Trust) -> None:
    """Somebody else's registry in this one's place, root and all, is refused at its root."""
    other = tmp_path / "other"
    open_registry(other).publish(draft())
    open_registry(other).rotate()
    shutil.copyfile(metadata(other) / "2.root.json", metadata(out) / "2.root.json")
    assert "2.root.json: too few valid signatures" in refusal(trust)


def test_fault_45_files_of_two_releases_mixed_are_refused(out: Path, trust: Trust) -> None:
    """Any file of another release in this one's folder is refused, although it was signed too."""
    older = out / "registry" / "releases" / next(i for i in current(out).ledger.releases if i != in_use(out).name)
    for name in (WEIGHTS, "gate.json", "lineage.json"):
        whole = (in_use(out) / name).read_bytes()
        shutil.copyfile(older / name, in_use(out) / name)
        assert str(in_use(out) / name) in refusal(trust)
        (in_use(out) / name).write_bytes(whole)


def test_fault_45_a_validly_signed_mixture_is_refused(out: Path, trust: Trust) -> None:
    """Weights of one release and everything else of another, signed together, do not belong together."""
    sign_release(out, {**encode(draft("run-3", 3)), WEIGHTS: encode(draft("run-4", 4))[WEIGHTS]})
    assert "weights.safetensors: expected weights digest named in lineage.json" in refusal(trust)


@pytest.mark.parametrize("name", ["timestamp.json", "2.snapshot.json", "2.targets.json", "1.root.json", *IDENTIFYING])
@pytest.mark.parametrize("known", [False, True], ids=["first-contact", "known"])
def test_fault_47_a_truncated_or_missing_file_is_refused(out: Path, tmp_path: Path, name: str, known: bool) -> None:
    """A file cut short by one byte, by half, to nothing, or gone is refused by its name."""
    trust = site(out, tmp_path / "memory")
    if known:
        incumbent(trust)
    file = (in_use(out) if name in IDENTIFYING else metadata(out)) / name
    whole = file.read_bytes()
    for length in (len(whole) - 1, len(whole) // 2, 0):
        file.write_bytes(whole[:length])
        assert str(file) in refusal(trust)
    file.unlink()
    message = refusal(trust)
    assert str(file) in message
    assert "missing" in message


def test_fault_46_versions_pushed_ahead_are_forgotten_once_the_keys_are_rotated(
    out: Path, tmp_path: Path, trust: Trust
) -> None:
    """A stolen key pushes a site's version far ahead; after the operator's rotation the site follows again."""
    shutil.copytree(out / "registry", tmp_path / "good")
    ahead = {role: lambda part: setattr(part, "version", 2**31) for role in ONLINE}
    resign(out, ahead)
    incumbent(trust)
    shutil.rmtree(out / "registry")
    shutil.copytree(tmp_path / "good", out / "registry")
    assert f"version 2 is older than version {2**31}" in refusal(trust)
    open_registry(out).rotate(accept_older=True)
    assert incumbent(trust).lineage["run"] == "run-2"
    open_registry(out).publish(draft("run-3", 3))
    assert incumbent(trust).lineage["run"] == "run-3"


def test_fault_48_the_archive_for_people_is_never_opened(out: Path, trust: Trust) -> None:
    """Loading a release reads its five files and no model.keras, whatever that holds."""
    opened: list[str] = []
    active = True

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if active and event == "open" and isinstance(arguments[0], str):
            opened.append(Path(arguments[0]).name)

    sys.addaudithook(watch)
    assert (in_use(out) / KERAS_FILE).is_file()
    incumbent(trust)
    active = False
    assert set(IDENTIFYING) <= set(opened)
    assert KERAS_FILE not in opened


def test_fault_48_a_file_of_terabytes_is_refused_before_it_is_read(out: Path, trust: Trust) -> None:
    """A validly signed length beyond what the contract allows is refused without opening the file."""
    identity = sign_release(out, encode(draft("run-3", 3)), {WEIGHTS: 2**42})
    with (out / "registry" / "releases" / identity / WEIGHTS).open("r+b") as file:
        file.truncate(2**42)
    assert f"{WEIGHTS}: expected at most" in refusal(trust)


def test_fault_48_metadata_without_end_are_not_read(out: Path, trust: Trust) -> None:
    """Sparse terabytes in place of any metadata file are refused at once, also at a site that knows the real ones."""
    for name in ("timestamp.json", "2.snapshot.json", "2.targets.json", "1.root.json"):
        whole = (metadata(out) / name).read_bytes()
        with (metadata(out) / name).open("r+b") as file:
            file.truncate(2**42)
        assert str(metadata(out) / name) in refusal(trust)
        (metadata(out) / name).write_bytes(whole)


def test_fault_51_what_was_signed_is_still_checked(out: Path, trust: Trust) -> None:
    """Validly signed NaN weights, or another architecture, are refused."""
    spoiled = weights(3)
    spoiled[1][0] = np.nan
    sign_release(out, encode(draft("run-3", weights=spoiled)))
    assert "variable 00001: expected finite numbers" in refusal(trust)
    sign_release(out, encode(draft("run-4", architecture='{"other":1}')))
    assert "architecture.json: expected fingerprint named in contract.json" in refusal(trust)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda t: t.unrecognized_fields.pop(FIELD), "3.targets.json: registry: "),
        (lambda t: t.unrecognized_fields[FIELD].update(format="fedretrain.registry/9"), "registry.format: "),
        (lambda t: t.unrecognized_fields[FIELD].update(incumbent="0" * 64), "is not among the releases"),
        (lambda t: t.unrecognized_fields[FIELD].update(incumbent="../../etc"), "registry.incumbent: "),
        (
            lambda t: t.targets.pop(next(p for p in t.targets if p.endswith(WEIGHTS))),
            "weights.safetensors'] to be signed",
        ),
        (lambda t: t.targets.update({"../x": next(iter(t.targets.values()))}), "got '../x'"),
    ],
)
def test_a_ledger_that_makes_no_sense_is_refused(
    out: Path, trust: Trust, edit: Callable[[Any], None], says: str
) -> None:
    """However well it is signed: an incumbent that is no release, a path that leads elsewhere, a file left out."""
    resign(out, {"targets": edit})
    assert says in refusal(trust)


def test_a_damaged_memory_is_said_not_passed_over(out: Path, trust: Trust) -> None:
    """A memory that cannot be read would let an older state pass in silence; it is named instead."""
    (trust.memory / "timestamp.json").write_bytes(b"")
    assert f"{trust.memory / 'timestamp.json'}: the memory of what was verified last is damaged" in refusal(trust)


@pytest.mark.parametrize("root", [b"", b"{}", b"[" * 100_000])
def test_a_root_that_is_none_is_refused(out: Path, tmp_path: Path, root: bytes) -> None:
    """What a site is told to trust from the start has to be root metadata."""
    assert "root metadata trusted from the start: " in refusal(Trust(out / "registry", tmp_path / "m", root))


def test_only_our_errors_escape(out: Path, tmp_path: Path) -> None:
    """Metadata of any JSON shape end in one of our errors."""
    values: list[Any] = [None, 1, [], {}, {"signed": None}, {"signed": {"_type": "timestamp"}, "signatures": []}]
    for value in values:
        for name in ("timestamp.json", "2.snapshot.json", "2.targets.json", "2.root.json"):
            shutil.rmtree(tmp_path / "copy", ignore_errors=True)
            shutil.copytree(out, tmp_path / "copy")
            (metadata(tmp_path / "copy") / name).write_bytes(canonical_json(value))
            with pytest.raises(FedretrainError):
                incumbent(site(tmp_path / "copy", tmp_path / "copy" / "memory"))


def test_the_root_type_is_what_the_anchor_has(out: Path, tmp_path: Path) -> None:
    """Other metadata in the root's place are refused: a timestamp is no root."""
    data = (metadata(out) / "timestamp.json").read_bytes()
    assert Metadata[Root].from_bytes(data).signed.type == "timestamp"
    assert "root metadata trusted from the start" in refusal(Trust(out / "registry", tmp_path / "m", data))
