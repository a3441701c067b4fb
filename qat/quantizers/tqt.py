"""Trained quantization thresholds (Jain et al. 2020, https://arxiv.org/abs/1903.08066)."""

from __future__ import annotations

from math import log
from typing import Any

import torch
from torch import Tensor, nn

from qat.functional import clamp_straight_through
from qat.quantizers.base import Quantizer
from qat.spec import QParams

LARGEST_EXPONENT = 60.0
"""Scales stay in 2**-60..2**60, where x / scale and codes * scale are finite in float32."""


class TQT(Quantizer):
    """The scale is a power of two, 2^ceil(log2_scale) (eq. 4), so that requantization on hardware is a shift.

    Gradient (eq. 7 and 8): dx as LSQ's; dlog2_scale = scale * ln 2 * (the gradient of the scale as in LSQ); the ceiling
    is straight-through.

    Differs from the paper: the parameter is log2 of the scale, which is log2 t - (bits - 1), or log2 t - bits on an unsigned
    grid, for the paper's threshold t, and has the same gradient; values beyond the outermost code count as clipped, as in LSQ
    (the paper: values half a step beyond it); the gradient is multiplied by LSQ's g = 1 / sqrt(N * qmax) (the paper needs
    Adam, or gradients divided by their size); the scale starts from the observer; weights may have one per channel or group;
    exponents stay in -60..60.

    Raises:
        ValueError: an affine spec.
    """

    starts_as_static = False

    def _build(self) -> None:
        self.require_symmetric()
        self.log2_scale = nn.Parameter(torch.zeros(self.n_qparams, dtype=torch.float32))

    def qparams(self) -> QParams:
        return QParams(self._scale().detach(), self.zero_point)

    def fake_quantize(self, x: Tensor) -> Tensor:
        return self.round_to_grid(x, self._scale(), self.lsq_gradient_scale(x))

    def _scale(self) -> Tensor:
        scale: Tensor = _PowerOfTwo.apply(clamp_straight_through(self.log2_scale, -LARGEST_EXPONENT, LARGEST_EXPONENT))
        return scale

    def _store(self, qparams: QParams) -> None:
        self.log2_scale.copy_(torch.log2(qparams.scale))


class _PowerOfTwo(torch.autograd.Function):
    """2^ceil(x), exactly, with the gradient ln 2 * 2^ceil(x)."""

    @staticmethod
    def forward(ctx: Any, exponent: Tensor) -> Tensor:
        power = torch.ldexp(torch.ones_like(exponent), torch.ceil(exponent).int())
        ctx.save_for_backward(power)
        return power

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (power,) = ctx.saved_tensors
        return grad * power * log(2.0)
