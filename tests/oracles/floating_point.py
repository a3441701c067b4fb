"""Floating-point formats by ml_dtypes, and block scales in numpy: what `qat.floating_point` must equal.

OCP Microscaling Formats (MX) Specification v1.0, sections 5 and 6.3; NVIDIA, arXiv:2509.25149, appendix C.
"""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np

Array = np.ndarray
TYPES = {
    "E4M3": ml_dtypes.float8_e4m3fn,
    "E5M2": ml_dtypes.float8_e5m2,
    "E3M2": ml_dtypes.float6_e3m2fn,
    "E2M3": ml_dtypes.float6_e2m3fn,
    "E2M1": ml_dtypes.float4_e2m1fn,
}
EMAX = {"E4M3": 8, "E5M2": 15, "E3M2": 4, "E2M3": 2, "E2M1": 2, "INT8": 0}
LARGEST = {"E4M3": 448.0, "E5M2": 57344.0, "E3M2": 28.0, "E2M3": 7.5, "E2M1": 6.0, "INT8": 127 / 64}
BITS = {
    "fp8": 8,
    "fp8_e5m2": 8,
    "mxfp8": 8,
    "mxfp8_e5m2": 8,
    "mxfp6": 6,
    "mxfp6_e3m2": 6,
    "mxfp4": 4,
    "mxint8": 8,
    "nvfp4": 4,
}
"""File in configs/quantizer -> bits."""


def patterns(element: str) -> Array:
    """The bits of all finite values, uint8."""
    every = np.arange(256 if element in ("E4M3", "E5M2") else 64 if element in ("E3M2", "E2M3") else 16, dtype=np.uint8)
    return every[np.isfinite(every.view(TYPES[element]).astype(np.float32))]


def values(element: str) -> Array:
    """All finite values, float32, in the order of `patterns`; of INT8 those of a symmetric grid."""
    if element == "INT8":
        return np.arange(-127, 128, dtype=np.float32) / 64
    return patterns(element).view(TYPES[element]).astype(np.float32)


def rounded(x: Array, element: str) -> Array:
    """x in the format, saturated, float32."""
    clipped = np.clip(x.astype(np.float32), -LARGEST[element], LARGEST[element])
    if element == "INT8":
        return (np.rint(clipped * 64) / 64).astype(np.float32)
    return clipped.astype(TYPES[element]).astype(np.float32)


def blocks(shape: tuple[int, ...], size: int, axis: int = 1) -> Array:
    """The number of each element's scale: blocks along `axis`, numbered with that axis last."""
    axis %= len(shape)
    per_row = math.ceil(shape[axis] / size)
    moved = (*shape[:axis], *shape[axis + 1 :], shape[axis])
    rows = np.arange(math.prod(moved[:-1])).reshape(*moved[:-1], 1)
    numbers = rows * per_row + np.arange(shape[axis]) // size
    return np.moveaxis(np.broadcast_to(numbers, moved), -1, axis)


def largest_of(x: Array, shared: Array) -> Array:
    """The largest magnitude of each block."""
    found = np.zeros(shared.max() + 1, dtype=np.float32)
    np.maximum.at(found, shared.reshape(-1), np.abs(x).reshape(-1))
    return found


def mx_scales(x: Array, shared: Array, element: str) -> Array:
    """2^(floor(log2(max |v|)) - emax) of each block, by ml_dtypes' E8M0, float32."""
    scales = []
    for largest in largest_of(x, shared).astype(float):
        exponent = math.frexp(largest)[1] - 1 - EMAX[element] if largest else -127
        scales.append(2.0 ** min(max(exponent, -127), 127))
    return np.array(scales).astype(ml_dtypes.float8_e8m0fnu).astype(np.float32)


def mx(x: Array, shared: Array, element: str) -> Array:
    """x in an MX format, float32."""
    scale = mx_scales(x, shared, element)[shared]
    return rounded(x / scale, element) * scale


def nvfp4(x: Array, shared: Array) -> Array:
    """x in NVFP4, float32."""
    f32 = np.float32
    of_tensor = f32(max(np.abs(x).max() / f32(448 * 6), f32(2.0**-60)))
    of_blocks = np.clip(largest_of(x, shared) / f32(6) / of_tensor, 0, 448).astype(ml_dtypes.float8_e4m3fn).astype(f32)
    scale = (np.maximum(of_blocks, f32(2.0**-9)) * of_tensor)[shared]
    return rounded(x / scale, "E2M1") * scale
