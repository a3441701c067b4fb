"""Integer inference in numpy: exact int64 accumulation, then the float32 steps that ONNX Runtime documents or shows.

Written from measurements of the runtime, not from qat.integer.
"""

from __future__ import annotations

import numpy as np

f32 = np.float32


def conv2d(codes, x_zero_point, weight, bias, stride=1, padding=0, groups=1):
    """int64 accumulators of a convolution. codes: (N, C, H, W), weight: (O, C / groups, kh, kw), bias: (O,)."""
    x = np.pad(codes.astype(np.int64) - x_zero_point, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    out, per_group, kh, kw = weight.shape
    height, width = (x.shape[2] - kh) // stride + 1, (x.shape[3] - kw) // stride + 1
    accumulator = np.zeros((x.shape[0], out, height, width), dtype=np.int64)
    for o in range(out):
        first = (o // (out // groups)) * per_group
        for i in range(kh):
            for j in range(kw):
                rows, columns = slice(i, i + stride * height, stride), slice(j, j + stride * width, stride)
                window = x[:, first : first + per_group, rows, columns][:, :, :height, :width]
                accumulator[:, o] += np.einsum("nchw,c->nhw", window, weight[o, :, i, j].astype(np.int64))
    return accumulator + np.asarray(bias, dtype=np.int64).reshape(1, -1, 1, 1)


def requantize(accumulator, x_scale, weight_scale, y_scale, y_zero_point, lowest=0, highest=255):
    """QLinearConv. weight_scale broadcasts against the accumulator."""
    multiplier = (f32(x_scale) * np.asarray(weight_scale, f32)) / f32(y_scale)
    rounded = np.rint(accumulator.astype(np.int32).astype(f32) * multiplier) + y_zero_point
    return np.clip(rounded, lowest, highest).astype(np.uint8)


def add(a, b, a_scale, a_zero, b_scale, b_zero, y_scale, y_zero):
    """QLinearAdd, with fused multiply-adds calculated in float64 and rounded once."""
    ratio_a, ratio_b = f32(a_scale) / f32(y_scale), f32(b_scale) / f32(y_scale)
    fixed = f32(f32(y_zero) - f32(np.float64(ratio_a) * a_zero + np.float64(f32(ratio_b * f32(b_zero)))))
    inner = (b.astype(np.float64) * np.float64(ratio_b) + np.float64(fixed)).astype(f32)
    value = (a.astype(np.float64) * np.float64(ratio_a) + inner.astype(np.float64)).astype(f32)
    return np.clip(np.rint(value), 0, 255).astype(np.uint8)


def global_average(codes, x_scale, x_zero, y_scale, y_zero):
    """QLinearGlobalAveragePool. codes: (N, C, H, W)."""
    elements = codes.shape[2] * codes.shape[3]
    total = (codes.astype(np.int64) - x_zero).sum((2, 3), keepdims=True)
    rounded = np.rint(total.astype(f32) * (f32(x_scale) / (f32(y_scale) * f32(elements)))) + y_zero
    return np.clip(rounded, 0, 255).astype(np.uint8)


def lookup(codes, x_scale, x_zero, y_scale, y_zero, lowest=0, highest=255):
    """DequantizeLinear, then QuantizeLinear."""
    real = (codes.astype(f32) - f32(x_zero)) * f32(x_scale)
    return np.clip(np.rint(real / f32(y_scale)) + y_zero, lowest, highest).astype(np.uint8)
