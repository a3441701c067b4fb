"""Clipping to learned bounds, and rounding with the gradient of an estimator."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from qat.kernels import second_order
from qat.kernels.dispatch import operators_for, uses_native_by_rows
from qat.kernels.fake_quantize import zero_outside


class Rounding(Protocol):
    """Rounding to whole numbers, and the gradient that replaces its own. v = x / scale is float32."""

    def round(self, v: Tensor) -> Tensor:
        """Whole numbers, same shape."""

    def gradient(self, grad: Tensor, v: Tensor) -> Tensor:
        """grad * r'(v), same shape; may be `grad` itself."""

    @property
    def rounds_to_nearest(self) -> bool:
        """Whether `round` is torch.round at the moment."""

    @property
    def slopes(self) -> Tensor | None:
        """r'(v) at equally spaced v - round(v) = -0.5 .. 0.5, (2, points): for positive gradients, then for negative ones.

        None if r'(v) depends on anything else.
        """


class ClipAndRound(torch.autograd.Function):
    """`qat.functional.clip_and_round`. Saves only its input and output, which neighbouring layers keep alive anyway."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, lo: Tensor, hi: Tensor, scale: Tensor, rounding: Rounding) -> Tensor:
        ctx.native = (
            uses_native_by_rows(x, scale) and lo.shape == hi.shape == scale.shape and not torch.compiler.is_compiling()
        )
        if ctx.native and rounding.rounds_to_nearest:
            y = operators_for(x).clip_and_round(x.float(), lo, hi, scale)
        else:
            y = rounding.round(torch.clamp(x.float(), lo, hi).div_(scale)).mul_(scale)
        ctx.rounding = rounding
        ctx.save_for_backward(x, y, lo, hi, scale)
        return y.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, y, lo, hi, scale = ctx.saved_tensors
        learned = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
        if second_order.is_recorded():
            return *second_order.clip_and_round_backward(grad, ctx.saved_tensors, ctx.rounding, learned), None
        x, g = x.float(), grad.float()
        slopes = ctx.rounding.slopes if ctx.native else None
        if slopes is not None:
            dx, below, above, inner = operators_for(x).clip_and_round_backward(g, x, y, lo, hi, scale, slopes)
            if learned:
                return dx.to(grad.dtype), below, above, inner / scale, None
            return dx.to(grad.dtype), None, None, (inner + below * lo + above * hi) / scale, None
        inside = zero_outside(x, lo, hi)
        dx = inside(ctx.rounding.gradient(g, torch.div(x, scale)))
        dlo = dhi = dscale = None
        if learned:
            above = x >= hi
            dhi = torch.where(above, g, 0.0).sum_to_size(hi.shape)
            dlo = torch.where((x <= lo).logical_and_(~above), g, 0.0).sum_to_size(lo.shape)
            g = inside(g)
        if ctx.needs_input_grad[3]:
            dscale = torch.mul(g, y).addcmul_(dx, x, value=-1.0).sum_to_size(scale.shape).div_(scale)
        return dx.to(grad.dtype), dlo, dhi, dscale, None
