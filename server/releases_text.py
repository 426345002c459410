"""What ``releases`` prints: pure functions from what the registry found to lines for a person, or values for JSON.

Invariant: a line that says something is wrong says where, and the lines after it say what to do.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedretrain import words
from fedretrain.release import Release
from fedretrain.trust import SignedState

from .audit import Audit, Listed, ReleaseCheck
from .metadata import utc

SHORT = 16  # digits of an id a person sees; any beginning of at least 4 is understood


def short(identity: str | None) -> str:
    """The beginning of an id; "-" for none."""
    return identity[:SHORT] if identity else "-"


def list_lines(rows: Sequence[Listed]) -> Iterator[str]:
    """A table of releases, oldest first; ``*`` marks the one in use."""
    table = [("", "release", "published", "run", "parent", "sites", "gate")]
    for row in rows:
        sites = _names(row.lineage.get("sites"))
        gate = gate_summary(row.gate) if row.problem is None else f"DAMAGED {row.problem}"
        table.append(
            (
                "*" if row.incumbent else "",
                short(row.id),
                row.published,
                row.run,
                short(row.lineage.get("parent")),
                str(len(sites)) if sites else "-",
                gate,
            )
        )
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    for line in table:
        yield "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
    yield ""
    yield "* in use. Weights were not read for this list; 'releases verify' checks every byte."


def list_value(rows: Sequence[Listed]) -> dict[str, Any]:
    """The list as JSON values."""
    in_use = next((row.id for row in rows if row.incumbent), None)
    return {"incumbent": in_use, "releases": [dataclasses.asdict(row) for row in rows]}


def gate_summary(gate: Mapping[str, Any]) -> str:
    """``passed: old -0.002 (bound -0.008), new +0.11 (bound +0.09)``; as much of it as the report holds."""
    if not gate:
        return "not gated"  # as a base model that was taken in to begin with
    verdict = {True: "passed", False: "NOT PASSED"}.get(gate.get("passed", None), "no verdict")
    holdouts = gate.get("holdouts")
    parts = [_holdout(h) for h in holdouts if isinstance(h, dict)] if isinstance(holdouts, list) else []
    return f"{verdict}: {', '.join(parts)}" if parts else verdict


def show_lines(release: Release, state: SignedState) -> Iterator[str]:
    """Everything about one release that was verified."""
    entry = state.ledger.releases[release.id]
    rows: list[tuple[str, str]] = [
        ("release", release.id),
        ("in use", "yes" if state.ledger.incumbent == release.id else "no"),
        ("published", entry.published),
        ("gate", gate_summary(release.gate)),
        *words.lineage(release.lineage),
        ("model", f"{len(release.weights)} variables, {release.contract.nbytes} bytes"),
        ("inputs", ", ".join(f"{i.name} {list(i.shape)} {i.dtype}" for i in release.contract.inputs)),
        ("outputs", ", ".join(f"{o.name} {list(o.shape)} {o.kind}" for o in release.contract.outputs)),
        ("folder", str(release.folder)),
    ]
    width = max(len(name) for name, _ in rows)
    yield from (f"{name.ljust(width)}  {value}" for name, value in rows)
    yield ""
    yield from (f"{f['sha256']}  {f['bytes']:>12}  {f['name']}" for f in file_values(release.id, state))
    yield ""
    yield "Verified: signatures, expiry, every file that is loaded."


def show_value(release: Release, state: SignedState) -> dict[str, Any]:
    """One release as JSON values."""
    entry = state.ledger.releases[release.id]
    return {
        "release": release.id,
        "incumbent": state.ledger.incumbent == release.id,
        "published": entry.published,
        "folder": str(release.folder),
        "lineage": release.lineage,
        "gate": release.gate,
        "contract": release.contract.model_dump(mode="json"),
        "files": file_values(release.id, state),
    }


def file_values(identity: str, state: SignedState) -> list[dict[str, Any]]:
    """A release's signed files: name, bytes, sha256."""
    prefix = f"{identity}/"
    return [
        {"name": path.removeprefix(prefix), "bytes": file.length, "sha256": file.hashes["sha256"]}
        for path, file in sorted(state.targets.targets.items())
        if path.startswith(prefix)
    ]


