"""Everything the server uses of Flower beyond its public API, in one place.

Invariants:

- No other module of the server imports Flower's internals, and none is imported before it is needed: what a Flower
  upgrade can break is here, and each thing that is taken for granted has a test in ``tests/server/test_flowerside.py``.
- What fails on the way becomes a ``MachineError`` that says what was being done; a SuperLink's refusal likewise.
- A task's token and the executor's secret appear in no error, no log and no command line.

Taken for granted of Flower 1.41: Control and Runtime API are protobuf over HTTPS on one port; a node's public key is
kept as PEM; replies are trees of objects named by their SHA-256 (``server.guarded``), a message's own object on top;
a ConfigRecord is protobuf (``blob_size``), and most of a SuperLink's middlewares are for the Control API (``direct``).
"""

from .control import Control, Node, key_bytes
from .objects import Announced, Objects, blob_size, head, inflate, is_http_grid
from .runtime import Runtime, Task, run_serverapp, run_superlink

__all__ = [
    "Announced",
    "Control",
    "Node",
    "Objects",
    "Runtime",
    "Task",
    "blob_size",
    "head",
    "inflate",
    "is_http_grid",
    "key_bytes",
    "run_serverapp",
    "run_superlink",
]
