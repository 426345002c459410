"""Takes releases in as they come from the server: verified, installed beside the old one, and only then in use.

Invariants: nothing is installed that was not verified from the kit's root metadata, down to the layers of its model;
whatever is wrong with what arrives, and wherever the process dies, the release in use stays in use; a rollback by the
server is installed and not followed, because going back is the site operator's to decide.
"""

import logging
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from fedretrain import atomic
from fedretrain.crashpoint import crash_point
from fedretrain.digest import sha256
from fedretrain.errors import ConfigurationError, DeclinedRequest, FedretrainError, UntrustedRelease
from fedretrain.membership import Kit
from fedretrain.messages import ReleaseReply, ReleaseRequest
from fedretrain.release import IDENTIFYING, RELEASE_ID, Release
from fedretrain.trust import Trust

from .home import Home
from .shelf import Current, Shelf

if TYPE_CHECKING:
    import keras

log = logging.getLogger(__name__)

_METADATA = r"metadata/(timestamp|[1-9]\d{0,8}\.(root|targets|snapshot))\.json"
_FILES = re.compile(rf"{_METADATA}|releases/{RELEASE_ID.pattern}/({'|'.join(map(re.escape, IDENTIFYING))})")
_MOST_FILES = 10_000


def build(release: Release, allow_modules: Sequence[str] = ()) -> "keras.Model":
    """A verified release as a Keras model; raises ModelRefused where its parts are not allowed or do not fit."""
    from fedretrain import architecture

    most = sum(array.size for array in release.weights)
    model = architecture.build(release.architecture, allow_modules, max_parameters=most)
    architecture.set_weights(model, release.weights)
    return model


class Installer:
    """Takes releases in as they come from the server.

    Args:
        home: The site.
        kit: What it joined with; its root metadata is where trust begins.
        check: Tries a verified release before it is installed and raises ModelRefused; the default builds its model
            with Keras. A trainer that does not train with Keras brings a check of its own.
        now: The clock, in UTC, for the expiry of metadata.
    """

    def __init__(
        self,
        home: Home,
        kit: Kit,
        check: Callable[[Release], object] = build,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._home = home
        self._shelf = Shelf(home)
        self._incoming = home.releases / "incoming"
        self._kit = kit
        self._check = check
        self._now = now

    def receive(self, request: ReleaseRequest, files: Mapping[str, bytes]) -> ReleaseReply:
        """Verify and install what a request brings; which release is installed and which one is in use after it.

        Without files it only answers. With metadata alone it installs nothing unless the release is here already: the
        answer then shows the server that the release's files are missing.

        Args:
            request: Names the files and their SHA-256.
            files: The content, by those names.

        Raises:
            DeclinedRequest: ``release-refused``, with the file and what is wrong; the release in use stays.
            MachineError: The disk is full or failed; the release in use stays.
        """
        if not request.files and not files:
            return self._reply(request.run)
        with self._shelf.writing():
            try:
                self._stage(request.files, files)
                crash_point("release-received")
                self._install()
            except (UntrustedRelease, ConfigurationError) as error:
                log.warning("run %s: a release is refused, the one in use stays: %s", request.run, error)
                raise self._refusal(error) from None
            finally:
                shutil.rmtree(self._incoming, ignore_errors=True)
            return self._reply(request.run)

    def _stage(self, expected: Mapping[str, str], files: Mapping[str, bytes]) -> None:
        """Write the files as they would lie in a registry; nothing is believed of them yet."""
        if sorted(expected) != sorted(files) or len(files) > _MOST_FILES:
            raise UntrustedRelease("files: expected the files that the request names, got others")
        shutil.rmtree(self._incoming, ignore_errors=True)
        for name, data in files.items():
            if not _FILES.fullmatch(name):
                raise UntrustedRelease(f"{name[:100]}: expected metadata and the files of a release only; not opened")
            if sha256(data) != expected[name]:
                raise UntrustedRelease(f"{name}: expected SHA-256 {expected[name]}, got {sha256(data)}")
            path = self._incoming / name
            atomic.make_folder(path.parent)
            atomic.write_bytes(path, data)

    def _install(self) -> None:
        trust = Trust(self._incoming, self._shelf.memory, self._kit.root.encode())
        state = trust.state(self._now())
        identity = state.ledger.incumbent
        if identity is None:
            return
        if not self._shelf.is_whole(identity):
            arrived = self._incoming / "releases" / identity
            if not arrived.is_dir():
                log.info("release %s is not here yet; the server will send it", identity)
                return
            self._check(trust.open_release(identity, state))
            self._shelf.place(identity, arrived)
            crash_point("release-placed")
        versions = {known: entry.version for known, entry in state.ledger.releases.items()}
        self._shelf.write(_after_install(self._shelf.read(), identity, versions))
        crash_point("release-installed")

    def _reply(self, run: str) -> ReleaseReply:
        """What is damaged counts as not there, so that the server sends it again."""
        pointer = self._shelf.read()
        installed, used = (pointer.installed, pointer.used) if pointer else ("", "")
        whole = {identity: identity if self._shelf.is_whole(identity) else "" for identity in {installed, used} - {""}}
        return ReleaseReply(run=run, site=self._kit.site, installed=whole.get(installed, ""), used=whole.get(used, ""))

    def _refusal(self, error: FedretrainError) -> DeclinedRequest:
        """The error for the server: file and reason, without paths of this machine."""
        text = str(error)
        for folder in (self._incoming, self._home.releases, self._home.root):
            text = text.replace(f"{folder}/", "")
        where, _, reason = text.partition(": ")
        return DeclinedRequest("release-refused", where[:100], (reason or text).removeprefix("expected ")[:400])


def _after_install(before: Current | None, identity: str, versions: Mapping[str, int]) -> Current:
    """The pointer once ``identity``, which the server has in use, is installed.

    It comes into use unless the operator pinned another one, or it is older than the one in use. A release in use that
    the signed statement does not list any more (its keys were replaced after a theft) is older than any.
    """
    if before is None:
        return Current(installed=identity, used=identity)
    if before.pinned or versions[identity] < versions.get(before.used, 0):
        if not before.pinned:
            log.warning(
                "the server went back to release %s, older than the one in use here, which stays; "
                "'fedretrain client release use latest' follows the server",
                identity,
            )
        return before.model_copy(update={"installed": identity})
    return before.using(identity, pinned=False).model_copy(update={"installed": identity})
