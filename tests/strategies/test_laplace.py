"""The posterior of a last layer: variances, evidence and moderated logits by hand."""

import math

import numpy as np
import pytest

from strategies.laplace import PRIORS, best_prior, moderated, posterior


def test_the_variance_of_a_line_is_that_of_bayesian_linear_regression() -> None:
    """Σ = (XᵀX/σ² + λI)⁻¹ and V = φᵀΣφ, for one output."""
    rng = np.random.default_rng(0)
    phi = rng.normal(size=(50, 3))
    made = posterior(phi.T @ phi / 0.25, np.ones(3), 1, noise=0.25, prior=2.0)
    sigma = np.linalg.inv(phi.T @ phi / 0.25 + 2.0 * np.eye(3))
    new = rng.normal(size=(4, 3))
    np.testing.assert_allclose(made.variance(new)[:, 0, 0], np.einsum("ni,ij,nj->n", new, sigma, new), rtol=1e-10)


def test_the_variance_of_several_outputs_is_j_sigma_j_transposed() -> None:
    """J = φᵀ ⊗ I, with the values in the order of φ, then of the outputs."""
    rng = np.random.default_rng(1)
    phi, chances = rng.normal(size=(40, 2)), rng.dirichlet(np.ones(3), 40)
    blocks = [np.kron(np.outer(f, f), np.diag(p) - np.outer(p, p)) for f, p in zip(phi, chances, strict=True)]
    made = posterior(np.sum(blocks, axis=0), np.ones(6), 3, prior=0.5)
    sigma = np.linalg.inv(np.sum(blocks, axis=0) + 0.5 * np.eye(6))
    new = rng.normal(size=(1, 2))
    j = np.kron(new, np.eye(3))
    np.testing.assert_allclose(made.variance(new)[0], j @ sigma @ j.T, rtol=1e-9, atol=1e-12)


def test_the_prior_of_most_evidence() -> None:
    """One value θ with curvature g: its maximum solves 1/λ - θ² - 1/(g + λ) = 0; with g → ∞ that is λ = 1/θ²."""
    step = PRIORS[1] / PRIORS[0]
    assert best_prior(np.array([1e12]), np.array([2.0])) == pytest.approx(0.25, rel=step - 1)
    g, theta = 3.0, 1.0  # λ² + 3λ - 3 = 0
    root = (-g + math.sqrt(g * g + 4 * g / theta**2)) / 2
    assert best_prior(np.array([g]), np.array([theta])) == pytest.approx(root, rel=step - 1)


def test_logits_shrink_by_their_variance() -> None:
    """κ = (1 + π/8 · 8/π)^(-1/2) = 1/√2; without variance nothing changes."""
    logits = np.array([[2.0, -1.0]])
    assert moderated(logits, np.array([np.diag([8 / math.pi, 0.0])]), exclusive=False).tolist() == [
        [pytest.approx(2 / math.sqrt(2)), -1.0]
    ]


def test_logits_of_a_softmax_shrink_by_the_variance_of_their_differences() -> None:
    """C f = (1.5, -1.5); C diag(a, 0) C = a/4 [[1, -1], [-1, 1]], so that a = 32/π gives κ = 1/√2 to both."""
    found = moderated(np.array([[2.0, -1.0]]), np.array([np.diag([32 / math.pi, 0.0])]), exclusive=True)
    np.testing.assert_allclose(found, [[1.5 / math.sqrt(2), -1.5 / math.sqrt(2)]], rtol=1e-12)


def test_a_shift_common_to_all_logits_changes_no_answer_of_a_softmax() -> None:
    """Neither its size nor its variance, however it varies with the others; each sigmoid sees it."""
    rng = np.random.default_rng(2)
    logits, root, along = rng.normal(size=(5, 3)), rng.normal(size=(5, 3, 4)), rng.normal(size=(5, 1, 4))
    variance, shifted = (part @ part.transpose(0, 2, 1) for part in (root, root + 10 * along))
    plain = moderated(logits, variance, exclusive=True)
    np.testing.assert_allclose(moderated(logits, variance + 1e4, exclusive=True), plain, rtol=1e-8)
    np.testing.assert_allclose(moderated(logits + 7, shifted, exclusive=True), plain, rtol=1e-8)
    assert np.all(np.abs(moderated(logits, variance + 1e4, exclusive=False)) < np.abs(logits) / 50)
