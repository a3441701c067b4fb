"""Scales that are calculated from the weight itself."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from qat.quantizers.base import Quantizer
from qat.spec import SMALLEST_SCALE, QParams


class WeightStatisticsQuantizer(Quantizer):
    """The scale follows the weight: each time that a weight is quantized, it is calculated from it and kept.

    The observed range is in force only until the first weight comes; there is nothing to learn but the weight.

    Raises:
        ValueError: an activation, or a grid that is not symmetric and signed.
    """

    supports_other_bits = False
    starts_as_static = False
    scale: Tensor

    def _build(self) -> None:
        self.require_weight()
        self.register_buffer("scale", torch.ones(self.n_qparams, dtype=torch.float32))

    @abstractmethod
    def scale_of(self, rows: Tensor) -> Tensor:
        """(n_qparams, n_elements) -> (n_qparams,), differentiable; may be 0 for a dead row."""

    def follow(self, weight: Tensor) -> Tensor:
        """The scale of this weight (n_qparams,), differentiable and positive; from now on the one in force."""
        scale = self.scale_of(self.spec.granularity.rows(weight.float())).clamp(min=SMALLEST_SCALE)
        with torch.no_grad():
            self.scale.copy_(scale)
        return scale

    def qparams(self) -> QParams:
        return QParams(self.scale, self.zero_point)

    def quantize(self, x: Tensor) -> Tensor:
        self.follow(x.detach())
        return self._codes(x)

    def _codes(self, x: Tensor) -> Tensor:
        """Codes of x for the scale in force, same shape."""
        return super().quantize(x)

    def _store(self, qparams: QParams) -> None:
        self.scale.copy_(qparams.scale)
