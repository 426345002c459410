"""The ``Grid`` a Flower strategy sees while it chooses sites: the prepared nodes, and nothing it could send through."""

from collections.abc import Iterable
from typing import NoReturn

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from fedretrain.errors import RunFailed

MOST_LOOKS = 10
"""Asking for the nodes more often in one round is waiting for nodes that will not come; Flower's loop has no end."""


class PreparedNodes(Grid):
    """Restricts ``grid`` to ``nodes`` for the strategy called ``name``."""

    def __init__(self, grid: Grid, nodes: list[int], name: str) -> None:
        self._grid = grid
        self._nodes = nodes
        self._name = name
        self._looks = 0

    def get_node_ids(self) -> Iterable[int]:
        """The prepared nodes; raises RunFailed when asked more than ``MOST_LOOKS`` times."""
        self._looks += 1
        if self._looks > MOST_LOOKS:
            raise RunFailed(
                f"strategy {self._name}: still waits for more than the {len(self._nodes)} prepared sites; "
                "add sites or lower its min_available_nodes in [strategy]"
            )
        return list(self._nodes)

    @property
    def run(self) -> Run:
        """The run of the grid behind."""
        return self._grid.run

    def set_run(self, run: Run) -> None:  # noqa: ARG002 - Grid's signature
        """Not for a strategy; raises RunFailed."""
        self._refuse("set_run")

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """As of the grid behind; what is created is not sent."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:  # noqa: ARG002 - Grid's signature
        """Not for a strategy; raises RunFailed."""
        self._refuse("push_messages")

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:  # noqa: ARG002 - Grid's signature
        """Not for a strategy; raises RunFailed."""
        self._refuse("pull_messages")

    def send_and_receive(
        self,
        messages: Iterable[Message],  # noqa: ARG002 - Grid's signature
        *,
        timeout: float | None = None,  # noqa: ARG002 - Grid's signature
    ) -> Iterable[Message]:
        """Not for a strategy; raises RunFailed."""
        self._refuse("send_and_receive")

    def _refuse(self, method: str) -> NoReturn:
        raise RunFailed(
            f"strategy {self._name}: calls grid.{method} itself; only strategies that leave sending to the server "
            "loop can be named in [strategy]"
        )
