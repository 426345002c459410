"""Releases at a site: whatever is wrong with what arrives, and wherever the process dies, the old one keeps serving."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from securesystemslib.signer import CryptoSigner

from client import releases
from client.shelf import Shelf
from fedretrain.errors import ConfigurationError, DeclinedRequest, MachineError, UntrustedRelease
from fedretrain.release import IDENTIFYING, KERAS_FILE, WEIGHTS, encode
from server.keys import ONLINE
from tests.drafts import draft, flip, weights
from tests.signing import NOW, YEAR, current, open_registry, resign, sign_release

from .deliveries import Files, SiteUnderTest, files_of, request_for

pytestmark = pytest.mark.usefixtures("unflushed")
ROOT = Path(__file__).parents[2]
DAY = timedelta(days=1)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry with run-1; not to be changed."""
    out = tmp_path_factory.mktemp("published")
    open_registry(out).publish(draft("run-1", 1))
    return out


@pytest.fixture
def out(published: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(published, tmp_path / "out"))


@pytest.fixture
def site(out: Path, tmp_path: Path) -> SiteUnderTest:
    """A site that serves run-1, while the server has released run-2 meanwhile."""
    site = SiteUnderTest(tmp_path / "home", out)
    site.receive(files_of(out))
    open_registry(out).publish(draft("run-2", 2, gate={"passed": True}))
    return site


def in_use(out: Path) -> str:
    identity = current(out).ledger.incumbent
    assert identity is not None
    return identity


def refusal(site: SiteUnderTest, files: Files) -> DeclinedRequest:
    """The refusal of these files, after which the site serves what it served, whole, and keeps nothing of them."""
    before, pointer = site.serving(), Shelf(site.home).read()
    kept = sorted(p.name for p in site.home.releases.iterdir())
    with pytest.raises(DeclinedRequest) as caught:
        site.receive(files)
    assert caught.value.code == "release-refused"
    assert str(site.home.root) not in str(caught.value)
    assert (site.serving(), Shelf(site.home).read()) == (before, pointer)
    assert sorted(p.name for p in site.home.releases.iterdir()) == kept
    return caught.value


def failure(act: Callable[[], object]) -> str | None:
    """What the machine's failure was reported as, None where all went well."""
    try:
        act()
    except MachineError as error:
        return str(error)
    return None


def test_a_release_is_installed_beside_the_old_one_and_used(out: Path, site: SiteUnderTest) -> None:
    """Both are there, the newest serves, the reply says so, and a question without files says the same."""
    reply = site.receive(files_of(out))
    assert (reply.installed, reply.used, reply.run, reply.site) == (in_use(out), in_use(out), "run-9", "hospital-a")
    assert site.serving() == "run-2"
    assert len(Shelf(site.home).ids()) == 2
    assert {p.name for p in (Shelf(site.home).folder / in_use(out)).iterdir()} == set(IDENTIFYING)
    assert site.receive({}) == reply
    assert releases.used(site.home) == in_use(out)
    release = releases.current(site.home)
    assert release is not None
    np.testing.assert_array_equal(release.weights[0], weights(2)[0])


def test_a_site_without_a_release_says_so(out: Path, tmp_path: Path) -> None:
    """Asked before anything arrived, it names none; a serving process is told None."""
    site = SiteUnderTest(tmp_path / "home", out)
    assert (site.receive({}).installed, site.receive({}).used) == ("", "")
    assert releases.current(site.home) is None
    assert releases.used(site.home) is None
    with pytest.raises(ConfigurationError, match="no release has arrived here yet"):
        releases.use(site.home, releases.LATEST)


def test_metadata_alone_are_answered_with_what_is_missing(out: Path, site: SiteUnderTest) -> None:
    """The signed metadata come first: the reply shows that the release is not here; with its files it is."""
    metadata = {name: data for name, data in files_of(out).items() if name.startswith("metadata/")}
    assert site.receive(metadata).installed != in_use(out)
    assert site.serving() == "run-1"
    assert site.receive(files_of(out, in_use(out))).installed == in_use(out)
    assert site.serving() == "run-2"


