"""The tests behind the findings: two windows, one or several sites, counts alone.

All are conditional on each site's own totals, so sites that differ from each other, or that bring more examples in one
window than in the other, are no drift. With one site and without noise, ``homogeneity`` is Pearson's chi-squared
statistic times (N - 1) / N.

Papers: N. Mantel and W. Haenszel, JNCI 22 (1959) 719-748; N. Mantel, JASA 58 (1963) 690-700 (several cells);
E. B. Wilson, JASA 22 (1927) 209-212; Y. Benjamini and Y. Hochberg, JRSS B 57 (1995) 289-300.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtrc, ndtr, ndtri
from scipy.stats import false_discovery_control, hypergeom

from .findings import Estimate

Floats = NDArray[Any]

FEWEST = 5.0
"""Expected examples below which a normal approximation of a count says nothing (Cochran, Biometrics 10 (1954) 417)."""
_MANY = 1000.0  # from here on the approximation and the exact value are the same to anybody


def homogeneity(reference: Floats, recent: Floats, noise: Floats) -> float:
    """P-value that both windows of every site are drawn alike; the sites add up before the question is asked.

    With n, m the examples of a site in both windows, N = n + m and t the sum of its counts r and c::

        d = sum over sites of (n c - m r) / N
        V = sum over sites of n m / (N^2 (N - 1)) (N diag(t) - t t')
                            + (n^2 + m^2) / N^2 P diag(noise) P',            P = I - (t / N) 1'
        d' V^-1 d  is nearly chi-squared with B - 1 degrees of freedom

    Args:
        reference: float64 [S, B], S sites; at least two cells.
        recent: Likewise.
        noise: Variance of the noise on each count, float64 [S, B].

    Returns:
        1 where no site has examples in both windows.
    """
    cells = reference.shape[1]
    d, v = np.zeros(cells), np.zeros((cells, cells))
    for r, c, variance in zip(reference, recent, noise, strict=True):
        n, m = float(r.sum()), float(c.sum())
        if n < 1 or m < 1:
            continue
        total = n + m
        t = r + c
        d += (n * c - m * r) / total
        v += n * m / (total**2 * (total - 1)) * (total * np.diag(t) - np.outer(t, t))
        kept = np.eye(cells) - np.outer(t / total, np.ones(cells))
        v += (n * n + m * m) / total**2 * (kept * variance) @ kept.T
    if not v.any():
        return 1.0
    statistic = float(d[:-1] @ np.linalg.pinv(v[:-1, :-1], hermitian=True) @ d[:-1])
    return float(chdtrc(cells - 1, max(statistic, 0.0)))


@dataclass(frozen=True)
class Rise:
    """A share that may have risen.

    Attributes:
        effect: How much higher the recent share is than the reference share, strata weighted as the recent window is.
        error: Standard error of ``effect`` where nothing changed.
        p: One-sided p-value that it did not rise; None where noise and too few examples leave none.
    """

    effect: float
    error: float
    p: float | None


def rises(alike: Floats, apart: Floats, of: Floats, noise: Floats) -> tuple[Rise, Rise] | None:
    """``rise`` of both readings of suppressed hits; None where there is nothing to compare."""
    near = rise(alike, of, noise)
    far = near if np.array_equal(alike, apart) else rise(apart, of, noise)
    return (near, far) if near and far else None


def rise(hits: Floats, of: Floats, noise: Floats | None = None) -> Rise | None:
    """Whether a share rose, strata compared with themselves (Mantel and Haenszel 1959).

    With a hits of m recent examples and b of n reference ones in a stratum, N = n + m and t = a + b::

        z = (sum of (a - m t / N) - 1/2) / sqrt(sum of m n t (N - t) / (N^2 (N - 1)) + noise)

    Where few are expected, and without noise, the p-value is exact: the hits of each stratum are hypergeometric, their
    sum's distribution is the convolution.

    Args:
        hits: float64 [2, S]: in the reference and in the recent window, S strata.
        of: Examples, likewise.
        noise: Variance of the noise on each hit, float64 [S], or None without.

    Returns:
        None where no stratum has examples in both windows.
    """
    (b, a), (n, m) = hits, of
    used = (n > 0) & (m > 0)
    if not used.any():
        return None
    a, b, n, m = a[used], b[used], n[used], m[used]
    variance = np.zeros(len(a)) if noise is None else noise[used]
    total, t = n + m, a + b
    weights = m / m.sum()
    effect = float(weights @ (a / m - b / n))
    share = t / total
    spread = weights**2 * (share * (1 - share) * (1 / n + 1 / m) + variance * (1 / n**2 + 1 / m**2))
    return Rise(effect, math.sqrt(float(spread.sum())), _rise_p(a, b, n, m, variance))


def _rise_p(a: Floats, b: Floats, n: Floats, m: Floats, noise: Floats) -> float | None:
    total, t = n + m, a + b
    expected = m * t / total
    rarest = min(expected.sum(), (m - expected).sum(), (t - expected).sum(), (n - t + expected).sum())
    exact = rarest < FEWEST or (len(a) == 1 and rarest < _MANY)
    if exact and not noise.any() and max(a.sum(), b.sum()) < _MANY**2:
        return _exact(a, b, n, m)
    of_counts = m * n * t * (total - t) / (total**2 * np.maximum(total - 1, 1))
    of_noise = noise * (n**2 + m**2) / total**2
    if rarest < FEWEST or of_noise.sum() > of_counts.sum():
        return None
    z = (float((a - expected).sum()) - 0.5) / math.sqrt(float((of_counts + of_noise).sum()))
    return float(ndtr(-z))


def _exact(a: Floats, b: Floats, n: Floats, m: Floats) -> float:
    """Chance of as many hits in all strata together, each hypergeometric: Fisher's test where there is one stratum.

    Any of a table's four cells says what the others are; the rarest is added up, by convolution.
    """
    total, t = n + m, a + b
    if len(a) == 1:
        return float(hypergeom.sf(round(a[0]) - 1, round(total[0]), round(t[0]), round(m[0])))
    cells = ((a, m, t, 1), (m - a, m, total - t, 0), (b, n, t, 0), (n - b, n, total - t, 1))
    seen, drawn, marked, rising = min(cells, key=lambda cell: float((cell[1] * cell[2] / total).sum()))
    most = round(seen.sum()) - rising  # hits rise where this cell is above it, or does not come to more
    if most < 0:
        return 1.0
    below = np.ones(1)
    for of, d, k in zip(total, drawn, marked, strict=True):
        own = hypergeom.pmf(np.arange(min(most, round(min(d, k))) + 1), round(of), round(k), round(d))
        below = np.convolve(below, own)[: most + 1]
    chance = float(below.sum())
    return min(max(1 - chance if rising else chance, 0.0), 1.0)


def benjamini_hochberg(p: Sequence[float], level: float) -> list[bool]:
    """Which hypotheses are rejected, with at most ``level`` of the rejections false (Benjamini and Hochberg 1995)."""
    return [bool(q <= level) for q in false_discovery_control(p)] if p else []


def share(hits: tuple[float, float], n: float, noise: float = 0.0) -> Estimate | None:
    """A share with Wilson's interval; wider by what the hits may be and by noise on them.

    Args:
        hits: The least and the most that they can be.
        n: Of how many.
        noise: Variance of the noise on the hits.

    Returns:
        None without examples.
    """
    if n < 1:
        return None
    z = float(ndtri(0.975))
    bounds = [_wilson(min(max(h, 0.0), n) / n, n, z) for h in hits]
    spread = z * math.sqrt(noise) / n
    low, high = max(0.0, bounds[0][0] - spread), min(1.0, bounds[1][1] + spread)
    return Estimate(min(max(sum(hits) / 2 / n, low), high), low, high, round(n))


def _wilson(share: float, n: float, z: float) -> tuple[float, float]:
    """Both ends of Wilson's interval; SciPy's own is made beside a p-value that costs a hundred times as much."""
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return centre - half, centre + half
