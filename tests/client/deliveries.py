"""Releases on their way to a site: a server's registry, what it sends, and a site that takes it in."""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from client.home import Home
from client.installer import Installer
from client.shelf import Shelf
from fedretrain.digest import sha256
from fedretrain.membership import Kit
from fedretrain.messages import ReleaseReply, ReleaseRequest
from fedretrain.release import KERAS_FILE
from tests.signing import NOW

Files = dict[str, bytes]


def kit_of(out: Path) -> Kit:
    """A kit whose root metadata are those of the registry under ``out``; its keys and addresses stand for any."""
    return Kit(
        federation="north",
        site="hospital-a",
        address="127.0.0.1:1",
        ca="-",
        coordinator="0" * 64,
        root=(out / "keys" / "root.json").read_text(),
        node_key="-",
        signing_key="0" * 64,
        bundle="0" * 64,
    )


def files_of(out: Path, identity: str | None = None) -> Files:
    """What a registry has, as it travels: the metadata, and the files of one release or of all."""
    registry = out / "registry"
    found = {str(p.relative_to(registry)): p for p in registry.glob("metadata/*.json")}
    found |= {str(p.relative_to(registry)): p for p in registry.glob(f"releases/{identity or '*'}/*")}
    return {name: path.read_bytes() for name, path in sorted(found.items()) if path.name != KERAS_FILE}


def request_for(files: Mapping[str, bytes], incumbent: str = "") -> ReleaseRequest:
    """The request that brings these files."""
    return ReleaseRequest(run="run-9", incumbent=incumbent, files={name: sha256(data) for name, data in files.items()})


class SiteUnderTest:
    """A site that joined the federation of ``out``, at a fixed time."""

    def __init__(self, root: Path, out: Path, at: datetime = NOW) -> None:
        self.home = Home(root)
        self.home.make()
        self.kit = kit_of(out)
        self.at = at

    def receive(self, files: Mapping[str, bytes]) -> ReleaseReply:
        """The answer to a request with these files; models are not built, so no TensorFlow is needed."""
        installer = Installer(self.home, self.kit, check=lambda _: None, now=lambda: self.at)
        return installer.receive(request_for(files), files)

    def serving(self) -> str | None:
        """The run of the release that a serving process would load."""
        release = Shelf(self.home).in_use()
        return release.lineage["run"] if release else None
