"""What the signed metadata of a registry say beyond TUF's own fields: which release is in use, since when and why.

Invariants: a ledger is only ever read out of targets metadata whose signatures were verified; the release it calls the
incumbent is one of its releases; every release it lists has all its identifying files signed.

Format ``fedretrain.registry/1``. A registry is a folder; its metadata are TUF's (specification 1.0, consistent
snapshots, Ed25519), each file canonical JSON (``fedretrain.digest``), so that content has one spelling::

    metadata/1.root.json ...         which keys count; every version stays, each signed by the one before and itself
    metadata/N.targets.json          every release's files with length and SHA-256, and the ledger; versions stay
    metadata/N.snapshot.json         names the targets version, its length and SHA-256; versions stay
    metadata/timestamp.json          names the snapshot; the one file that is replaced, and so the one pointer
    releases/<release id>/...        ``fedretrain.release/1``; target paths are "<release id>/<file name>"

The ledger stands in the signed part of targets under the key "registry"::

    {"format": "fedretrain.registry/1",
     "incumbent": release id | null,
     "statement": {"action": "publish" | "rollback" | "renew" | "rotate", "at": time, "replaced": release id | null},
     "previous": {"targets": {"version", "sha256"}, "snapshot": {"version", "sha256"}} | null,
     "releases": {release id: {"run", "published": time, "version"}}}   version: of the targets that held it first

``previous`` chains the versions, so the ledgers together are the registry's history, and a change to an old one shows.
Times are UTC, ``2026-01-31T12:00:00Z``.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from tuf.api.metadata import TargetFile, Targets  # type: ignore[attr-defined]  # public, though not in an __all__

from .errors import UntrustedRelease
from .release import IDENTIFYING, OPTIONAL, RELEASE_ID

FIELD = "registry"
ReleaseId = Annotated[str, Field(pattern=f"^{RELEASE_ID.pattern}$")]
Time = Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")]


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Entry(_Frozen):
    """One release: the run it came from, when it was signed first and in which version of targets."""

    run: str
    published: Time
    version: int = Field(ge=1)


class Statement(_Frozen):
    """Why this version of the metadata was signed. ``replaced`` is the release in use before."""

    action: Literal["publish", "rollback", "renew", "rotate"]
    at: Time
    replaced: ReleaseId | None = None


class Link(_Frozen):
    """A metadata file of the version before."""

    version: int = Field(ge=1)
    sha256: ReleaseId


class Previous(_Frozen):
    """The version before, by content."""

    targets: Link
    snapshot: Link


class Ledger(_Frozen):
    """See the module docstring."""

    format: Literal["fedretrain.registry/1"] = "fedretrain.registry/1"
    incumbent: ReleaseId | None
    statement: Statement
    previous: Previous | None
    releases: dict[ReleaseId, Entry]

    @model_validator(mode="after")
    def _incumbent_is_a_release(self) -> "Ledger":
        if self.incumbent is not None and self.incumbent not in self.releases:
            raise ValueError(f"incumbent {self.incumbent} is not among the releases")
        return self


def read_ledger(targets: Targets, where: str) -> Ledger:
    """The ledger in verified targets metadata.

    Raises:
        UntrustedRelease: It is missing or malformed, or does not match the signed files; ``where`` leads the message.
    """
    try:
        ledger = Ledger.model_validate(targets.unrecognized_fields.get(FIELD))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join([FIELD, *(str(part) for part in first["loc"])])
        raise UntrustedRelease(f"{where}: {place}: {first['msg']}; was it written by another version?") from None
    by_release: dict[str, set[str]] = {identity: set() for identity in ledger.releases}
    for path, file in targets.targets.items():
        identity, _, name = path.partition("/")
        if identity not in by_release or name not in {*IDENTIFYING, *OPTIONAL} or set(file.hashes) != {"sha256"}:
            raise UntrustedRelease(f"{where}: expected files of the ledger's releases with a SHA-256, got {path!r}")
        by_release[identity].add(name)
    for identity, names in by_release.items():
        if not names.issuperset(IDENTIFYING):
            missing = sorted(set(IDENTIFYING) - names)
            raise UntrustedRelease(f"{where}: release {identity}: expected {missing} to be signed too")
    return ledger


def files_of(targets: Targets, identity: str) -> dict[str, TargetFile]:
    """The signed files of one release by name; empty where the release is not known."""
    prefix = f"{identity}/"
    return {path.removeprefix(prefix): file for path, file in targets.targets.items() if path.startswith(prefix)}
