"""Fake quantization in numpy, from the paper and the ONNX operator: what `qat.functional` must equal.

LSQ: Esser et al. 2020, https://arxiv.org/abs/1902.08153, equations 1 to 3 and 5. ONNX: QuantizeLinear, DequantizeLinear.
The division is float32, as in the operator; every sum is float64. Bounds are strict: eq. 3 and 5 say "if -Q_N < v/s < Q_P".

`shared` gives, for each element of x, the number of its scale: `per_tensor`, `per_channel`, `per_group` write it.
"""

from __future__ import annotations

import numpy as np

Array = np.ndarray


def per_tensor(shape: tuple[int, ...]) -> Array:
    """One scale."""
    return np.zeros(shape, dtype=int)


def per_channel(shape: tuple[int, ...], axis: int = 0) -> Array:
    """One scale for each index of `axis`."""
    return np.indices(shape)[axis]


def per_group(shape: tuple[int, ...], size: int) -> Array:
    """One scale for each run of `size` elements, in memory order."""
    return (np.arange(np.prod(shape)) // size).reshape(shape)


def quantize(x: Array, scale: Array, zero_point: Array, qmin: int, qmax: int, shared: Array) -> Array:
    """Integer codes (ONNX QuantizeLinear: saturate(round half to even(x / scale) + zero_point))."""
    v = x.astype(np.float32) / scale.astype(np.float32)[shared]
    return np.clip(np.rint(v).astype(np.float64) + zero_point[shared], qmin, qmax)


def forward(x: Array, scale: Array, zero_point: Array, qmin: int, qmax: int, shared: Array) -> Array:
    """Real values of the codes, float32 (ONNX DequantizeLinear)."""
    codes = quantize(x, scale, zero_point, qmin, qmax, shared)
    return (codes - zero_point[shared]).astype(np.float32) * scale.astype(np.float32)[shared]


def backward(
    x: Array, scale: Array, zero_point: Array, qmin: int, qmax: int, shared: Array, grad: Array, g: float = 1.0
) -> tuple[Array, Array]:
    """(gradient of x, gradient of scale), float64, for the gradient `grad` of the output; g multiplies that of scale."""
    v = x.astype(np.float64) / scale.astype(np.float64)[shared]
    below, above = (bound - zero_point[shared].astype(np.float64) for bound in (qmin, qmax))
    inside = (below < v) & (v < above)
    dx = np.where(inside, grad, 0.0)  # eq. 5
    rounded = np.rint(x.astype(np.float32) / scale.astype(np.float32)[shared])
    dy_dscale = np.where(inside, rounded - v, np.where(v <= below, below, above))  # eq. 3
    dscale = np.bincount(shared.ravel(), (grad.astype(np.float64) * dy_dscale).ravel(), minlength=len(scale))
    return dx, g * dscale
