"""Every use of Flower's internals at a site; ``tests/client/test_flowerside.py`` has a test per assumption.

Invariant: nothing else in ``client`` imports from Flower outside ``flwr.app`` and ``flwr.clientapp``.
"""

from base64 import b64encode
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey


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
