"""Learned step size quantization (Esser et al. 2020, https://arxiv.org/abs/1902.08153)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qat.functional import held
from qat.quantizers.base import Quantizer
from qat.spec import QParams

FLOOR = 2.0**-10
"""A learned scale never falls below its first value times this."""


def lsq_factor(sharing: int, qmax: int, is_weight: bool) -> float:
    """What the gradient of a learned scale is multiplied by: 1 / sqrt(N * qmax) of Esser et al. 2020, section 2.2, with N =
    `sharing`; for weights at most 1 / qmax^2.

    A weight on the bound has qmax times its own gradient in the scale's, and the bound moves qmax times as far as the scale: it
    moves factor * qmax^2 times as far as the weight would by itself. With 8 bits and few weights a scale (the 9 of a channel of
    a depthwise convolution) the paper's factor makes that 480 times, and the fit diverges. Activations move with the weights
    before them, and have to follow.

    >>> round(lsq_factor(576, 7, True), 4), lsq_factor(9, 127, True) == 127**-2, round(lsq_factor(9, 127, False), 4)
    (0.0157, True, 0.0296)
    """
    factor = float(sharing * qmax) ** -0.5
    return min(factor, float(qmax) ** -2) if is_weight else factor


class LSQ(Quantizer):
    """The scale is a parameter, with the gradient of eq. 3 times g = 1 / sqrt(N * qmax) (section 2.2).

    N is the number of elements that share a scale: of a weight, those of one channel or group; of an activation, those of
    one sample, so that the gradient does not depend on the batch size.

    Differs from the paper: g of a weight is at most 1 / qmax^2, so that no bound moves faster than a weight on it would
    (with 8 bits and few weights a scale, the paper's g lets fits diverge); the first range comes from any observer (the
    paper's is `MeanAbs`); weights may have one scale a channel or group; the scale in force is max(scale, floor), with
    floor = first scale / 1024, so that no optimizer step can make it zero or negative; the gradient passes through the
    floor, so that a scale below it can recover.
    """

    floor: Tensor

    def _build(self) -> None:
        self.scale = nn.Parameter(torch.ones(self.n_qparams, dtype=torch.float32))
        self.register_buffer("floor", torch.full((self.n_qparams,), FLOOR, dtype=torch.float32))

    def qparams(self) -> QParams:
        return QParams(torch.maximum(self.scale.detach(), self.floor), self.zero_point)

    def fake_quantize(self, x: Tensor) -> Tensor:
        return self.on_grid(
            x, held(self.scale, self.floor), lsq_factor(self.sharing(x), self.spec.grid.qmax, self.is_weight)
        )

    def _store(self, qparams: QParams) -> None:
        self.scale.copy_(qparams.scale)
        self.floor.copy_(qparams.scale * FLOOR)
