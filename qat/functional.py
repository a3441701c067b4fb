"""All quantization maths, on plain tensors. No modules, no state.

Rounding is half to even, the division is by the scale itself (not by its reciprocal: that flips 13 % of exact ties) and
the zero-point is added after rounding, as ONNX `QuantizeLinear` does. Values are clamped first and rounded second: the
forward is the same as the other way round, and only this order gives the scale gradient of LSQ eq. 3 at values that round
onto a bound. Everything is calculated in float32, also under autocast.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

import qat.native as kernel
from qat.native import available, mark, native


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

    Differs from the paper: where `qat.native` does the work (on a CPU with a C compiler) and x is not a leaf, which lives
    anyway, round(v) - v is kept in one byte: each term of dscale is off by at most |g| / 504.

    Args:
        x: float, any shape; the result has its shape and dtype.
        scale: float32, > 0, broadcasts against x; its gradient has its shape.
        zero_point: whole numbers that broadcast like scale, or an int.
    """
    lo, hi = qmin - zero_point, qmax - zero_point
    function = _OnePass if _one_pass(x, scale, lo) else _Composite
    result: Tensor = function.apply(x, scale, lo, hi, gradient_scale)
    if function is _OnePass and not x.is_leaf and not torch.compiler.is_compiling() and x.dtype is torch.float32:
        mark(result, scale, float(lo), float(hi))
    return result


class Rounding(Protocol):
    """How whole numbers are found, and the gradient that is taken for it. v, float32: values in units of the scale."""

    def round(self, v: Tensor) -> Tensor:
        """Whole numbers, same shape."""

    def gradient(self, grad: Tensor, v: Tensor) -> Tensor:
        """grad * r'(v), same shape; may be `grad` itself."""

    @property
    def to_nearest(self) -> bool:
        """Whether `round` is now torch.round."""

    @property
    def slopes(self) -> Tensor | None:
        """r'(v) at v - round(v) = -0.5 .. 0.5 in equal steps, in a row for positive gradients and a row for negative ones;
        None where it depends on more than that.
        """


