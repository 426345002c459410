"""Which jobs a person at the site has said yes to.

A job is what would be done with the data: the digest of its contract, training, strategy, frozen layers, the codec of
its messages and the sums it asks for. Another run of the same job needs no second yes; any change of the job does.

Layout of ``home.approvals``::

    <job digest>.json    canonical JSON, ``fedretrain.approval/1``, see ``Approval``
"""

import getpass
import os
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from fedretrain import atomic
from fedretrain.digest import json_digest
from fedretrain.errors import ConfigurationError, MachineError

from . import record
from .home import Home

if TYPE_CHECKING:
    from fedretrain.messages import PrepareRequest

MOST_WAITING = 100  # jobs of which the site keeps a description before somebody looks at them


class Approval(BaseModel):
    """A job that waits for, or has, a yes.

    Attributes:
        job: The job's digest; ``id`` its first twelve characters, which is what a person types.
        run: The run that first asked.
        asked: When, UTC, ISO 8601.
        words: What the job would do, a line each.
        approved: When a person said yes, None while it waits.
        by: The account of that person.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    format: Literal["fedretrain.approval/1"] = "fedretrain.approval/1"
    job: str
    run: str
    asked: str
    words: tuple[str, ...]
    approved: str | None = None
    by: str | None = None

    @property
    def id(self) -> str:
        """What a person types."""
        return self.job[:12]


def job_digest(request: "PrepareRequest") -> str:
    """What identifies the job of a request, whatever its run."""
    about = {"contract", "train", "strategy", "freeze", "codec", "sums", "check"}
    return json_digest(request.model_dump(mode="json", include=about))


def is_approved(home: Home, request: "PrepareRequest") -> bool:
    """Whether a person has said yes to the request's job; where nobody was asked yet, it is put down as waiting.

    Raises:
        MachineError: The disk does not take it.
    """
    job = job_digest(request)
    found = _read(home.approvals / f"{job}.json")
    if found is None and sum(approval.approved is None for approval in listed(home)) < MOST_WAITING:
        atomic.make_folder(home.approvals)
        _write(home, Approval(job=job, run=request.run, asked=_now(), words=_words(request)))
    return found is not None and found.job == job and found.approved is not None


def listed(home: Home) -> list[Approval]:
    """All jobs, those that wait first, then by time; what cannot be read is no approval."""
    found = [approval for file in home.approvals.glob("*.json") if (approval := _read(file)) is not None]
    return sorted(found, key=lambda approval: (approval.approved is not None, approval.asked, approval.job))


def approve(home: Home, id_: str) -> Approval:
    """Say yes to the job whose digest starts with ``id_`` and write it into the site's record.

    Raises:
        ConfigurationError: No job, or several, start so.
        MachineError: The disk does not take it.
    """
    approval = _one(home, id_)
    if approval.approved is not None:
        return approval
    return _decided(home, approval.model_copy(update={"approved": _now(), "by": account()}), "approved")


def withdraw(home: Home, id_: str) -> Approval:
    """Take a yes back, from the next request on; raises as ``approve``."""
    approval = _one(home, id_)
    if approval.approved is None:
        return approval
    return _decided(home, approval.model_copy(update={"approved": None, "by": None}), "withdrawn")


def account() -> str:
    """The name of the account this process runs under; its number where it has no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"user {os.getuid()}"


def _decided(home: Home, approval: Approval, kind: str) -> Approval:
    """The record first: a yes that is not on record does not count."""
    record.append(home.record, kind, job=approval.job, run=approval.run, by=account())
    _write(home, approval)
    return approval


def _one(home: Home, id_: str) -> Approval:
    found = [approval for approval in listed(home) if id_ and approval.job.startswith(id_)]
    if len(found) == 1:
        return found[0]
    known = ", ".join(approval.id for approval in found or listed(home))
    what = "several jobs start so" if found else "no job has this id"
    there = f"expected one of: {known}" if known else "no job has asked for permission yet"
    raise ConfigurationError(f"job {id_!r}: {what}; {there}")


