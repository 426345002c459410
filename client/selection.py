"""What of a site's data a run trains on: all, what is new, a window of it, weighted by age, mixed with old examples.

Invariants:

- It follows from the job, the data, what the site replays, its name and the round, and from nothing else.
- What a site validates on is the same whichever of its examples are trained on, and none of it is ever trained on.
- A job without ``since`` has exactly the split of ``client.sampling.split``; with it, old and new examples are split
  each for itself (``client.sampling.split_each``).

Examples made before ``train.since`` are old, the others new; without it all are new. The modes "incremental" and
"replay" train on what is new, every other mode on both. A window leaves out some of that, recency weighs it, and
replay adds old examples: those among the data and those the site kept (``client.replay``).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedretrain.dataset import Dataset
from fedretrain.errors import ConfigurationError, DataMismatch, DeclinedRequest
from fedretrain.job import ReplaySection, TrainSection
from fedretrain.messages import PrepareRequest
from strategies.objective import ObjectiveSettings
from strategies.recency import Recency, weights
from strategies.window import Window, inside

from .sampling import Indices, repeated, split, split_each

ONLY_NEW = frozenset({"incremental", "replay"})
"""Modes that train on new examples alone, but for those that are replayed."""
_NONE: Indices = np.empty(0, np.intp)


@dataclasses.dataclass(frozen=True)
class Parts:
    """Positions of a site's examples, ascending: ``old`` and ``new`` to train on, ``held`` to validate on."""

    old: Indices
    new: Indices
    held: Indices

    @property
    def mine(self) -> Indices:
        """All that can be trained on, ascending."""
        return np.sort(np.concatenate([self.old, self.new])) if len(self.old) else self.new


@dataclasses.dataclass(frozen=True, eq=False)
class Selection:
    """What a trainer is given, and which rows of it a round uses.

    Attributes:
        data: The examples, in memory as long as this is.
        train: Rows that are trained on in every round, int32.
        held: Rows that are validated on, int32.
        old: Rows that a round draws replayed examples from, int32.
        drawn: How many a round draws; the same one again where there are fewer.
        chosen: Positions of the rows of ``train`` in the site's own data.
    """

    data: Dataset
    train: Indices
    held: Indices
    old: Indices
    drawn: int
    chosen: Indices

    @property
    def examples(self) -> int:
        """Examples that a round trains on."""
        return len(self.train) + self.drawn

    def of_round(self, train: TrainSection, site: str, round_: int) -> Indices:
        """The rows that a round trains on, int32 [examples]."""
        if not self.drawn:
            return self.train
        return np.concatenate([self.train, repeated(self.old, self.drawn, train, site, round_)]).astype(np.int32)


def selects(request: PrepareRequest) -> bool:
    """Whether a job trains on anything but all of a site's training examples, alike."""
    return request.train.mode in ONLY_NEW or bool(_on_data(request))


def parted(data: Dataset, train: TrainSection, site: str) -> Parts:
    """A site's examples by what they are for; all are new where the job or the data do not say otherwise."""
    if train.since is None or data.time is None:
        mine, held = split(len(data), train, site)
        return Parts(_NONE, mine, held)
    before = data.time < train.since.timestamp()
    (old, new), held = split_each([np.flatnonzero(before), np.flatnonzero(~before)], train, site)
    return Parts(old, new, held)


