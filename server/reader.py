"""What there is to read of a registry: which release is in use, any of them, all of them; everything verified.

Invariants: nothing is made and nothing changed, beside the memory of what was verified last; what does not verify
leaves as ``UntrustedRelease``, never as content. Somebody who may not look into ``keys/`` reads and verifies from a
trust anchor of his own.
"""

import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from fedretrain import atomic
from fedretrain.errors import ConfigurationError, UntrustedRelease
from fedretrain.ledger import files_of
from fedretrain.release import UNCERTAINTY, Release
from fedretrain.trust import ANY_TIME, SignedState, Trust, read_signed

from .audit import Audit, Listed, audit, listing
from .keys import KeyStore


class RegistryReader:
    """The releases under one output folder, to be read.

    Args:
        out: The folder that holds ``registry`` and ``keys``.
        now: The clock, in UTC; the check for expiry asks it.
        anchor: Root metadata to verify from instead of those in ``keys``, which then is not looked at: for reading
            only, and without the memory that tells an older state that was put back.
    """

    def __init__(self, out: Path, now: Callable[[], datetime], anchor: Path | None = None) -> None:
        self.folder = out / "registry"
        self.keys = KeyStore(out / "keys")
        self.memory = None if anchor else self.keys.memory
        self._anchor = anchor or self.keys.anchor
        self._now = now

    @classmethod
    def open(
        cls, out: Path, now: Callable[[], datetime] = lambda: datetime.now(UTC), anchor: Path | None = None
    ) -> Self:
        """The registry under ``out``; it need not exist yet."""
        return cls(out.resolve(), now, anchor)

    @property
    def exists(self) -> bool:
        """Whether anything was ever released here, or should still be here."""
        self._check_access()
        return self._pointer.exists() or (self.memory is not None and (self.memory / self._pointer.name).exists())

    def expiries(self) -> dict[str, datetime]:
        """When each role's metadata expire, or did; before the first release the root's alone. Raises as ``state``."""
        if not self.exists:
            return {"root": self.keys.root()[1].expires}
        state = self._trust().state(ANY_TIME, remembered=self.memory is not None)
        return {part.type: part.expires for part in (state.root, state.targets, state.snapshot, state.timestamp)}

    def state(self) -> SignedState | None:
        """The verified metadata, None before the first release; raises UntrustedRelease or MachineError."""
        return self._trust().state(self._now(), remembered=self.memory is not None) if self.exists else None

    def incumbent(self) -> Release | None:
        """The release in use, fully verified, None before the first.

        Raises:
            UntrustedRelease: Metadata or release do not verify; names the file.
            MachineError: The disk failed.
        """
        state = self.state()
        if state is None or state.ledger.incumbent is None:
            return None
        return self._trust().open_release(state.ledger.incumbent, state)

    def load(self, identity: str) -> tuple[Release, SignedState]:
        """Any release, fully verified, and the state that vouches for it.

        Args:
            identity: As ``resolve`` takes it.

        Raises:
            ConfigurationError: No registry, or no such release.
            UntrustedRelease: Metadata or release do not verify.
            MachineError: The disk failed.
        """
        state = self._existing(self.state())
        return self._trust().open_release(self.resolve(identity, state), state), state

    def uncertainty(self, identity: str) -> bytes | None:
        """The verified ``uncertainty.safetensors`` of a release, None where it has none; raises as ``load``."""
        state = self._existing(self.state())
        identity = self.resolve(identity, state)
        signed = files_of(state.targets, identity).get(UNCERTAINTY)
        path = self.folder / "releases" / identity / UNCERTAINTY
        return None if signed is None else read_signed(path, signed, signed.length)

    def resolve(self, identity: str, state: SignedState) -> str:
        """The full id from a full id or an unambiguous beginning of at least 4 digits; else ConfigurationError."""
        known = list(state.ledger.releases)
        found = [i for i in known if i.startswith(identity)] if len(identity) >= 4 else []
        if len(found) == 1:
            return found[0]
        if found:
            raise ConfigurationError(f"release {identity}: {len(found)} releases begin so; give more digits")
        raise ConfigurationError(
            f"release {identity}: expected a release of {self.folder}, or at least its first 4 digits; "
            f"there are: {', '.join(i[:16] for i in known) or 'none'}"
        )

    def releases(self) -> tuple[Listed, ...]:
        """Every release, oldest first, with its lineage and gate report; weights are not read.

        Raises:
            ConfigurationError: There is no registry.
            UntrustedRelease: The metadata do not verify; a release's own damage is said in its row instead.
        """
        state = self._existing(self.state())
        return listing(self._trust(), state)

    def verify(self, identity: str | None = None) -> Audit:
        """Check every file of the registry, or of one release with the metadata; does not stop at the first fault.

        Raises:
            ConfigurationError: There is no registry, or no such release.
        """
        if not self.exists:
            self._existing(None)
        try:
            state = self._existing(self.state())
        except UntrustedRelease as error:
            return Audit(problems=(str(error),))
        only = self.resolve(identity, state) if identity else None
        return audit(self._trust(), state, self._now(), only)

    @property
    def _metadata(self) -> Path:
        return self.folder / "metadata"

    @property
    def _pointer(self) -> Path:
        return self._metadata / "timestamp.json"

    def _trust(self) -> Trust:
        self._check_access()
        if not self._anchor.is_file():
            raise UntrustedRelease(
                f"{self._anchor}: expected the root metadata that say which keys count, they are missing; "
                f"restore the folder {self._anchor.parent}: without it nothing in {self.folder} can be verified"
            )
        with atomic.disk_errors(self._anchor, "read"):
            return Trust(self.folder, self.keys.memory, self._anchor.read_bytes())

    def _check_access(self) -> None:
        keys = self.keys.folder
        if self._anchor == self.keys.anchor and keys.is_dir() and not os.access(keys, os.R_OK | os.X_OK):
            raise ConfigurationError(
                f"{keys}: only its owner can look into it; to verify as somebody else, give the root metadata that "
                f"its owner made public: --anchor {keys.parent / 'public' / 'root.json'}"
            )

    def _existing(self, state: SignedState | None) -> SignedState:
        if state is None:
            raise ConfigurationError(
                f"{self.folder}: nothing was released here yet; if something should have "
                "been, name the folder of the federation, or of the simulation, with --folder"
            )
        return state
