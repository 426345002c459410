"""Checks a whole registry for its operator and for an auditor: every file, every release, every version of the past.

Invariants: nothing is written; a fault in one place does not hide one in another; every problem names its file. What a
consumer trusts is decided in ``fedretrain.trust`` alone; this module looks further, at what no consumer reads any more.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, TargetFile, Targets  # type: ignore[attr-defined]  # public all the same

from fedretrain import atomic
from fedretrain.errors import UntrustedRelease
from fedretrain.ledger import Statement, files_of, read_ledger
from fedretrain.release import GATE, IDENTIFYING, JSON_LIMIT, LINEAGE, decode_json
from fedretrain.trust import SignedState, Trust, check_length, read_bounded, read_signed

from .staging import PREFIX

EXPIRES_SOON: Final = timedelta(days=30)


@dataclass(frozen=True)
class ReleaseCheck:
    """What verification found about one release; no problems means every file is as it was signed and loads."""

    id: str
    run: str
    published: str
    incumbent: bool
    problems: tuple[str, ...]


@dataclass(frozen=True)
class Audit:
    """What verification found. ``problems`` are the metadata's; where they do not verify, no release was looked at.

    ``history`` holds the statement of each signed version, the newest first. ``notes`` need attention and fail nothing.
    """

    problems: tuple[str, ...]
    releases: tuple[ReleaseCheck, ...] = ()
    history: tuple[Statement, ...] = ()
    notes: tuple[str, ...] = ()
    state: SignedState | None = None

    @property
    def ok(self) -> bool:
        """Whether nothing at all is wrong."""
        return not self.problems and not any(release.problems for release in self.releases)


@dataclass(frozen=True)
class Listed:
    """One row of the list of releases; ``problem`` says why lineage and gate report could not be read."""

    id: str
    run: str
    published: str
    incumbent: bool
    lineage: dict[str, Any]
    gate: dict[str, Any]
    problem: str | None = None


def listing(trust: Trust, state: SignedState) -> tuple[Listed, ...]:
    """Every release of a verified state, oldest first."""
    rows = []
    for identity, entry in sorted(state.ledger.releases.items(), key=lambda item: item[1].version):
        files, folder = files_of(state.targets, identity), trust.registry / "releases" / identity
        lineage: dict[str, Any] = {}
        gate: dict[str, Any] = {}
        problem = None
        try:
            lineage = decode_json(read_signed(folder / LINEAGE, files[LINEAGE], JSON_LIMIT), folder / LINEAGE)
            gate = decode_json(read_signed(folder / GATE, files[GATE], JSON_LIMIT), folder / GATE)
        except UntrustedRelease as error:
            problem = str(error)
        in_use = identity == state.ledger.incumbent
        rows.append(Listed(identity, entry.run, entry.published, in_use, lineage, gate, problem))
    return tuple(rows)


def audit(trust: Trust, state: SignedState, now: datetime, only: str | None = None) -> Audit:
    """Check the releases of a verified state (or ``only`` one), the metadata of the past, and what lies about.

    Args:
        trust: Where the registry lies.
        state: Its verified state.
        now: Time against which expiry is announced.
        only: Full id of a release.

    Raises:
        MachineError: The disk failed.
    """
    with atomic.disk_errors(trust.registry, "verify"):
        statements, past = _history(trust.metadata, state)
        problems = [*_old_roots(trust.metadata, state), *past]
        checks = [
            ReleaseCheck(
                identity,
                entry.run,
                entry.published,
                identity == state.ledger.incumbent,
                tuple(_release_problems(trust, state, identity)),
            )
            for identity, entry in sorted(state.ledger.releases.items(), key=lambda item: item[1].version)
            if only in {None, identity}
        ]
        notes = [*_expiry(state, now), *_unsigned(trust.registry, state)]
    return Audit(tuple(problems), tuple(checks), tuple(statements), tuple(notes), state)


def _release_problems(trust: Trust, state: SignedState, identity: str) -> Iterator[str]:
    """Every file that is not as signed; where all are, what else a consumer would refuse the release for."""
    folder, found = trust.registry / "releases" / identity, False
    for name, signed in sorted(files_of(state.targets, identity).items()):
        try:
            _check_file(folder / name, signed)
        except UntrustedRelease as error:
            found = True
            yield str(error)
    if not found:
        try:
            trust.open_release(identity, state)
        except UntrustedRelease as error:
            yield str(error)


def _check_file(path: Path, signed: TargetFile) -> None:
    check_length(path, signed)
    with path.open("rb") as file:
        try:
            signed.verify_length_and_hashes(file)
        except RepositoryError as error:
            raise UntrustedRelease(f"{path}: not the file that was signed: {error}; changed or damaged") from None


def _history(folder: Path, state: SignedState) -> tuple[list[Statement], list[str]]:
    """The statements back to the first version, newest first, and what is wrong with the files of the past."""
    statements, problems = [state.ledger.statement], []
    ledger = state.ledger
    while ledger.previous is not None:
        links = {"targets": ledger.previous.targets, "snapshot": ledger.previous.snapshot}
        files = {role: folder / f"{link.version}.{role}.json" for role, link in links.items()}
        wrong = [_differs(file, links[role].sha256) for role, file in files.items()]
        problems += [problem for problem in wrong if problem]
        if wrong[0]:
            problems.append(f"{files['targets']}: the history before this version cannot be followed")
            break
        try:
            targets = Metadata[Targets].from_bytes(files["targets"].read_bytes()).signed
            ledger = read_ledger(targets, str(files["targets"]))
        except (RepositoryError, UntrustedRelease) as error:
            problems.append(f"{files['targets']}: signed, but not a ledger: {error}")
            break
        statements.append(ledger.statement)
    return statements, problems


def _differs(file: Path, expected: str) -> str | None:
    if not file.is_file():
        return f"{file}: expected this file of an earlier version, it is missing"
    with file.open("rb") as opened:
        got = hashlib.file_digest(opened, "sha256").hexdigest()
    return None if got == expected else f"{file}: expected SHA-256 {expected}, got {got}; changed or damaged"


def _old_roots(folder: Path, state: SignedState) -> Iterator[str]:
    """Faults of the roots before those that were verified from the trust anchor on; sites may still start from them."""
    first = min(int(name.split(".")[0]) for name in state.files if name.endswith(".root.json"))
    later = Metadata[Root].from_bytes(state.files[f"{first}.root.json"])
    for version in range(first - 1, 0, -1):
        file = folder / f"{version}.root.json"
        if not file.is_file():
            yield f"{file}: expected this file of an earlier version, it is missing"
            return
        try:
            root = Metadata[Root].from_bytes(read_bounded(file) or b"")
            root.signed.verify_delegate("root", root.signed_bytes, root.signatures)
            root.signed.verify_delegate("root", later.signed_bytes, later.signatures)
        except (RepositoryError, ValueError) as error:
            yield f"{file}: not the root that version {version + 1} follows: {error}; changed or damaged"
            return
        later = root


def _expiry(state: SignedState, now: datetime) -> Iterator[str]:
    for signed in (state.root, state.timestamp, state.snapshot, state.targets):
        left = signed.expires - now
        if left < EXPIRES_SOON:
            cure = "rotate" if signed.type == "root" else "renew"
            yield f"{signed.type} expires in {left.days} days; run 'fedretrain server releases {cure}'"


def _unsigned(registry: Path, state: SignedState) -> Iterator[str]:
    """What lies in the registry and nothing vouches for; nothing loads it."""
    known = set(state.ledger.releases)
    for folder in sorted(registry.glob(f"{PREFIX}*")):
        yield f"{folder}: left by an interrupted publish; the next one removes it"
    for folder in sorted((registry / "releases").glob("*")):
        if folder.name not in known:
            yield f"{folder}: not signed; left by an interrupted publish, or put there. Nothing loads it"
        else:
            expected = {*IDENTIFYING, *files_of(state.targets, folder.name)}
            for file in sorted(folder.glob("*")):
                if file.name not in expected:
                    yield f"{file}: not signed. Nothing loads it"
    current = {"targets": state.targets.version, "snapshot": state.snapshot.version, "root": state.root.version}
    for file in sorted((registry / "metadata").iterdir()):
        version, _, role = file.name.removesuffix(".json").partition(".")
        if file.name != "timestamp.json" and not (version.isdigit() and int(version) <= current.get(role, 0)):
            yield f"{file}: no pointer leads to it; left by an interrupted publish, or put there. Nothing loads it"
