"""What one bad site sends, for rehearsals: its training replies are spoilt on the way out of its worker.

Everything around the update stays right, the digest over it included, so that only the rule the kind is meant for can
catch it::

    scale   the update times 1000         caught by the norm rule
    nan     NaN at the update's beginning caught by the rule that updates are finite

Wrong labels are no matter of the reply: they stand in the site's data, and the gate sees what comes of them.
"""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from numpy.typing import NDArray

from fedretrain.digest import canonical_json, weights_digest
from fedretrain.errors import ConfigurationError

SCALE = 1000


def _scale(update: list[NDArray[Any]]) -> list[NDArray[Any]]:
    return [a * np.asarray(SCALE, a.dtype) for a in update]


def _nan(update: list[NDArray[Any]]) -> list[NDArray[Any]]:
    spoilt = [a.copy() for a in update]
    first = next(a for a in spoilt if a.size)
    first.reshape(-1)[0] = np.nan
    return spoilt


KINDS: dict[str, Callable[[list[NDArray[Any]]], list[NDArray[Any]]]] = {"scale": _scale, "nan": _nan}


def check_kind(kind: str) -> str:
    """``kind`` itself; raises ConfigurationError where there is no such poison."""
    if kind not in KINDS:
        raise ConfigurationError(f"poison: expected one of {', '.join(sorted(KINDS))}, got {kind!r}")
    return kind


def poisoned(kind: str, reply: RecordDict) -> RecordDict:
    """The reply with its update or sum spoilt; replies that have none, such as to ``prepare``, stay as they are.

    Args:
        kind: A key of ``KINDS``.
        reply: A site's answer (``fedretrain.messages``); not changed.

    Raises:
        ConfigurationError: There is no such kind.
    """
    spoil = KINDS[check_kind(kind)]
    body = json.loads(str(reply.config_records["body"]["json"]))
    arrays = reply.array_records.get("arrays")
    digest = {"train": "update_digest", "sum": "sum_digest"}.get(body.get("kind"))
    if digest is None or not arrays:
        return reply
    update = spoil([a.numpy() for a in arrays.values()])
    body[digest] = weights_digest(update)
    records = dict(reply.items())
    records["arrays"] = ArrayRecord({k: Array(a) for k, a in zip(arrays, update, strict=True)})
    records["body"] = ConfigRecord({**reply.config_records["body"], "json": canonical_json(body).decode()})
    return RecordDict(records)
