"""How an update is written down for its way from a site to the server; a job names one in ``[messages] codec``.

A codec works on one variable at a time, so that a site never needs a second copy of a large update. Global values
travel to the sites as they are: a site keeps nothing that a coarser form could be put right with.

Use::

    codec = make_codec(NamedConfig(name="int8"))
    payload = codec.encode(update, spec, seed)             # at the site; its shape and dtype are codec.travelling(spec)
    update = codec.decode(payload, spec)                   # at the server
"""

from .base import Codec
from .float32 import Float32
from .registry import CODECS, make_codec

__all__ = ["CODECS", "Codec", "Float32", "make_codec"]
