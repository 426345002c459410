"""What ``release`` prints: from what lies at the site to lines for a person, or values for JSON.

Invariant: what is damaged says so, and what to do; a damaged release hides no other.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fedretrain import words
from fedretrain.errors import UntrustedRelease
from fedretrain.ledger import Ledger
from fedretrain.release import Release

from .shelf import Shelf

SHORT = 16  # digits of an id a person sees; any beginning of at least 4 is understood


@dataclass(frozen=True)
class Row:
    """One release.

    Attributes:
        id: Its id.
        run: The run it came from, empty where it cannot be read.
        published: When the server signed it first, UTC; empty where its newest statement does not list it.
        used: Whether this site serves it.
        server: Whether it is the one the server has in use.
        pinned: Whether the operator chose it, so that later ones do not come into use.
        problem: What is wrong with it on the disk.
    """

    id: str
    run: str
    published: str
    used: bool
    server: bool
    pinned: bool
    problem: str | None = None


def rows(shelf: Shelf) -> tuple[Row, ...]:
    """Every release here, in the order the server published them; each is verified.

    Raises:
        MachineError: The disk failed.
    """
    try:
        pointer = shelf.read()
    except UntrustedRelease:  # the list is what the operator needs to choose again
        pointer = None
    ledger = _ledger(shelf)
    known = ledger.releases if ledger else {}
    ids = sorted(shelf.ids(), key=lambda i: (known[i].version if i in known else 0, i))
    return tuple(
        Row(
            id=identity,
            run=run,
            published=known[identity].published if identity in known else "",
            used=pointer is not None and identity == pointer.used,
            server=ledger is not None and identity == ledger.incumbent,
            pinned=pointer is not None and pointer.pinned and identity == pointer.used,
            problem=problem,
        )
        for identity in ids
        for run, problem in [_opened(shelf, identity)]
    )


def list_lines(found: Sequence[Row]) -> Iterator[str]:
    """A table; ``*`` marks the one in use."""
    if not found:
        yield "no release has arrived here yet"
        return
    table = [("", "release", "published", "run", "")]
    for row in found:
        remarks = [
            f"DAMAGED {row.problem}" if row.problem else "",
            "chosen here" if row.pinned else "",
            "in use at the server" if row.server else "",
            "" if row.published else "not among the server's releases",
        ]
        mark = "*" if row.used else ""
        table.append((mark, row.id[:SHORT], row.published or "-", row.run or "-", "; ".join(filter(None, remarks))))
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    for line in table:
        yield "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
    yield ""
    if any(row.used for row in found):
        yield "* in use here"
    else:
        yield "none is in use; choose one with 'fedretrain client release use RELEASE'"


def list_value(found: Sequence[Row]) -> dict[str, Any]:
    """The table as JSON values."""
    return {"used": next((row.id for row in found if row.used), None), "releases": [asdict(row) for row in found]}


def show_lines(release: Release) -> Iterator[str]:
    """Everything about one release."""
    lines: list[tuple[str, str]] = [
        ("release", release.id),
        ("gate", _gate(release.gate)),
        *words.lineage(release.lineage),
        ("model", f"{len(release.weights)} variables, {release.contract.nbytes} bytes"),
        ("inputs", ", ".join(f"{i.name} {list(i.shape)} {i.dtype}" for i in release.contract.inputs)),
        ("outputs", ", ".join(f"{o.name} {list(o.shape)} {o.kind}" for o in release.contract.outputs)),
        ("labels", "; ".join(f"{o.name}: {', '.join(o.labels)}" for o in release.contract.outputs if o.labels)),
        ("folder", str(release.folder)),
    ]
    width = max(len(name) for name, _ in lines)
    yield from (f"{name.ljust(width)}  {value}" for name, value in lines if value)
    yield ""
    yield "Verified: every file is as it was signed when it arrived."


def show_value(release: Release) -> dict[str, Any]:
    """One release as JSON values."""
    return {
        "release": release.id,
        "folder": str(release.folder),
        "lineage": release.lineage,
        "gate": release.gate,
        "contract": release.contract.model_dump(mode="json"),
    }


def _ledger(shelf: Shelf) -> Ledger | None:
    try:
        return shelf.ledger()
    except UntrustedRelease:
        return None


def _opened(shelf: Shelf, identity: str) -> tuple[str, str | None]:
    """The run of a release, or what is wrong with it."""
    try:
        return str(shelf.open(identity).lineage["run"]), None
    except UntrustedRelease as error:
        return "", str(error)


def _gate(gate: Mapping[str, Any]) -> str:
    if not gate:
        return "not gated"  # as a base model that was taken in to begin with
    return {True: "passed", False: "NOT PASSED"}.get(gate.get("passed", None), "no verdict")
