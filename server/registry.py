"""The registry: which releases there are, and which one is the incumbent.

Invariants: at every instant, also after SIGKILL at any line, the registry names exactly one complete, verified
incumbent (or none before the first release); only ``publish`` and ``rollback`` move the pointer, each in one step;
nothing is signed that a consumer would not load; one process writes at a time; a release, once signed, is never
changed or removed, so older ones stay loadable.

Under ``out``: ``registry/`` as ``fedretrain.ledger`` and ``fedretrain.release`` describe it, and apart from it
``keys/`` (``server.keys``). Both are made at the first publish, or by ``prepare``; reading (``server.reader``) makes
nothing.

Example::

    registry = Registry.open(Path("retrained"))
    before = registry.incumbent()
    release = registry.publish(draft, expected_parent=before.id if before else None)
"""

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from enum import Enum
from typing import Final

from tuf.api.metadata import Root  # type: ignore[attr-defined]  # public, not in an __all__

from fedretrain import atomic
from fedretrain.crashpoint import crash_point
from fedretrain.errors import ConfigurationError, MachineError, UntrustedRelease
from fedretrain.ledger import Entry, Statement
from fedretrain.release import Release, ReleaseDraft
from fedretrain.trust import ANY_TIME, SignedState

from .keys import ONLINE, ROLES, Signers
from .metadata import Change, first_root, next_root, points_to, utc, write_version
from .reader import RegistryReader
from .staging import Staged, clear_leftovers, stage

__all__ = ["ANY_PARENT", "AnyParent", "Registry", "Release", "ReleaseDraft"]

logger = logging.getLogger(__name__)


class AnyParent(Enum):
    """Stands for "whatever is in use" where ``publish`` is told which incumbent it is to replace."""

    VALUE = "any"


ANY_PARENT: Final = AnyParent.VALUE


