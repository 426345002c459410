"""Algorithm 2 of Reddi et al. (2021), the common part of FedAdagrad, FedAdam and FedYogi, in NumPy.

In round t, for every coordinate on its own::

    m_t     = β1 m_{t-1} + (1 - β1) Δ_t          m_{-1} = 0
    v_t     = second_moment(v_{t-1}, Δ_t^2)      v_{-1} = τ^2
    x_{t+1} = x_t + η m_t / (sqrt(v_t) + τ)

Δ_t is the aggregated update (weighted mean of x_i - x_t), x the global parameters, η ``server_learning_rate``, β1
``beta_1``, τ ``tau``: the degree of adaptivity; small τ adapts more. There is no bias correction, as in the paper.

m and v are float32, float64 for float64 variables; so is the arithmetic.

S. Reddi, Z. Charles, M. Zaheer, Z. Garrett, K. Rush, J. Konečný, S. Kumar, H. B. McMahan: Adaptive Federated
Optimization. ICLR 2021, https://arxiv.org/abs/2003.00295
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from .base import Arrays, Settings, finite_as

_CHUNK = 1 << 16  # values at a time

Moment = Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]]


class AdaptiveSettings(Settings):
    """What the three have in common; the paper tunes η and τ per task over powers of ten."""

    server_learning_rate: float = Field(0.01, gt=0, description="η, the server's step size")
    tau: float = Field(1e-3, ge=1e-12, description="τ, degree of adaptivity; v starts at its square")


@dataclass(frozen=True)
class Adaptive:
    """The server optimizer; its state is every m, then every v."""

    second_moment: Moment
    learning_rate: float
    beta_1: float
    tau: float

    def init(self, params: Arrays) -> Arrays:
        """Every m is 0 and every v is τ^2, in the shapes of ``params``."""
        m = [np.zeros(x.shape, _wide(x.dtype)) for x in params]
        return m + [np.full(x.shape, self.tau**2, _wide(x.dtype)) for x in params]

    def apply(self, state: Arrays, params: Arrays, update: Arrays) -> tuple[Arrays, Arrays]:
        """One step of the module's rule; raises RunFailed where a parameter would not be finite."""
        count = len(params)
        ms, vs = ([np.empty(a.shape, a.dtype) for a in part] for part in (state[:count], state[count:]))
        stepped = [np.empty(x.shape, x.dtype) for x in params]
        with np.errstate(over="ignore"):  # what overflows is refused by finite_as
            for old, new in zip(
                zip(state[:count], state[count:], params, update, strict=True),
                zip(ms, vs, stepped, strict=True),
                strict=True,
            ):
                self._step([a.reshape(-1) for a in old], [a.reshape(-1) for a in new])
        return ms + vs, [finite_as(x, x.dtype, i) for i, x in enumerate(stepped)]

    def _step(self, old: Arrays, new: Arrays) -> None:
        """From m, v, x and Δ of one variable to m, v and x, all flat: a piece at a time, so that nothing is copied."""
        for start in range(0, old[0].size, _CHUNK):
            part = slice(start, start + _CHUNK)
            m, v, x, delta = (a[part] for a in old)
            delta = delta.astype(m.dtype, copy=False)
            new[0][part] = m = self.beta_1 * m + (1 - self.beta_1) * delta
            new[1][part] = v = self.second_moment(v, np.square(delta))
            new[2][part] = x.astype(m.dtype, copy=False) + self.learning_rate * m / (np.sqrt(v) + self.tau)


def _wide(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)