def select(request: PrepareRequest, data: Dataset, site: str, replayed: Dataset | None = None) -> Selection:
    """What a run trains on.

    Args:
        request: The prepared run.
        data: The site's examples, as ``fedretrain.dataset.as_arrays`` returns them.
        site: The site's name.
        replayed: What rounds draw old examples from, in the same form; None where the mode replays nothing.

    Raises:
        DataMismatch: ``data-missing`` where times are needed and the data have none.
        DeclinedRequest: ``no-new-data`` where nothing is left to train on.
    """
    train, on_data = request.train, _on_data(request)
    _check_times(data, train, on_data)
    parts = parted(data, train, site)
    chosen = parts.new if train.mode in ONLY_NEW else parts.mine
    if not len(chosen):
        since = f"made since {train.since:%Y-%m-%d %H:%M:%S} UTC" if train.since else "to train on"
        raise DeclinedRequest("no-new-data", "train.since", f"at least one example {since}")
    for objective in on_data:
        if isinstance(objective, Window):
            chosen = _in_window(chosen, data, objective)
    for objective in on_data:
        if isinstance(objective, Recency):
            data = _weighted(data, chosen, objective)
    if replayed is None or not len(replayed):
        return Selection(data, _rows(chosen), _rows(parts.held), _rows(_NONE), 0, chosen)
    return _mixed(data, chosen, parts.held, replayed, train.replay or ReplaySection())


def _on_data(request: PrepareRequest) -> list[ObjectiveSettings]:
    """The objectives that select or weigh examples."""
    if "objectives" not in request.strategy.settings:
        return []
    from strategies.registry import objective_settings

    try:
        return [one for one in objective_settings(request.strategy) if isinstance(one, Window | Recency)]
    except ConfigurationError:
        raise DeclinedRequest("request-invalid", "strategy", "objectives this version knows") from None


def _check_times(data: Dataset, train: TrainSection, on_data: Sequence[ObjectiveSettings]) -> None:
    wanting = [f"objective {one.name}" for one in on_data]
    if train.since is not None and train.mode in ONLY_NEW:
        wanting.append("train.since")
    if data.time is None and wanting:
        raise DataMismatch("data-missing", "timestamp", f"when each example was made, for {' and '.join(wanting)}")


def _in_window(chosen: Indices, data: Dataset, window: Window) -> Indices:
    until = window.until.timestamp() if window.until else None
    found: Indices = chosen[inside(_times(data)[chosen], window.days, window.examples, until)]
    if not len(found):
        raise DeclinedRequest("no-new-data", "objective window", "at least one example in the window")
    return found


def _weighted(data: Dataset, chosen: Indices, recency: Recency) -> Dataset:
    """The same arrays; what is not chosen keeps its weight, so that validation is about all examples alike."""
    weight = _weights(data)
    weight[chosen] *= weights(_times(data)[chosen], recency.half_life_days).astype(np.float32)
    return dataclasses.replace(data, sample_weight=weight)


def _mixed(data: Dataset, chosen: Indices, held: Indices, replayed: Dataset, replay: ReplaySection) -> Selection:
    """Old examples beside the others, so many that they have their share; rows nobody uses are left behind."""
    count = max(1, round(len(chosen) * replay.share / (1 - replay.share)))
    mine = data.take(np.concatenate([chosen, held]))
    whole = joined(mine, replayed)
    train, validation, old = np.split(np.arange(len(whole)), [len(chosen), len(mine)])
    return Selection(whole, _rows(train), _rows(validation), _rows(old), count, chosen)


def joined(first: Dataset, second: Dataset) -> Dataset:
    """The examples of both, with labels for the same outputs; without times and slices."""
    weighted = first.sample_weight is not None or second.sample_weight is not None
    return dataclasses.replace(
        first,
        x=_concatenated(first.x, second.x),
        y=_concatenated(first.y, second.y),
        sample_weight=np.concatenate([_weights(first), _weights(second)]) if weighted else None,
        slices=None,
        time=None,
    )


def _concatenated(first: Mapping[str, NDArray[Any]], second: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {name: np.concatenate([array, second[name]]) for name, array in first.items()}


def _weights(data: Dataset) -> NDArray[np.float32]:
    """A copy of the weights of all rows, 1 where they have none."""
    return np.ones(len(data), np.float32) if data.sample_weight is None else np.array(data.sample_weight, np.float32)


def _times(data: Dataset) -> NDArray[Any]:
    if data.time is None:
        raise DataMismatch("data-missing", "timestamp", "when each example was made")
    return data.time


def _rows(positions: Indices) -> Indices:
    return positions.astype(np.int32)
