"""What ``approve`` and ``log`` print: pure functions to lines for a person, or values for JSON."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .record import Chain, words

if TYPE_CHECKING:
    from .approvals import Approval


def approval_lines(found: "Sequence[Approval]") -> Iterator[str]:
    """Each job with what it would do; those that wait say what to type."""
    if not found:
        yield "no job has asked yet, or the policy asks no person ('approval' in site.toml's [policy])"
    for one in found:
        if one.approved is None:
            yield f"{one.id}  waits since {one.asked}, run {one.run}"
        else:
            yield f"{one.id}  approved {one.approved} by {one.by}, run {one.run}"
        yield from (f"    {line}" for line in one.words)
        if one.approved is None:
            yield f"    to say yes: fedretrain client approve {one.id}"


def approvals_value(found: "Sequence[Approval]") -> dict[str, Any]:
    """The jobs as JSON values."""
    return {"jobs": [approval_value(one) for one in found]}


def approval_value(one: "Approval") -> dict[str, Any]:
    """One job as JSON values."""
    return {"id": one.id, **one.model_dump(mode="json")}


def log_lines(entries: Sequence[Mapping[str, Any]], file: Path) -> Iterator[str]:
    """The record in plain words, oldest first."""
    yield from (words(dict(entry)) for entry in entries)
    if not entries:
        yield "nothing was asked of this site yet"
    yield ""
    yield f"the record is {file}; 'fedretrain client log --verify' tells whether a line was changed or removed"


def chain_lines(chain: Chain) -> Iterator[str]:
    """What verification found, and what to keep for the next time."""
    yield from chain.problems
    if chain.problems:
        yield f"FAILED: {len(chain.problems)} of {chain.entries} lines are not as they were written"
        return
    yield f"ok: {chain.entries} lines, each follows the one before, every request signed by the coordinator"
    yield f"head {chain.head}: written down elsewhere, it shows later that nothing was cut off at the end"


def chain_value(chain: Chain) -> dict[str, Any]:
    """What verification found as JSON values."""
    return {"ok": not chain.problems, **dataclasses.asdict(chain)}