def test_a_site_that_was_away_catches_up(out: Path, site: SiteUnderTest) -> None:
    """Releases and a change of keys it never saw: the newest arrives and is used."""
    open_registry(out).publish(draft("run-3", 3))
    open_registry(out).rotate(with_root=True)
    open_registry(out).publish(draft("run-4", 4))
    site.receive(files_of(out, in_use(out)))
    assert site.serving() == "run-4"


def test_fault_41_a_flipped_byte_anywhere_is_refused(out: Path, site: SiteUnderTest) -> None:
    """In any file, on the way (hash of the request) or before it was sent (signature): refused with the file's name."""
    whole = files_of(out, in_use(out))
    for name in whole:
        changed = bytearray(whole[name])
        changed[len(changed) // 3] ^= 4
        spoiled = {**whole, name: bytes(changed)}
        if name.split("/")[1] not in {"1.targets.json", "1.snapshot.json"}:  # of the past: nobody reads them
            assert name in refusal(site, spoiled).where, name
        request = request_for(whole)
        with pytest.raises(DeclinedRequest, match=f"release-refused at {name}: expected SHA-256"):
            releases.Installer(site.home, site.kit).receive(request, spoiled)
    site.receive(whole)
    assert site.serving() == "run-2"


def test_fault_42_an_older_release_validly_signed_is_refused(out: Path, site: SiteUnderTest) -> None:
    """The state of before, put back whole, is refused with both versions; the newer release stays in use."""
    old = files_of(out.parent / "out", in_use(out))
    open_registry(out).publish(draft("run-3", 3))
    site.receive(files_of(out))
    assert "version 2 is older than version 3" in refusal(site, old).expected
    assert site.serving() == "run-3"


def test_fault_42_a_rollback_by_the_server_is_not_followed_unasked(out: Path, site: SiteUnderTest) -> None:
    """The server's signed way back is installed and told; the site's operator decides, and may follow."""
    first = in_use(out)
    site.receive(files_of(out))
    open_registry(out).rollback(next(i for i in Shelf(site.home).ids() if i != first))
    reply = site.receive(files_of(out))
    assert (reply.installed, reply.used) == (in_use(out), first)
    assert site.serving() == "run-2"
    releases.use(site.home, releases.LATEST)
    assert site.serving() == "run-1"
    open_registry(out).publish(draft("run-3", 3))
    site.receive(files_of(out))
    assert site.serving() == "run-3"


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_fault_43_expired_metadata_are_refused(out: Path, site: SiteUnderTest, role: str) -> None:
    """Which file, and since when; what is installed already serves on, whatever the date."""
    resign(out, {role: lambda part: setattr(part, "expires", NOW + DAY)})
    site.at = NOW + 2 * DAY
    refused = refusal(site, files_of(out))
    assert role in refused.where
    assert "expired since 2026-01-02T00:00:00Z" in refused.expected
    site.at = NOW + 10 * YEAR
    assert site.serving() == "run-1"


@pytest.mark.parametrize("role", ONLINE)
def test_fault_44_a_wrong_key_is_refused(out: Path, site: SiteUnderTest, role: str) -> None:
    """Metadata signed by a key the root does not name."""
    right = open_registry(out).keys.signers(current(out).root, ONLINE)
    resign(out, {}, {**right, role: (CryptoSigner.generate_ed25519(),)})
    assert "too few valid signatures" in refusal(site, files_of(out)).expected


def test_fault_44_another_federations_release_is_refused(site: SiteUnderTest, tmp_path: Path) -> None:
    """Complete and validly signed, but not under the root of the kit."""
    for run in ("run-1", "run-2", "run-3"):
        open_registry(tmp_path / "other").publish(draft(run))
    assert refusal(site, files_of(tmp_path / "other")).where.startswith("metadata/")


def test_fault_45_files_of_two_releases_mixed_are_refused(out: Path, site: SiteUnderTest) -> None:
    """Another release's file in this one's place, and a mixture that somebody signed."""
    whole, new, old = files_of(out), in_use(out), next(i for i in current(out).ledger.releases if i != in_use(out))
    for name in (WEIGHTS, "gate.json", "lineage.json"):
        mixed = {**whole, f"releases/{new}/{name}": whole[f"releases/{old}/{name}"]}
        assert refusal(site, mixed).where == f"releases/{new}/{name}"
    sign_release(out, {**encode(draft("run-3", 3)), WEIGHTS: encode(draft("run-4", 4))[WEIGHTS]})
    assert "weights digest named in lineage.json" in refusal(site, files_of(out)).expected


def test_fault_46_versions_pushed_ahead_then_keys_rotated(out: Path, site: SiteUnderTest, tmp_path: Path) -> None:
    """What a stolen key signed far ahead is used at first; after the rotation the good release is, without a person."""
    good = tmp_path / "good"
    shutil.copytree(out, good)
    sign_release(out, encode(draft("evil", 9)))
    ahead = {role: lambda part: setattr(part, "version", 10**6) for role in ONLINE}
    resign(out, ahead)
    site.receive(files_of(out))
    assert site.serving() == "evil"
    open_registry(good).rotate()
    site.receive(files_of(good))
    assert site.serving() == "run-2"


@pytest.mark.parametrize("length", [-1, 0.5, 0])
def test_fault_47_truncated_files_are_refused(out: Path, site: SiteUnderTest, length: float) -> None:
    """A file cut by one byte, by half, or to nothing, and one that is missing."""
    whole = files_of(out, in_use(out))
    for name in [n for n in whole if "/1." not in n]:
        data = whole[name]
        short = data[:-1] if length == -1 else data[: int(len(data) * length)]
        assert name in refusal(site, {**whole, name: short}).where
        if length == 0 and name.startswith("releases/"):
            rest = {n: d for n, d in whole.items() if n != name}
            assert "missing" in refusal(site, rest).expected


def test_fault_48_what_would_expand_is_refused_before(out: Path, site: SiteUnderTest) -> None:
    """A header that claims terabytes, and an archive in the place of the weights: refused by their size alone."""
    parts = encode(draft("run-3", 3))
    bomb = (2**60).to_bytes(8, "little") + b'{"00000":{"dtype":"F32","shape":[1099511627776]}}'
    for weights_file in (bomb, b"PK\x03\x04" + bytes(2000)):
        sign_release(out, {**parts, WEIGHTS: weights_file})
        assert "bytes of variables as the contract says" in refusal(site, files_of(out, in_use(out))).expected


def test_fault_50_no_other_kind_of_file_is_taken(out: Path, site: SiteUnderTest) -> None:
    """HDF5, .keras, a name that leads elsewhere: refused by name, not written, not opened."""
    whole, identity = files_of(out), in_use(out)
    for name in (
        f"releases/{identity}/{KERAS_FILE}",
        f"releases/{identity}/model.h5",
        "../kit.json",
        "metadata/x.json",
    ):
        assert refusal(site, {**whole, name: b"\x89HDF\r\n\x1a\n"}).where == name


def test_fault_51_signed_nan_or_another_architecture_is_refused(out: Path, site: SiteUnderTest) -> None:
    """Signed with the real keys all the same: not finite, or not the architecture the contract names."""
    spoiled = weights(3)
    spoiled[0][0, 0] = np.nan
    sign_release(out, encode(draft("run-3", weights=spoiled)))
    assert "finite numbers" in refusal(site, files_of(out)).expected
    other = encode(draft("run-4", 4))
    sign_release(out, {**other, "architecture.json": b'{"class_name":"Sequential"}'})
    assert "fingerprint named in contract.json" in refusal(site, files_of(out)).expected


@pytest.mark.slow
def test_fault_49_and_51_the_model_itself_is_tried(out: Path, site: SiteUnderTest) -> None:
    """A Lambda, a layer that opens files, or a model whose variables are others than signed: Keras never loads it."""
    from fedretrain.architecture import to_json, weights_of
    from fedretrain.contract import VariableSpec
    from fedretrain.digest import sha256
    from tests.client.parts import classifier

    site.receive(files_of(out))
    model = classifier()
    good, values = to_json(model), weights_of(model)
    specs = tuple(VariableSpec(shape=v.shape, dtype=v.dtype.name, rule="train") for v in values)

    def sent(text: str) -> Files:
        plain = draft("run-3", weights=values)
        contract = plain.contract.model_copy(update={"architecture": sha256(text.encode()), "variables": specs})
        fields = {"architecture": text, "contract": contract, "weights": values}
        sign_release(out, encode(draft(f"run-{sha256(text.encode())[:4]}", **fields)))
        return files_of(out, in_use(out))

    def take(files: Files) -> None:
        releases.Installer(site.home, site.kit, now=lambda: NOW).receive(request_for(files), files)

    for bad in (
        good.replace('"class_name":"Dense"', '"class_name":"Lambda"'),
        good.replace('"class_name":"Dense"', '"class_name":"TFSMLayer"'),
        good.replace('"units":8', '"units":9'),
    ):
        assert bad != good
        with pytest.raises(DeclinedRequest, match=r"release-refused at .*(carries code|got shape|expected)"):
            take(sent(bad))
        assert site.serving() == "run-2"
    take(sent(good))
    loaded = releases.load_model(site.home)
    np.testing.assert_array_equal(weights_of(loaded)[0], values[0])
    exported = site.home.root / "model.keras"
    releases.export(site.home, exported)
    assert exported.stat().st_size > 1000
    assert [p.name for p in site.home.root.glob("*.keras")] == ["model.keras"]


def _takes_in(site: SiteUnderTest, out: Path, fault: str) -> int:
    """Take the newest release in, in a process of its own that dies at ``fault``; its exit code."""
    code = (
        "import sys; from pathlib import Path; from tests.client.deliveries import SiteUnderTest, files_of;"
        "out = Path(sys.argv[2]); SiteUnderTest(Path(sys.argv[1]), out).receive(files_of(out))"
    )
    command = [sys.executable, "-c", code, str(site.home.root), str(out)]
    environment = {**os.environ, "FAULT_AT": fault}
    return subprocess.run(command, cwd=ROOT, env=environment, timeout=120, check=False).returncode


@pytest.mark.slow
@pytest.mark.parametrize(
    ("point", "serves"), [("release-received", "run-1"), ("release-placed", "run-1"), ("release-installed", "run-2")]
)
def test_killed_at_each_step_of_the_install(out: Path, site: SiteUnderTest, point: str, serves: str) -> None:
    """SIGKILL: the old release serves until the pointer moved; the same request again completes it; nothing is left."""
    assert _takes_in(site, out, point) == -signal.SIGKILL
    assert site.serving() == serves
    assert site.receive(files_of(out)).used == in_use(out)
    assert site.serving() == "run-2"
    assert not (site.home.releases / "incoming").exists()
    assert len(Shelf(site.home).ids()) == 2


def test_the_operator_chooses_and_is_obeyed(out: Path, site: SiteUnderTest) -> None:
    """`use` pins: later releases are installed and do not come into use, until `use latest`."""
    first, second = Shelf(site.home).ids()[0], in_use(out)
    site.receive(files_of(out))
    assert releases.use(site.home, first[:6]).lineage["run"] == "run-1"
    open_registry(out).publish(draft("run-3", 3))
    reply = site.receive(files_of(out))
    assert (reply.installed, reply.used) == (in_use(out), first)
    assert releases.use(site.home, "latest").lineage["run"] == "run-3"
    open_registry(out).publish(draft("run-4", 4))
    site.receive(files_of(out))
    assert site.serving() == "run-4"
    assert second in Shelf(site.home).ids()


def test_back_goes_to_what_was_in_use_before(out: Path, site: SiteUnderTest) -> None:
    """Once to run-2, again to run-1, and then there is nothing; a site that went back stays back."""
    site.receive(files_of(out))
    open_registry(out).publish(draft("run-3", 3))
    site.receive(files_of(out))
    assert [releases.back(site.home).lineage["run"] for _ in range(2)] == ["run-2", "run-1"]
    with pytest.raises(ConfigurationError, match="no other release was in use"):
        releases.back(site.home)
    site.receive(files_of(out))
    assert site.serving() == "run-1"


@pytest.mark.parametrize("choice", ["zzzz", "ab", ""])
def test_use_of_a_release_that_is_not_here(site: SiteUnderTest, choice: str) -> None:
    """One line that names what there is; nothing changes."""
    with pytest.raises(ConfigurationError, match=r"there are: [0-9a-f]{16}"):
        releases.use(site.home, choice)
    assert site.serving() == "run-1"


def test_a_release_damaged_on_the_disk_is_refused_and_sent_again(out: Path, site: SiteUnderTest) -> None:
    """It is not served, cannot be chosen, counts as not there for the server, and arrives anew."""
    site.receive(files_of(out))
    first = next(i for i in Shelf(site.home).ids() if i != in_use(out))
    flip(Shelf(site.home).folder / in_use(out) / WEIGHTS, -1)
    with pytest.raises(UntrustedRelease, match="expected release id"):
        releases.current(site.home)
    assert (site.receive({}).installed, site.receive({}).used) == ("", "")
    assert releases.back(site.home).id == first
    with pytest.raises(UntrustedRelease):
        releases.use(site.home, "latest")
    site.receive(files_of(out))
    assert releases.use(site.home, "latest").lineage["run"] == "run-2"


def test_a_damaged_pointer_is_said_and_mended_by_the_operator(out: Path, site: SiteUnderTest) -> None:
    """No guess about what was in use: the site says what to type, and that works."""
    (first,) = Shelf(site.home).ids()
    (site.home.releases / "current").write_text("{")
    with pytest.raises(UntrustedRelease, match="release use RELEASE"):
        releases.current(site.home)
    with pytest.raises(DeclinedRequest):
        site.receive(files_of(out))
    assert releases.use(site.home, first).lineage["run"] == "run-1"


def test_remove_keeps_what_is_in_use(out: Path, site: SiteUnderTest) -> None:
    """Older releases can be deleted; the one in use, and the server's, cannot."""
    site.receive(files_of(out))
    first = next(i for i in Shelf(site.home).ids() if i != in_use(out))
    with pytest.raises(ConfigurationError, match="it stays"):
        releases.remove(site.home, in_use(out))
    assert releases.remove(site.home, first[:8]) == first
    assert Shelf(site.home).ids() == [in_use(out)]
    with pytest.raises(ConfigurationError, match="no other release was in use"):
        releases.back(site.home)


def test_fault_38_a_full_disk_leaves_the_old_release(
    out: Path, site: SiteUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever write fails for want of space, the old release serves and nothing is left of the new one."""
    files = files_of(out, in_use(out))
    for writes in range(100):
        left = iter(range(writes))

        def full(_: int, left: Iterator[int] = left) -> None:
            if next(left, None) is None:
                raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        error = failure(lambda: site.receive(files))
        if error is None:
            break
        assert "free some space" in error
        assert site.serving() == "run-1"
        assert site.serving() == "run-1"
        assert not (site.home.releases / "incoming").exists()
    assert writes > len(files)
    assert site.serving() == "run-2"