def verify_lines(audit: Audit, memory: Path) -> Iterator[str]:
    """Pointer, history and each release with ok or FAILED, then what to do; ``memory`` holds what was verified last."""
    if audit.state is None:
        yield from (f"metadata  FAILED  {problem}" for problem in audit.problems)
        yield ""
        yield "FAILED: the signed metadata do not verify. Nothing of this registry is loaded until they do."
        yield f"Where a file is missing or damaged, put it back from a copy. The newest verified ones lie in {memory}"
        yield "(snapshot.json and targets.json without the number that leads their name in the registry)."
        return
    ledger = audit.state.ledger
    last = ledger.statement
    yield f"pointer   ok      {short(ledger.incumbent)} in use; last signed {last.at} ({last.action})" + (
        f", in place of {short(last.replaced)}" if last.replaced else ""
    )
    yield (
        f"metadata  ok      root {audit.state.root.version}, timestamp {audit.state.timestamp.version}; "
        f"valid until {utc(audit.state.expires)}"
    )
    if audit.problems:
        yield from (f"history   FAILED  {problem}" for problem in audit.problems)
    else:
        yield f"history   ok      {len(audit.history)} signed versions, unbroken"
    for check in audit.releases:
        yield from _release_lines(check)
    yield from (f"note              {note}" for note in audit.notes)
    yield ""
    yield from _conclusion(audit)


def verify_value(audit: Audit) -> dict[str, Any]:
    """The verification as JSON values."""
    state = audit.state
    return {
        "ok": audit.ok,
        "incumbent": state.ledger.incumbent if state else None,
        "versions": {role: getattr(state, role).version for role in ("root", "timestamp", "snapshot", "targets")}
        if state
        else None,
        "expires": utc(state.expires) if state else None,
        "problems": list(audit.problems),
        "releases": [{**dataclasses.asdict(check), "ok": not check.problems} for check in audit.releases],
        "history": [statement.model_dump(mode="json") for statement in audit.history],
        "notes": list(audit.notes),
    }


def _release_lines(check: ReleaseCheck) -> Iterator[str]:
    mark = f"{short(check.id)}{' (in use)' if check.incumbent else ''}"
    if not check.problems:
        yield f"release   ok      {mark}, run {check.run}, {check.published}"
    yield from (f"release   FAILED  {mark}: {problem}" for problem in check.problems)


def _conclusion(audit: Audit) -> Iterator[str]:
    if audit.ok:
        count = len(audit.releases)
        yield f"ok: {count} {'release' if count == 1 else 'releases'}, every file as it was signed."
        return
    failed = [check for check in audit.releases if check.problems]
    count = len(audit.problems) + sum(len(check.problems) for check in failed)
    yield f"FAILED: {count} {'problem' if count == 1 else 'problems'}. What failed is not loaded by anyone."
    if any(check.incumbent for check in failed):
        whole = next((check for check in reversed(audit.releases) if not check.problems), None)
        way = f", or 'fedretrain server releases rollback {short(whole.id)}' to use a whole one" if whole else ""
        yield f"The release in use is damaged: put its files back from a copy{way}."
    else:
        yield "The release in use is whole. Put the damaged files back from a copy."


def _holdout(verdict: Mapping[str, Any]) -> str:
    difference, bound = verdict.get("difference"), verdict.get("lower_bound")
    numbers = f" {difference:+.4g}" if isinstance(difference, int | float) else ""
    numbers += f" (bound {bound:+.4g})" if isinstance(bound, int | float) else ""
    return f"{verdict.get('name', '?')}{numbers}"


def _names(value: Any) -> list[str]:
    return [str(name) for name in value] if isinstance(value, list | dict) else []
