"""The server: federated averaging, and a file that takes a line when the first round begins and when each one ends."""

from collections.abc import Iterable

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from .task import load_model, say

app = ServerApp()


class Timed(FedAvg):
    """Federated averaging that keeps the time.

    Args:
        out: Takes the lines.
        per_round: Sites a round.
        sites: All sites.
    """

    def __init__(self, out: str, per_round: int, sites: int) -> None:
        super().__init__(
            fraction_train=per_round / sites,
            fraction_evaluate=0.0,
            min_train_nodes=per_round,
            min_available_nodes=sites,
        )
        self._out = out

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The beginning of a round."""
        if server_round == 1:
            say(self._out, 0)
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The end of a round."""
        kept = list(replies)
        aggregated = super().aggregate_train(server_round, kept)
        say(self._out, sum(not reply.has_error() for reply in kept))
        return aggregated


@app.main()
def main(grid: Grid, context: Context) -> None:
    """All rounds."""
    config = context.run_config
    arrays = ArrayRecord(load_model(str(config["model"]), float(config["rate"])).get_weights())
    strategy = Timed(str(config["out"]), int(config["per-round"]), int(config["sites"]))
    strategy.start(grid=grid, initial_arrays=arrays, num_rounds=100_000, timeout=600)
