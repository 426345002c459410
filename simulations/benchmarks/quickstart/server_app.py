"""The server: federated averaging with the quickstart's settings, and a file that says when each round began.

Lines of the file, JSON: ``{"round": 1, "at": seconds since 1970, "seconds": longest training and evaluation}``, one for
each round when it ends, after one with round 0 when the first begins.
"""

import json
import time
from collections.abc import Iterable
from pathlib import Path

from flwr.app import ArrayRecord, Context, Message, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from .task import append, load_model

app = ServerApp()


class Timed(FedAvg):
    """Federated averaging that keeps the time.

    Args:
        out: Takes the lines.
    """

    def __init__(self, out: Path) -> None:
        super().__init__(fraction_train=1.0, fraction_evaluate=1.0)
        self._out = out
        self._training = 0.0

    def start_clock(self) -> None:
        """The first round begins."""
        append(self._out, json.dumps({"round": 0, "at": time.time(), "seconds": 0.0}))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Remember the longest training."""
        kept = list(replies)
        self._training = _longest(kept)
        return super().aggregate_train(server_round, kept)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """The end of a round."""
        kept = list(replies)
        seconds = self._training + _longest(kept)
        metrics = super().aggregate_evaluate(server_round, kept)
        append(self._out, json.dumps({"round": server_round, "at": time.time(), "seconds": seconds}))
        return metrics


@app.main()
def main(grid: Grid, context: Context) -> None:
    """All rounds."""
    arrays = ArrayRecord(load_model(float(context.run_config["megabytes"])).get_weights())
    strategy = Timed(Path(str(context.run_config["out"])))
    strategy.start_clock()
    strategy.start(grid=grid, initial_arrays=arrays, num_rounds=int(context.run_config["rounds"]))


def _longest(replies: list[Message]) -> float:
    return max((_seconds(reply) for reply in replies if reply.has_content()), default=0.0)


def _seconds(reply: Message) -> float:
    seconds = reply.content.metric_records["metrics"]["seconds"]
    return float(seconds) if isinstance(seconds, int | float) else 0.0
