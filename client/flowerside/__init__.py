"""Every use of Flower's internals at a site; ``tests/client/test_flowerside.py`` has a test per assumption.

Invariants:

- Nothing else in ``client`` imports from Flower outside ``flwr.app`` and ``flwr.clientapp``.
- Importing this package imports nothing of Flower: ``node`` and ``runtime`` are for the processes that need them.
"""

from base64 import b64encode
from typing import TYPE_CHECKING

from fedretrain.errors import MachineError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from flwr.app import RecordDict

SHORTEST_BACKOFF_S = 0.05  # between two looks for an object that is announced and on its way
LONGEST_BACKOFF_S = 0.5


def auth_headers(node_private_key: "EllipticCurvePrivateKey") -> dict[str, str]:
    """The three headers by which a SuperNode says who it is: public key, time, and its signature over the time."""
    from flwr.common.constant import TIMESTAMP_HEADER
    from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
    from flwr.supercore.date import now
    from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message

    timestamp = now().isoformat()
    signature = sign_message(node_private_key, timestamp.encode("ascii"))
    return {
        FLEET_HTTP_PUBLIC_KEY_HEADER: b64encode(public_key_to_bytes(node_private_key.public_key())).decode("ascii"),
        TIMESTAMP_HEADER: timestamp,
        FLEET_HTTP_SIGNATURE_HEADER: b64encode(signature).decode("ascii"),
    }


def to_bytes(content: "RecordDict") -> bytes:
    """Flower's protobuf form of a message's records."""
    from flwr.common.serde import recorddict_to_proto

    return bytes(recorddict_to_proto(content).SerializeToString())


def from_bytes(data: bytes | bytearray) -> "RecordDict":
    """The records that ``to_bytes`` wrote; raises MachineError where they are none."""
    from flwr.common.serde import recorddict_from_proto
    from flwr.proto.recorddict_pb2 import RecordDict as Proto
    from google.protobuf.message import DecodeError

    try:
        return recorddict_from_proto(Proto.FromString(data))
    except (DecodeError, ValueError, TypeError) as error:
        raise MachineError(f"expected records of a message, got something else ({type(error).__name__})") from None
