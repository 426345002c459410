"""From evidence, policy and cost to a plan: a pure function, so the same evidence gives the same plan."""

from collections.abc import Mapping

from fedretrain.planning import PlanSection

from .evidence import Evidence
from .plan import Cost, Plan


def decide(evidence: Evidence, policy: PlanSection, costs: Mapping[str, Cost]) -> Plan:
    """The plan.

    Args:
        evidence: All that is known.
        policy: The job's ``[plan]``.
        costs: What retrainings took, by action (``fedretrain.planning.RETRAININGS``); those that never ran are
            missing, and are scaled from others (``server.deciding.cost``).
    """
    raise NotImplementedError
