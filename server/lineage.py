"""Where a release comes from, as it is signed into it; plain JSON, and the same for the same run however often resumed.

``lineage_of_run`` gives::

    {"run": run id, "parent": id of the release it replaces, "job": digest of the job, "seed", "strategy": {...},
     "base": weights digest of the model it was trained from,
     "mode": {"name", ...},                                       unless it only goes on (``server.modes``)
     "sites": {name: examples}, "rounds": [{"round", "admitted": [name], "quarantined": [{"site", "code"}]}],
     "versions": {package: version}}

``server.registry`` adds the format, the weights digest and the contract digest.
"""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import fedretrain

from .plan import Plan

PACKAGES = ("flwr", "keras", "tensorflow")


def lineage_of_run(
    plan: Plan, history: Sequence[Mapping[str, Any]], parent: str | None, about: Mapping[str, Any]
) -> dict[str, Any]:
    """The lineage of a run's candidate; ``history`` as in its checkpoint, ``about`` what is said of the mode."""
    admitted = [reply for record in history for reply in record["admitted"]]
    examples = {reply["site"]: reply["examples"] for reply in admitted}
    rounds = [
        {
            "round": record["round"],
            "admitted": [reply["site"] for reply in record["admitted"]],
            "quarantined": [{"site": q["site"], "code": q["code"]} for q in record["quarantined"]],
        }
        for record in history
    ]
    return {
        "run": plan.run,
        "parent": parent,
        "job": plan.job.digest,
        "seed": plan.train.seed,
        "strategy": plan.job.strategy.model_dump(mode="json"),
        "base": plan.contract.base,
        "sites": dict(sorted(examples.items())),
        "rounds": rounds,
        "versions": _versions(),
    } | ({"mode": dict(about)} if about else {})


def lineage_of_import(plan: Plan) -> dict[str, Any]:
    """The lineage of the base model, where it becomes a registry's first release."""
    return {"run": f"import-{plan.in_use.base[:12]}", "parent": None, "imported": True, "versions": _versions()}


def _versions() -> dict[str, str]:
    return {"fedretrain": fedretrain.__version__} | {package: version(package) for package in PACKAGES}
