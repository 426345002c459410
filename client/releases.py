"""The releases a site has, which one is in use, and how another comes to be.

Invariants: at every instant, also after SIGKILL at any line, ``current`` names one complete, verified release or none;
when anything at all is wrong with what arrives (``client.installer``), the release in use stays in use; a site goes
back to an older release only when its operator says so.

Layout of ``home.releases``::

    current        canonical JSON, ``fedretrain.current/1``: the one pointer, replaced in one step (``client.shelf``)
    releases/ID/   complete releases (``fedretrain.release``), never changed; ID is the hash of their content
    trust/         the server's newest signed statement (``fedretrain.trust``)
    incoming/      what is being received; nothing of it is ever loaded

A site's own serving code reads the release in use like this; its content is verified at each call::

    from client.home import Home
    from client.releases import current, load_model, used

    release = current(Home.at())          # fedretrain.release.Release: id, architecture, weights, contract, ...
    model = load_model(Home.at())         # the same as a Keras model, uncompiled

With ``own=True`` it is the model with what this site keeps for itself (``client.own``).

``used(home)`` is the id alone, read in no time: code that serves for weeks asks it now and then, and loads again when
it has changed.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedretrain import atomic
from fedretrain.errors import ConfigurationError, MachineError, UntrustedRelease
from fedretrain.release import Release

from . import record
from .approvals import account
from .home import Home
from .installer import Installer, build
from .shelf import Current, Shelf

if TYPE_CHECKING:
    import keras

__all__ = [
    "LATEST",
    "Installer",
    "allowed_modules",
    "back",
    "build",
    "current",
    "export",
    "find",
    "load_model",
    "remove",
    "use",
    "used",
]

log = logging.getLogger(__name__)

LATEST = "latest"


def current(home: Home) -> Release | None:
    """The release in use, verified, or None before the first.

    Raises:
        UntrustedRelease: It, or the pointer to it, is damaged; says what to do.
        MachineError: The disk failed.
    """
    return Shelf(home).in_use()


def used(home: Home) -> str | None:
    """The id of the release in use, None before the first; nothing is verified. Raises as ``current``."""
    pointer = Shelf(home).read()
    return pointer.used if pointer else None


def load_model(home: Home, allow_modules: Sequence[str] | None = None, *, own: bool = False) -> "keras.Model":
    """The release in use as a Keras model, uncompiled; imports TensorFlow.

    Args:
        home: The site.
        allow_modules: Modules of the site's own whose layer classes the model may use; default: those of ``site.toml``.
        own: Whether what this site keeps for itself is put in its place (``client.own``).

    Raises:
        ConfigurationError: There is no release yet, the model holds a layer outside the allow-list, or there is
            nothing of the site's own.
        UntrustedRelease: As ``current``.
        MachineError: The disk failed.
    """
    return build(_to_build(home, own=own), allowed_modules(home) if allow_modules is None else allow_modules)


def use(home: Home, identity: str) -> Release:
    """Put an installed release in use, by the operator's word, and stay with it until told otherwise.

    Args:
        home: The site.
        identity: An id, an unambiguous beginning of at least 4 digits, or ``LATEST``: the one the server has in use,
            and follow the server from here on.

    Raises:
        ConfigurationError: There is no such release here.
        UntrustedRelease: It is damaged; the release in use stays.
        MachineError: The disk failed; the release in use stays.
    """
    shelf = Shelf(home)
    with shelf.writing():
        pointer = _readable(shelf)
        chosen = _latest(shelf, pointer) if identity == LATEST else shelf.resolve(identity)
        release = shelf.open(chosen)
        pointer = pointer or Current(installed=chosen, used=chosen)
        shelf.write(pointer.using(chosen, pinned=identity != LATEST))
        _record(home, release)
        return release


def back(home: Home) -> Release:
    """Put the release in use again that was in use before, and stay with it; raises as ``use``."""
    shelf = Shelf(home)
    with shelf.writing():
        pointer = shelf.read()
        if pointer is None or not pointer.before:
            raise ConfigurationError(f"{home.releases}: no other release was in use here before")
        release = shelf.open(pointer.before[-1])
        shelf.write(pointer.model_copy(update={"used": release.id, "before": pointer.before[:-1], "pinned": True}))
        _record(home, release)
        return release


def find(home: Home, identity: str | None = None) -> Release:
    """A release that is here, verified; without an id, the one in use. Raises as ``use``."""
    if identity is not None:
        shelf = Shelf(home)
        return shelf.open(shelf.resolve(identity))
    return _in_use(home)


def allowed_modules(home: Home) -> tuple[str, ...]:
    """The modules whose layer classes this site allows, by its ``site.toml``; none where there is no such file.

    Raises:
        ConfigurationError: ``site.toml`` has a mistake.
    """
    from .sitefile import load_site

    return load_site(home.site).trainer.allow_modules if home.site.is_file() else ()


def remove(home: Home, identity: str) -> str:
    """Delete a release that is not needed any more; its id.

    Raises:
        ConfigurationError: There is no such release here, or it is in use or the server's.
        MachineError: The disk failed.
    """
    shelf = Shelf(home)
    with shelf.writing():
        pointer, chosen = shelf.read(), shelf.resolve(identity)
        if pointer and chosen in {pointer.used, pointer.installed}:
            raise ConfigurationError(f"release {chosen[:16]} is in use, here or at the server; it stays")
        if pointer:
            kept = tuple(known for known in pointer.before if known != chosen)
            shelf.write(pointer.model_copy(update={"before": kept}))
        shelf.remove(chosen)
    return chosen


def _record(home: Home, release: Release) -> None:
    """Say in the site's record who chose a release."""
    atomic.make_folder(home.log)
    record.append(home.record, "chosen", release=release.id, run=release.lineage["run"], by=account())


