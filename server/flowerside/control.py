"""The SuperLink's Control API: runs and nodes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_public_key

from fedretrain.errors import ConfigurationError, MachineError

from .calls import calling


@dataclass(frozen=True)
class Node:
    """A SuperNode as the SuperLink knows it.

    ``public_key`` is PEM, as ``key_bytes`` gives it; ``status`` is one of registered, online, offline, unregistered;
    ``online_until`` is in Unix seconds, 0 where it was never online.
    """

    node_id: int
    public_key: bytes
    name: str
    status: str
    online_until: float


def key_bytes(openssh: str) -> bytes:
    """A node's public key as Flower keeps and compares it; raises ConfigurationError where it is none."""
    try:
        return load_ssh_public_key(openssh.encode()).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigurationError("expected a node's public key in OpenSSH form; the roster is damaged") from None


class Control:
    """The SuperLink's Control API.

    Args:
        address: host:port of the SuperLink.
        ca: PEM of the authority of its certificate.
    """

    def __init__(self, address: str, ca: bytes) -> None:
        from flwr.supercore.control.control_http_client import ControlHttpClient

        self._client = ControlHttpClient.from_server_address(address, False, ca, [])

    def answers(self) -> bool:
        """Whether the SuperLink is there and answers."""
        try:
            self.nodes()
        except MachineError:
            return False
        return True

    def start_run(self, bundle: bytes, run_config: Mapping[str, str | int | float | bool]) -> int:
        """Ask for a run of the bundle's ServerApp; raises MachineError.

        Args:
            bundle: Content of the ``.fab`` file.
            run_config: Values for keys that the bundle's configuration has.

        Returns:
            Flower's id of the run.
        """
        from flwr.common.serde import user_config_to_proto
        from flwr.proto.control_pb2 import StartRunRequest
        from flwr.proto.fab_pb2 import Fab

        request = StartRunRequest(fab=Fab(content=bundle), override_config=user_config_to_proto(dict(run_config)))
        with calling("start a run"):
            response = self._client.StartRun(request)
        if not response.run_id:
            raise MachineError("cannot start a run: the SuperLink gave it no id; is the bundle larger than 10 MB?")
        return int(response.run_id)

    def stop_run(self, run_id: int) -> None:
        """End a run; one that has ended, or that the SuperLink does not know, stays as it is. Raises MachineError."""
        from flwr.proto.control_pb2 import StopRunRequest
        from flwr.supercore.error import ApiErrorCode

        with calling("stop a run", but={ApiErrorCode.RUN_ALREADY_FINISHED, ApiErrorCode.RUN_ID_NOT_FOUND}):
            self._client.StopRun(StopRunRequest(run_id=run_id))

    def run_status(self, run_id: int) -> str:
        """One of pending, starting, running, finished:completed, finished:stopped, finished:failed, unknown.

        Raises:
            MachineError: The SuperLink does not answer.
        """
        from flwr.proto.control_pb2 import ListRunsRequest
        from flwr.supercore.error import ApiErrorCode

        found: Any = None
        with calling("ask for a run's status", but={ApiErrorCode.RUN_ID_NOT_FOUND}):
            found = self._client.ListRuns(ListRunsRequest(run_id=run_id)).run_dict[run_id].status
        if found is None:
            return "unknown"
        return f"{found.status}:{found.sub_status}" if found.sub_status else str(found.status)

    def register(self, node_key: str, name: str) -> int:
        """Let in the SuperNode with this key (OpenSSH text) and return its id; the same key again is the same node.

        Raises:
            ConfigurationError: The key is none, or belongs to a node that was unregistered: that is for ever.
            MachineError: The SuperLink does not answer or refuses.
        """
        from flwr.proto.control_pb2 import RegisterNodeRequest
        from flwr.supercore.error import ApiErrorCode

        key, node_id = key_bytes(node_key), 0
        with calling(f"register {name}", but={ApiErrorCode.PUBLIC_KEY_ALREADY_IN_USE}):
            node_id = self._client.RegisterNode(RegisterNodeRequest(public_key=key, name=name)).node_id
        if node_id:
            return node_id
        for node in self.nodes():
            if node.public_key == key and node.status != "unregistered":
                return node.node_id
        raise ConfigurationError(
            f"{name}: its node key was shut out before; the site has to make keys anew and ask again"
        )

    def unregister(self, node_id: int) -> None:
        """Shut a SuperNode out for ever; one that is not there is no error. Raises MachineError."""
        from flwr.proto.control_pb2 import UnregisterNodeRequest
        from flwr.supercore.error import ApiErrorCode

        with calling("unregister a node", but={ApiErrorCode.NODE_NOT_FOUND}):
            self._client.UnregisterNode(UnregisterNodeRequest(node_id=node_id))

    def nodes(self) -> list[Node]:
        """Every SuperNode there ever was, in the order of their ids; raises MachineError."""
        from flwr.proto.control_pb2 import ListNodesRequest

        with calling("list the nodes"):
            found = self._client.ListNodes(ListNodesRequest()).nodes_info
        nodes = [Node(n.node_id, n.public_key, n.name, n.status, n.online_until) for n in found]
        return sorted(nodes, key=lambda node: node.node_id)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()
