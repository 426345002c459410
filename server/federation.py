"""A federation as it lies on the server's disk: settings, members, keys, certificates and the state of what runs.

Layout of the folder; only its owner can read what is marked 0700, everything else holds no secret::

    federation.toml      ``Settings``, for the operator to edit
    roster.json          who is, or was, a member; read anew at every question
    keys/         0700   private keys: coordinator.pem, server.key, loopback.key, the online roles' (``server.keys``)
    keys/offline/ 0700   the root role's and ca.key, for ``renew`` and ``releases rotate`` only; best kept elsewhere
    tls/                 ca.crt, server.crt (the gateway's), loopback.crt (the SuperLink's, 127.0.0.1)
    public/              root.json, ca.crt, coordinator.pub: what an auditor, or anybody, needs to verify
    bundle/              the Flower app bundle and, in ``sha256``, the digest by which sites pin it
    registry/            releases (``server.registry``)
    runs/         0700   one folder per run (``fedretrain.runfolder``)
    state/        0700   what the running processes keep

Members are never deleted from the roster: a revoked one stays, so that its keys cannot come back.

Example::

    federation = Federation.open(Path("federation"))
    for name, member in federation.active().items(): ...
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass

from fedretrain import atomic
from fedretrain.errors import ConfigurationError
from fedretrain.job import Name
from fedretrain.membership import Ed25519Hex
from fedretrain.runfolder import RunFolder
from fedretrain.tomlfile import Section, check_toml, read_toml

from .federation_file import Limits, Settings
from .keyfile import passphrase, read_key

__all__ = ["Federation", "Limits", "Member", "Roster", "Settings"]

SETTINGS: Final = "federation.toml"
ROSTER_FORMAT: Final = "fedretrain.roster/1"


@checked_dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Member:
    """One entry of the roster; times are UTC, as 2026-01-31T12:00:00Z."""

    name: Name
    node_key: str
    """P-384 public key of the site's SuperNode, OpenSSH text without a comment."""
    signing_key: Ed25519Hex
    """Verifies what the site's trainer sends."""
    software: str
    """Version of the site's software when it asked to join."""
    admitted: str
    revoked: str | None = None

    @property
    def active(self) -> bool:
        """Whether the site may take part."""
        return self.revoked is None


class Roster(Section):
    """``roster.json``: every admission in the order it was made."""

    format: Literal["fedretrain.roster/1"] = ROSTER_FORMAT
    members: tuple[Member, ...] = ()


_ROSTER: Final = TypeAdapter(Roster)


def is_federation(folder: Path) -> bool:
    """Whether a folder is a federation's, and not a simulation's output."""
    return (folder / SETTINGS).is_file()


