"""A fixed range."""

from __future__ import annotations

import torch
from torch import Tensor

from qat.quantizers.base import Quantizer
from qat.spec import QParams


class Static(Quantizer):
    """Keeps the observed range: for post-training quantization, and for QAT of the weights only. Gradient: straight-through."""

    scale: Tensor

    def _build(self) -> None:
        self.register_buffer("scale", torch.ones(self.n_qparams, dtype=torch.float32))

    def qparams(self) -> QParams:
        return QParams(self.scale, self.zero_point)

    def fake_quantize(self, x: Tensor) -> Tensor:
        return self.round_to_grid(x, self.scale)

    def _store(self, qparams: QParams) -> None:
        self.scale.copy_(qparams.scale)
