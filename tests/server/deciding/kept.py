"""What a history, a registry and runs hold, in a few lines: checks, findings, results and plans for tests."""

import json
import os
import zipfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from fedretrain.job import Job
from server.checking.document import Check, SiteCheck, Window
from server.deciding.evidence import Estimate, Evidence, Past
from server.deciding.plan import Cost, Plan, Range
from server.drift.findings import Finding, Findings, Performance

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)
LABELS = ("0", "1", "8", "unknown")  # the model knows the first two


def window(examples: int, labels: tuple[int | None, ...] = (0, 0, 0, 0)) -> Window:
    """A window of which examples and labels are known."""
    nothing: dict[str, Any] = {}
    return Window(
        examples=examples,
        histograms=nothing,
        missing=nothing,
        impossible=nothing,
        constant=(),
        duplicates=None,
        label_noise=None,
        labels={"y": labels},
        predicted={"y": (None, None)},
        confusion=nothing,
        confidence=nothing,
        confidence_sum=nothing,
        right=nothing,
        labelled=nothing,
        age=(),
    )


def site(
    name: str,
    reference: int = 100,
    recent: int = 40,
    labels: tuple[int | None, ...] = (20, 20, 0, 0),
    withheld: dict[str, str] | None = None,
) -> SiteCheck:
    """A site's answer."""
    return SiteCheck(name, window(reference), window(recent, labels), withheld or {}, 5, None, {}, ())


def check(number: int, *sites: SiteCheck, release: str | None = None, declined: dict[str, str] | None = None) -> Check:
    """The check of a day."""
    return Check(
        check=f"check-{number}",
        at=(NOW + number * DAY).isoformat(),
        job="j",
        release=release,
        contract="c",
        since=None,
        labels={"y": LABELS},
        features=(),
        sites={one.site: one for one in sites},
        declined=declined or {},
        seconds=1.0,
        bytes=1,
    )


def finding(kind: Any, verdict: Any, effect: float = 0.3, where: str | None = None, subject: str = "x") -> Finding:
    """What was found about a kind of drift."""
    return Finding(kind, subject, where, 1.0, 0.5, 0.001, effect, 100, 40, verdict, "said")


def findings(number: int, *found: Finding, recent: float = 0.8) -> Findings:
    """What the check of a day came to; the model is right for ``recent`` of recent examples, for 0.9 of older ones."""
    now, before = (Estimate(value, value - 0.05, value + 0.05, 100) for value in (recent, 0.9))
    performance = (Performance("y", None, before, now, 0.85), Performance("y", "a", before, now, None))
    return Findings(f"check-{number}", (NOW + number * DAY).isoformat(), found, performance)


def job(path: Path, **tables: Any) -> Job:
    """A job with one holdout; nothing of it is opened."""
    train = {"rounds": 4, **tables.pop("train", {})}
    value = {"model": {"path": str(path)}, "holdout": [{"name": "old", "path": "old.npz"}], "train": train, **tables}
    return Job.model_validate_json(json.dumps(value))


def write_model(path: Path, *layers: tuple[str, str]) -> None:
    """What a .keras file says of a model of these layers, kinds and names; each has 10 units."""
    made = [{"class_name": kind, "config": {"name": name, "units": 10}} for kind, name in layers]
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("config.json", json.dumps({"class_name": "Functional", "config": {"layers": made}}))


def result(  # noqa: PLR0917 - what a result is made of
    run: str,
    accuracy: tuple[float, ...] = (0.8, 0.86, 0.9),
    holdouts: tuple[tuple[str, str, float], ...] = (),
    release: str | None = "r",
    seconds: float = 10.0,
    kwh: float | None = None,
) -> dict[str, Any]:
    """A run's result: two sites that trained for 2 s each in each round; holdouts as (must, metric, difference)."""
    reply = {"examples": 30, "metrics": {"seconds": 2.0}}
    return {
        "run_id": run,
        "outcome": "rejected" if release is None else "released",
        "release": release,
        "rounds": [{"metrics": {"val-accuracy": value}, "admitted": [reply, reply]} for value in accuracy],
        "gate": {"holdouts": [{"must": must, "metric": metric, "difference": d} for must, metric, d in holdouts]},
        "bytes": {"total": 1000},
        "seconds": {"total": seconds, "earlier": 1.0},
    } | ({} if kwh is None else {"energy": {"kwh": kwh}})


def write_run(out: Path, run: str, mode: str = "incremental", at: datetime = NOW, **fields: Any) -> None:
    """A finished run of that mode in its folder, ended ``at``."""
    folder = out / "runs" / run
    folder.mkdir(parents=True)
    (folder / "job.json").write_text(json.dumps({"train": {"mode": mode}}))
    path = folder / "result.json"
    path.write_text(json.dumps(result(run, **fields)))
    os.utime(path, (at.timestamp(), at.timestamp()))


def plan(action: Any = "incremental", settings: dict[str, Any] | None = None, **fields: Any) -> Plan:
    """A plan that expects 0.05 to 0.15 of gain in 5 to 20 s."""
    evidence = fields.pop("evidence", None) or Evidence(NOW, metric=Estimate(0.7, 0.65, 0.75, 100), old_examples=100)
    given: dict[str, Any] = {
        "action": action,
        "rule": "covariate-drift",
        "sentence": "Drift in inputs.",
        "threshold": "drift in 2 checks in a row",
        "wanted": None,
        "settings": {"mode": action} if settings is None else settings,
        "gain": Range(0.05, 0.1, 0.15),
        "gain_basis": "prior",
        "cost": Cost(seconds=Range(5.0, 10.0, 20.0), runs=1),
        "alternatives": (),
        "would_change": ("More data.",),
        "not_before": None,
        "evidence": evidence,
    }
    return Plan(**given | fields)


def past(action: str, **fields: Any) -> Past:
    """A retraining that was released."""
    given: dict[str, Any] = {
        "at": NOW,
        "gain": 0.1,
        "forgetting": None,
        "seconds": 10.0,
        "bytes": 100,
        "site_seconds": 4.0,
        "kwh": None,
        "released": True,
        "new_examples": None,
    }
    return Past(action=action, **given | fields)
