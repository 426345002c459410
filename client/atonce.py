"""A whole update in one call: the state it starts from, its steps, and what they changed.

Invariants:

- The operations are those of the calls that are made otherwise, in their order, and what XLA compiles is the same
  function: which way an update is made changes no bit of it.
- Calls of one kind share one trace, whatever the size of the site and of its last batch.

For a small dense model, what calls cost beside their work is a tenth of an update.
"""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from .graph import Graph, Parts, Piece, traced
from .state import State

Tensors = list[Any]


class AtOnce:
    """Updates of one model.

    Args:
        graph: Its steps.
        state: What they start from, and what comes of it.
    """

    def __init__(self, graph: Graph, state: State) -> None:
        self._graph, self._state = graph, state
        self._functions: dict[tuple[int, ...], Any] = {}

    def function(self, piece: Piece, *, begins: bool, compiled: bool) -> Callable[..., Any]:
        """What makes the update of a piece of at most ``graph.steps`` batches; raises what tracing the model does.

        Args:
            piece: All examples of the update.
            begins: Whether it puts the model into the state that an update starts from; else that was done.
            compiled: By XLA, as far as the batches are whole.

        Returns:
            Takes the received values, the seeds where it ``begins``, else nothing, what the objective is given of
            ``descent.others``, the piece's parts and its rows. Gives the sum of losses times examples, float64, and
            trained minus received of what travels.
        """
        whole = compiled and len(piece.rows) >= self._graph.batch
        rest = not whole or len(piece.rows) % self._graph.batch > 0
        weighted = len(piece.parts[2])
        kind = (begins, whole, rest, weighted)
        if kind not in self._functions:
            received, seeds = self._state.signature
            others = self._graph.given_signature(self._graph.descent.others)
            signature = [received, seeds if begins else [], others, *self._graph.signature(weighted=weighted)]
            self._functions[kind] = traced(self._body(begins=begins, whole=whole, rest=rest), signature)
        return self._functions[kind]  # type: ignore[no-any-return]

    def _body(self, *, begins: bool, whole: bool, rest: bool) -> Callable[..., Any]:
        graph, state = self._graph, self._state

        def update(
            received: Tensors, seeds: Tensors, others: list[Tensors], parts: Parts, rows: Any
        ) -> tuple[Any, Tensors]:
            if begins:
                state.begin(received, seeds)
            given, total = state.given(graph.descent.groups, received, others), tf.constant(0, tf.float64)
            count = tf.size(rows) // graph.batch * graph.batch if whole else 0
            if whole:
                total = graph.compiled_steps(total, parts, rows[:count], given)
            if rest:
                total = graph.plain_steps(total, parts, rows[count:], given)
            return total, state.minus(received)

        return update