@dataclass(frozen=True)
class Federation:
    """Paths and contents of one federation's folder; ``folder`` is absolute."""

    folder: Path
    settings: Settings

    @classmethod
    def open(cls, folder: Path) -> "Federation":
        """The federation in ``folder``.

        Raises:
            ConfigurationError: There is none, it is another user's, or ``federation.toml`` has a mistake.
        """
        root = folder.resolve()
        path = root / SETTINGS
        if not is_federation(folder):
            raise ConfigurationError(
                f"{folder}: expected a federation's folder with federation.toml in it; "
                f"make one with 'fedretrain server init {folder}', or name another with --folder"
            )
        if (state := root / "state").is_dir() and not os.access(state, os.R_OK | os.X_OK):
            raise ConfigurationError(f"{folder}: belongs to {_owner(state)}; run the command as that user")
        return cls(root, check_toml(read_toml(path, "federation"), Settings, path))

    def entries(self) -> tuple[Member, ...]:
        """Every admission there ever was, oldest first; a name occurs again where it was revoked and admitted anew.

        Raises:
            ConfigurationError: The roster is missing or damaged.
        """
        try:
            return _ROSTER.validate_json(self.roster.read_bytes()).members
        except (OSError, ValidationError) as error:
            raise ConfigurationError(
                f"{self.roster}: not a readable roster, so no site can be let in; restore it from a backup: "
                f"{str(error).splitlines()[0]}"
            ) from None

    def members(self) -> dict[str, Member]:
        """The latest entry of each name, revoked ones included; raises as ``entries``."""
        return {member.name: member for member in self.entries()}

    def active(self) -> dict[str, Member]:
        """The members that may take part; raises as ``entries``."""
        return {name: member for name, member in self.members().items() if member.active}

    def write_roster(self, members: tuple[Member, ...]) -> None:
        """Replace the roster, all or nothing; the caller holds ``roster_lock``. Raises MachineError."""
        value = _ROSTER.dump_python(Roster(members=members), mode="json")
        atomic.write_json(self.roster, value)

    def coordinator(self) -> Ed25519PrivateKey:
        """The key that signs requests to sites; raises ConfigurationError where it cannot be used."""
        key = read_key(self.coordinator_key, passphrase())
        if not isinstance(key, Ed25519PrivateKey):
            raise ConfigurationError(f"{self.coordinator_key}: expected an Ed25519 key; restore it from a backup")
        return key

    def runfolder(self, run_id: str) -> RunFolder:
        """The folder of a run; raises ConfigurationError where there is none."""
        return RunFolder.open(self.runs / run_id)

    @property
    def config(self) -> Path:
        """The settings."""
        return self.folder / SETTINGS

    @property
    def roster(self) -> Path:
        """The members."""
        return self.folder / "roster.json"

    @property
    def roster_lock(self) -> Path:
        """Held while the roster is changed."""
        return self.state / "roster.lock"

    @property
    def keys(self) -> Path:
        """Private keys."""
        return self.folder / "keys"

    @property
    def offline(self) -> Path:
        """Private keys that are needed for renewal only."""
        return self.keys / "offline"

    @property
    def coordinator_key(self) -> Path:
        """Signs requests; encrypted where the federation has a passphrase."""
        return self.keys / "coordinator.pem"

    @property
    def authority_key(self) -> Path:
        """Private key of the certificate authority; encrypted where the federation has a passphrase."""
        return self.offline / "ca.key"

    @property
    def private_key(self) -> Path:
        """The gateway's; encrypted where the federation has a passphrase."""
        return self.keys / "server.key"

    @property
    def loopback_key(self) -> Path:
        """The SuperLink's; never encrypted, because a SuperLink takes no passphrase."""
        return self.keys / "loopback.key"

    @property
    def anchor(self) -> Path:
        """TUF root metadata, the newest of ours."""
        return self.keys / "root.json"

    @property
    def tls(self) -> Path:
        """Certificates."""
        return self.folder / "tls"

    @property
    def ca(self) -> Path:
        """Certificate of the authority that sites trust."""
        return self.tls / "ca.crt"

    @property
    def certificate(self) -> Path:
        """The gateway's."""
        return self.tls / "server.crt"

    @property
    def loopback_certificate(self) -> Path:
        """The SuperLink's, for 127.0.0.1 and localhost, by the same authority."""
        return self.tls / "loopback.crt"

    @property
    def public(self) -> Path:
        """What anybody may have: root.json, ca.crt, coordinator.pub."""
        return self.folder / "public"

    @property
    def public_anchor(self) -> Path:
        """``anchor`` for an auditor under another account."""
        return self.public / "root.json"

    @property
    def bundle(self) -> Path:
        """Folder of the Flower app bundle."""
        return self.folder / "bundle"

    def bundle_file(self) -> Path:
        """The Flower app bundle; raises ConfigurationError where it is missing."""
        digest = self.bundle_digest()
        found = list(self.bundle.glob(f"*.{digest[:8]}.fab"))
        if len(found) != 1:
            raise ConfigurationError(f"{self.bundle}: expected the bundle {digest[:8]}; run 'fedretrain server renew'")
        return found[0]

    def bundle_digest(self) -> str:
        """SHA-256 of the bundle, by which sites pin it; raises ConfigurationError where it is missing."""
        try:
            return (self.bundle / "sha256").read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"{self.bundle}/sha256: {error}; run 'fedretrain server renew'") from None

    @property
    def registry(self) -> Path:
        """The releases; ``Registry.open(federation.folder)``."""
        return self.folder / "registry"

    @property
    def runs(self) -> Path:
        """The runs' folders."""
        return self.folder / "runs"

    @property
    def state(self) -> Path:
        """What the running processes keep."""
        return self.folder / "state"

    @property
    def log(self) -> Path:
        """What the running processes print."""
        return self.state / "log"

    @property
    def database(self) -> Path:
        """The SuperLink's SQLite file."""
        return self.state / "superlink.db"

    @property
    def secret(self) -> Path:
        """Shared secret of SuperLink and executor."""
        return self.state / "secret"

    @property
    def flower_home(self) -> Path:
        """FLWR_HOME of the processes on the server."""
        return self.state / "flwr"

    @property
    def superlink_port(self) -> Path:
        """The SuperLink's port on 127.0.0.1, as text."""
        return self.state / "superlink.port"

    @property
    def up_lock(self) -> Path:
        """Held by ``fedretrain server up``."""
        return self.state / "up.lock"

    @property
    def gateway(self) -> Path:
        """What the gateway says about itself."""
        return self.state / "gateway.json"

    @property
    def sites(self) -> Path:
        """What the gateway saw of each site."""
        return self.state / "sites.json"

    @property
    def installed(self) -> Path:
        """Which release each site has installed."""
        return self.state / "installed.json"


def _owner(path: Path) -> str:
    try:
        return path.owner()
    except (KeyError, OSError):
        return "another user"
