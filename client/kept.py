"""Examples that a site keeps: what tells them apart, how they are put together, sampled, and written as arrays.

Arrays of a file: x.<i> and y.<i> by position in the contract, id uint8 [n, 32], entered float64 [n], time float64 [n]
and weight float32 [n] where the data have them, and about: JSON with the labels' names by output and the outputs
without labels.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedretrain.contract import Contract, OutputSpec
from fedretrain.dataset import Dataset, as_arrays, check_dataset
from fedretrain.digest import canonical_json, sha256

from .sampling import Indices
from .selection import joined

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Kept:
    """Some examples.

    Attributes:
        data: As ``fedretrain.dataset.as_arrays`` returns them.
        id: uint8 [n, 32], see ``identities``.
        entered: float64 [n], when each came to the site's memory, in seconds since 1970.
    """

    data: Dataset
    id: Array
    entered: Array

    def __len__(self) -> int:
        return len(self.id)

    def take(self, rows: Array) -> "Kept":
        """The rows at ``rows`` (int [m] or bool [n])."""
        return Kept(self.data.take(rows), self.id[rows], self.entered[rows])

    def among(self, ids: Array) -> NDArray[np.bool_]:
        """Whether each example is one of ``ids``, bool [n]."""
        return np.isin(_texts(self.id), _texts(ids))

    def entered_as(self, other: "Kept") -> "Kept":
        """The same, with the time of those that are in ``other`` as it is there."""
        known = dict(zip(_texts(other.id).tolist(), other.entered.tolist(), strict=True))
        times = [
            known.get(text, now) for text, now in zip(_texts(self.id).tolist(), self.entered.tolist(), strict=True)
        ]
        return replace(self, entered=np.array(times, np.float64))


def identities(data: Dataset, contract: Contract) -> Array:
    """What tells examples apart, uint8 [n, 32]: SHA-256 of the inputs, and of how many rows before have the same."""
    arrays = [np.ascontiguousarray(data.x[spec.name]) for spec in contract.inputs]
    seen: dict[str, int] = {}
    found = bytearray()
    for row in range(len(data)):
        digest = sha256(b"".join(array[row].tobytes() for array in arrays))
        seen[digest] = seen.get(digest, -1) + 1
        found += bytes.fromhex(sha256(f"{digest} {seen[digest]}".encode()))
    return np.frombuffer(bytes(found), np.uint8).reshape(len(data), 32)


def together(sources: Sequence[Kept]) -> Kept:
    """All examples of one or more, none of which is in two; with times where all have them."""
    whole, *others = [source for source in sources if len(source)] or sources[:1]
    for other in others:
        times = [kept.data.time for kept in (whole, other) if kept.data.time is not None]
        data = replace(joined(whole.data, other.data), time=np.concatenate(times) if len(times) == 2 else None)
        whole = Kept(data, np.concatenate([whole.id, other.id]), np.concatenate([whole.entered, other.entered]))
    return whole


def sample(ids: Array, labels: Array | None, count: int) -> Indices:
    """Positions of at most ``count`` examples, ascending: those with the lowest ids.

    Args:
        ids: uint8 [n, 32].
        labels: Whole numbers [n]: the lowest of each label come before the second lowest of each; None: no matter.
        count: How many.
    """
    order = np.argsort(_texts(ids), kind="stable")
    if labels is not None:
        rank = np.empty(len(ids), np.intp)
        for label in np.unique(labels):
            mine = order[labels[order] == label]
            rank[mine] = np.arange(len(mine))
        order = order[np.argsort(rank[order], kind="stable")]
    return np.sort(order[:count])


def labels_of(data: Dataset, contract: Contract) -> Array | None:
    """One label of each example, [n]: of the first output that has one for each; None without such an output."""
    for spec in contract.outputs:
        array = data.y[spec.name]
        if spec.name in data.unlabelled or spec.kind in ("regression", "multilabel"):
            continue
        if spec.kind == "onehot" and array.ndim == 2:
            return np.asarray(array.argmax(axis=1))
        if array.size == len(array):
            return array.reshape(-1).astype(np.int64)
    return None


def form(contract: Contract) -> list[Any]:
    """What data must have in common to be kept together, as JSON; labels may come and go."""
    dump = contract.model_dump(mode="json")
    inputs = [{key: spec[key] for key in ("name", "shape", "dtype", "columns")} for spec in dump["inputs"]]
    return [inputs, [[spec["name"], spec["kind"]] for spec in dump["outputs"]], dump["preprocessing"]]


def packed(kept: Kept, contract: Contract) -> dict[str, Array]:
    """The arrays of a file."""
    data = kept.data
    about = {
        "labels": {spec.name: list(spec.labels) for spec in contract.outputs},
        "unlabelled": list(data.unlabelled),
    }
    arrays = {f"x.{i}": data.x[spec.name] for i, spec in enumerate(contract.inputs)}
    arrays |= {f"y.{i}": data.y[spec.name] for i, spec in enumerate(contract.outputs)}
    arrays |= {} if data.time is None else {"time": data.time}
    arrays |= {} if data.sample_weight is None else {"weight": data.sample_weight}
    return {**arrays, "id": kept.id, "entered": kept.entered, "about": np.frombuffer(canonical_json(about), np.uint8)}


def unpacked(arrays: Mapping[str, Array], contract: Contract) -> Kept:
    """The examples of a file, their labels by name as this contract has them; without those it has no label for.

    Raises:
        DataMismatch: They do not fit the contract.
        KeyError: An array is missing.
        ValueError: A label space cannot be brought into the contract's.
    """
    about = json.loads(arrays["about"].tobytes())
    data = Dataset(
        x={spec.name: arrays[f"x.{i}"] for i, spec in enumerate(contract.inputs)},
        y={spec.name: arrays[f"y.{i}"] for i, spec in enumerate(contract.outputs)},
        sample_weight=arrays.get("weight"),
        preprocessing=contract.preprocessing,
        time=arrays.get("time"),
        unlabelled=tuple(about["unlabelled"]),
    )
    kept = Kept(data, arrays["id"], arrays["entered"])
    for spec in contract.outputs:
        names = about["labels"][spec.name]
        if tuple(names) != spec.labels and spec.name not in data.unlabelled:
            labels, known = _renamed(kept.data.y[spec.name], names, spec)
            kept = replace(kept, data=replace(kept.data, y={**kept.data.y, spec.name: labels})).take(known)
    if len(kept):
        check_dataset(kept.data, contract)
    return replace(kept, data=as_arrays(kept.data, contract))


def _renamed(labels: Array, names: Sequence[str], spec: OutputSpec) -> tuple[Array, NDArray[np.bool_]]:
    """Labels among ``names`` as labels of ``spec``, and which rows have one there."""
    places = np.array([spec.labels.index(name) if name in spec.labels else -1 for name in names], np.intp)
    if spec.kind == "multiclass":
        found = places[labels].astype(np.int32)
        return found, np.all(found.reshape(len(found), -1) >= 0, axis=1)
    complete = set(spec.labels) <= set(names)
    if spec.kind != "onehot" and not (spec.kind == "multilabel" and complete):
        raise ValueError("nobody knows whether the examples have the labels that were added")
    stays = places >= 0
    found = np.zeros((*labels.shape[:-1], len(spec.labels)), np.float32)
    found[..., places[stays]] = labels[..., stays]
    if spec.kind == "multilabel":
        return found, np.ones(len(found), bool)
    return found, np.all(labels[..., ~stays].reshape(len(labels), -1) == 0, axis=1)


def _texts(ids: Array) -> Array:
    """Ids as values that can be compared, in the order of their bytes."""
    return np.ascontiguousarray(ids).view("S32").reshape(-1)
