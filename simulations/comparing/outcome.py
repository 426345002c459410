"""What one run of one way to retrain came to, and what the numbers mean.

Accuracy is measured on the two holdouts of a scenario: *old*, what the model in use could do, and *new*, what has come.
With a(m, h) the accuracy of model m on holdout h, incumbent m_0, the models m_1 ... m_R after each round (of an
ensemble: of the member that trains) and the candidate m::

    backward transfer = a(m, old) - a(m_0, old)
    forgetting        = max(a(m_0, old), a(m_1, old), ..., a(m_R, old)) - a(m, old)

These are the definitions of the two papers for two tasks, the second of which is learnt, with a measurement after every
round.

D. Lopez-Paz, M. Ranzato: Gradient Episodic Memory for Continual Learning. NeurIPS 2017,
https://arxiv.org/abs/1706.08840

A. Chaudhry, P. K. Dokania, T. Ajanthan, P. H. S. Torr: Riemannian Walk for Incremental Learning: Understanding
Forgetting and Intransigence. ECCV 2018, https://arxiv.org/abs/1801.10112
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Point:
    """Accuracy of the model after so many rounds, in [0, 1]; 0 rounds for what the first one starts from."""

    round: int
    old: float
    new: float


@dataclass(frozen=True)
class Outcome:
    """One run.

    Attributes:
        before: Of the model in use.
        after: Of the candidate, whether or not it was released; its round is the run's last.
        at_sites: Accuracy on the sites' own validation parts before the last round, of what each site has: where a way
            gives a site layers or a model of its own, with these. NaN where it is not known.
        curve: Of the model that trains.
        released: Whether the gate passed the candidate.
        nbytes: Bytes of arrays as they travelled, in both directions.
        seconds: Of the rounds and what the mode asks the sites beside them; the workers were warm.
    """

    before: Point
    after: Point
    at_sites: float
    curve: Sequence[Point]
    released: bool
    nbytes: int
    seconds: float

    @property
    def backward_transfer(self) -> float:
        """See the module docstring; negative where the candidate is worse on what is old."""
        return self.after.old - self.before.old

    @property
    def forgetting(self) -> float:
        """See the module docstring; not negative where the candidate is one of the measured models."""
        return max([self.before.old, *(point.old for point in self.curve)]) - self.after.old


@dataclass(frozen=True)
class Refused:
    """A way that has no meaning in a scenario, or that too few sites could take; ``why`` is the product's own line."""

    why: str
