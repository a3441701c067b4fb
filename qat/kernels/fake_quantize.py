"""Fake quantization with straight-through gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from qat.kernels import registered, second_order
from qat.kernels.cpu.library import NOT_A_NUMBER, OUTSIDE, ROUNDING_ERROR_STEPS
from qat.kernels.dispatch import operators_for, uses_native_by_rows
from qat.kernels.gradients import Floor, raised_only
from qat.kernels.saved_codes import remember_encoding


def fake_quantize(
    x: Tensor,
    scale: Tensor,
    lo: Tensor | int,
    hi: Tensor | int,
    gradient_scale: float,
    lowest_scale: Tensor | None = None,
) -> Tensor:
    """`round(clamp(x / s, lo, hi)) * s`, s = max(scale, lowest_scale), with the gradients that `qat.functional.fake_quantize`
    states.

    Args:
        x: float, any shape; the result has its shape and dtype.
        scale: float32, broadcasts against x.
        lo, hi: bounds of x / s.
        gradient_scale: factor of the gradient of the scale.
        lowest_scale: in the shape of scale; None: s is the scale.
    """
    if x.ndim == 0 and scale.ndim:
        scale = scale.reshape(())  # a scale of one axis would give the result one
        lowest_scale = None if lowest_scale is None else lowest_scale.reshape(())
    on_cpu, compiling = x.device.type == "cpu", torch.compiler.is_compiling()
    one_bound = not isinstance(lo, Tensor) or (on_cpu and lo.numel() == 1)  # a GPU would wait for a Python number
    native = one_bound and not (on_cpu and compiling) and uses_native_by_rows(x, scale)
    result: Tensor
    if native and on_cpu:
        result = _NativeOnCpu.apply(x, scale, lowest_scale, lo, hi, gradient_scale)
    else:
        scale = scale if lowest_scale is None else Floor.apply(scale, lowest_scale)
        result = (_Native if native else _Composite).apply(x, scale, lo, hi, gradient_scale)
    return result


def _operators(x: Tensor) -> Any:
    """The registered operators while torch.compile traces, otherwise the backend's own functions, which have less overhead."""
    return registered if torch.compiler.is_compiling() else operators_for(x)


class _Native(torch.autograd.Function):
    """One pass of a compiled kernel each way. Saves x itself if it is a leaf, otherwise one byte per element."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, lo: Tensor | int, hi: Tensor | int, gradient_scale: float
    ) -> Tensor:
        ctx.bounds, ctx.gradient_scale, ctx.leaf = (float(lo), float(hi)), gradient_scale, x.is_leaf
        if x.is_leaf:
            ctx.save_for_backward(x, scale)
            y: Tensor = _operators(x).fake_quantize(x, scale, *ctx.bounds)
        else:
            y, saved = _operators(x).fake_quantize_and_save(x, scale, *ctx.bounds)
            ctx.save_for_backward(saved, scale)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved, scale = ctx.saved_tensors
        if second_order.is_recorded():
            read = _inside_and_factor if ctx.leaf else _inside_and_factor_from_saved
            parts = read(saved.detach(), scale.detach(), *ctx.bounds)
            return *second_order.fake_quantize_backward(grad, *parts, scale, ctx.gradient_scale), None, None, None
        operators = _operators(saved)
        backward = operators.fake_quantize_backward if ctx.leaf else operators.fake_quantize_backward_from_saved
        dx, dscale = backward(grad, saved, scale, *ctx.bounds)
        return dx, dscale.mul_(ctx.gradient_scale), None, None, None


class _NativeOnCpu(torch.autograd.Function):
    """`_Native` and `Floor` as one node of autograd, because on a CPU the time of Python itself counts."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        lowest_scale: Tensor | None,
        lo: Tensor | int,
        hi: Tensor | int,
        gradient_scale: float,
    ) -> Tensor:
        if lowest_scale is not None:
            floored = torch.maximum(scale, lowest_scale)
            ctx.below = None if torch.equal(floored, scale) else scale < lowest_scale
            scale = floored
        else:
            ctx.below = None
        y = _Native.forward(ctx, x, scale, lo, hi, gradient_scale)
        if x.dtype is torch.float32 and any(ctx.needs_input_grad) and not y.is_inference():
            remember_encoding(y, scale, *ctx.bounds)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        dx, dscale, *_ = _Native.backward(ctx, grad)
        if ctx.below is not None and dscale is not None:
            dscale = raised_only(dscale, ctx.below)
        return dx, dscale, None, None, None, None


class _Composite(torch.autograd.Function):
    """torch's own operations, on any device and under torch.compile.

    Saves only its input and output, which neighbouring layers keep alive anyway.
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
        if second_order.is_recorded():
            parts = _inside_and_factor(x.detach(), scale.detach(), lo, hi)
            return *second_order.fake_quantize_backward(grad, *parts, scale, ctx.gradient_scale), None, None, None
        if x.element_size() < 4:  # half precision: the saved y was rounded again, and the bounds are float32
            x = x.float()
            y = torch.div(x, scale).clamp_(lo, hi).round_().mul_(scale)
        inside = zero_outside(x, lo * scale, hi * scale)
        dscale = None
        if ctx.needs_input_grad[1]:
            # (y - x) / scale is round(v) - v inside, and y / scale is the bound outside.
            factor = torch.sub(y, inside(x.float())).div_(scale)  # before the sum: a product with a bound may overflow
            dscale = factor.mul_(grad).sum_to_size(scale.shape).mul_(ctx.gradient_scale)
        dx = inside(grad) if ctx.needs_input_grad[0] else None
        return dx, dscale, None, None, None


def zero_outside(x: Tensor, lo: Tensor, hi: Tensor) -> Callable[[Tensor], Tensor]:
    """A function that keeps its argument where lo < x < hi and makes it 0 elsewhere, also where x is NaN.

    Shape and dtype stay.
    """
    if lo.numel() == 1 and x.device.type == "cpu" and not torch.compiler.is_compiling():
        # Two passes instead of three. It needs Python numbers as bounds, which cost nothing on a CPU.
        lowest, highest = lo.item(), hi.item()
        if lowest == lowest and highest == highest:  # neither is NaN
            # hardtanh_backward keeps some NaN and drops others; a bound in their place would be rounded in half precision
            numbers = x.nan_to_num(-math.inf, math.inf, -math.inf)
            return lambda values: torch.ops.aten.hardtanh_backward(values, numbers.to(values.dtype), lowest, highest)
    mask = (x > lo).logical_and_(x < hi)
    return lambda values: torch.where(mask, values, 0)


def _inside_and_factor(x: Tensor, scale: Tensor, lo: Tensor | float, hi: Tensor | float) -> tuple[Tensor, Tensor]:
    """Whether x lies inside the bounds, and the factor of g in dscale: round(v) - v inside, the bound outside."""
    x = x.float()
    v = x / scale
    lowest, highest = lo * scale, hi * scale
    factor = torch.where(x >= highest, hi, torch.where(x <= lowest, lo, torch.round(v) - v))
    return (x > lowest) & (x < highest), factor


def _inside_and_factor_from_saved(saved: Tensor, scale: Tensor, lo: float, hi: float) -> tuple[Tensor, Tensor]:
    """The same from the saved bytes."""
    above, below, nan = saved == OUTSIDE, saved == -OUTSIDE, saved == NOT_A_NUMBER
    factor = torch.where(above, hi, torch.where(below, lo, saved.float() / ROUNDING_ERROR_STEPS))
    return ~(above | below | nan), torch.where(nan, torch.nan, factor)
