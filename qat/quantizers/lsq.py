"""Learned step size quantization (Esser et al. 2020, https://arxiv.org/abs/1902.08153)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qat.quantizers.base import Quantizer
from qat.spec import QParams

FLOOR_FACTOR = 2.0**-10
"""A learned scale never falls below this times its first value."""
WEIGHT_FLOOR_FACTOR = 0.5
"""The same for weights of more than 4 bits: with half the step, a grid that was fitted to the weights clips half of them."""


class LSQ(Quantizer):
    """The scale is a parameter, with the gradient of eq. 3 times g = 1 / sqrt(N * qmax) (section 2.2).

    N is the number of elements that share a scale: in a weight, those of one channel or group; in an activation, those of
    one sample, so that the gradient does not depend on the batch size.

    Differs from the paper: the first range comes from any observer (the paper's is `MeanAbs`); weights may have one scale
    per channel or group; the scale in force is max(scale, floor), with floor = first scale / 1024, so that no optimizer step
    can make it zero or negative, and first scale / 2 for weights of more than 4 bits, which Adam would otherwise soon ruin
    (docs/quantizers.md); below the floor a scale gets only gradients that raise it, so that it can recover.
    """

    floor: Tensor

    def _build(self) -> None:
        self.scale = nn.Parameter(torch.ones(self.n_qparams, dtype=torch.float32))
        self.register_buffer("floor", torch.full((self.n_qparams,), FLOOR_FACTOR, dtype=torch.float32))

    def qparams(self) -> QParams:
        return QParams(torch.maximum(self.scale.detach(), self.floor), self.zero_point)

    def fake_quantize(self, x: Tensor) -> Tensor:
        return self.round_to_grid(x, self.scale, self.lsq_gradient_scale(x), self.floor)

    def _store(self, qparams: QParams) -> None:
        self.scale.copy_(qparams.scale)
        is_wide = self.is_weight and self.spec.grid.bits > 4
        self.floor.copy_(qparams.scale * (WEIGHT_FLOOR_FACTOR if is_wide else FLOOR_FACTOR))
