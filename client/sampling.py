"""Which examples a site trains on, in which order, and every other random choice of an update.

Invariants:

- Every choice follows from the job's seed, the site's name, the round and what the choice is for, and from nothing
  else: not from the run, the process, or what the process did before. The same job has the same bits anywhere.
- At least one example is trained on, and none is both trained and validated on.
- A site's split is the same in every round of a job.

Seeds are the first 8 bytes, big-endian, of SHA-256 over the canonical JSON of ``[what, seed, site, ...]``.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedretrain.digest import canonical_json, sha256
from fedretrain.job import TrainSection

MIN_COUNT = 5
"""Fewest examples a metric may be about: a mean over fewer says too much about each of them (over one, everything)."""

Indices = NDArray[np.intp]


def seed_for(what: str, *parts: int | str) -> int:
    """A seed in [0, 2**64) for one use, such as ``seed_for("split", job_seed, site)``."""
    return int(sha256(canonical_json([what, *parts]))[:16], 16)


def split(count: int, train: TrainSection, site: str) -> tuple[Indices, Indices]:
    """Positions of a site's training and validation examples, each ascending.

    The validation part is ``validation_fraction`` of the examples, rounded down; where that is less than
    ``MIN_COUNT``, nothing about it could be reported, so it is empty and all examples are trained on.

    Args:
        count: Examples the site has, at least 1.
        train: The job's train section.
        site: The site's name.
    """
    held = min(int(count * train.validation_fraction), count - 1)
    if held < MIN_COUNT:
        held = 0
    order = _rng("split", train.seed, site).permutation(count)
    return np.sort(order[held:]), np.sort(order[:held])


def split_each(parts: Sequence[Indices], train: TrainSection, site: str) -> tuple[list[Indices], Indices]:
    """As ``split``, of several parts of a site's examples: each has its share in the validation part.

    So what a site validates on does not depend on which of the parts it trains on. Every part that has examples keeps
    one to train on.

    Args:
        parts: Positions of the site's examples, none in two parts.
        train: The job's train section.
        site: The site's name.

    Returns:
        The training positions of each part, and the validation positions of all, ascending.
    """
    held = [max(0, min(int(len(part) * train.validation_fraction), len(part) - 1)) for part in parts]
    if sum(held) < MIN_COUNT:
        held = [0] * len(parts)
    orders = [part[_rng("split", train.seed, site, i).permutation(len(part))] for i, part in enumerate(parts)]
    validation = np.sort(np.concatenate([order[:count] for order, count in zip(orders, held, strict=True)]))
    return [np.sort(order[count:]) for order, count in zip(orders, held, strict=True)], validation


def repeated(positions: Indices, count: int, train: TrainSection, site: str, round_: int) -> Indices:
    """A round's ``count`` out of ``positions``, each as often as any other, give or take once; [count]."""
    rng = _rng("replay", train.seed, site, round_)
    passes = [rng.permutation(positions) for _ in range(-(-count // len(positions)))] if len(positions) else []
    return np.concatenate([*passes, positions[:0]])[:count]


def epochs(count: int, train: TrainSection, site: str, round_: int) -> Iterator[Indices]:
    """Positions of a round's examples in the order they are used, among ``count`` training examples, by epoch.

    Each epoch is a permutation of its own; its last batch is smaller where ``batch_size`` does not divide ``count``.
    ``local_steps`` ends after that many batches, wherever in an epoch; otherwise there are ``local_epochs`` epochs.
    """
    left = train.local_steps
    for epoch in itertools.count() if left is not None else range(train.local_epochs or 1):
        if left == 0:
            return
        order = _rng("order", train.seed, site, round_, epoch).permutation(count)
        if left is not None:
            order = order[: left * train.batch_size]
            left -= -(-len(order) // train.batch_size)
        yield order


def steps_of(count: int, train: TrainSection) -> int:
    """How many batches ``epochs`` has."""
    if train.local_steps is not None:
        return train.local_steps
    return (train.local_epochs or 1) * -(-count // train.batch_size)


def batches(count: int, train: TrainSection, site: str, round_: int) -> Iterator[Indices]:
    """The examples of each step, as ``epochs`` has them."""
    return pieces(epochs(count, train, site, round_), train.batch_size, lambda: 1)


def pieces(orders: Iterable[Indices], batch: int, steps: Callable[[], int]) -> Iterator[Indices]:
    """The same positions in runs of whole batches; a smaller batch comes last in its run.

    Args:
        orders: Positions by epoch.
        batch: Examples of a batch.
        steps: Asked before each run: the most batches it may have.
    """
    left: Indices = np.empty(0, np.intp)
    for order in orders:
        left = np.concatenate([left, order]) if len(left) else order
        ends_whole = len(left) % batch == 0  # or a smaller batch ends here
        most = steps() * batch
        while len(left) and (not ends_whole or len(left) >= most):
            run, left = np.split(left, [most])
            yield run
            most = steps() * batch
    if len(left):
        yield left


def in_order(count: int, batch_size: int) -> Iterator[Indices]:
    """All positions from 0 to ``count`` - 1 in batches, for evaluation."""
    return (np.arange(start, min(start + batch_size, count)) for start in range(0, count, batch_size))


def _rng(what: str, *parts: Any) -> np.random.Generator:
    return np.random.default_rng(seed_for(what, *parts))
