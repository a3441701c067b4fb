"""All quantization formulas, on plain tensors: no modules, no state.

Rounding is half to even, the division is by the scale itself (multiplying by its reciprocal flips 13 % of exact ties) and the
zero-point is added after rounding, as in ONNX `QuantizeLinear`. Values are clamped first and rounded second: the forward is
the same in either order, but only this one gives the scale gradient of LSQ eq. 3 for values that round onto a bound.
Everything is computed in float32, also under autocast. `qat.kernels` computes the functions with gradients of their own,
which can be differentiated again, for gradient penalties (`qat/kernels/second_order.py` says how).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from qat import kernels
from qat.kernels import Rounding


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor | int, qmin: int, qmax: int) -> Tensor:
    """Codes of x: `clamp(round(x / scale) + zero_point, qmin, qmax)`, whole numbers held in float32.

    Args:
        x: float, any shape.
        scale: float32, > 0, broadcasts against x.
        zero_point: whole numbers that broadcast like scale, or an int.
        qmin, qmax: lowest and highest code.

    >>> quantize(torch.tensor([-1.0, 0.25, 0.75, 9.0]), torch.tensor(0.5), 0, -8, 7)
    tensor([-2.,  0.,  2.,  7.])
    """
    lo, hi = qmin - zero_point, qmax - zero_point
    return torch.clamp(torch.round(x.float() / scale), lo, hi) + zero_point  # type: ignore[arg-type]


def dequantize(codes: Tensor, scale: Tensor, zero_point: Tensor | int) -> Tensor:
    """Real values of codes: `(codes - zero_point) * scale`, float32."""
    return (codes - zero_point).float() * scale


def fake_quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | int,
    qmin: int,
    qmax: int,
    gradient_scale: float = 1.0,
    lowest_scale: Tensor | None = None,
) -> Tensor:
    """`dequantize(quantize(x))`, bit for bit, with straight-through gradients for x and scale.

    Gradients (Esser et al. 2020, "Learned step size quantization", eq. 3 and 5, with v = x / scale, bounds
    qmin - zero_point and qmax - zero_point): inside the bounds dx = g and dscale = sum(g * (round(v) - v)); on a bound or
    beyond it dx = 0 and dscale = sum(g * bound). dscale is multiplied by `gradient_scale`.

    Differs from the paper: if compiled kernels run (on a CPU with a C compiler) and x is not a leaf, round(v) - v is saved in
    one byte: each term of dscale is off by at most |g| / 504.

    Args:
        x: float, any shape; the result has its shape and dtype.
        scale: float32, > 0, broadcasts against x; its gradient has its shape.
        zero_point: whole numbers that broadcast like scale, or an int.
        qmin, qmax: lowest and highest code.
        gradient_scale: factor of the gradient of the scale.
        lowest_scale: in the shape of scale; if given, `floor_scale(scale, lowest_scale)` takes the place of scale.
    """
    return kernels.fake_quantize(x, scale, qmin - zero_point, qmax - zero_point, gradient_scale, lowest_scale)


def fake_quantize_with_estimator(
    estimator: Rounding,
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | int,
    qmin: int,
    qmax: int,
    gradient_scale: float = 1.0,
    lowest_scale: Tensor | None = None,
) -> Tensor:
    """`fake_quantize` with the gradient of an estimator instead of the straight-through one.

    Gradients, with v = x / scale and r'(v) the estimator's gradient: inside the bounds dx = g * r'(v) and
    dscale = sum(g * (round(v) - v * r'(v))); on a bound or beyond it dx = 0 and dscale = sum(g * bound).

    Args:
        estimator: rounding to whole numbers, with its gradient.
        x, scale, zero_point, qmin, qmax, gradient_scale, lowest_scale: as in `fake_quantize`.
    """
    scale = scale if lowest_scale is None else floor_scale(scale, lowest_scale)
    scale = scale_gradient(scale, gradient_scale)
    lo, hi = ((bound - zero_point) * scale.detach() for bound in (qmin, qmax))
    return clip_and_round(x, lo, hi, scale, estimator)


def clip_and_round(x: Tensor, lo: Tensor, hi: Tensor, scale: Tensor, rounding: Rounding) -> Tensor:
    """x clipped to [lo, hi] and rounded to multiples of the scale, in the dtype of x.

    Gradients, with v = x / scale: inside the bounds dx = g * r'(v) and dscale = sum(g * (round(v) - v * r'(v))); on a bound or
    beyond it g goes to the bound. Bounds that require no gradient are taken to move with the scale: then dscale also gets
    sum(g * bound / scale) there.

    Args:
        x: float, any shape.
        lo, hi: float32 whole multiples of the scale, lo <= 0 <= hi; broadcast against x; their gradients have their shapes.
        scale: float32, > 0, broadcasts against x; its gradient has its shape.
        rounding: an estimator.
    """
    result: Tensor = kernels.ClipAndRound.apply(x, lo, hi, scale, rounding)
    return result


def look_up(x: Tensor, scale: Tensor, qmin: int, qmax: int, values: Tensor, slopes: Tensor) -> Tensor:
    """`values[quantize(x) - qmin]`: any function of the codes of a symmetric grid, in the dtype of x.

    Gradients, with c the code of x: dx = g * slopes[c - qmin], and dvalues[i] = sum of g where c = qmin + i. Clipped values
    have the slopes of the outermost codes.

    Args:
        x: float, any shape.
        scale: float32 (1,), > 0; gets no gradient.
        qmin, qmax: lowest and highest code.
        values, slopes: float32 (qmax - qmin + 1,), at most 256 entries.
    """
    result: Tensor = kernels.LookUp.apply(x, scale, qmin, qmax, values, slopes)
    return result


def clip(x: Tensor, lo: Tensor, hi: Tensor) -> Tensor:
    """min(max(x, lo), hi). The gradient goes to x strictly inside the bounds, otherwise to the bound."""
    return torch.where(x >= hi, hi, torch.where(x <= lo, lo, x))


def round_to_multiple(x: Tensor, scale: Tensor, rounding: Callable[[Tensor], Tensor]) -> Tensor:
    """rounding(x / scale) * scale, for an x that is already clipped to the grid."""
    return rounding(x / scale) * scale


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """x itself; its gradient is multiplied by `factor`."""
    result: Tensor = kernels.ScaleGradient.apply(x, factor)
    return result


def clamp_straight_through(x: Tensor, lowest: Tensor | float, highest: float = float("inf")) -> Tensor:
    """min(max(x, lowest), highest) whose gradient is 1 everywhere, so that a learned x beyond its limits can recover."""
    result: Tensor = kernels.StraightThroughClamp.apply(x, lowest, highest)
    return result


def floor_scale(scale: Tensor, lowest: Tensor) -> Tensor:
    """max(scale, lowest). Below `lowest` a scale gets only gradients that raise it: it recovers, and does not run away."""
    result: Tensor = kernels.Floor.apply(scale, lowest)
    return result


def with_gradient_of(value: Tensor, source: Tensor) -> Tensor:
    """The values of `value`, bit for bit, with the gradient of `source`, which is finite and has the same shape."""
    return value.detach() + (source - source.detach())
