"""Server optimizers that need no paper of their own: the plain sum."""

from dataclasses import dataclass

from .base import Arrays, finite_as


@dataclass(frozen=True)
class Sum:
    """``x ← x + Δ``: the same bits as Keras' SGD with learning rate 1 on the pseudo-gradient -Δ."""

    def init(self, params: Arrays) -> Arrays:  # noqa: ARG002 - the protocol's signature
        """No state."""
        return []

    def apply(self, state: Arrays, params: Arrays, update: Arrays) -> tuple[Arrays, Arrays]:
        """``state`` as it is, and the sum in the dtype of ``params``; raises RunFailed where that is not finite."""
        return state, [finite_as(x + d, x.dtype, i) for i, (x, d) in enumerate(zip(params, update, strict=True))]
