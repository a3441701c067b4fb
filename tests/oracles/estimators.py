"""r'(v), the gradient that each estimator gives to rounding, in numpy float64, and what a quantizer makes of it.

EWGS: Lee et al. 2021, https://arxiv.org/abs/2104.00903. DSQ: Gong et al. 2019, https://arxiv.org/abs/1908.05033.
"""

from __future__ import annotations

import numpy as np

Array = np.ndarray


def straight_through(v: Array, grad: Array) -> Array:
    """1."""
    return np.ones_like(v)


def ewgs(v: Array, grad: Array, delta: float) -> Array:
    """g_xn / g_xq = 1 + delta * sign(g_xq) * (x_n - x_q)."""
    return 1 + delta * np.sign(grad) * (v - np.rint(v))


def dsq_soft(v: Array, alpha: float) -> Array:
    """Q_S with l = 0 and a step of 1: i + (phi(v) + 1) / 2, phi(v) = s * tanh(k * (v - m_i))."""
    k, s = np.log(2 / alpha - 1), 1 / (1 - alpha)
    i = np.floor(v)
    return i + (s * np.tanh(k * (v - i - 0.5)) + 1) / 2


def dsq(v: Array, grad: Array, alpha: float) -> Array:
    """The slope of Q_S, by central differences (v must not be whole)."""
    h = 1e-6
    return (dsq_soft(v + h, alpha) - dsq_soft(v - h, alpha)) / (2 * h)


def backward(v: Array, rounded: Array, slope: Array, qmin: int, qmax: int, grad: Array) -> tuple[Array, float]:
    """(dx, dscale) of scale * r(clip(x / scale)), one scale, from the slope r'(v)."""
    inside = (qmin < v) & (v < qmax)
    dx = np.where(inside, grad * slope, 0.0)
    dscale = np.where(inside, rounded - v * slope, np.clip(v, qmin, qmax))
    return dx, float((grad * dscale).sum())