def _words(request: "PrepareRequest") -> tuple[str, ...]:
    """What a person needs to know to decide; names from the request are shown as text, never acted upon."""
    from fedretrain.sums import WORDS
    from fedretrain.travel import travelling

    from .coding import codec_of
    from .keeping import kept_here

    codec, keeps = codec_of(request.codec), kept_here(request)
    size = sum(codec.travelling(spec).nbytes for spec in travelling(request.contract, request.strategy))
    kept = "; what that leaves out stays here until the next round" if codec.feedback else ""
    contract, train = request.contract, request.train
    if request.check:
        return _lines(_check_words(request))
    inputs = "; ".join(f"{spec.name} ({', '.join(spec.columns or ()) or list(spec.shape)})" for spec in contract.inputs)
    outputs = "; ".join(f"{spec.name} ({', '.join(spec.labels) or spec.kind})" for spec in contract.outputs)
    work = f"{train.local_steps} steps" if train.local_steps is not None else f"{train.local_epochs or 1} passes"
    told = ", ".join(("loss", *(train.metrics or ())))
    changing, all_ = len(contract.changing), len(contract.variables)
    sums = [f"{name}, {WORDS.get(name, 'a sum this version does not know')}" for name in request.sums]
    lines = (
        f"inputs: {inputs}",
        f"predicts: {outputs}",
        f"trains {changing} of {all_} variables; frozen: {', '.join(request.freeze) or 'nothing'}",
        f"up to {train.rounds} rounds, {work} over the data in each, batches of {train.batch_size}",
        f"mode: {train.mode}; uses {_used(request)}",
        f"strategy: {request.strategy.name}{_beside(request)}" + (f"; keeps {keeps} here" if keeps else ""),
        f"sends back each round: {size} bytes of changes ({codec.name}{kept}), the number of examples, {told}",
        *([f"sends beside, as sums over the data: {'; '.join(sums)}"] if sums else []),
    )
    return _lines(lines)


def _lines(lines: Iterable[str]) -> tuple[str, ...]:
    return tuple("".join(c for c in line if c.isprintable())[:400] for line in lines)


def _check_words(request: "PrepareRequest") -> list[str]:
    """What a check does, which trains nothing."""
    from fedretrain.checks import SECTIONS

    contract = request.contract
    features = ", ".join(feature.name for feature in contract.features) or "none"
    outputs = "; ".join(f"{spec.name} ({', '.join(spec.labels) or spec.kind})" for spec in contract.outputs)
    told = ", ".join(SECTIONS)
    return [
        "a check: trains nothing, changes nothing, and sends no change to a model",
        f"counts the examples in each cell of these features: {features}",
        f"counts labels, and what the model makes of the examples, for: {outputs}",
        f"sends counts, and the [metrics] of site.toml that are asked for, as far as the policy allows: {told}",
    ]


def _used(request: "PrepareRequest") -> str:
    """Which of the site's examples a job trains on."""
    from fedretrain.job import ReplaySection

    from .selection import ONLY_NEW

    train = request.train
    since = f" made since {train.since:%Y-%m-%d %H:%M:%S} UTC" if train.since else ""
    if train.mode not in ONLY_NEW:
        return "all examples"
    if train.mode == "replay":
        share = (train.replay or ReplaySection()).share
        older = "the data made before that and " if since else ""
        return (
            f"examples{since}; {100 * share:.0f} % of what each round trains on are old ones, from {older}what this "
            "site kept of earlier runs, as far as its policy lets it keep any"
        )
    return f"examples{since}" if since else "all examples"


def _beside(request: "PrepareRequest") -> str:
    """The objectives beside the strategy, with their settings."""
    listed = request.strategy.settings.get("objectives")
    return f" with {listed}" if listed else ""


def _read(file: Path) -> Approval | None:
    try:
        return Approval.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise MachineError(f"{file}: cannot read the approval: {error.strerror or error}") from None
    except ValidationError:
        return None


def _write(home: Home, approval: Approval) -> None:
    atomic.write_json(home.approvals / f"{approval.job}.json", approval.model_dump(mode="json"))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
