"""How certain a model is of its answers: the Laplace approximation of its last layer.

With φ the last layer's inputs (1 behind them where it has a bias), θ* its p values, G the sum of Gauss-Newton blocks
over all N examples (``client.sums.gauss_newton``), σ² the variance of a regression's noise (1 for labels) and a
Gaussian prior of precision λ, the posterior of the layer's values, all others held fixed, is taken as::

    N(θ*, Σ),   Σ⁻¹ = G/σ² + λ I

λ maximises the evidence (D. J. C. MacKay: Bayesian Interpolation. Neural Computation 4(3), 1992; A. Immer, M. Bauer,
V. Fortuin, G. Rätsch, M. E. Khan: Scalable Marginal Likelihood Estimation for Model Selection in Deep Learning. ICML
2021, https://arxiv.org/abs/2104.04975), where only these terms depend on it, g the eigenvalues of G/σ²::

    log p(D | λ) = (p/2) log λ - (λ/2) ‖θ*‖² - (1/2) Σ_j log(g_j + λ) + const

Logits f = f(x; θ*) have the variance V = J Σ Jᵀ, J = φᵀ ⊗ I, and answers become, with κ = (1 + π V_cc / 8)^(-1/2),
softmax(κ f) or sigmoid(κ f) (D. J. C. MacKay: The Evidence Framework Applied to Classification Networks. Neural
Computation 4(5), 1992). A regression's answer has the variance V + σ².

For softmax, C f and C V C stand in place of f and V, C = I - 11ᵀ/c: a shift common to all c logits changes no answer,
and G, whose eigenvalues are 0 there, leaves it all of the prior's variance, by which V_cc would make every answer far
too uncertain. Answers mostly become less certain so, if not every one: where those of θ* were not too certain, they
can still fit worse than before.

Against the paper: the sum G comes of many sites; the blocks of all outputs are kept together, neither their diagonal
nor Kronecker factors; λ is one number.

E. Daxberger, A. Kristiadi, A. Immer, R. Eschenhagen, M. Bauer, P. Hennig: Laplace Redux - Effortless Bayesian Deep
Learning. NeurIPS 2021, https://arxiv.org/abs/2106.14806
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
PRIORS = np.geomspace(1e-4, 1e4, 161)
"""Prior precisions that are tried."""


@dataclass(frozen=True, eq=False)
class LastLayerPosterior:
    """The posterior of a last layer.

    Attributes:
        vectors: Eigenvectors of G/σ², columns, float64 [p, p].
        curvature: Its eigenvalues, not negative [p].
        prior: λ.
        noise: σ².
        outputs: How many outputs c the layer has; p = d c, values in the order of φ, then of the outputs.
    """

    vectors: Array
    curvature: Array
    prior: float
    noise: float
    outputs: int

    def variance(self, features: Array) -> Array:
        """V for inputs φ of the layer, float [n, d]: [n, c, c]."""
        rows, columns = features.shape
        shaped = self.vectors.reshape(columns, self.outputs, -1)
        spread = 1.0 / (self.curvature + self.prior)
        found = np.empty((rows, self.outputs, self.outputs))
        for row, phi in enumerate(features.astype(np.float64)):
            along = np.tensordot(phi, shaped, 1)  # [c, p]
            found[row] = (along * spread) @ along.T
        return found


def posterior(
    curvature: Array, values: Array, outputs: int, *, noise: float = 1.0, prior: float | None = None
) -> LastLayerPosterior:
    """The posterior from the sum of Gauss-Newton blocks.

    Args:
        curvature: G/σ², float64 [p, p], symmetric.
        values: θ*, [p].
        outputs: How many outputs the layer has.
        noise: σ², above 0; 1 for labels.
        prior: λ; None for the one among ``PRIORS`` with the largest evidence.
    """
    eigenvalues, vectors = np.linalg.eigh(np.asarray(curvature, np.float64))
    eigenvalues = np.maximum(eigenvalues, 0.0)
    chosen = prior if prior is not None else best_prior(eigenvalues, values)
    return LastLayerPosterior(vectors, eigenvalues, float(chosen), float(noise), outputs)


def best_prior(eigenvalues: Array, values: Array) -> float:
    """The λ among ``PRIORS`` with the largest evidence."""
    square = float(np.sum(np.square(values, dtype=np.float64)))
    evidence = [
        len(eigenvalues) / 2 * math.log(prior) - prior / 2 * square - np.sum(np.log(eigenvalues + prior)) / 2
        for prior in PRIORS
    ]
    return float(PRIORS[int(np.argmax(evidence))])


def moderated(logits: Array, variance: Array, *, exclusive: bool) -> Array:
    """κ f: logits [n, c] made smaller by their variances [n, c, c].

    Args:
        logits: f.
        variance: V.
        exclusive: Whether a softmax follows. It cannot see a shift common to all logits, so both are taken without it,
            C f and C V C. Otherwise each logit has its own sigmoid.
    """
    if exclusive:
        logits = logits - logits.mean(axis=1, keepdims=True)
        variance = variance - variance.mean(axis=1, keepdims=True)
        variance = variance - variance.mean(axis=2, keepdims=True)
    own = np.diagonal(variance, axis1=1, axis2=2)
    smaller: Array = logits / np.sqrt(1.0 + math.pi / 8.0 * np.maximum(own, 0.0))
    return smaller
