"""From a site's update to what travels, one variable at a time, in the codec that its run was prepared with.

Invariant: the same run, site, round, update and rest give the same bytes.

Use::

    encoder = Encoder(request, site, round, store.residuals)
    payloads = [encoder.encode(values) for values in update]      # in the order of what travels
    encoder.finish()
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedretrain.codecs import Codec, make_codec
from fedretrain.contract import VariableSpec
from fedretrain.errors import ConfigurationError, DeclinedRequest
from fedretrain.job import NamedConfig
from fedretrain.messages import PrepareRequest
from fedretrain.travel import travelling

from .outgoing import Difference
from .residuals import Carried, Residual
from .sampling import seed_for


def codec_of(config: NamedConfig) -> Codec:
    """The codec a request names; raises DeclinedRequest ``request-invalid`` where this version has none such."""
    try:
        return make_codec(config)
    except ConfigurationError:
        raise DeclinedRequest("request-invalid", "codec", "a codec and settings this version knows") from None


class Encoder:
    """Codes one update.

    Args:
        request: The prepared run.
        site: The site's name; with the job's seed and the round it decides how values are rounded at random.
        round_: The round.
        residuals: Where this site keeps what codecs leave out (``client.residuals``).

    Raises:
        DeclinedRequest: ``request-invalid`` where this version lacks the codec.
        MachineError: The disk does not take what is left out.
    """

    def __init__(self, request: PrepareRequest, site: str, round_: int, residuals: Path) -> None:
        self._codec = codec_of(request.codec)
        self._specs = travelling(request.contract, request.strategy)
        self._seed = (request.train.seed, site, round_)
        self._next = 0
        self._carried: Carried | None = None
        if self._codec.feedback:
            sizes = [math.prod(spec.shape) for spec in self._specs if self._codec.codes(spec)]
            self._carried = Residual(residuals, request, site, sizes).begin(round_)

    def encode(self, values: NDArray[Any] | Difference) -> NDArray[Any] | Difference:
        """What travels for the next variable; where it travels as it is, ``values`` itself.

        Raises:
            DeclinedRequest: ``training-diverged`` where a value is not finite.
            MachineError: The disk does not take what is left out.
        """
        position, spec = self._next, self._specs[self._next]
        self._next += 1
        if not self._codec.codes(spec):
            return values
        values = np.asarray(values)
        seed = seed_for("rounding", *self._seed, position)
        try:
            if self._carried is None:
                return self._codec.encode(values, spec, seed)
            return self._with_feedback(self._carried, values, spec, seed)
        except ValueError:
            raise DeclinedRequest("training-diverged", "train", "finite loss and weights") from None

    def finish(self) -> None:
        """Every variable is coded: keep what was left out; raises MachineError."""
        if self._carried is not None:
            self._carried.commit()

    def _with_feedback(self, carried: Carried, values: NDArray[Any], spec: VariableSpec, seed: int) -> NDArray[Any]:
        rest = carried.take()
        with np.errstate(over="ignore"):
            whole = values.copy() if rest is None else values + rest.reshape(spec.shape)
        payload = self._codec.encode(whole, spec, seed)
        whole -= self._codec.decode(payload, spec)
        carried.keep(whole)
        return payload
