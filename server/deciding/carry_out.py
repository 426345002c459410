"""From a plan to what does it: a job for ``server.run``, or a step back in the registry.

Invariants:

- A plan says what is done, the watched job everything else: model, sites, holdouts and the gate are the job's own, so
  nothing is released that would not be released otherwise.
- What is carried out starts from the model in use, by the registry; a plan made for another release is refused.
- What may run without a person is what the job's [plan.auto] allows, and nothing where its cost is not known and has a
  limit.

"transfer" on a frozen base trains the model's head alone, from where it is, with every layer before it frozen; a job
that is of the mode "transfer" itself has the head of its own [transfer] instead.
"""

import glob
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic import ValidationError

from fedretrain.errors import ConfigurationError
from fedretrain.job import Job
from fedretrain.jobtables import STAGED
from fedretrain.planning import UNITS, PlanSection, Retraining

from .head import base_layers, units
from .plan import Plan

if TYPE_CHECKING:
    from server.registry import Release

_TABLES: Final = ("transfer", "extend", "ensemble", "online", "search", "watch", "plan")
"""Of a job, tables that are of its own way to retrain, or of no run."""

Tables = dict[str, Any]


@dataclass(frozen=True)
class InUse:
    """The model in use.

    Attributes:
        release: Its id; None where nothing is released and it is the job's.
        path: Its file.
        labels: Of its outputs, by name; empty where they are only known when the file is opened.
    """

    release: str | None
    path: Path
    labels: Mapping[str, tuple[str, ...]]


def in_use(out: Path, job: Job) -> InUse:
    """The model in use, by the registry of an output folder, else the job's.

    Raises:
        UntrustedRelease: The registry does not verify.
        MachineError: The disk.
    """
    from server.registry import Registry

    release = Registry.open(out).incumbent()
    if release is None:
        return InUse(None, job.model.path, {})
    labels = {spec.name: spec.labels for spec in release.contract.outputs if spec.labels}
    return InUse(release.id, release.folder / "model.keras", labels)


def of_model(job: Job, model: InUse) -> Job:
    """The job, about the model in use: its file and, where the job names others, its labels."""
    if model.release is None:
        return job
    section = job.model.model_copy(update={"path": model.path, "architecture": None})
    return job.model_copy(update={"model": section, "contract": _contract(job, model)})


def _contract(job: Job, model: InUse) -> Any:
    """The job's [contract]; labels that are not the model's are left to its release."""
    if job.contract.labels is None or job.contract.labels in model.labels.values():
        return job.contract
    return job.contract.model_copy(update={"labels": None})


def mode_of(action: Retraining, job: Job) -> str:
    """``train.mode`` of the job that carries out a plan of that action, see ``job_of``."""
    if action == "full":
        return (job.plan or PlanSection()).full_mode
    return "continue" if action == "transfer" and job.transfer is None else action


def job_of(plan: Plan, job: Job, model: InUse) -> Job:
    """The job that carries a plan out.

    Args:
        plan: One that retrains.
        job: That is watched.
        model: See ``in_use``.

    Raises:
        ConfigurationError: The plan does not retrain, was made for another release, or asks for what the model or the
            job does not allow; names what.
    """
    if not plan.acts or plan.action == "roll-back":
        raise ConfigurationError(f"plan {plan.id[:16]}: expected one that retrains, got {plan.action!r}")
    check_current(plan, model)
    mode = str(plan.settings["mode"])
    tables: Tables = of_model(job, model).model_dump(mode="json", exclude=set(_TABLES))
    _set_train(tables["train"], plan, job, mode)
    if mode == "transfer":
        _set_transfer(tables, job, model)
    elif mode == "extend":
        _set_extend(tables, plan, job, model)
    _set_recency(tables["strategy"], plan)
    try:
        return Job.model_validate_json(json.dumps(tables))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigurationError(f"plan {plan.id[:16]}: {plan.action}: {where}: {first['msg']}") from None


def check_current(plan: Plan, model: InUse) -> None:
    """Raise ConfigurationError where a plan was made for another model than the one in use."""
    planned = plan.evidence.release
    if planned is not None and planned != model.release:
        got = f"release {model.release[:16]}" if model.release else "no release"
        raise ConfigurationError(
            f"plan {plan.id[:16]}: expected the model it was made for, release {planned[:16]}, in use, got {got}; "
            "watch again and take the plan that comes of it"
        )


