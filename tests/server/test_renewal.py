"""Renewal: everything lives longer, whoever joined before notices nothing, and what runs out is said in time."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.verification import PolicyBuilder, Store

from fedretrain.errors import ConfigurationError, UntrustedRelease
from fedretrain.trust import Trust
from server import renewal
from server.federation import Federation
from server.provision import make_kits
from server.registry import Registry
from server.renewal import expiries, renew, renew_bundle, warnings
from tests.drafts import draft

pytestmark = pytest.mark.usefixtures("unflushed")
DAY = timedelta(days=1)
NOW = datetime.now(UTC)
ROOT = Path(__file__).parents[2]
LATER = NOW + 360 * DAY


@pytest.fixture(autouse=True)
def same_software(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renewal, "renew_bundle", lambda _: None)


def verified(federation: Federation, ca: bytes, at: datetime) -> x509.Certificate:
    """The gateway's certificate, as who trusts ``ca`` verifies it at that time; its key is the one that lies there."""
    made = x509.load_pem_x509_certificate(federation.certificate.read_bytes())
    store = Store([x509.load_pem_x509_certificate(ca)])
    PolicyBuilder().store(store).time(at).build_server_verifier(x509.DNSName("server.example")).verify(made, [])
    assert load_pem_private_key(federation.private_key.read_bytes(), None).public_key() == made.public_key()
    return made


def released(federation: Federation, at: datetime) -> Registry:
    registry = Registry.open(federation.folder, lambda: at)
    registry.publish(draft())
    return registry


def test_a_year_later_nobody_needs_a_new_kit(federation: Federation, tmp_path: Path) -> None:
    """With the roots of the first day alone, a renewed server and its releases are trusted."""
    ca, root = federation.ca.read_bytes(), federation.anchor.read_bytes()
    released(federation, NOW)
    site = Trust(federation.registry, tmp_path / "memory", root)
    renew(federation, LATER)
    end = LATER + 364 * DAY
    verified(federation, ca, end)
    assert site.state(end).root.version == 2
    renew(federation, end)
    verified(federation, ca, end + 364 * DAY)
    state = Trust(federation.registry, tmp_path / "late", root).state(end + 364 * DAY)  # joined then, first seen now
    assert (state.root.version, state.root.expires > end + 3 * 364 * DAY) == (3, True)
    assert federation.ca.read_bytes() == ca


def test_without_renewal_everything_ends(federation: Federation, tmp_path: Path) -> None:
    """The certificate and the roles do expire, so that the test above shows something."""
    released(federation, NOW)
    with pytest.raises(x509.verification.VerificationError, match="not valid at validation time"):
        verified(federation, federation.ca.read_bytes(), NOW + 366 * DAY)
    with pytest.raises(UntrustedRelease, match="expired since"):
        Trust(federation.registry, tmp_path / "memory", federation.anchor.read_bytes()).state(NOW + 366 * DAY)


def test_the_kit_of_today_is_the_kit_of_tomorrow(federation: Federation, tmp_path: Path) -> None:
    """New kits after a renewal have the newest root, and a site with an old one verifies the same registry."""
    released(federation, NOW)
    renew(federation, LATER)
    (path,) = make_kits(federation, ["a"], tmp_path / "kits")
    assert '\\"version\\":2' in path.read_text()
    assert federation.public_anchor.read_bytes() == federation.anchor.read_bytes()


def test_a_root_is_renewed_before_the_first_release(federation: Federation, tmp_path: Path) -> None:
    """A federation that waited for years before its first release is followed from its first root."""
    root, late = federation.anchor.read_bytes(), NOW + 2000 * DAY
    renew(federation, late)
    registry = released(federation, late)
    assert Trust(registry.folder, tmp_path / "memory", root).state(late).root.version == 2
    assert registry.verify().ok


def test_a_young_root_stays(federation: Federation) -> None:
    """Renewing every day does not make a root a day, because sites follow each of them."""
    renew(federation, NOW + 2 * DAY)
    assert Registry.open(federation.folder).keys.root()[1].version == 1


def test_names_in_the_settings_reach_the_certificate(federation: Federation) -> None:
    """A name added to federation.toml is warned of until the next renewal."""
    text = federation.config.read_text().replace(
        'names = ["server.example"', 'names = ["new.example", "server.example"'
    )
    federation.config.write_text(text)
    changed = Federation.open(federation.folder)
    assert warnings(changed) == ["the server's certificate does not name new.example: fedretrain server renew"]
    renew(changed)
    assert warnings(changed) == []


def test_expiry_is_warned_of_14_days_ahead(federation: Federation) -> None:
    """Not 15 days ahead; then with the days left, the date and the command; and that it has expired when it has."""
    released(federation, NOW)
    assert len(expiries(federation)) == 7
    first = next(expiry.when for expiry in expiries(federation) if expiry.what == "the server's certificate")
    assert warnings(federation, NOW + 350 * DAY) == []
    lines = warnings(federation, first - 13 * DAY - timedelta(hours=1))
    assert f"the server's certificate expires in 13 days ({first:%Y-%m-%dT%H:%M:%SZ}): fedretrain server renew" in lines
    assert sum("TUF" in line for line in lines) == 3
    assert any(line.startswith("the server's certificate expired (") for line in warnings(federation, first + DAY))
    assert "TUF root metadata expires in" in " ".join(warnings(federation, NOW + 1090 * DAY))


