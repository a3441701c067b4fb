"""Soft rounding: whether a weight is rounded up or down is learned."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qat.functional import dequantize
from qat.nn import QuantizedLayer
from qat.quantizers import Quantizer

ZETA, GAMMA = 1.1, -0.1
"""How far the rectified sigmoid is stretched beyond 1 and 0 (Nagel et al. 2020, eq. 23)."""


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
        above = (steps - self.below).clamp(1e-4, 1 - 1e-4)
        self.v = nn.Parameter(-torch.log((ZETA - GAMMA) / (above - GAMMA) - 1.0))

    def forward(self, _weight: Tensor) -> Tensor:
        """The weight with soft rounding, in its own dtype."""
        return self._weight(rectified_sigmoid(self.v))

    def hard_rounded(self) -> Tensor:
        """The weight with every rounding decided: it lies on the grid."""
        return self._weight((self.v.detach() >= 0).float())

    def _weight(self, up: Tensor) -> Tensor:
        codes = torch.clamp(self.below + up, self.lo, self.hi)
        return dequantize(codes, self.scale, 0).reshape(self.shape).to(self.dtype)


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
