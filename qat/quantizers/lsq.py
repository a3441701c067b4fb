"""Learned step size quantization (Esser et al. 2020, https://arxiv.org/abs/1902.08153)."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor, nn

from qat.functional import fake_quantize
from qat.observers import Observer
from qat.quantizers.base import Quantizer
from qat.spec import QParams, QuantSpec

FLOOR = 2.0**-10
"""A learned scale never falls below its first value times this."""


class LSQ(Quantizer):
    """The scale is a parameter, with the gradient of eq. 3 times g = 1 / sqrt(N * qmax) (section 2.2).

    N is the number of elements that share a scale: of a weight, those of one channel or group; of an activation, those of
    one sample, so that the gradient does not depend on the batch size.

    Differs from the paper: the first range comes from any observer (the paper's is `MeanAbs`); weights may have one scale
    a channel or group; the scale in force is max(scale, floor), with floor = first scale / 1024, so that no optimizer step
    can make it zero or negative; the gradient passes through the floor, so that a scale below it can recover.
    """

    floor: Tensor

    def __init__(self, spec: QuantSpec, shape: tuple[int, ...] = (), observer: Observer | None = None) -> None:
        super().__init__(spec, shape, observer)
        self.is_weight = len(shape) > 0
        self.scale = nn.Parameter(torch.ones(self.n_qparams, dtype=torch.float32))
        self.register_buffer("floor", torch.full((self.n_qparams,), FLOOR, dtype=torch.float32))

    def qparams(self) -> QParams:
        return QParams(torch.maximum(self.scale.detach(), self.floor), self.zero_point)

    def fake_quantize(self, x: Tensor) -> Tensor:
        grid, granularity = self.spec.grid, self.spec.granularity
        shape = tuple(x.shape)
        sharing = x.numel() // self.n_qparams if self.is_weight else prod(shape[1:])
        gradient_scale = (sharing * grid.qmax) ** -0.5
        zero_point = granularity.shaped(self.zero_point, shape) if not self.spec.symmetric else 0
        scale = granularity.shaped(_Floor.apply(self.scale, self.floor), shape)
        view = granularity.view(x)
        y = fake_quantize(view, scale, zero_point, grid.qmin, grid.qmax, gradient_scale)
        return y if y.shape == x.shape else y.reshape(shape)

    def _store(self, qparams: QParams) -> None:
        self.scale.copy_(qparams.scale)
        self.floor.copy_(qparams.scale * FLOOR)


class _Floor(torch.autograd.Function):
    """max(scale, floor) whose gradient is 1 everywhere."""

    @staticmethod
    def forward(ctx: object, scale: Tensor, floor: Tensor) -> Tensor:
        return torch.maximum(scale, floor)

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None