def test_keys_kept_elsewhere_are_asked_for_when_it_matters(federation: Federation) -> None:
    """Without keys/offline the online roles are renewed and the rest is named; near its end that is an error."""
    released(federation, NOW)
    before = federation.certificate.read_bytes()
    shutil.move(federation.offline, federation.folder / "safe")
    done = renew(federation, NOW + 100 * DAY)
    assert [line.split(":")[0] for line in done.skipped] == ["certificates not renewed", "TUF root not renewed"]
    assert federation.certificate.read_bytes() == before
    assert expiries(federation)[-1].when > NOW
    roles = [expiry.when for expiry in done.expiries if "timestamp" in expiry.what]
    assert roles[0] > NOW + 464 * DAY
    with pytest.raises(ConfigurationError, match=r"certificate expires on .*that takes .*ca\.key; bring them back"):
        renew(federation, LATER)
    shutil.move(federation.folder / "safe", federation.offline)
    assert renew(federation, LATER).skipped == ()


def test_a_foreign_authority_key_signs_nothing(federation: Federation) -> None:
    """A key that is not the authority's is refused; the certificate stays."""
    before = federation.certificate.read_bytes()
    federation.authority_key.write_bytes(federation.loopback_key.read_bytes())
    with pytest.raises(ConfigurationError, match=r"ca\.key: not the key of .*ca\.crt"):
        renew(federation)
    assert federation.certificate.read_bytes() == before


def test_lost_server_keys_are_made_anew(federation: Federation) -> None:
    """The gateway's and the SuperLink's keys need no backup: the authority's is enough."""
    for path in (federation.private_key, federation.loopback_key, federation.certificate):
        path.unlink()
    renew(federation)
    verified(federation, federation.ca.read_bytes(), NOW)
    assert federation.private_key.stat().st_mode & 0o777 == 0o600


def test_a_changed_bundle_is_said(federation: Federation) -> None:
    """The digest of another software is returned, once, and the old bundle is gone."""
    assert renew_bundle(federation) is None
    (federation.bundle / "sha256").write_text("0" * 64)
    (federation.bundle / "fedretrain.fedretrain.0-0-9.00000000.fab").touch()
    assert renew_bundle(federation) == federation.bundle_digest()
    assert [path.name for path in federation.bundle.glob("*.fab")] == [federation.bundle_file().name]
    assert renew_bundle(federation) is None


@pytest.fixture
def visible(founded: Path) -> Iterator[Federation]:
    """A federation with a release, in a folder that other accounts can reach."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        federation = Federation.open(Path(shutil.copytree(founded, Path(name) / "federation")))
        released(federation, NOW)
        yield federation


AS_SOMEBODY = """
import os, sys
from fedretrain.cli import run
run(["server", "releases", "verify", "--folder", sys.argv[1], "--anchor", sys.argv[2]])  # imports while it may
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
sys.exit(run(["server", "releases", "verify", "--folder", *sys.argv[1:2], *sys.argv[3:]]))
"""


def as_somebody(federation: Federation, *options: str) -> subprocess.CompletedProcess[str]:
    """Verify the releases under an account that neither owns them nor shares a group with their owner."""
    paths = (str(federation.folder), str(federation.public_anchor))
    command = [sys.executable, "-c", AS_SOMEBODY, *paths, *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another account")
def test_an_auditor_under_another_account_verifies(visible: Federation) -> None:
    """With the public anchor another account verifies every byte; without, it is told so; private keys stay closed."""
    refused = as_somebody(visible)
    assert refused.returncode == 2
    assert "only its owner can look into it; to verify as somebody else, give" in refused.stderr
    assert f"--anchor {visible.public_anchor}" in refused.stderr
    done = as_somebody(visible, "--anchor", str(visible.public_anchor))
    assert done.returncode == 0, done.stderr
    release = next((visible.registry / "releases").iterdir())
    (release / "lineage.json").write_bytes(b"{}")
    assert as_somebody(visible, "--anchor", str(visible.public_anchor)).returncode == 1


@pytest.mark.parametrize("root", [False, True])
def test_replaced_keys_reach_the_auditors_anchor(federation: Federation, root: bool) -> None:
    """Of a federation: what lies in public verifies what was signed since, and is what the command names."""
    released(federation, NOW)
    before = federation.public_anchor.read_bytes()
    state, anchor = renewal.rotate(federation.folder, with_root=root)
    assert anchor == federation.public_anchor
    assert federation.public_anchor.read_bytes() == federation.anchor.read_bytes() != before
    assert Registry.open(federation.folder, anchor=anchor).verify().ok
    assert state.root.version == 2


def test_a_simulations_anchor_stays_where_it_is(tmp_path: Path) -> None:
    """It has no folder for auditors, and gets none."""
    Registry.open(tmp_path).publish(draft())
    assert renewal.rotate(tmp_path)[1] == tmp_path / "keys" / "root.json"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["keys", "registry"]
