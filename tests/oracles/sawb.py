"""The coefficients of SAWB, by the method of its paper: a line through the best ranges of known distributions.

Choi et al. 2018, https://arxiv.org/abs/1807.06964: the range that minimizes the squared
error is found for each distribution, and hi / E|w| = c1 * sqrt(E w^2) / E|w| + c2 is fitted by least squares.
"""

from __future__ import annotations

import numpy as np

Array = np.ndarray


def distributions(n: int = 4001) -> dict[str, Array]:
    """n quantiles of each distribution, symmetric around 0."""
    p = (np.arange(n) + 0.5) / n
    triangle = np.where(p < 0.5, np.sqrt(2 * p) - 1, 1 - np.sqrt(2 * (1 - p)))
    normal = np.sort(np.random.default_rng(0).normal(size=100 * n)).reshape(n, 100).mean(axis=1)
    return {
        "normal": normal - normal[::-1],
        "uniform": 2 * p - 1,
        "laplace": np.where(p < 0.5, np.log(2 * p), -np.log(2 * (1 - p))),
        "logistic": np.log(p / (1 - p)),
        "triangle": triangle,
    }


def best_hi(w: Array, levels: int) -> float:
    """The hi with the least squared error on `levels` equally spaced levels from -hi to hi."""
    candidates = np.linspace(0.05, 1.2, 800) * np.abs(w).max()
    steps, last = 2 * candidates / (levels - 1), levels - 1
    errors = [((np.clip(np.rint(w / s + last / 2), 0, last) * s - s * last / 2 - w) ** 2).sum() for s in steps]
    return float(candidates[int(np.argmin(errors))])


def coefficients(levels: int) -> tuple[float, float]:
    """(c1, c2)."""
    samples = list(distributions().values())
    mean = np.array([np.abs(w).mean() for w in samples])
    rms = np.array([np.sqrt((w**2).mean()) for w in samples])
    best = np.array([best_hi(w, levels) for w in samples])
    c1, c2 = np.polyfit(rms / mean, best / mean, 1)
    return float(c1), float(c2)
