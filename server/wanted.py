"""Which sums a job asks of its sites (``fedretrain.sums``); a site answers for no others than it was prepared with.

An evaluation needs no mention: it tells what every round's metrics tell.
"""

from fedretrain.job import Job
from strategies.ewc import EWC
from strategies.posterior import Posterior
from strategies.registry import objective_settings


def companions_of(job: Job) -> dict[str, EWC | Posterior]:
    """The objectives that need something brought to the sites, by the name of what they need.

    Raises:
        ConfigurationError: An objective is not what it has to be.
    """
    found = objective_settings(job.strategy)
    return {one.companions[0]: one for one in found if isinstance(one, EWC | Posterior) and one.strength}


def wanted_sums(job: Job) -> tuple[str, ...]:
    """Names of the sums, sorted; raises as ``companions_of``."""
    found = {"fisher"} if companions_of(job) else set[str]()
    if job.uncertainty is not None:
        found.add("gauss-newton")
    return tuple(sorted(found))
