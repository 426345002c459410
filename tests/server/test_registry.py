"""The registry: exactly one complete, verified incumbent at every instant, whatever breaks."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedretrain import atomic
from fedretrain.errors import ConfigurationError, FedretrainError, MachineError, UntrustedRelease
from fedretrain.release import IDENTIFYING, KERAS_FILE
from server.keys import ONLINE
from server.registry import Registry
from tests.drafts import draft, flip, weights
from tests.signing import NOW, YEAR, Clock, current, incumbent, open_registry, resign, site

pytestmark = pytest.mark.usefixtures("unflushed")
ROOT = Path(__file__).parents[2]
DAY = timedelta(days=1)
CRASH_POINTS = ("release-staged", "release-moved", "metadata-written", "timestamp-swapped", "trust-recorded")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry with run-1 and run-2, a day apart; run-2 in use; not to be changed."""
    out = tmp_path_factory.mktemp("published")
    open_registry(out, NOW - 2 * DAY).publish(draft("run-1", 1))
    open_registry(out, NOW - DAY).publish(draft("run-2", 2))
    return out


@pytest.fixture
def out(published: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(published, tmp_path / "out"))


@pytest.fixture
def registry(out: Path) -> Registry:
    return open_registry(out)


def run_in_use(out: Path) -> str | None:
    release = open_registry(out).incumbent()
    return release.lineage["run"] if release else None


def ids(out: Path) -> dict[str, str]:
    """Release ids by run."""
    return {entry.run: identity for identity, entry in current(out).ledger.releases.items()}


