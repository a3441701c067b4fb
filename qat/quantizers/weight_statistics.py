"""The base class of quantizers whose scale is calculated from the weight itself."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from qat.quantizers.base import Quantizer
from qat.spec import SMALLEST_SCALE, QParams


class WeightStatisticsQuantizer(Quantizer):
    """The scale follows the weight: it is calculated anew each time that the weight is quantized.

    The observed range is used only until then. Nothing but the weight is learned.

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
        """The scale of each row: (n_qparams, n_elements) -> (n_qparams,), differentiable; may be 0 for a dead row."""

    def update_scale(self, weight: Tensor) -> Tensor:
        """Set the scale to that of this weight. Returns it: (n_qparams,), positive, differentiable."""
        scale = self.scale_of(self.spec.granularity.rows(weight.float())).clamp(min=SMALLEST_SCALE)
        with torch.no_grad():
            self.scale.copy_(scale)
        return scale

    def qparams(self) -> QParams:
        return QParams(self.scale, self.zero_point)

    def quantize(self, x: Tensor) -> Tensor:
        self.update_scale(x.detach())
        return self._codes(x)

    def _codes(self, x: Tensor) -> Tensor:
        """Codes of x at the current scale, same shape."""
        return super().quantize(x)

    def _store(self, qparams: QParams) -> None:
        self.scale.copy_(qparams.scale)
