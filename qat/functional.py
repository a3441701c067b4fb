"""All quantization maths, on plain tensors. No modules, no state.

Rounding is half to even, the division is by the scale itself (not by its reciprocal: that flips 13 % of exact ties) and
the zero-point is added after rounding, as ONNX `QuantizeLinear` does. Values are clamped first and rounded second: the
forward is the same as the other way round, and only this order gives the scale gradient of LSQ eq. 3 at values that round
onto a bound. Everything is calculated in float32, also under autocast.
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
        x: any shape. scale, zero_point: broadcast against x.

    >>> quantize(torch.tensor([-1.0, 0.25, 0.75, 9.0]), torch.tensor(0.5), 0, -8, 7)
    tensor([-2.,  0.,  2.,  7.])
    """
    lo, hi = qmin - zero_point, qmax - zero_point
    return torch.clamp(torch.round(x.float() / scale), lo, hi) + zero_point  # type: ignore[arg-type]


def dequantize(codes: Tensor, scale: Tensor, zero_point: Tensor | int) -> Tensor:
    """Real values of codes: `(codes - zero_point) * scale`, float32."""
    return (codes - zero_point).float() * scale


def fake_quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor | int, qmin: int, qmax: int, gradient_scale: float = 1.0
) -> Tensor:
    """`dequantize(quantize(x))`, bit for bit, with straight-through gradients for x and scale.

    Gradients (Esser et al. 2020, "Learned step size quantization", eq. 3 and 5, with v = x / scale, bounds
    qmin - zero_point and qmax - zero_point): inside the bounds dx = g and dscale = sum(g * (round(v) - v)); on a bound or
    beyond it dx = 0 and dscale = sum(g * bound). dscale is multiplied by `gradient_scale`.

    Differs from the paper: where `qat.kernels` does the work (on a CPU with a C compiler) and x is not a leaf, which lives
    anyway, round(v) - v is kept in one byte: each term of dscale is off by at most |g| / 504.

    Args:
        x: float, any shape; the result has its shape and dtype.
        scale: float32, > 0, broadcasts against x; its gradient has its shape.
        zero_point: whole numbers that broadcast like scale, or an int.
    """
    return kernels.fake_quantize(x, scale, qmin - zero_point, qmax - zero_point, gradient_scale)


def fake_quantize_with(
    rounding: Rounding,
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | int,
    qmin: int,
    qmax: int,
    gradient_scale: float = 1.0,
) -> Tensor:
    """`fake_quantize`, with the gradient of `rounding`, an estimator, in the place of the straight-through one.

    With v = x / scale and r'(v) the estimator's gradient: inside the bounds dx = g * r'(v) and
    dscale = sum(g * (round(v) - v * r'(v))); on a bound or beyond it dx = 0 and dscale = sum(g * bound).

    Args:
        rounding: an estimator. The others: as in `fake_quantize`.
    """
    scale = scale_gradient(scale, gradient_scale)
    lo, hi = ((bound - zero_point) * scale.detach() for bound in (qmin, qmax))
    return clip_and_round(x, lo, hi, scale, rounding)


def clip_and_round(x: Tensor, lo: Tensor, hi: Tensor, scale: Tensor, rounding: Rounding) -> Tensor:
    """x clipped to [lo, hi] and rounded to multiples of the scale, in the dtype of x.

    Gradients, with v = x / scale: inside dx = g * r'(v) and dscale = sum(g * (round(v) - v * r'(v))); on a bound or beyond it
    g goes to the bound. Where the bounds take no gradient they move with the scale: there dscale = sum(g * bound / scale).

    Args:
        lo, hi: whole multiples of the scale, lo <= 0 <= hi. lo, hi, scale: float32, broadcast against x; gradients have
            their shapes.
    """
    result: Tensor = kernels.ClipAndRound.apply(x, lo, hi, scale, rounding)
    return result


def look_up(x: Tensor, scale: Tensor, qmin: int, qmax: int, values: Tensor, slopes: Tensor) -> Tensor:
    """`values[quantize(x) - qmin]`: any function of the codes of a symmetric grid, in the dtype of x.

    Gradients, with c the code of x: dx = g * slopes[c - qmin], and dvalues[i] = sum of g where c = qmin + i. The slopes of the
    outermost codes are those of clipped values, too.

    Args:
        scale: float32 (1,), > 0; takes no gradient.
        values, slopes: float32 (qmax - qmin + 1,), at most 256 of them.
    """
    result: Tensor = kernels.LookUp.apply(x, scale, qmin, qmax, values, slopes)
    return result


def clip(x: Tensor, lo: Tensor, hi: Tensor) -> Tensor:
    """min(max(x, lo), hi). The gradient goes to x strictly inside, and on a bound or beyond it to the bound."""
    return torch.where(x >= hi, hi, torch.where(x <= lo, lo, x))


def round_to_multiple(x: Tensor, scale: Tensor, rounding: Callable[[Tensor], Tensor]) -> Tensor:
    """Multiples of the scale: rounding(x / scale) * scale. x: already clipped to what the codes reach."""
    return rounding(x / scale) * scale


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """x itself; its gradient is multiplied by `factor`."""
    result: Tensor = kernels.ScaleGradient.apply(x, factor)
    return result


def clamp_straight_through(x: Tensor, lowest: Tensor | float, highest: float = float("inf")) -> Tensor:
    """min(max(x, lowest), highest) whose gradient is 1 everywhere, so that a learned x beyond its limits can come back."""
    result: Tensor = kernels.StraightThroughClamp.apply(x, lowest, highest)
    return result


def with_gradient_of(value: Tensor, source: Tensor) -> Tensor:
    """The numbers of `value`, bit for bit, with the gradient of `source`, which has the same shape and is finite."""
    return value.detach() + (source - source.detach())
