"""Any function of codes, by a table of at most 256 entries."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qat.kernels import second_order
from qat.kernels.dispatch import operators_for, uses_native
from qat.kernels.layout import is_channels_last


class LookUp(torch.autograd.Function):
    """`qat.functional.look_up`. Saves one byte per element."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, qmin: int, qmax: int, values: Tensor, slopes: Tensor) -> Tensor:
        ctx.native = uses_native(x) and not torch.compiler.is_compiling()
        if ctx.native:
            y, codes = operators_for(x).look_up(x.float(), scale, qmin, qmax, values)
        else:
            v = torch.div(x.float(), scale)
            codes = v.nan_to_num(qmin).clamp_(qmin, qmax).round_().sub_(qmin).to(torch.uint8)
            y = torch.where(v.isnan(), v, _gather(values, codes))
        ctx.save_for_backward(codes, slopes)
        return y.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        codes, slopes = ctx.saved_tensors
        if second_order.is_recorded():
            dx, dvalues = second_order.look_up_backward(grad, codes, slopes)
        elif ctx.native:
            dx, dvalues = operators_for(codes).look_up_backward(grad.float(), codes, slopes)
        else:
            dx = _gather(slopes, codes).mul_(grad)
            dvalues = torch.bincount(codes.flatten(), grad.flatten().double(), len(slopes)).float()
        return dx.to(grad.dtype), None, None, None, dvalues, None


def _gather(values: Tensor, codes: Tensor) -> Tensor:
    """values[codes], in the memory order of the codes."""
    channels_last = is_channels_last(codes)
    ordered = codes.permute(0, 2, 3, 1) if channels_last else codes
    values_of_codes = values.index_select(0, ordered.flatten().to(torch.int32)).reshape(ordered.shape)
    return values_of_codes.permute(0, 3, 1, 2) if channels_last else values_of_codes