def fake_quantize_by(
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
    return clip_and_snap(x, lo, hi, scale, rounding)


def clip_and_snap(x: Tensor, lo: Tensor, hi: Tensor, scale: Tensor, rounding: Rounding) -> Tensor:
    """x clipped to [lo, hi] and rounded to multiples of the scale, in the dtype of x.

    Gradients, with v = x / scale: inside dx = g * r'(v) and dscale = sum(g * (round(v) - v * r'(v))); on a bound or beyond it
    g goes to the bound. Where the bounds take no gradient they move with the scale: there dscale = sum(g * bound / scale).

    Args:
        lo, hi: whole multiples of the scale, lo <= 0 <= hi. lo, hi, scale: float32, broadcast against x; gradients have
            their shapes.
    """
    result: Tensor = _ClipAndSnap.apply(x, lo, hi, scale, rounding)
    return result


def look_up(x: Tensor, scale: Tensor, qmin: int, qmax: int, values: Tensor, slopes: Tensor) -> Tensor:
    """`values[quantize(x) - qmin]`: any function of the codes of a symmetric grid, in the dtype of x.

    Gradients, with c the code of x: dx = g * slopes[c - qmin], and dvalues[i] = sum of g where c = qmin + i. The slopes of the
    outermost codes are those of clipped values, too.

    Args:
        scale: float32 (1,), > 0; takes no gradient.
        values, slopes: float32 (qmax - qmin + 1,), at most 256 of them.
    """
    result: Tensor = _LookUp.apply(x, scale, qmin, qmax, values, slopes)
    return result


def clip(x: Tensor, lo: Tensor, hi: Tensor) -> Tensor:
    """min(max(x, lo), hi). The gradient goes to x strictly inside, and on a bound or beyond it to the bound."""
    return torch.where(x >= hi, hi, torch.where(x <= lo, lo, x))


def snap(x: Tensor, scale: Tensor, rounding: Callable[[Tensor], Tensor]) -> Tensor:
    """Multiples of the scale: rounding(x / scale) * scale. x: already clipped to what the codes reach."""
    return rounding(x / scale) * scale


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """x itself; its gradient is multiplied by `factor`."""
    result: Tensor = _ScaleGradient.apply(x, factor)
    return result


def held(x: Tensor, lowest: Tensor | float, highest: float = float("inf")) -> Tensor:
    """min(max(x, lowest), highest) whose gradient is 1 everywhere, so that a learned x beyond its limits can come back."""
    result: Tensor = _Held.apply(x, lowest, highest)
    return result


def with_gradient_of(value: Tensor, source: Tensor) -> Tensor:
    """The numbers of `value`, bit for bit, with the gradient of `source`, which has the same shape and is finite."""
    return value.detach() + (source - source.detach())


class _ClipAndSnap(torch.autograd.Function):
    """Saves its input and output, which neighbouring layers keep alive anyway. One native pass each way where there can be."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, lo: Tensor, hi: Tensor, scale: Tensor, rounding: Rounding) -> Tensor:
        ctx.native = _by_rows(x, scale) and lo.shape == hi.shape == scale.shape and not torch.compiler.is_compiling()
        if ctx.native and rounding.to_nearest:
            y = kernel.clip_and_snap(x.float(), lo, hi, scale)
        else:
            y = rounding.round(torch.clamp(x.float(), lo, hi).div_(scale)).mul_(scale)
        ctx.rounding = rounding
        ctx.save_for_backward(x, y, lo, hi, scale)
        return y.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, y, lo, hi, scale = ctx.saved_tensors
        x, g = x.float(), grad.float()
        learned = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
        slopes = ctx.rounding.slopes if ctx.native else None
        if slopes is not None:
            dx, below, above, inner = kernel.clip_and_snap_backward(g, x, y, lo, hi, scale, slopes)
            if learned:
                return dx.to(grad.dtype), below, above, inner / scale, None
            return dx.to(grad.dtype), None, None, (inner + below * lo + above * hi) / scale, None
        inside = _zero_outside(x, lo, hi)
        dx = inside(ctx.rounding.gradient(g, torch.div(x, scale)))
        dlo = dhi = dscale = None
        if learned:
            g, whole = inside(g), g
            outside = torch.sub(whole, g)
            dhi = torch.where(x >= hi, outside, 0.0).sum_to_size(hi.shape)
            dlo = outside.sum_to_size(lo.shape) - dhi
        if ctx.needs_input_grad[3]:
            dscale = torch.mul(g, y).addcmul_(dx, x, value=-1.0).sum_to_size(scale.shape).div_(scale)
        return dx.to(grad.dtype), dlo, dhi, dscale, None


class _LookUp(torch.autograd.Function):
    """Keeps one byte an element. One native pass each way on a CPU with a C compiler, else torch's own operations."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, qmin: int, qmax: int, values: Tensor, slopes: Tensor) -> Tensor:
        ctx.native = _plain(x) and not torch.compiler.is_compiling()
        if ctx.native:
            y, codes = kernel.look_up(x.float(), scale.item(), qmin, qmax, values)
        else:
            v = torch.div(x.float(), scale)
            codes = v.nan_to_num(qmin).clamp_(qmin, qmax).round_().sub_(qmin).to(torch.uint8)
            y = torch.where(v.isnan(), v, _taken(values, codes))
        ctx.save_for_backward(codes, slopes)
        return y.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        codes, slopes = ctx.saved_tensors
        if ctx.native:
            dx, dvalues = kernel.look_up_backward(grad.float(), codes, slopes)
        else:
            dx = _taken(slopes, codes).mul_(grad)
            dvalues = torch.bincount(codes.flatten(), grad.flatten().double(), len(slopes)).float()
        return dx.to(grad.dtype), None, None, None, dvalues, None


def _taken(values: Tensor, codes: Tensor) -> Tensor:
    """values[codes], in the memory order of the codes."""
    last = codes.ndim == 4 and codes.is_contiguous(memory_format=torch.channels_last)
    ordered = codes.permute(0, 2, 3, 1) if last else codes
    taken = values.index_select(0, ordered.flatten().to(torch.int32)).reshape(ordered.shape)
    return taken.permute(0, 3, 1, 2) if last else taken


def _plain(x: Tensor) -> bool:
    """Whether the native kernels can read it."""
    return x.dtype is not torch.float64 and x.device.type == "cpu" and x.numel() > 0 and available()


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.factor, None


class _Held(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, lowest: Tensor | float, highest: float) -> Tensor:
        raised = x.clamp(min=lowest)
        return raised if highest == float("inf") else raised.clamp(max=highest)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad, None, None


def _one_pass(x: Tensor, scale: Tensor, lo: Tensor | int) -> bool:
    """Whether the native kernels know this case: Python numbers as bounds."""
    one_bound = not isinstance(lo, Tensor) or (lo.numel() == 1 and not torch.compiler.is_compiling())
    return one_bound and _by_rows(x, scale)


def _by_rows(x: Tensor, scale: Tensor) -> bool:
    """Whether the native kernels can read x, with one scale or with one for each row."""
    rows = scale.numel() == 1 or (scale.ndim == x.ndim and scale.numel() == len(x) == len(scale))
    return rows and _plain(x) and (torch.compiler.is_compiling() or type(x) in (Tensor, nn.Parameter))


class _OnePass(torch.autograd.Function):
    """One native pass each way. Keeps a leaf as it is, and of any other tensor one byte an element."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, lo: Tensor | int, hi: Tensor | int, gradient_scale: float
    ) -> Tensor:
        ctx.bounds, ctx.gradient_scale, ctx.leaf = (float(lo), float(hi)), gradient_scale, x.is_leaf
        if x.is_leaf:
            ctx.save_for_backward(x, scale)
            y = native().fake_quantize(x.float(), scale, *ctx.bounds)
        else:
            y, kept = native().fake_quantize_and_keep(x.float(), scale, *ctx.bounds)
            ctx.save_for_backward(kept, scale)
        return y.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        kept, scale = ctx.saved_tensors
        if ctx.leaf:
            dx, dscale = native().backward(grad.float(), kept.float(), scale, *ctx.bounds)
        else:
            dx, dscale = native().backward_kept(grad.float(), kept, scale, *ctx.bounds)
        return dx.to(grad.dtype), dscale * ctx.gradient_scale, None, None, None


class _Composite(torch.autograd.Function):
    """torch's own operations, on any device and under torch.compile.

    Saves its input and output, which neighbouring layers keep alive anyway, and no tensor of its own.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, lo: Tensor | int, hi: Tensor | int, gradient_scale: float
    ) -> Tensor:
        y = torch.div(x.float(), scale).clamp_(lo, hi).round_().mul_(scale).to(x.dtype)  # type: ignore[arg-type]
        ctx.save_for_backward(x, y, scale)
        ctx.bounds = lo, hi
        ctx.gradient_scale = gradient_scale
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, y, scale = ctx.saved_tensors
        lo, hi = ctx.bounds
        if x.element_size() < 4:  # half precision: y was rounded a second time, and bounds would be to compare with x
            x = x.float()
            y = torch.div(x, scale).clamp_(lo, hi).round_().mul_(scale)
        inside = _zero_outside(x, lo * scale, hi * scale)
        dscale = None
        if ctx.needs_input_grad[1]:
            # (y - x) / scale is round(v) - v inside, and y / scale is the bound outside.
            residual = torch.sub(y, inside(x.float()))
            dscale = residual.mul_(grad).sum_to_size(scale.shape).div_(scale).mul_(ctx.gradient_scale)
        dx = inside(grad) if ctx.needs_input_grad[0] else None
        return dx, dscale, None, None, None


def _zero_outside(x: Tensor, lo: Tensor, hi: Tensor) -> Callable[[Tensor], Tensor]:
    """A function that keeps values where lo < x < hi and makes the others 0; same dtype and shape as its argument."""
    if lo.numel() == 1 and x.device.type == "cpu" and not torch.compiler.is_compiling():
        # Without a C compiler: one pass of torch's. The bounds must be Python numbers, which costs nothing on a CPU.
        least, most = lo.item(), hi.item()
        return lambda values: torch.ops.aten.hardtanh_backward(values, x.to(values.dtype), least, most)
    mask = (x > lo).logical_and_(x < hi)
    return lambda values: torch.where(mask, values, 0)
