"""A range that never learns."""

from __future__ import annotations

import torch
from torch import Tensor

from qat.functional import fake_quantize
from qat.observers import Observer
from qat.quantizers.base import Quantizer
from qat.spec import QParams, QuantSpec


class Static(Quantizer):
    """The observed range, kept: post-training quantization, and QAT of the weights alone. Gradient: straight-through."""

    scale: Tensor

    def __init__(self, spec: QuantSpec, shape: tuple[int, ...] = (), observer: Observer | None = None) -> None:
        super().__init__(spec, shape, observer)
        self.register_buffer("scale", torch.ones(self.n_qparams, dtype=torch.float32))

    def qparams(self) -> QParams:
        return QParams(self.scale, self.zero_point)

    def fake_quantize(self, x: Tensor) -> Tensor:
        grid, granularity = self.spec.grid, self.spec.granularity
        shape = tuple(x.shape)
        zero_point = granularity.shaped(self.zero_point, shape) if not self.spec.symmetric else 0
        scale = granularity.shaped(self.scale, shape)
        y = fake_quantize(granularity.view(x), scale, zero_point, grid.qmin, grid.qmax)
        return y if y.shape == x.shape else y.reshape(shape)

    def _store(self, qparams: QParams) -> None:
        self.scale.copy_(qparams.scale)