def _set_train(train: Tables, plan: Plan, job: Job, mode: str) -> None:
    """Mode, what is new and what is replayed."""
    dated = plan.evidence.old_examples != 0  # without examples from before, nothing may have a time
    since = _later(job.train.since, plan.settings.get("since"))
    train["mode"] = mode
    train.pop("replay", None)
    train.pop("since", None)
    if mode not in STAGED:
        train.pop("stages", None)
    if dated and since and mode in {"incremental", "replay"}:
        train["since"] = since.isoformat()
    if mode == "replay":
        own = job.train.replay.model_dump(mode="json") if job.train.replay else {}
        share = plan.settings.get("replay_share")
        train["replay"] = own | ({} if share is None else {"share": share})


def _later(said: datetime | None, planned: Any) -> datetime | None:
    """Since when examples are new, as checks have it: the release, or the job's own date where that is later."""
    found = [at for at in (said, datetime.fromisoformat(planned) if planned else None) if at is not None]
    return max(found, default=None)


def _set_recency(strategy: Tables, plan: Plan) -> None:
    """The objective "recency", in place of one that the job has."""
    half_life = plan.settings.get("half_life_days")
    if half_life is None or plan.evidence.old_examples == 0:
        return
    others = [one for one in strategy.get("objectives", ()) if _name(one) != "recency"]
    strategy["objectives"] = [*others, {"name": "recency", "half_life_days": half_life}]


def _name(objective: Any) -> Any:
    return objective.get("name") if isinstance(objective, dict) else objective


def _set_extend(tables: Tables, plan: Plan, job: Job, model: InUse) -> None:
    """Labels of the model in use, and those that the plan adds."""
    old = _labels(plan, job, model)
    added = [str(name) for name in _listed(plan.settings.get("labels")) if name not in old]
    tables["contract"]["labels"] = None
    tables["extend"] = {"labels": [*old, *added], "old": list(old)}
    if job.extend is not None:
        tables["extend"]["allow_loss"] = job.extend.allow_loss


def _labels(plan: Plan, job: Job, model: InUse) -> tuple[str, ...]:
    """Of the model in use: by its release, else by the job, else by the positions of its head's units."""
    named = list(model.labels.values()) or ([job.contract.labels] if job.contract.labels else [])
    if len(named) > 1:
        names = ", ".join(model.labels)
        raise ConfigurationError(
            f"plan {plan.id[:16]}: extend: expected a model with one output that has labels, got {names}"
        )
    if named:
        return tuple(named[0])
    return tuple(str(position) for position in range(units(model.path)))


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else []


def _set_transfer(tables: Tables, job: Job, model: InUse) -> None:
    """The job's own head, or the model's on frozen layers."""
    if job.transfer is not None:
        tables["transfer"] = job.transfer.model_dump(mode="json")
        return
    tables["train"]["mode"] = "continue"
    frozen = (glob.escape(name) for name in base_layers(model.path))
    tables["model"]["freeze"] = [*tables["model"]["freeze"], *frozen]


def roll_back(plan: Plan, out: Path, job: Job) -> "Release":
    """Put the release of a plan in use again, as ``fedretrain server releases rollback`` does.

    Raises:
        ConfigurationError: The plan is no roll-back, or was made for another release than the one in use.
        UntrustedRelease: The registry does not verify.
        MachineError: The disk.
    """
    from server.registry import Registry

    if plan.action != "roll-back":
        raise ConfigurationError(f"plan {plan.id[:16]}: expected a roll-back, got {plan.action!r}")
    check_current(plan, in_use(out, job))
    return Registry.open(out).rollback(str(plan.settings["release"]))


def needs_a_person(plan: Plan, policy: PlanSection, now: datetime) -> str:
    """Why a plan may not run by itself, in a few words; empty where it may.

    Args:
        plan: Of that policy.
        policy: The job's [plan]; its ``auto`` table has the limits.
        now: The time.
    """
    if not plan.acts:
        return f"there is nothing to carry out: {plan.action}"
    if plan.action not in policy.auto.actions:
        allowed = ", ".join(policy.auto.actions) or "none"
        return f"{plan.action} is none of plan.auto.actions ({allowed})"
    if not plan.due(now):
        return f"not before {plan.not_before:%Y-%m-%d %H:%M} UTC"
    for unit in UNITS:
        limit, cost = getattr(policy.auto, unit), plan.cost.of(unit) if plan.cost else None
        if limit is None or plan.action == "roll-back":
            continue
        if cost is None:
            return f"plan.auto.{unit} is {limit:g}, and nothing like it ever ran, so its cost is not known"
        if cost.high > limit:
            return f"it may take {cost.high:.4g} {unit}, more than plan.auto.{unit}, {limit:g}"
    return ""
