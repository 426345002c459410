"""What of an answer may leave the site, and what the site's record says about it.

Invariants: nothing is added to an answer; a statistic or count that the policy holds back is not in what is returned;
what is returned is told in full: kinds, sizes, counts and names, never values.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedretrain.checks import GIVEN, POLICY, SECTIONS
from fedretrain.checks import SUM as CHECK
from fedretrain.contract import key
from fedretrain.messages import PrepareReply, pack, record

from .policy import Policy, count_to_tell, statistics_to_tell


@dataclass(frozen=True)
class Leaving:
    """An answer as it leaves; ``kind`` and ``fields`` are its entry in the record."""

    content: RecordDict
    kind: str
    fields: dict[str, Any]


def reviewed(answer: RecordDict, policy: Policy, counts: Callable[[str], tuple[int, int]]) -> Leaving:
    """The answer of ``client.site`` or ``client.releases`` as it may leave.

    Args:
        answer: One of ``fedretrain.messages``' replies.
        policy: The site's.
        counts: Training and validation examples of a run.
    """
    body = _body(answer)
    kind = body.get("kind")
    if kind == "declined":
        return Leaving(answer, "refused", {key: body[key] for key in ("code", "where", "expected")})
    if kind == "prepare":
        return _prepared(PrepareReply.model_validate(body), policy)
    if kind == "train":
        return _trained(answer, policy, counts(str(body["run"])))
    if kind == "sum":
        return _summed(answer, str(body["sum"]))
    return Leaving(answer, "sent", {"release": body["used"]} if body.get("used") else {})


def _prepared(reply: PrepareReply, policy: Policy) -> Leaving:
    told = reply.model_copy(update={"validation_examples": count_to_tell(policy, reply.validation_examples)})
    counts = {"training examples": told.train_examples, "validation examples": told.validation_examples}
    declines = {"declines": list(told.declines)} if told.declines else {}
    return Leaving(pack(told), "sent", {"counts": counts, **declines})


def _trained(answer: RecordDict, policy: Policy, counts: tuple[int, int]) -> Leaving:
    metrics = record(answer, "metrics", MetricRecord) or MetricRecord()
    claimed = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
    examples = claimed.pop("num-examples")
    kept = statistics_to_tell(policy, claimed, *counts)
    whole = RecordDict(dict(answer.items()))
    whole["metrics"] = MetricRecord({"num-examples": examples, **kept})
    arrays = record(answer, "arrays", ArrayRecord) or ArrayRecord()
    fields = {
        "arrays": len(arrays),
        "bytes": sum(len(array.data) for array in arrays.values()),
        "counts": {"training examples": examples},
        "statistics": sorted(kept),
        "withheld": sorted(set(claimed) - set(kept)),
    }
    return Leaving(whole, "sent", fields)


def _summed(answer: RecordDict, name: str) -> Leaving:
    """A sum; whether it may leave was decided before it was made (``client.site``)."""
    metrics = record(answer, "metrics", MetricRecord) or MetricRecord()
    arrays = record(answer, "arrays", ArrayRecord) or ArrayRecord()
    fields = {
        "sum": name,
        "arrays": len(arrays),
        "bytes": sum(len(array.data) for array in arrays.values()),
        "counts": {"examples": metrics["num-examples"]},
    }
    return Leaving(answer, "sent", fields | (_checked(arrays) if name == CHECK else {}))


def _checked(arrays: ArrayRecord) -> dict[str, Any]:
    """Which sections a check's answer has (``fedretrain.checks``), and the epsilon of its noise where there is some."""
    site, reasons = (arrays[key(place)].numpy() for place in (0, 1))
    codes = dict(zip(SECTIONS, map(int, reasons), strict=True))
    told = {
        "statistics": sorted(f"check-{name}" for name, code in codes.items() if code == GIVEN),
        "withheld": sorted(f"check-{name}" for name, code in codes.items() if code == POLICY),
    }
    return {**told, "epsilon": float(site[1])} if site[1] else told


def _body(answer: RecordDict) -> dict[str, Any]:
    body = record(answer, "body", ConfigRecord) or ConfigRecord()
    decoded: dict[str, Any] = json.loads(str(body["json"]))
    return decoded
