"""Soft rounding: learns whether each weight is rounded up or down."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from qat.functional import dequantize
from qat.kernels.layout import in_layout_of
from qat.nn import QuantizedLayer
from qat.quantizers import Quantizer

ZETA, GAMMA = 1.1, -0.1
"""How far the rectified sigmoid is stretched beyond 1 and 0 (Nagel et al. 2020, eq. 23)."""
SATURATION = math.log(-ZETA / GAMMA)
"""Beyond it |V| no longer changes the rectified sigmoid, which is 0 or 1."""


def rectified_sigmoid(v: Tensor) -> Tensor:
    """h(V) = clip(sigmoid(V) (zeta - gamma) + gamma, 0, 1) (eq. 23).

    >>> rectified_sigmoid(torch.tensor([-9.0, 0.0, 9.0]))
    tensor([0.0000, 0.5000, 1.0000])
    """
    return torch.clamp(torch.sigmoid(v) * (ZETA - GAMMA) + GAMMA, 0.0, 1.0)


def rounding_regularizer(h: Tensor, beta: float) -> Tensor:
    """The regularizer sum(1 - |2h - 1|^beta) (eq. 24): about the number of undecided weights."""
    return (1.0 - (2.0 * h - 1.0).abs().pow(beta)).sum()


class SoftRounding(nn.Module):
    """Replaces a layer's weight quantizer while the rounding is learned: codes are floor(w / scale) + h(V).

    V starts where h(V) is the weight's distance from the code below, so that the layer first computes with its float weight
    (clipped to the grid). The scale does not change.
    """

    def __init__(self, quantizer: Quantizer, weight: Tensor) -> None:
        super().__init__()
        spec, shape = quantizer.spec, tuple(weight.shape)
        self.quantizer = [quantizer]  # in a list, so that it is not a submodule
        self.granularity, self.shape, self.dtype = spec.granularity, shape, weight.dtype
        self.scale, zero_point = (self.granularity.broadcastable(p, shape) for p in quantizer.qparams())
        self.lo, self.hi = spec.grid.qmin - zero_point, spec.grid.qmax - zero_point
        steps = self.granularity.view(weight.detach().float()) / self.scale
        self.below = torch.floor(steps)
        self.movable = (self.below >= self.lo) & (self.below < self.hi)  # the others are clipped either way
        above = (steps - self.below).clamp(1e-4, 1 - 1e-4)
        self.v = nn.Parameter(-torch.log((ZETA - GAMMA) / (above - GAMMA) - 1.0))
        self.regularization, self.beta = 0.0, 2.0
        """Weight and exponent of the regularizer, whose gradient is added to that of V."""

    def forward(self, _weight: Tensor) -> Tensor:
        """The weight with soft rounding, in its own dtype."""
        weight: Tensor = _SoftWeight.apply(self.v, self)
        return weight.reshape(self.shape).to(self.dtype)

    def hard_rounded(self) -> Tensor:
        """The weight with every rounding decided: it lies on the grid."""
        codes = torch.clamp(self.below + (self.v.detach() >= 0).float(), self.lo, self.hi)
        return dequantize(codes, self.scale, 0).reshape(self.shape).to(self.dtype)

    def decided(self) -> bool:
        """Whether every h(V) that matters is 0 or 1, where neither the error nor the regularizer has a gradient."""
        return bool((self.movable.logical_not() | (self.v.detach().abs() >= SATURATION)).all())


class _SoftWeight(torch.autograd.Function):
    """(floor(w / scale) + h(V), clamped to the grid) * scale; V also gets the gradient of the regularizer.

    The formulas are those of `rectified_sigmoid` and `rounding_regularizer`, in a third of the passes that autograd makes of
    them; the regularizer's value, which nothing needs, is not computed.
    """

    @staticmethod
    def forward(ctx: Any, v: Tensor, rounding: SoftRounding) -> Tensor:
        h = torch.sigmoid(v).mul_(ZETA - GAMMA).add_(GAMMA)
        ctx.rounding = rounding
        ctx.save_for_backward(h)
        return h.clamp(0.0, 1.0).add_(rounding.below).clamp_(rounding.lo, rounding.hi).mul_(rounding.scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (h,), rounding = ctx.saved_tensors, ctx.rounding
        gradient = in_layout_of(grad, h) * rounding.scale  # fused Adam reads both in memory order
        if rounding.regularization:
            side = h.clamp(0.0, 1.0).mul_(2.0).sub_(1.0)
            steep = side.abs().pow_(rounding.beta - 1.0).mul_(-2.0 * rounding.regularization * rounding.beta)
            gradient.addcmul_(steep, side.sign_())
        slope = (h - GAMMA).mul_(ZETA - h).div_(ZETA - GAMMA)  # that of the stretched sigmoid
        return gradient.mul_(slope).mul_((h >= 0.0).logical_and_(h <= 1.0).logical_and_(rounding.movable)), None


def start_soft_rounding(layer: QuantizedLayer) -> SoftRounding:
    """Replace the layer's weight quantizer by a SoftRounding, and return that."""
    assert layer.weight_quantizer is not None
    rounding = SoftRounding(layer.weight_quantizer, layer.weight)
    layer.weight_quantizer = rounding  # type: ignore[assignment]
    return rounding


def finish_soft_rounding(layer: QuantizedLayer, rounding: SoftRounding) -> None:
    """Give the layer its quantizer back, and a weight that this quantizer rounds to exactly the learned codes."""
    with torch.no_grad():
        layer.weight.copy_(rounding.hard_rounded())
    layer.weight_quantizer = rounding.quantizer[0]
