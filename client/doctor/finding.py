"""What the doctor says about one thing."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

State = Literal["ok", "note", "problem", "skipped"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        subject: What it is about, one or two words.
        state: ``ok``; ``note``, worth knowing; ``problem``, the site cannot take part so; ``skipped``.
        what: What was found, expected against got.
        why: Why it matters, where that is not plain.
        do: What to do about it.
        cause: The problem's name for programs, such as ``wrong-ca``; empty otherwise.
    """

    subject: str
    state: State
    what: str
    why: str = ""
    do: str = ""
    cause: str = ""

    def value(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def problem(subject: str, cause: str, what: str, why: str, do: str) -> Finding:
    """A finding that keeps the site from taking part."""
    return Finding(subject, "problem", what, why, do, cause)


class Stop(Exception):  # it ends the way to the server at its first problem
    """Carries the finding after which looking further makes no sense."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.what)
        self.finding = finding
