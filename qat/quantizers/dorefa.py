"""DoReFa-Net (Zhou et al. 2016, https://arxiv.org/abs/1606.06160)."""

from __future__ import annotations

import torch
from torch import Tensor

from qat.functional import round_to_multiple
from qat.quantizers.base import Quantizer
from qat.quantizers.lsq import FLOOR_FACTOR
from qat.spec import SMALLEST_SCALE, QParams


class DoReFa(Quantizer):
    """Weights: hi * Q(tanh(w) / max|tanh(w)|), with Q rounding to multiples of 1 / qmax (eq. 9). Nothing is clipped,
    and only the weight is learned. Activations: clipped to [0, hi] and rounded (eq. 11).

    Gradient: straight-through (eq. 6), times the derivative of Q's argument, including that of the maximum.

    Differs from the paper: hi is the observed range, where the paper has 1, so that a trained network keeps its magnitudes
    (observe weights with MinMax: the largest weight becomes hi); codes are symmetric around 0, where the paper's 2^k levels
    have none at 0; the maximum is that of the weights that share a scale, and at least tanh(hi) / 1024, so that nearly
    dead channels are not stretched without limit; gradients are not quantized.

    Raises:
        ValueError: an affine spec, or a weight with an unsigned grid.
    """

    idempotent = False
    starts_as_static = False
    scale: Tensor

    def _build(self) -> None:
        if self.is_weight:
            self.require_weight()
        self.require_symmetric()
        self.register_buffer("scale", torch.ones(self.n_qparams, dtype=torch.float32))

    def qparams(self) -> QParams:
        return QParams(self.scale, self.zero_point)

    def fake_quantize(self, x: Tensor) -> Tensor:
        if not self.is_weight:
            return self.round_to_grid(x, self.scale)
        granularity, shape = self.spec.granularity, tuple(x.shape)
        scale = granularity.broadcastable(self.scale, shape)
        y = round_to_multiple(granularity.view(self._compressed(x)), scale, self.estimator)
        return y.to(x.dtype).reshape(shape)

    def quantize(self, x: Tensor) -> Tensor:
        return super().quantize(self._compressed(x) if self.is_weight else x)

    def _compressed(self, weight: Tensor) -> Tensor:
        """hi * tanh(w) / max|tanh(w)|, the shape of the weight."""
        granularity, shape = self.spec.granularity, tuple(weight.shape)
        squashed = torch.tanh(weight.float())
        hi = self.scale * self.spec.grid.qmax
        smallest_maximum = (torch.tanh(hi) * FLOOR_FACTOR).clamp(min=SMALLEST_SCALE)
        maximum = torch.maximum(granularity.rows(squashed).abs().amax(dim=1), smallest_maximum)
        relative = granularity.view(squashed) / granularity.broadcastable(maximum, shape)
        return (relative * granularity.broadcastable(hi, shape)).reshape(shape)

    def _store(self, qparams: QParams) -> None:
        self.scale.copy_(qparams.scale)
