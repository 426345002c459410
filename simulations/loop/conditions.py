"""How the world changes, by name: what the sites meet in each step of time.

Invariants: conditions follow from the name, the step and the number of steps, and from nothing that is drawn; before
the change, and before the first step, they are those that the model in use was trained under.

A step is a month. All but ``none`` and ``seasonal`` change from step ``changed(steps)`` on.

    none          nothing changes
    covariate     one site after the other replaces its scanner by a camera (``simulations.digits``)
    label-shift   the digits that are hardest to tell apart, 1, 3, 5, 8 and 9, become ten times as frequent as others
    concept       what was called a 3 is called a 5, and the other way round, at all sites
    new-classes   8 and 9, which the model does not know, are two in ten of what is read
    new-site      a site joins that has had a camera all along, and brings a third of what is read
    seasonal      all sites have cameras, and the light in their rooms follows the year: dim in winter, bright in summer
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

DIGITS = 10
KNOWN = 8
"""Digits that the model in use knows where new ones come."""
EXCHANGED = (3, 5)
HARD = (1, 3, 5, 8, 9)
MONTHS = 12
_RARE, _SHARE_OF_THE_LAST, _OFTEN_NEW = 0.1, 1 / 3, 0.2


@dataclass(frozen=True)
class Conditions:
    """One step.

    Attributes:
        strength: How far each site's pictures are from a scanner's, 0 to 1, by site.
        share: Part of all that is read, by site; 0 for a site that is not there yet. Sums to 1.
        frequency: Of each digit, beside a site's own habits; need not sum to 1.
        exchanged: Two digits that have each other's name, or None.
    """

    strength: Mapping[str, float]
    share: Mapping[str, float]
    frequency: tuple[float, ...] = (1.0,) * DIGITS
    exchanged: tuple[int, int] | None = None


def changed(steps: int) -> int:
    """The step from which on the world is another: a quarter of them lie before, at least one."""
    return max(1, steps // 4)


def conditions(scenario: str, step: int, steps: int, sites: Sequence[str]) -> Conditions:
    """What the sites meet.

    Args:
        scenario: One of ``ABOUT``.
        step: From 0 on; before that, what the model in use was trained under.
        steps: How many there are.
        sites: Names of all, also of one that joins later.
    """
    return _MADE[scenario](step, changed(steps), sites)


def _still(sites: Sequence[str], strength: float = 0.0) -> Conditions:
    return Conditions(dict.fromkeys(sites, strength), dict.fromkeys(sites, 1 / len(sites)))


def _none(_step: int, _changed: int, sites: Sequence[str]) -> Conditions:
    return _still(sites)


def _covariate(step: int, change: int, sites: Sequence[str]) -> Conditions:
    with_camera = sites[: max(0, step - change + 1)]
    still = _still(sites)
    return Conditions({**still.strength, **dict.fromkeys(with_camera, 1.0)}, still.share)


def _label_shift(step: int, change: int, sites: Sequence[str]) -> Conditions:
    still = _still(sites)
    frequency = tuple(1.0 if digit in HARD or step < change else _RARE for digit in range(DIGITS))
    return Conditions(still.strength, still.share, frequency)


def _concept(step: int, change: int, sites: Sequence[str]) -> Conditions:
    still = _still(sites)
    return Conditions(still.strength, still.share, exchanged=EXCHANGED if step >= change else None)


def _new_classes(step: int, change: int, sites: Sequence[str]) -> Conditions:
    still, new = _still(sites), DIGITS - KNOWN
    often = _OFTEN_NEW / (1 - _OFTEN_NEW) * KNOWN / new if step >= change else 0.0
    return Conditions(still.strength, still.share, (1.0,) * KNOWN + (often,) * new)


def _new_site(step: int, change: int, sites: Sequence[str]) -> Conditions:
    last = _SHARE_OF_THE_LAST if step >= change else 0.0
    share = {name: (1 - last) / (len(sites) - 1) for name in sites[:-1]} | {sites[-1]: last}
    return Conditions({**_still(sites).strength, sites[-1]: 1.0}, share)


def _seasonal(step: int, _change: int, sites: Sequence[str]) -> Conditions:
    return _still(sites, 0.0 if step < 0 else (1 - math.cos(2 * math.pi * step / MONTHS)) / 2)


ABOUT: Mapping[str, str] = {
    "covariate": "one site after the other replaces its scanner by a camera",
    "concept": "two digits exchange their names",
    "label-shift": "half of the digits become rare",
    "new-classes": "two digits are met that the model does not know",
    "new-site": "a site joins whose pictures look different",
    "seasonal": "the light in the rooms follows the year",
    "none": "nothing changes",
}
_MADE: Mapping[str, Callable[[int, int, Sequence[str]], Conditions]] = {
    "covariate": _covariate,
    "concept": _concept,
    "label-shift": _label_shift,
    "new-classes": _new_classes,
    "new-site": _new_site,
    "seasonal": _seasonal,
    "none": _none,
}
