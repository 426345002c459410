"""What is wrong with examples, as far as it shows in them: repeated ones, and labels the model does not believe.

Suspected label noise is confident disagreement (Northcutt, Jiang, Chuang, Confident learning: estimating uncertainty in
dataset labels, JAIR 70, 2021). With p_j(x) the model's probability of label j for example x, and X_j the examples
labelled j, label j's threshold is how sure the model is of it on average::

    t_j = mean of p_j(x) over X_j

An example labelled i is suspected where the most likely of all j with p_j(x) >= t_j is another than i. A model that was
trained on an example believes its label more than it would otherwise, so among such examples fewer are suspected.
"""

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedretrain import atomic
from fedretrain.checks import decisions
from fedretrain.contract import Contract
from fedretrain.dataset import Dataset, as_arrays, check_dataset, unusable
from fedretrain.errors import DataMismatch, MachineError

if TYPE_CHECKING:
    from .predictions import Answers
    from .reading import Found

log = logging.getLogger(__name__)

Array = NDArray[Any]
Mask = NDArray[Any]  # of bool
_DIGEST_BYTES = 16
_OWN = 0o600


def digests(data: Dataset, contract: Contract) -> list[bytes]:
    """What tells examples apart: 16 bytes over inputs and labels of each, as ``as_arrays`` gives them."""
    arrays = [np.ascontiguousarray(data.x[spec.name]) for spec in contract.inputs]
    arrays += [np.ascontiguousarray(data.y[spec.name]) for spec in contract.outputs]
    found = []
    for row in range(len(data)):
        digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
        for array in arrays:
            digest.update(array[row].tobytes())
        found.append(digest.digest())
    return found


def repeats(rows: Sequence[bytes], time: Array | None = None) -> Mask:
    """Which examples are the same as an earlier one: by time where that is known, else by their order; bool [n]."""
    order = range(len(rows)) if time is None else np.argsort(time, kind="stable")
    seen: set[bytes] = set()
    found = np.zeros(len(rows), bool)
    for row in order:
        found[row] = rows[row] in seen
        seen.add(rows[row])
    return found


def doubtful(probabilities: Array, labels: Array) -> Mask:
    """Which labels are suspected; see the module docstring.

    Args:
        probabilities: float64 [n, c].
        labels: Positions [n]; those that are not from 0 to c - 1 are no label.
    """
    count = probabilities.shape[1]
    own = (labels >= 0) & (labels < count)
    there = np.bincount(labels[own], minlength=count)
    sums = np.zeros(count)
    np.add.at(sums, labels[own], probabilities[own, labels[own]])
    thresholds = np.where(there > 0, sums / np.maximum(there, 1), np.inf)
    sure = np.where(probabilities >= thresholds, probabilities, -1.0)
    likely = np.argmax(sure, axis=1)
    return np.asarray(own & (sure.max(axis=1) >= 0) & (likely != labels))


def suspects(found: "Found", contract: Contract, answers: "Answers") -> Mask | None:
    """Which examples have a suspected label of any output, bool [n]; None where no output has labels."""
    marked: list[Mask] = []
    for spec in contract.outputs:
        if spec.name not in found.labels or not found.labelled[spec.name].any():
            continue
        given, probabilities = found.labels[spec.name], answers.probabilities[spec.name]
        if decisions(spec) == "one":
            marked.append(doubtful(probabilities, given))
            continue
        there = found.labelled[spec.name]
        for column in range(probabilities.shape[1]):
            each = np.stack([1 - probabilities[:, column], probabilities[:, column]], axis=1)
            marked.append(doubtful(each, np.where(there, given[:, column].astype(np.int64), -1)))
    return np.logical_or.reduce(marked) if marked else None


class Suspects:
    """Digests of the examples whose labels the last check suspected; a file that only the site can read."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def keep(self, rows: Iterable[bytes]) -> None:
        """Replace what the check before found; where the disk does not take it, the log says so."""
        try:
            atomic.make_folder(self._file.parent)
            atomic.write_bytes(self._file, b"".join(sorted(set(rows))), mode=_OWN)
        except MachineError as error:
            log.warning("suspected labels are not kept for training to leave out: %s", error)

    def read(self) -> frozenset[bytes]:
        """What was kept; nothing where there was no check."""
        try:
            content = self._file.read_bytes()
        except OSError:
            return frozenset()
        return frozenset(content[i : i + _DIGEST_BYTES] for i in range(0, len(content), _DIGEST_BYTES))


def trainable(
    raw: Dataset, contract: Contract, leave_out: Sequence[str], suspected: frozenset[bytes]
) -> tuple[Dataset, Mapping[str, int]]:
    """A site's data without what its policy leaves out of training, checked, and how many examples that is by reason.

    Args:
        raw: As read.
        contract: What the model expects.
        leave_out: Of ``client.policy.QualityRules``.
        suspected: Digests of examples with suspected labels.

    Raises:
        DataMismatch: What is left does not fit, or nothing is left.
    """
    gone: dict[str, int] = {}
    if {"missing", "impossible"} & set(leave_out):
        raw = _usable(raw, contract, leave_out, gone)
    check_dataset(raw, contract)
    data = as_arrays(raw, contract)
    if not {"duplicates", "label-noise"} & set(leave_out):
        return data, gone
    rows = digests(data, contract)
    without = {
        "duplicates": repeats(rows, data.time),
        "label-noise": np.array([row in suspected for row in rows], bool),
    }
    kept = np.ones(len(rows), bool)
    for reason in ("duplicates", "label-noise"):
        if reason in leave_out:
            _count(gone, reason, kept & without[reason])
            kept &= ~without[reason]
    if kept.all():
        return data, gone
    if not kept.any():
        raise DataMismatch("data-empty", "", "an example that the site's policy does not leave out")
    return data.take(kept), gone


def _usable(raw: Dataset, contract: Contract, leave_out: Sequence[str], gone: dict[str, int]) -> Dataset:
    """The rows whose values are not of the kinds that are left out; raises DataMismatch for another form."""
    kept = np.ones(len(raw), bool)
    others = [array for array in (raw.sample_weight, raw.time) if array is not None]
    if any(array.shape[:1] != (len(raw),) for array in (*raw.x.values(), *raw.y.values(), *others)):
        return raw  # ``check_dataset`` says what is wrong
    for spec in [spec for spec in contract.inputs if spec.name in raw.x]:
        masks = zip(("missing", "impossible"), unusable(raw.x[spec.name], spec), strict=True)
        for reason, mask in masks:
            if reason in leave_out:
                rows = mask.reshape(len(raw), -1).any(axis=1)
                _count(gone, reason, kept & rows)
                kept &= ~rows
    return raw if kept.all() else raw.take(kept)


def _count(gone: dict[str, int], reason: str, rows: Mask) -> None:
    if rows.any():
        gone[reason] = gone.get(reason, 0) + int(rows.sum())
