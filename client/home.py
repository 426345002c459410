"""Where a site keeps things: one folder, by default ``~/.fedretrain`` or what FEDRETRAIN_HOME names.

Layout (the folder is 0700, private keys 0600)::

    site.toml            where the data lie, and the site's policy (``client.sitefile``)
    kit.json             what ``join`` took from the kit
    keys/node.pem        P-384, names the site's SuperNode to the server
    keys/node.pub        its public half, OpenSSH text
    keys/signing.pem     Ed25519, signs what the trainer sends
    store/               base models and prepared runs, examples kept for later runs (``client.store``); nonces of
                         requests seen
    approvals/           one file per job that waits for, or has, a person's yes (``client.approvals``)
    releases/            installed releases and which one is in use (``client.releases``)
    log/record.jsonl     the site's own record (``client.record``)
    log/*.log            what the processes print
    run/                 socket, secret and ports of the running processes; emptied at each start
    ca.pem, root.json    of the kit, as files
"""

import os
from dataclasses import dataclass
from pathlib import Path

from fedretrain import atomic
from fedretrain.errors import ConfigurationError
from fedretrain.membership import Kit, read

VARIABLE = "FEDRETRAIN_HOME"


@dataclass(frozen=True)
class Home:
    """Paths of one site; ``root`` is absolute."""

    root: Path

    @classmethod
    def at(cls, folder: Path | None = None) -> "Home":
        """The given folder, or the default one; need not exist."""
        chosen = folder or Path(os.environ.get(VARIABLE) or Path.home() / ".fedretrain")
        return cls(chosen.expanduser().resolve())

    def make(self) -> None:
        """Make the folders that are missing; raises MachineError."""
        atomic.make_folder(self.root, mode=0o700)
        for folder in (self.keys, self.run):
            atomic.make_folder(folder, mode=0o700)
        for folder in (self.store, self.approvals, self.releases, self.log):
            atomic.make_folder(folder)

    def load_kit(self) -> Kit:
        """What the site joined with; raises ConfigurationError where it has not joined."""
        if not self.kit.is_file():
            raise ConfigurationError(
                f"{self.root}: this site has joined no federation; run 'fedretrain client join SITE.kit' first"
            )
        return read(self.kit, Kit)

    @property
    def site(self) -> Path:
        """Data and policy."""
        return self.root / "site.toml"

    @property
    def kit(self) -> Path:
        """The kit, without secrets."""
        return self.root / "kit.json"

    @property
    def ca(self) -> Path:
        """PEM of the gateway's certificate authority."""
        return self.root / "ca.pem"

    @property
    def anchor(self) -> Path:
        """TUF root metadata that releases are verified from."""
        return self.root / "root.json"

    @property
    def keys(self) -> Path:
        """Folder of the keys."""
        return self.root / "keys"

    @property
    def node_key(self) -> Path:
        """Private key of the SuperNode."""
        return self.keys / "node.pem"

    @property
    def signing_key(self) -> Path:
        """Private key of the trainer."""
        return self.keys / "signing.pem"

    @property
    def store(self) -> Path:
        """Folder of ``client.store``."""
        return self.root / "store"

    @property
    def approvals(self) -> Path:
        """Folder of ``client.approvals``."""
        return self.root / "approvals"

    @property
    def releases(self) -> Path:
        """Folder of ``client.releases``."""
        return self.root / "releases"

    @property
    def log(self) -> Path:
        """Folder of logs."""
        return self.root / "log"

    @property
    def record(self) -> Path:
        """The site's own record."""
        return self.log / "record.jsonl"

    @property
    def run(self) -> Path:
        """Folder of the running processes."""
        return self.root / "run"

    @property
    def socket(self) -> Path:
        """The trainer's Unix socket, mode 0600."""
        return self.run / "trainer.sock"

    @property
    def secret(self) -> Path:
        """Shared secret of SuperNode and executor."""
        return self.run / "secret"

    @property
    def port(self) -> Path:
        """Port of the SuperNode's Runtime API, as text."""
        return self.run / "port"
