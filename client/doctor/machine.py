"""What a site needs of its own machine: keys that are its own alone, a kit that belongs to them, disk and memory.

Invariant: what is written to see whether the disk takes it is deleted again.
"""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from client.home import Home
from fedretrain.errors import FedretrainError

from .finding import Finding, problem

_GIB = 2**30
LEAST_DISK = _GIB
LEAST_MEMORY = 2 * _GIB  # what TensorFlow, the data and a small model take
_CAUSES = {
    errno.EROFS: ("disk-read-only", "the disk is mounted read-only: mount it writable, or choose another --home"),
    errno.EACCES: ("disk-not-writable", "make it writable for this user, or run the command as the site's own user"),
    errno.EPERM: ("disk-not-writable", "make it writable for this user, or run the command as the site's own user"),
    errno.ENOSPC: ("disk-full", "free some space there ('fedretrain client release remove' deletes old releases)"),
    errno.EDQUOT: ("disk-full", "free some of the disk quota"),
}


def examine_machine(home: Home) -> Iterator[Finding]:
    """Keys and kit, disk, memory, and the release that is served."""
    if not home.root.is_dir():
        yield problem(
            "home",
            "no-home",
            f"{home.root} does not exist",
            "it holds the site's keys, kit and releases",
            "run 'fedretrain client request --name NAME' first, or name the right folder with --home",
        )
        return
    yield _keys(home)
    yield from _disk(home)
    yield _memory()
    yield _release(home)


def _keys(home: Home) -> Finding:
    from client import identity

    why = "the kit says whom to believe; the keys say who this site is"
    try:
        kit = home.load_kit()
        mine = identity.names(kit, identity.load_node_key(home), identity.load_signing_key(home))
    except FedretrainError as error:
        cause = "not-joined" if not home.kit.is_file() else "keys"
        return problem("keys", cause, str(error), why, "do what the line above says, then check again")
    if not mine:
        what = f"the keys in {home.keys} are not those that the kit was made for"
        return problem("keys", "keys", what, why, "restore the keys, or request and join anew with another --home")
    return Finding("keys", "ok", f"{kit.site} of {kit.federation}; private keys readable by their owner alone")


def _disk(home: Home) -> Iterator[Finding]:
    folders = [home.root, home.store, home.approvals, home.releases, home.log, home.run]
    for folder in folders:
        found = _writable(folder)
        if found is not None:
            yield found
            return
    free = shutil.disk_usage(home.root).free
    if free < LEAST_DISK:
        yield Finding(
            "disk",
            "note",
            f"{free / _GIB:.2f} GiB are free in {home.root}",
            "base models and releases are kept there; what does not fit is refused, the old release stays",
            "free some space; 'fedretrain client release remove' deletes old releases",
        )
    else:
        yield Finding("disk", "ok", f"{home.root} is writable, {free / _GIB:.1f} GiB free")


def _writable(folder: Path) -> Finding | None:
    """A problem where nothing can be written to the folder; one that does not exist is made when it is needed."""
    if not folder.is_dir():
        return None
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".check.", suffix=".tmp") as file:
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        cause, do = _CAUSES.get(error.errno or 0, ("disk", "mend the disk, or choose another --home"))
        what = f"nothing can be written to {folder}: {error.strerror or error}"
        why = "requests seen, base models, releases and the site's record are kept there; without it nothing is done"
        return problem("disk", cause, what, why, do)
    return None


def _memory() -> Finding:
    available = _available_memory()
    if available is None:
        return Finding("memory", "skipped", "this system does not tell how much is free")
    what = f"{available / _GIB:.1f} GiB are free"
    if available < LEAST_MEMORY:
        why = f"a trainer takes about {LEAST_MEMORY / _GIB:.0f} GiB with a small model, and the data beside it"
        return Finding("memory", "note", what, why, "end what is not needed, or use a machine with more memory")
    return Finding("memory", "ok", what)


def _available_memory() -> int | None:
    """Bytes that can be had without swapping, None where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError, IndexError):
        return None


def _release(home: Home) -> Finding:
    from client.releases import current
    from client.shelf import Shelf

    try:
        release = current(home)
        valid = Shelf(home).valid_until()
    except FedretrainError as error:
        why = "code that serves this site's model reads it from there"
        return problem("release", "release", str(error), why, "do what the line above says")
    if release is None:
        return Finding("release", "ok", "none has arrived yet")
    what = f"{release.id[:16]} of run {release.lineage['run']} is in use, and whole"
    if valid is not None and valid < datetime.now(UTC):
        return Finding(
            "release",
            "note",
            f"{what}; the server's newest statement about releases that is known here expired on {valid:%Y-%m-%d}",
            "there may be newer releases that have not arrived",
            "ask the server's operator to run 'fedretrain server releases renew', if this site is connected",
        )
    return Finding("release", "ok", what)