def content(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


def machine_error(act: Callable[[], object]) -> str | None:
    """What a full disk was reported as, None where all went well."""
    try:
        act()
    except MachineError as error:
        return str(error)
    return None


def assert_whole(out: Path, runs: set[str]) -> None:
    """Everything verifies, exactly these runs are released, and nothing lies about."""
    audit = open_registry(out).verify()
    assert audit.ok, audit
    assert audit.notes == ()
    assert sorted(check.run for check in audit.releases) == sorted(runs)
    assert {p.name for p in (out / "registry").iterdir()} == {".lock", "metadata", "releases"}


def test_reading_makes_nothing(tmp_path: Path) -> None:
    """A registry that does not exist has no incumbent, and asking leaves no trace."""
    assert open_registry(tmp_path / "out").incumbent() is None
    for ask in (Registry.releases, Registry.verify, Registry.renew, Registry.rotate):
        with pytest.raises(ConfigurationError, match=r"nothing was released here yet; .* with --folder"):
            ask(open_registry(tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


def test_a_published_release_is_the_incumbent(tmp_path: Path) -> None:
    """What was published comes back verified, with where it lies and what it replaced."""
    first = open_registry(tmp_path).publish(draft("run-1", 1), expected_parent=None)
    second = open_registry(tmp_path).publish(draft("run-2", 2), expected_parent=first.id)
    release = open_registry(tmp_path).incumbent()
    assert release is not None
    assert release.id == second.id
    assert release.folder == second.folder == tmp_path.resolve() / "registry" / "releases" / second.id
    assert release.lineage["parent"] == first.id
    np.testing.assert_array_equal(release.weights[0], weights(2)[0])
    assert {f.name for f in release.folder.iterdir()} == {*IDENTIFYING, KERAS_FILE}
    assert current(tmp_path).ledger.statement.replaced == first.id


def test_a_release_needs_no_copy_for_people(tmp_path: Path) -> None:
    """Without a writer for model.keras a release has none, and is complete."""
    release = open_registry(tmp_path).publish(draft(keras_file=None))
    assert {f.name for f in release.folder.iterdir()} == set(IDENTIFYING)
    assert_whole(tmp_path, {"run-1"})


def test_a_run_is_published_once(out: Path, registry: Registry) -> None:
    """The same run again is the same release, nothing changes; also when it is no longer in use."""
    before = content(out)
    assert registry.publish(draft("run-2", 2), expected_parent="f" * 64).id == ids(out)["run-2"]
    assert registry.publish(draft("run-1", 1)).id == ids(out)["run-1"]
    assert content(out) == before


def test_another_incumbent_than_expected_stops_a_release(out: Path, registry: Registry) -> None:
    """Compare and swap: somebody released meanwhile, so nothing is published, and both are named."""
    before = content(out)
    for expected in (ids(out)["run-1"], None):
        with pytest.raises(ConfigurationError, match="changed meanwhile: expected release") as caught:
            registry.publish(draft("run-3"), expected_parent=expected)
        assert ids(out)["run-2"] in str(caught.value)
    assert content(out) == before


@pytest.mark.parametrize("expected_is_given", [True, False])
def test_two_publishers_do_not_interleave(out: Path, expected_is_given: bool) -> None:
    """At once, with the same parent: one wins, the other is told. Without a parent: both, one after the other."""
    parent = ids(out)["run-2"]
    results: list[object] = []

    def publish(run: str) -> None:
        try:
            options: dict[str, Any] = {"expected_parent": parent} if expected_is_given else {}
            results.append(open_registry(out).publish(draft(run), **options).lineage["run"])
        except FedretrainError as error:
            results.append(error)

    threads = [threading.Thread(target=publish, args=(run,)) for run in ("run-3", "run-4")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    won = {r for r in results if isinstance(r, str)}
    assert len(won) == (1 if expected_is_given else 2)
    assert all(isinstance(r, ConfigurationError) for r in results if r not in won)
    assert_whole(out, {"run-1", "run-2", *won})


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_fault_51_what_no_site_would_load_is_not_signed(out: Path, registry: Registry, value: float) -> None:
    """NaN weights, or another architecture than the contract's, are refused before anything is signed."""
    before, spoiled = content(out), weights(3)
    spoiled[0][0, 0] = value
    for bad in (
        draft("run-3", weights=spoiled),
        draft("run-3", architecture="{}"),
        draft("run-3", weights=weights()[:4]),
    ):
        with pytest.raises(ConfigurationError, match=r"^not released: "):
            registry.publish(bad)
    assert content(out) == before
    assert_whole(out, {"run-1", "run-2"})


def test_rollback_is_a_signed_statement(out: Path, registry: Registry) -> None:
    """The older release is in use, versions rise, the statement names what it replaced; a site follows."""
    trust = site(out, out / "memory")
    incumbent(trust)
    version = current(out).timestamp.version
    assert registry.rollback(ids(out)["run-1"][:6]).lineage["run"] == "run-1"
    assert run_in_use(out) == incumbent(trust).lineage["run"] == "run-1"
    state = current(out)
    assert state.timestamp.version == version + 1
    assert (state.ledger.statement.action, state.ledger.statement.replaced) == ("rollback", ids(out)["run-2"])
    assert registry.rollback(ids(out)["run-2"]).lineage["run"] == "run-2"
    shutil.rmtree(out / "memory")
    assert_whole(out, {"run-1", "run-2"})


def test_rollback_works_when_the_release_in_use_is_damaged(out: Path, registry: Registry) -> None:
    """That is what it is for: the damaged incumbent is not loaded, the older one is."""
    flip(out / "registry" / "releases" / ids(out)["run-2"] / "weights.safetensors", -1)
    with pytest.raises(UntrustedRelease, match=r"weights\.safetensors: expected SHA-256"):
        registry.incumbent()
    registry.rollback(ids(out)["run-1"])
    assert run_in_use(out) == "run-1"


def test_rollback_to_a_damaged_release_changes_nothing(out: Path, registry: Registry) -> None:
    """A release that does not verify is not put in use."""
    flip(out / "registry" / "releases" / ids(out)["run-1"] / "contract.json", 9)
    before = content(out)
    with pytest.raises(UntrustedRelease, match=r"contract\.json: expected SHA-256"):
        registry.rollback(ids(out)["run-1"])
    assert content(out) == before


@pytest.mark.parametrize(
    ("identity", "says"),
    [("0" * 64, "expected a release of"), ("abc", "first 4 digits"), ("", "first 4 digits"), ("run-2", "is in use")],
)
def test_rollback_to_no_other_release_says_what_there_is(
    out: Path, registry: Registry, identity: str, says: str
) -> None:
    """An unknown id, too short a beginning, or the release in use: one line, nothing signed."""
    before = content(out)
    with pytest.raises(ConfigurationError, match=says):
        registry.rollback(ids(out).get(identity, identity))
    assert content(out) == before


def test_releases_are_listed_oldest_first(out: Path, registry: Registry) -> None:
    """Each with its run, date, lineage and gate report; a damaged one says so and hides no other."""
    flip(out / "registry" / "releases" / ids(out)["run-1"] / "gate.json", 3)
    first, second = registry.releases()
    assert (first.run, first.published, first.incumbent) == ("run-1", "2025-12-30T00:00:00Z", False)
    assert "gate.json: expected SHA-256" in str(first.problem)
    assert (second.run, second.incumbent, second.problem) == ("run-2", True, None)
    assert second.lineage["sites"] == ["a", "b"]
    assert second.gate["passed"] is True


def test_fault_43_an_expired_state_is_renewed(out: Path) -> None:
    """After a year nothing is loaded, and the file and date are named; renewing signs the same state anew."""
    clock = Clock(NOW + YEAR)
    registry = Registry.open(out, clock)
    with pytest.raises(UntrustedRelease, match=r"timestamp\.json: expired since 2026-12-31T00:00:00Z"):
        registry.incumbent()
    assert not registry.verify().ok
    state = registry.renew()
    assert state.expires == NOW + 2 * YEAR
    assert run_in_use(out) == "run-2"
    assert registry.verify().ok


def test_fault_43_an_expired_root_needs_a_rotation(out: Path) -> None:
    """Under an expired root nothing more is signed; a rotation makes a new one and all is well."""
    registry = Registry.open(out, Clock(NOW + 3 * YEAR))
    for act in (lambda: registry.publish(draft("run-3")), registry.renew):
        with pytest.raises(UntrustedRelease, match=r"1\.root\.json: expired since .* releases rotate"):
            act()
    assert registry.rotate().root.version == 2
    assert registry.publish(draft("run-3")).lineage["run"] == "run-3"


@pytest.mark.parametrize("with_root", [False, True])
def test_rotation_replaces_the_keys_and_sites_follow(out: Path, registry: Registry, with_root: bool) -> None:
    """New online keys (and root key if asked) are in force, the old ones are gone, a site goes along."""
    trust = site(out, out.parent / "memory")
    incumbent(trust)
    before = {f.name for f in (out / "keys").rglob("*.pem")}
    registry.rotate(with_root=with_root)
    after = {f.name for f in (out / "keys").rglob("*.pem")}
    assert len(after) == 4
    assert {name.split("-")[0] for name in before & after} == (set() if with_root else {"root"})
    assert incumbent(trust).lineage["run"] == incumbent(site(out, out.parent / "fresh")).lineage["run"] == "run-2"
    registry.rotate()
    registry.publish(draft("run-3"))
    assert incumbent(trust).lineage["run"] == "run-3"
    assert_whole(out, {"run-1", "run-2", "run-3"})


def test_rotation_without_the_old_online_keys(out: Path, registry: Registry) -> None:
    """Lost online keys are replaced with the root key alone; a lost root key is asked for."""
    for file in (out / "keys").glob("[!r]*.pem"):
        file.unlink()
    with pytest.raises(ConfigurationError, match="restore it, or run 'releases rotate'"):
        registry.publish(draft("run-3"))
    registry.rotate()
    assert_whole(out, {"run-1", "run-2"})
    next((out / "keys" / "offline").glob("root-*.pem")).unlink()
    with pytest.raises(ConfigurationError, match="bring it back"):
        registry.rotate()
    assert_whole(out, {"run-1", "run-2"})


def test_keys_made_before_the_first_release_are_those_that_sign(tmp_path: Path) -> None:
    """Root metadata handed out before anything was released verify the first release; making them again is nothing."""
    prepared = open_registry(tmp_path)
    prepared.prepare()
    early, files = site(tmp_path, tmp_path / "memory"), content(tmp_path / "keys")
    prepared.prepare()
    assert content(tmp_path / "keys") == files
    assert not prepared.exists
    assert prepared.incumbent() is None
    prepared.publish(draft())
    assert incumbent(early).lineage["run"] == "run-1"
    assert_whole(tmp_path, {"run-1"})


@pytest.mark.parametrize("with_root", [False, True])
def test_several_people_rotate_together(tmp_path: Path, with_root: bool) -> None:
    """Two of three root keys replace keys, and the next root takes two of three again; one alone replaces nothing."""
    shared = open_registry(tmp_path)
    shared.prepare(root_keys=3, threshold=2)
    trust = site(tmp_path, tmp_path / "memory")
    shared.publish(draft())
    incumbent(trust)
    next((tmp_path / "keys" / "offline").iterdir()).unlink()
    root = shared.rotate(with_root=with_root).root
    assert (len(root.roles["root"].keyids), root.roles["root"].threshold) == (3, 2)
    assert incumbent(trust).lineage["run"] == "run-1"
    for file in list((tmp_path / "keys" / "offline").iterdir())[:2]:
        file.unlink()
    before = content(tmp_path / "registry")
    with pytest.raises(ConfigurationError, match=r"role root: expected 2 of 3 private keys"):
        shared.rotate(with_root=with_root)
    assert content(tmp_path / "registry") == before
    assert_whole(tmp_path, {"run-1"})


def test_a_root_given_new_life_is_followed(out: Path, tmp_path: Path) -> None:
    """The same keys sign a root that lasts longer; sites follow it."""
    trust = site(out, tmp_path / "memory")
    incumbent(trust)
    late = open_registry(out, NOW + 2.9 * YEAR)
    assert late.renew_root() == NOW + 5.9 * YEAR
    late.renew()
    assert incumbent(trust, NOW + 3.5 * YEAR).lineage["run"] == "run-2"
    assert current(out).root.version == 2
    assert_whole(out, {"run-1", "run-2"})


def test_who_reads_with_an_anchor_needs_no_keys(out: Path, tmp_path: Path) -> None:
    """With the owner's root metadata everything verifies and nothing is written; with others nothing does."""
    anchor = shutil.copyfile(out / "keys" / "root.json", tmp_path / "root.json")
    shutil.rmtree(out / "keys")
    before = content(out)
    reader = Registry.open(out, Clock(), anchor)
    assert reader.verify().ok
    assert len(reader.releases()) == 2
    assert content(out) == before
    open_registry(tmp_path / "other").prepare()
    stranger = Registry.open(out, Clock(), tmp_path / "other" / "keys" / "root.json")
    assert not stranger.verify().ok


def test_fault_42_an_older_state_put_back_is_named(out: Path, registry: Registry) -> None:
    """The registry as it was before a release, put back whole: verify fails at timestamp.json, nothing is loaded."""
    old = shutil.copytree(out / "registry", out.parent / "old")
    registry.publish(draft("run-3"))
    shutil.rmtree(out / "registry")
    shutil.copytree(old, out / "registry")
    (problem,) = registry.verify().problems
    assert f"{out / 'registry' / 'metadata' / 'timestamp.json'}: version 2 is older than version 3" in problem
    for act in (registry.incumbent, registry.renew, registry.rotate, lambda: registry.publish(draft("run-4"))):
        with pytest.raises(UntrustedRelease, match="older than version 3"):
            act()
    shutil.rmtree(out / "registry")
    assert "timestamp.json: expected this file, it is missing" in registry.verify().problems[0]


def test_fault_46_versions_pushed_ahead_recover_by_rotation(out: Path, registry: Registry) -> None:
    """The good state put back after a stolen key pushed the versions ahead: rotation, told to, takes it."""
    good = shutil.copytree(out / "registry", out.parent / "good")
    resign(out, {role: lambda part: setattr(part, "version", 10**9) for role in ONLINE})
    registry.incumbent()
    shutil.rmtree(out / "registry")
    shutil.copytree(good, out / "registry")
    with pytest.raises(UntrustedRelease, match="rotate --accept-older"):
        registry.rotate()
    assert registry.rotate(accept_older=True).timestamp.version == 3
    assert registry.publish(draft("run-3")).lineage["run"] == "run-3"
    assert_whole(out, {"run-1", "run-2", "run-3"})


def test_fault_41_verify_names_every_changed_file(out: Path, registry: Registry) -> None:
    """One bit in any file of the registry, of the past as well: verify fails and names exactly that file."""
    registry.rotate(with_root=True)
    files = [p for p in (out / "registry").rglob("*") if p.is_file() and p.name != ".lock"]
    assert len(files) == 2 + 3 + 3 + 1 + 2 * 6
    for file in files:
        whole = file.read_bytes()
        flip(file, len(whole) // 2)
        audit = registry.verify()
        problems = [*audit.problems, *(p for check in audit.releases for p in check.problems)]
        assert not audit.ok
        assert all(str(file) in problem for problem in problems), (file, problems)
        file.write_bytes(whole)
    assert registry.verify().ok


def test_fault_47_verify_names_every_missing_file(out: Path, registry: Registry) -> None:
    """Any file of the registry gone: verify fails and names it."""
    registry.rotate(with_root=True)
    for file in [p for p in (out / "registry").rglob("*") if p.is_file() and p.name != ".lock"]:
        whole = file.read_bytes()
        file.unlink()
        audit = registry.verify()
        problems = [*audit.problems, *(p for check in audit.releases for p in check.problems)]
        assert any(f"{file}: expected" in problem and "missing" in problem for problem in problems), (file, problems)
        file.write_bytes(whole)


def test_verify_of_releases_that_are_gone(out: Path, registry: Registry) -> None:
    """The whole folder of releases gone: every missing file is named, release by release."""
    shutil.rmtree(out / "registry" / "releases")
    assert [len(check.problems) for check in registry.verify().releases] == [6, 6]


def test_verify_of_one_release_leaves_the_others_aside(out: Path, registry: Registry) -> None:
    """Asked about one release, verify looks at its files and the metadata."""
    flip(out / "registry" / "releases" / ids(out)["run-1"] / "gate.json", 3)
    assert [check.run for check in registry.verify(ids(out)["run-2"][:8]).releases] == ["run-2"]
    assert registry.verify(ids(out)["run-2"]).ok
    assert not registry.verify(ids(out)["run-1"]).ok


def test_verify_notes_what_nothing_vouches_for(out: Path, registry: Registry) -> None:
    """Files that nobody signed are no failure, because nobody loads them; they are named."""
    strays = [
        out / "registry" / "metadata" / "9.targets.json",
        out / "registry" / "releases" / ids(out)["run-1"] / "extra",
        out / "registry" / "releases" / ("0" * 64),
    ]
    strays[0].touch()
    strays[1].touch()
    strays[2].mkdir()
    (out / "registry" / "staging-x").mkdir()
    strays.append(out / "registry" / "staging-x")
    audit = registry.verify()
    assert audit.ok
    assert [note.split(": ")[0] for note in sorted(audit.notes)] == [str(s) for s in sorted(strays)]
    assert any("expires in 9 days" in note for note in Registry.open(out, Clock(NOW + YEAR - 10 * DAY)).verify().notes)


def test_history_tells_every_change_of_the_pointer(out: Path, registry: Registry) -> None:
    """The signed statements, newest first, are the registry's log."""
    registry.rollback(ids(out)["run-1"])
    registry.renew()
    assert [(s.action, s.at[:10]) for s in registry.verify().history] == [
        ("renew", "2026-01-01"),
        ("rollback", "2026-01-01"),
        ("publish", "2025-12-31"),
        ("publish", "2025-12-30"),
    ]


def test_a_lost_trust_anchor_is_asked_for(out: Path, registry: Registry) -> None:
    """Without root.json nothing can be verified, and no new anchor is made up beside existing releases."""
    (out / "keys" / "root.json").unlink()
    for act in (registry.incumbent, registry.renew, lambda: registry.publish(draft("run-3"))):
        with pytest.raises(UntrustedRelease, match=r"keys/root\.json: expected the root metadata"):
            act()


def test_a_damaged_trust_anchor_signs_nothing(tmp_path: Path) -> None:
    """Before the first release too, root metadata that cannot be read are named and not replaced."""
    (tmp_path / "keys").mkdir(mode=0o700)
    (tmp_path / "keys" / "root.json").write_bytes(b"{}")
    with pytest.raises(UntrustedRelease, match=r"root\.json: not readable as root metadata"):
        open_registry(tmp_path).publish(draft())


def publish_run_3(registry: Registry) -> None:
    registry.publish(draft("run-3", 3))


def roll_back(registry: Registry) -> None:
    registry.rollback(next(row.id for row in registry.releases() if row.run == "run-1"))


@pytest.mark.parametrize("act", [publish_run_3, roll_back, Registry.renew, lambda r: r.rotate(with_root=True)])
def test_the_incumbent_verifies_after_every_single_write(
    out: Path, monkeypatch: pytest.MonkeyPatch, act: Callable[[Registry], object]
) -> None:
    """A site that looks between any two writes finds one complete, verified incumbent: the old or the new one."""
    known, seen, looking = site(out, out.parent / "known"), [], False
    write = atomic.write_bytes

    def write_and_look(path: Path, data: bytes, **options: Any) -> None:
        nonlocal looking
        write(path, data, **options)
        if not looking:
            looking = True
            seen.append(incumbent(known).lineage["run"])
            shutil.rmtree(out.parent / "fresh", ignore_errors=True)
            assert incumbent(site(out, out.parent / "fresh")).lineage["run"] == seen[-1]
            looking = False

    monkeypatch.setattr(atomic, "write_bytes", write_and_look)
    act(open_registry(out))
    assert len(seen) >= 3
    assert seen == sorted(seen, key=seen.index)
    assert seen[0] == "run-2"
    assert len(set(seen)) == (2 if act in {publish_run_3, roll_back} else 1)


@pytest.mark.parametrize("act", [publish_run_3, roll_back, Registry.renew, Registry.rotate])
def test_fault_38_a_disk_that_is_full_at_any_write(
    out: Path, monkeypatch: pytest.MonkeyPatch, act: Callable[[Registry], object]
) -> None:
    """No room at the n-th write: a MachineError and everything as before, or all of it done; in the end it succeeds."""
    real, failures = os.fsync, 0
    for n in range(100):
        copy = Path(shutil.copytree(out, out.parent / f"copy-{n}"))
        calls = 0

        def fail_at_n(handle: int, n: int = n) -> None:
            nonlocal calls
            calls += 1
            if calls == n + 1:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            real(handle)

        monkeypatch.setattr(os, "fsync", fail_at_n)
        before = current(copy).ledger
        failed = machine_error(lambda copy=copy: act(open_registry(copy)))  # type: ignore[misc]
        if failed is not None:
            failures += 1
            assert "No space left on device; free some space" in failed
            if act is not Registry.rotate:  # of a rotation the first half may be done
                assert current(copy).ledger == before
        assert current(copy).ledger.incumbent in {before.incumbent, *ids(copy).values()}
        monkeypatch.setattr(os, "fsync", real)
        if act is not Registry.rotate:
            assert_whole(copy, set(ids(copy)))
        if failed is not None and n % 4 == 0:
            act(open_registry(copy))  # there is room again
        shutil.rmtree(copy)
        if calls <= n:
            break
    assert failures >= 5


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 400 kB; needs the right to mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("mounting a small file system is not permitted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_fault_38_a_disk_that_is_really_full(small_disk: Path) -> None:
    """With less and less room missing, publish fails without a trace until it fits; the incumbent stays throughout."""
    out, filler = small_disk / "out", small_disk / "filler"
    open_registry(out).publish(draft("run-1"))
    before, failures = content(out / "registry"), 0
    for pages in range(100):
        with filler.open("wb") as file:
            free = shutil.disk_usage(small_disk).free
            file.write(bytes(max(0, free - 4096 * pages)))
        failed = machine_error(lambda: open_registry(out).publish(draft("run-2")))
        if failed is None:
            break
        failures += 1
        assert "No space left on device" in failed
        assert content(out / "registry") == before
        assert run_in_use(out) == "run-1"
        filler.unlink()
    filler.unlink()
    assert failures >= 5
    assert run_in_use(out) == "run-2"
    assert_whole(out, {"run-1", "run-2"})


def test_fault_38_the_copy_for_people_counts_too(out: Path, registry: Registry) -> None:
    """No room for model.keras is no room for the release."""

    def full(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = content(out)
    with pytest.raises(MachineError, match=r"model\.keras: cannot write: No space left"):
        registry.publish(draft("run-3", keras_file=full))
    assert content(out) == before


@pytest.mark.slow
@pytest.mark.parametrize("point", CRASH_POINTS)
def test_fault_36_killed_at_any_step_of_a_release(tmp_path: Path, point: str) -> None:
    """SIGKILL at each step, of the first release and of the second: the next start ends with exactly one of each."""
    for number, run in enumerate(("run-1", "run-2")):
        before = run_in_use(tmp_path)
        code = (
            "from pathlib import Path; from tests.drafts import draft; from tests.signing import open_registry;"
            f"open_registry(Path({str(tmp_path)!r})).publish(draft({run!r}, {number}))"
        )
        environment = {**os.environ, "FAULT_AT": point}
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=False)
        assert done.returncode == -signal.SIGKILL
        moved = point in {"timestamp-swapped", "trust-recorded"}
        assert run_in_use(tmp_path) == (run if moved else before)
        release = open_registry(tmp_path).publish(draft(run, number))
        assert run_in_use(tmp_path) == release.lineage["run"] == run
        assert_whole(tmp_path, {"run-1", run})


def test_what_a_release_knows_of_its_certainty_is_signed_and_optional(out: Path, registry: Registry) -> None:
    """It is no part of the id; read back as it was, and not at all where a bit of it was changed."""
    import dataclasses

    from fedretrain.release import UNCERTAINTY

    plain = draft("run-3", 3)
    release = registry.publish(dataclasses.replace(plain, uncertainty=b"certain"))
    assert registry.uncertainty(release.id) == b"certain"
    assert registry.uncertainty(ids(out)["run-2"]) is None
    assert_whole(out, {"run-1", "run-2", "run-3"})
    flip(release.folder / UNCERTAINTY, 2)
    with pytest.raises(UntrustedRelease):
        registry.uncertainty(release.id)
    assert not registry.verify().ok
