"""The steps of an update: in one call where all of them fit, otherwise piece by piece, with the same bits.

Invariants: a loss that is not finite ends an update as soon as it is seen.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from fedretrain.errors import DeclinedRequest

from .pace import Pace
from .sampling import Indices

if TYPE_CHECKING:
    from .graph import Piece
    from .step import Learner

Arrays = list[NDArray[Any]]


def only(runs: Iterator[Indices]) -> tuple[list[Indices], Iterator[Indices]]:
    """The run of rows that is the only one, or nothing; and all of them again."""
    first = list(islice(runs, 2))
    return first if len(first) == 1 else [], chain(first, runs)


def at_once(
    learner: "Learner", one: "Iterable[Piece]", received: Any, seed_of: Callable[[int], int] | None
) -> tuple[float, Arrays] | None:
    """As ``Learner.train_at_once`` with the one piece; gives the loss as ``in_pieces``, and the update."""
    (piece,) = one
    made = learner.train_at_once(piece, received, seed_of)
    return made and (_mean(made[0], len(piece.rows)), made[1])


def in_pieces(learner: "Learner", parts: "Iterable[Piece]", pace: Pace) -> float:
    """Train on the pieces; returns the mean loss of an example when it was used."""
    import tensorflow as tf

    total, count, mean = tf.constant(0, tf.float64), 0, 0.0
    for piece in pace.through(parts):
        total, count = learner.train(total, piece), count + len(piece.rows)
        mean = _mean(total, count)
    learner.finish()
    return mean


def check_finite(loss: float) -> None:
    """Raises DeclinedRequest ``training-diverged``."""
    if not math.isfinite(loss):
        expected = "finite loss and weights; a lower learning rate may help"
        raise DeclinedRequest("training-diverged", "train", expected)


def _mean(total: Any, count: int) -> float:
    mean = float(total) / count
    check_finite(mean)
    return mean
