"""What a world came to under a policy: one record for each step, and the sums that policies are compared by.

Accuracy over time is prequential: a step's is that of the model which was in use while it lasted, measured on what was
current in it, before anything that was decided at its end. So nobody is measured on what came after, and a release pays
from the next step on.

A. P. Dawid: Present Position and Potential Developments: Some Personal Views, Statistical Theory: The Prequential
Approach. Journal of the Royal Statistical Society A 147(2), 1984.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Record:
    """One step.

    Attributes:
        step: From 0 on.
        at: Its end, as text.
        accuracy: Of the model in use on what was current, in [0, 1].
        action: What was decided at the end of the step (``server.deciding.plan``; a schedule's: its mode).
        why: In one line.
        retrained: Whether a retraining was run, released or not, or begun and given up.
        released: Whether a model took the place of the one in use.
        nbytes: Of arrays as they travelled, for the check and the retraining.
        seconds: Of both.
        document: The plan's, as a path below the output folder; empty where there is none.
    """

    step: int
    at: str
    accuracy: float
    action: str = "nothing"
    why: str = ""
    retrained: bool = False
    released: bool = False
    nbytes: int = 0
    seconds: float = 0.0
    document: str = ""


@dataclass(frozen=True)
class Course:
    """All steps of one scenario and seed under one policy."""

    scenario: str
    policy: str
    seed: int
    records: Sequence[Record]

    @property
    def accuracy(self) -> float:
        """Mean over the steps."""
        return statistics.fmean(record.accuracy for record in self.records)

    @property
    def retrainings(self) -> int:
        """How many were run."""
        return sum(record.retrained for record in self.records)

    @property
    def releases(self) -> int:
        """How often the model in use was replaced."""
        return sum(record.released for record in self.records)

    @property
    def nbytes(self) -> int:
        """Of checks and retrainings."""
        return sum(record.nbytes for record in self.records)

    @property
    def seconds(self) -> float:
        """Of checks and retrainings."""
        return sum(record.seconds for record in self.records)