class Registry(RegistryReader):
    """The releases under one output folder; what ``RegistryReader`` reads, and how it changes.

    Args:
        out: The folder that holds ``registry`` and ``keys``.
        now: The clock, in UTC; signing and the check for expiry both ask it.
        anchor: For reading only; see ``RegistryReader``.
    """

    def prepare(self, root_keys: int = 1, threshold: int = 1) -> None:
        """Make the keys and the first root before anything is released, so that it can be handed out.

        Args:
            root_keys: How many keys the root role has.
            threshold: How many of them it takes to replace keys.

        Raises:
            ConfigurationError: The threshold cannot be reached.
            MachineError: The disk is full or failed.
        """
        if not 1 <= threshold <= root_keys:
            raise ConfigurationError(f"root threshold: expected 1 to {root_keys}, the number of keys, got {threshold}")
        self._make_folders()
        with atomic.locked(self.folder / ".lock"):
            if not self.keys.anchor.is_file():
                data = first_root(self.keys.generate(ROLES, root_keys), self._now(), threshold)
                atomic.write_bytes(self._metadata / "1.root.json", data)
                atomic.write_bytes(self.keys.anchor, data)

    def publish(self, draft: ReleaseDraft, expected_parent: str | AnyParent | None = ANY_PARENT) -> Release:
        """Sign a draft and make it the incumbent.

        A run is published once: where its release exists already, because a first attempt died after the pointer had
        moved, that release is returned and nothing is changed, also where the incumbent is another one by now.

        Args:
            draft: See ``ReleaseDraft``.
            expected_parent: Id of the incumbent that is to be replaced, None where there must be none. Another
                incumbent means that somebody released meanwhile, and nothing is published.

        Raises:
            ConfigurationError: The draft does not pass the checks every consumer makes, the incumbent is not the
                expected one, or a key is missing.
            UntrustedRelease: The registry's metadata do not verify; nothing is built on them.
            MachineError: The disk is full or failed; the incumbent is as before and nothing new is left.
        """
        run = draft.lineage.get("run")
        with self._writing(create=True) as state:
            ledger = state.ledger if state else None
            if state is not None:
                done = [identity for identity, entry in state.ledger.releases.items() if entry.run == run]
                if done:
                    return self._trust().open_release(done[0], state)
            incumbent = ledger.incumbent if ledger else None
            if expected_parent is not ANY_PARENT and expected_parent != incumbent:
                raise ConfigurationError(
                    f"not released: the model in use changed meanwhile: expected release {expected_parent or 'none'}, "
                    f"got {incumbent or 'none'}. Run again from the model that is in use"
                )
            signers = self._signers(state)
            clear_leftovers(self.folder, str(run), frozenset(ledger.releases if ledger else ()))
            staged = stage(self.folder, replace(draft, lineage={"parent": incumbent, **draft.lineage}))
            self._commit(staged, state, signers)
            return replace(staged.release, folder=self.folder / "releases" / staged.release.id)

    def rollback(self, identity: str) -> Release:
        """Make an older release the incumbent, by a signed statement; the metadata's versions go on rising.

        Raises:
            ConfigurationError: No such release, or it is the incumbent already.
            UntrustedRelease: The metadata or that release do not verify. The present incumbent need not verify.
            MachineError: The disk failed; the incumbent is as before.
        """
        with self._writing() as found:
            state = self._existing(found)
            identity = self.resolve(identity, state)
            if identity == state.ledger.incumbent:
                raise ConfigurationError(f"release {identity[:16]} is in use already")
            release = self._trust().open_release(identity, state)
            statement = Statement(action="rollback", at=utc(self._now()), replaced=state.ledger.incumbent)
            change = replace(self._unchanged(state, statement), incumbent=identity)
            write_version(self._metadata, state, change, [self._signers(state)], self._now())
            self._record()
            return release

    def renew(self) -> SignedState:
        """Sign the same state anew, with new expiry for all but the root; raises as ``rollback``."""
        with self._writing() as found:
            state = self._existing(found)
            change = self._unchanged(state, Statement(action="renew", at=utc(self._now())))
            write_version(self._metadata, state, change, [self._signers(state)], self._now())
            return self._record()

    def renew_root(self) -> datetime:
        """Sign the root anew with the same keys, before the first release too; when it expires now.

        Raises:
            ConfigurationError: Too few of the root keys are here.
            UntrustedRelease: The metadata do not verify, expiry aside.
            MachineError: The disk failed.
        """
        with self._writing(expired_root=True) as state:
            root = state.root if state else self.keys.root()[1]
            self._replace_root(root, next_root(root, self.keys.signers(root, ["root"]), {}, self._now()))
            return self.keys.root()[1].expires

    def rotate(self, *, with_root: bool = False, accept_older: bool = False) -> SignedState:
        """Replace the online keys, through a new root version that the present root key signs.

        The state is first signed by the old and the new keys side by side, then the new root takes force, so that it
        verifies at every instant. (Where an old key is lost it verifies again when the new root is there.)

        Args:
            with_root: Replace the root key too.
            accept_older: Take the state that lies in the registry although a newer one was verified before. That is
                the way out where a stolen key pushed the versions ahead: what it signed does not count any more.

        Raises:
            ConfigurationError: The root key is not here, or there is nothing to sign.
            UntrustedRelease: The metadata do not verify, expiry aside.
            MachineError: The disk failed; old keys are in force, or already the new ones.
        """
        with self._writing(remembered=not accept_older, expired_root=True) as found:
            state = self._existing(found)
            old = self.keys.signers(state.root, ["root"]) | self.keys.available(state.root, ONLINE)
            self.keys.remove_unused(state.root)
            new = self.keys.generate(ROLES if with_root else ONLINE, len(state.root.roles["root"].keyids))
            change = self._unchanged(state, Statement(action="rotate", at=utc(self._now())))
            write_version(self._metadata, state, change, [old, new], self._now())
            self._replace_root(state.root, next_root(state.root, old, new, self._now()))
            self.keys.remove_unused(self.keys.root()[1])
            return self._record()

    def _replace_root(self, before: Root, data: bytes) -> None:
        atomic.write_bytes(self._metadata / f"{before.version + 1}.root.json", data)
        atomic.write_bytes(self.keys.anchor, data)

    def _make_folders(self) -> None:
        atomic.make_folder(self._metadata)
        atomic.make_folder(self.folder / "releases")

    @contextmanager
    def _writing(
        self, *, create: bool = False, remembered: bool = True, expired_root: bool = False
    ) -> Iterator[SignedState | None]:
        """Hold the lock; yields the verified state, in which only the root's expiry counts unless it may have."""
        if create:
            self._make_folders()
        elif not self.folder.is_dir():
            self._existing(self.state())
        with atomic.locked(self.folder / ".lock"):
            atomic.remove_leftovers(self._metadata)
            state = self._trust().state(ANY_TIME, remembered=remembered) if self.exists else None
            if state is not None and not expired_root and state.root.is_expired(self._now()):
                raise UntrustedRelease(
                    f"{self._metadata / f'{state.root.version}.root.json'}: expired since {utc(state.root.expires)}; "
                    f"nobody would take what is signed under it. Run 'fedretrain server releases rotate'"
                )
            yield state

    def _signers(self, state: SignedState | None) -> Signers:
        """The online keys in force; before the first release they are made, and the first root with them."""
        if state is not None:
            return self.keys.signers(state.root, ONLINE)
        if not self.keys.anchor.is_file():
            atomic.write_bytes(self.keys.anchor, first_root(self.keys.generate(ROLES), self._now()))
        data, root = self.keys.root()
        atomic.write_bytes(self._metadata / f"{root.version}.root.json", data)
        return self.keys.signers(root, ONLINE)

    def _commit(self, staged: Staged, state: SignedState | None, signers: Signers) -> None:
        """Give the staged folder its place, sign, and move the pointer; all or nothing."""
        identity, run = staged.release.id, staged.release.lineage["run"]
        final = self.folder / "releases" / identity
        before = state.files[self._pointer.name] if state else None
        known = state.ledger.releases if state else {}
        statement = Statement(action="publish", at=utc(self._now()), replaced=state.ledger.incumbent if state else None)
        change = Change(
            statement=statement,
            incumbent=identity,
            releases={
                **known,
                identity: Entry(run=run, published=statement.at, version=state.targets.version + 1 if state else 1),
            },
            targets={**(state.targets.targets if state else {}), **staged.targets},
        )
        try:
            crash_point("release-staged")
            with atomic.disk_errors(final):
                staged.folder.rename(final)
                atomic.flush_folder(final.parent)
            crash_point("release-moved")
            write_version(self._metadata, state, change, [signers], self._now())
        except BaseException:
            if points_to(self._pointer, before):
                for folder in (staged.folder, final):
                    shutil.rmtree(folder, ignore_errors=True)
            raise
        self._record()
        crash_point("trust-recorded")

    def _record(self) -> SignedState:
        """The state that was just signed, remembered. The pointer has moved: a full disk is no failure any more."""
        try:
            return self._trust().state(self._now())
        except MachineError as error:
            logger.warning("signed and in force, but not yet remembered as the newest: %s", error)
            return self._trust().state(self._now(), remembered=False)

    def _unchanged(self, state: SignedState, statement: Statement) -> Change:
        ledger = state.ledger
        return Change(statement, ledger.incumbent, ledger.releases, state.targets.targets)
