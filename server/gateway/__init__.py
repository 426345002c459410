"""The one process of the server that others reach: it lets members' calls of Flower pass to SuperLink, nothing else.

Invariant: importing this package loads none of its parts, so that what only reads what it wrote (``counters``) does not
wait for a web server.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .app import FLEET, Gateway
    from .process import Process

__all__ = ["FLEET", "Gateway", "Process"]


def __getattr__(name: str) -> Any:
    """A public name, from the part that has it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import app, process

    return getattr(process if name == "Process" else app, name)
