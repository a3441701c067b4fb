"""The kernels of `cpu/fake_quantize.c` in Triton: the same operations on each element, in the same order, in float32.

A tensor is rows of `columns` values in memory order, and row r has the scale scales[r * step]: step 1 is one scale per row,
step 0 one for all. Each program computes one block of one row, `blocks` of them a row, and writes its own partial sums, so that
no sum depends on the order in which programs run. Tensors may be float32, bfloat16 or float16; scales, bounds, tables and sums
are float32. The C file explains what the forward pass saves in one byte.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

BLOCK = 2048
"""Elements of one program."""

_STEPS = tl.constexpr(252.0)
_OUTSIDE = tl.constexpr(127)
_NOT_A_NUMBER = tl.constexpr(-128)
_MAGIC = tl.constexpr(12582912.0)  # 1.5 * 2^23: float32 has no fraction there
_SIGN = tl.constexpr(-0x80000000)
_BLOCK = tl.constexpr(BLOCK)


@triton.jit
def _rint(v: Any) -> Any:
    """Round to nearest, ties to even, for |v| <= 2^22; NaN, infinities and the sign of zero stay."""
    rounded = (v + _MAGIC) - _MAGIC
    sign = v.to(tl.int32, bitcast=True) & _SIGN
    return (rounded.to(tl.int32, bitcast=True) | sign).to(tl.float32, bitcast=True)


@triton.jit
def _clamp(v: Any, lo: Any, hi: Any) -> Any:
    """Clamp; NaN stays NaN."""
    v = tl.where(v < lo, lo, v)
    return tl.where(v > hi, hi, v)


@triton.jit
def _block(columns: Any, blocks: Any) -> Any:
    """(row, elements, mask) of this program."""
    program = tl.program_id(0).to(tl.int64)
    row = program // blocks
    column = (program % blocks) * _BLOCK + tl.arange(0, _BLOCK)
    return row, row * columns + column, column < columns


@triton.jit
def _load(pointer: Any, at: Any, mask: Any) -> Any:
    return tl.load(pointer + at, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _store(pointer: Any, at: Any, value: Any, mask: Any) -> Any:
    tl.store(pointer + at, value.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def fake_quantize_forward(
    x: Any, scales: Any, y: Any, saved: Any, lo: Any, hi: Any, columns: Any, blocks: Any, step: Any, SAVE: tl.constexpr
) -> Any:
    """y = round(clamp(x / scale, lo, hi)) * scale, and with SAVE one byte per element."""
    row, at, mask = _block(columns, blocks)
    scale = tl.load(scales + row * step)
    values = _load(x, at, mask)
    v = tl.math.div_rn(values, scale)
    rounded = _rint(_clamp(v, lo, hi))
    _store(y, at, rounded * scale, mask)
    if SAVE:
        error = _clamp(_rint(_clamp((rounded - v) * _STEPS, -_OUTSIDE, _OUTSIDE)), 1 - _OUTSIDE, _OUTSIDE - 1)
        error = tl.where(values <= lo * scale, -_OUTSIDE, error)
        error = tl.where(values >= hi * scale, _OUTSIDE, error)
        error = tl.where(error == error, error, _NOT_A_NUMBER)
        tl.store(saved + at, error.to(tl.int32).to(tl.int8), mask=mask)


@triton.jit
def fake_quantize_backward(
    grad: Any, x: Any, scales: Any, dx: Any, sums: Any, lo: Any, hi: Any, columns: Any, blocks: Any, step: Any
) -> Any:
    """dx = grad inside the bounds, else 0; sums of grad * (the rounding error inside, the bound outside)."""
    row, at, mask = _block(columns, blocks)
    scale = tl.load(scales + row * step)
    values, g = _load(x, at, mask), _load(grad, at, mask)
    lowest, highest = lo * scale, hi * scale
    v = tl.math.div_rn(values, scale)
    factor = _rint(v) - v
    factor = tl.where(values >= highest, hi, factor)
    factor = tl.where(values <= lowest, lo, factor)
    _store(dx, at, tl.where((values < highest) & (values > lowest), g, 0.0), mask)
    tl.store(sums + tl.program_id(0), tl.sum(tl.where(mask, g * factor, 0.0)))


@triton.jit
def fake_quantize_backward_from_saved(
    grad: Any, saved: Any, dx: Any, sums: Any, lo: Any, hi: Any, columns: Any, blocks: Any
) -> Any:
    """The same from the saved bytes."""
    _row, at, mask = _block(columns, blocks)
    g = _load(grad, at, mask)
    code = tl.load(saved + at, mask=mask, other=0).to(tl.int32)
    above, below, nan = code == _OUTSIDE, code == -_OUTSIDE, code == _NOT_A_NUMBER
    factor = code.to(tl.float32) * (1.0 / _STEPS)
    factor = tl.where(above, hi, tl.where(below, lo, factor))
    factor = tl.where(nan, float("nan"), factor)
    _store(dx, at, tl.where(above | below | nan, 0.0, g), mask)
    tl.store(sums + tl.program_id(0), tl.sum(tl.where(mask, g * factor, 0.0)))


@triton.jit
def clip_and_round_forward(
    x: Any, lows: Any, highs: Any, scales: Any, y: Any, columns: Any, blocks: Any, step: Any
) -> Any:
    """y = round(clamp(x, lo, hi) / scale) * scale."""
    row, at, mask = _block(columns, blocks)
    lo, hi, scale = tl.load(lows + row * step), tl.load(highs + row * step), tl.load(scales + row * step)
    inside = _clamp(_load(x, at, mask), lo, hi)
    _store(y, at, _rint(tl.math.div_rn(inside, scale)) * scale, mask)


@triton.jit
def _slope(slopes: Any, v: Any, g: Any, points: tl.constexpr) -> Any:
    """The slope of rounding at v for the sign of g, interpolated between `points` values."""
    at = _clamp((v - _rint(v) + 0.5) * (points - 1), 0.0, points - 1.0)
    at = tl.where(at == at, at, 0.0)
    left = tl.minimum(at.to(tl.int32), points - 2)
    start = tl.where(g < 0.0, points, 0) + left
    first, second = tl.load(slopes + start), tl.load(slopes + start + 1)
    return first + (at - left.to(tl.float32)) * (second - first)


@triton.jit
def clip_and_round_backward(
    grad: Any,
    x: Any,
    y: Any,
    lows: Any,
    highs: Any,
    scales: Any,
    slopes: Any,
    dx: Any,
    sums: Any,
    columns: Any,
    blocks: Any,
    step: Any,
    points: tl.constexpr,
) -> Any:
    """dx = grad * slope inside the bounds, else 0; three sums of each program: of grad where x <= lo, of grad where x >= hi,
    and of grad * y - dx * x in between.
    """
    row, at, mask = _block(columns, blocks)
    lo, hi, scale = tl.load(lows + row * step), tl.load(highs + row * step), tl.load(scales + row * step)
    values, g, outputs = _load(x, at, mask), _load(grad, at, mask), _load(y, at, mask)
    high = values >= hi
    low = (values <= lo) & (values < hi)
    inside = tl.where((values > lo) & (values < hi), g, 0.0)
    d = inside * (_slope(slopes, tl.math.div_rn(values, scale), g, points) if points > 1 else tl.load(slopes))
    _store(dx, at, d, mask)
    n, program = tl.num_programs(0), tl.program_id(0)
    tl.store(sums + program, tl.sum(tl.where(mask & low, g, 0.0)))
    tl.store(sums + n + program, tl.sum(tl.where(mask & high, g, 0.0)))
    tl.store(sums + 2 * n + program, tl.sum(tl.where(mask, inside * outputs - d * values, 0.0)))


@triton.jit
def look_up_forward(
    x: Any, scales: Any, values: Any, y: Any, codes: Any, lo: Any, hi: Any, columns: Any, blocks: Any
) -> Any:
    """y = values[code], with code = round(clamp(x / scale, lo, hi)) - lo, which is stored; NaN stays NaN."""
    _row, at, mask = _block(columns, blocks)
    v = tl.math.div_rn(_load(x, at, mask), tl.load(scales))
    code = (_rint(_clamp(tl.where(v == v, v, lo), lo, hi)) - lo).to(tl.int32)
    tl.store(codes + at, code.to(tl.uint8), mask=mask)
    _store(y, at, tl.where(v == v, tl.load(values + code), v), mask)


@triton.jit
def look_up_backward(
    grad: Any, codes: Any, slopes: Any, dx: Any, sums: Any, columns: Any, blocks: Any, n: tl.constexpr
) -> Any:
    """dx = grad * slopes[code]; n sums of each program: of the gradients of each code."""
    _row, at, mask = _block(columns, blocks)
    g = _load(grad, at, mask)
    code = tl.load(codes + at, mask=mask, other=0).to(tl.int32)
    _store(dx, at, g * tl.load(slopes + code), mask)
    for k in range(n):
        tl.store(sums + tl.program_id(0) * n + k, tl.sum(tl.where(mask & (code == k), g, 0.0)))