def _in_use(home: Home) -> Release:
    release = current(home)
    if release is None:
        raise ConfigurationError(f"{home.releases}: no release has arrived here yet")
    return release


def _to_build(home: Home, *, own: bool) -> Release:
    from .own import own as with_own

    release = _in_use(home)
    return with_own(home, release) if own else release


def _readable(shelf: Shelf) -> Current | None:
    """The pointer, None where it is damaged: the operator is about to say what is to be in use."""
    try:
        return shelf.read()
    except UntrustedRelease as error:
        log.warning("%s", error)
        return None


def _latest(shelf: Shelf, pointer: Current | None) -> str:
    if pointer is not None:
        return pointer.installed
    ledger = shelf.ledger()
    if ledger is None or ledger.incumbent is None:
        raise ConfigurationError(f"{shelf.root}: no release has arrived here yet")
    return shelf.resolve(ledger.incumbent)


def export(home: Home, file: Path, *, own: bool = False) -> Release:
    """Write the release in use as a ``.keras`` file for code that reads such files, all or nothing.

    With ``own``, what this site keeps for itself is put in its place (``client.own``): the file says something about
    the site's data then, and is readable by this user alone.

    Raises:
        ConfigurationError: ``file`` does not end in ``.keras``, or as ``load_model``.
        UntrustedRelease: As ``current``.
        MachineError: The disk does not take the file; what was under the name before is as it was.
    """
    if file.suffix != ".keras":
        raise ConfigurationError(f"{file}: expected a file name that ends in .keras")
    release = _to_build(home, own=own)
    model = build(release, allowed_modules(home))
    with atomic.replacing(file, mode=0o600 if own else 0o644) as temporary:
        named = temporary.with_suffix(".keras")  # Keras writes to no other suffix
        try:
            model.save(named)
            named.replace(temporary)
        except RuntimeError as error:  # HDF5 reports a full disk so when it flushes
            raise MachineError(f"{file}: cannot write: {error}; free some space there and try again") from error
        finally:
            named.unlink(missing_ok=True)
    return release
