"""Which jobs a person at the site has said yes to; one file per job in ``home.approvals``.

A job is what would be done with the data: the digest of its contract, training, strategy and frozen layers. Another
run of the same job needs no second yes; any change of it does.
"""

from dataclasses import dataclass

from fedretrain.digest import json_digest
from fedretrain.messages import PrepareRequest

from .home import Home


@dataclass(frozen=True)
class Approval:
    """A job that waits for, or has, a yes.

    Attributes:
        job: The job's digest; ``id`` its first twelve characters, which is what a person types.
        run: The run that first asked.
        asked: When, UTC, ISO 8601.
        words: What the job would do, a line each.
        approved: When a person said yes, None while it waits.
        by: Who that was, the name of the account.
    """

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


def job_digest(request: PrepareRequest) -> str:
    """What identifies the job of a request, whatever its run."""
    return json_digest(request.model_dump(mode="json", include={"contract", "train", "strategy", "freeze"}))


def listed(home: Home) -> list[Approval]:
    """All jobs, those that wait first, then by time."""
    raise NotImplementedError


def approve(home: Home, id_: str) -> Approval:
    """Say yes to the job whose digest starts with ``id_`` and write it into the site's record.

    Raises:
        ConfigurationError: No job, or several, start so.
        MachineError: The disk does not take it.
    """
    raise NotImplementedError


def withdraw(home: Home, id_: str) -> Approval:
    """Take a yes back; raises as ``approve``."""
    raise NotImplementedError
