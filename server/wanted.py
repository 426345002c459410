"""Which sums a job asks of its sites (``fedretrain.sums``); a site answers for no others than it was prepared with.

An evaluation needs no mention: it tells what every round's metrics tell.
"""

from fedretrain.job import Job, NamedConfig
from strategies.ewc import EWC
from strategies.registry import objective_settings


def companion_sums(job: Job) -> dict[str, NamedConfig]:
    """The sum that each companion of the job's objectives is made of, by the companion's name.

    Raises:
        ConfigurationError: An objective is not what it has to be.
    """
    found = {}
    for one in objective_settings(job.strategy):
        if isinstance(one, EWC) and one.strength:
            found["fisher"] = one.sum
    return found


def wanted_sums(job: Job) -> tuple[str, ...]:
    """Names of the sums, sorted; raises as ``companion_sums``."""
    found = {what.name for what in companion_sums(job).values()}
    if job.uncertainty is not None:
        found.add("gauss-newton")
    return tuple(sorted(found))
