"""Backward passes that can be differentiated again: for gradient penalties, `torch.autograd.grad(create_graph=True)`.

A backward pass of the compiled kernels has no gradient of its own, so while autograd records the backward pass these
formulas of torch operations replace it. They are linear in the incoming gradient g; what g is multiplied with counts as
constant. For the straight-through estimator that is exact: composed of torch operations with round'(v) = 1, all other
second derivatives cancel. For other estimators it leaves out the derivative of their slope r'(v).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def is_recorded() -> bool:
    """Whether autograd records the backward pass that is running; the compiler, which traces it, records no second one."""
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()


def slope(rounding: Any, grad: Tensor, v: Tensor) -> Tensor:
    """r'(v) for the sign of grad, detached; grad * slope is `rounding.gradient(grad, v)`."""
    with torch.no_grad():
        sign = torch.where(grad < 0, -1.0, 1.0).to(v.dtype)
        result: Tensor = rounding.gradient(sign, v.detach().clone()) * sign
    return result


def fake_quantize_backward(
    grad: Tensor, inside: Tensor, factor: Tensor, scale: Tensor, gradient_scale: float
) -> tuple[Tensor, Tensor]:
    """(dx, dscale) of `fake_quantize`.

    Args:
        grad: any float dtype; dx has it.
        inside: bool, whether x lies inside the bounds.
        factor: round(v) - v inside, the bound outside; float32.
        scale: only its shape is used.
        gradient_scale: factor of dscale.
    """
    dscale = (grad.float() * factor).sum_to_size(scale.shape) * gradient_scale
    return torch.where(inside, grad, 0), dscale


def clip_and_round_backward(
    grad: Tensor, tensors: tuple[Tensor, ...], rounding: Any, learned: bool
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor]:
    """(dx, dlo, dhi, dscale) of `clip_and_round`.

    Args:
        tensors: x, y, lo, hi, scale.
        rounding: the estimator.
        learned: whether lo and hi require gradients; otherwise theirs are None, and they move with the scale.
    """
    x, y, lo, hi, scale = (t.detach().float() for t in tensors)
    g = grad.float()
    above, below = x >= hi, x <= lo
    inside = (x > lo) & (x < hi)
    dx = torch.where(inside, g * slope(rounding, g, x / scale), 0.0)
    dscale = (torch.where(inside, g, 0.0) * y - dx * x).sum_to_size(scale.shape) / scale
    dlo, dhi = (torch.where(mask, g, 0.0) for mask in (below & ~above, above))
    if learned:
        return dx.to(grad.dtype), dlo.sum_to_size(lo.shape), dhi.sum_to_size(hi.shape), dscale
    outside = (dlo * lo + dhi * hi).sum_to_size(scale.shape) / scale
    return dx.to(grad.dtype), None, None, dscale + outside


def look_up_backward(grad: Tensor, codes: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
    """(dx, dvalues) of `look_up`."""
    index, g = codes.long(), grad.float()
    dvalues = torch.zeros_like(slopes).index_add(0, index.flatten(), g.flatten())
    return (g * slopes.detach()[index]).to(grad.dtype), dvalues
