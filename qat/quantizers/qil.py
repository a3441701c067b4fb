"""Quantization interval learning (Jung et al. 2019, https://arxiv.org/abs/1808.05779)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qat.functional import clip, held, snap
from qat.quantizers.base import Quantizer
from qat.quantizers.lsq import FLOOR
from qat.spec import QParams


class QIL(Quantizer):
    """A learned interval of magnitudes, center ± distance: weights below it become 0 (pruning), weights above it ±hi
    (clipping), and what lies inside is stretched over 0..hi and rounded.

    Gradient: straight-through rounding of hi * sign(w) * (0.5 + 0.5 * (|w| - center) / distance): inside
    dw = g * hi / (2 distance), dcenter = -sign(w) * dw, ddistance = dcenter * (|w| - center) / distance; outside all 0.

    Differs from the paper: for weights only (an activation's integers come from plain rounding); gamma is 1; the output reaches
    hi, the observed range, where the paper has 1, so that a trained network keeps its magnitudes; the first interval is
    0..hi; one interval for the weights that share a scale; distance never falls below its first value / 1024.

    Raises:
        ValueError: an activation, or a grid that is not symmetric and signed.
    """

    idempotent = False
    scale: Tensor
    floor: Tensor

    def _build(self) -> None:
        self.require_weight()
        ones = torch.ones(self.n_qparams, dtype=torch.float32)
        self.center, self.distance = nn.Parameter(0.5 * ones), nn.Parameter(0.5 * ones)
        self.register_buffer("scale", ones.clone())
        self.register_buffer("floor", FLOOR * ones)

    def qparams(self) -> QParams:
        return QParams(self.scale, self.zero_point)

    def fake_quantize(self, x: Tensor) -> Tensor:
        granularity, shape = self.spec.granularity, tuple(x.shape)
        scale = granularity.shaped(self.scale, shape)
        return snap(granularity.view(self._stretched(x)), scale, self.estimator).to(x.dtype).reshape(shape)

    def quantize(self, x: Tensor) -> Tensor:
        return super().quantize(self._stretched(x))

    def _stretched(self, weight: Tensor) -> Tensor:
        """The interval of magnitudes, stretched over 0..hi; the shape of the weight."""
        granularity, shape = self.spec.granularity, tuple(weight.shape)
        center, distance, hi = (
            granularity.shaped(p, shape)
            for p in (self.center, held(self.distance, self.floor), self.scale * self.spec.grid.qmax)
        )
        view = granularity.view(weight.float())
        within = 0.5 + 0.5 * (view.abs() - center) / distance
        return (hi * torch.sign(view) * clip(within, torch.zeros_like(hi), torch.ones_like(hi))).reshape(shape)

    def _store(self, qparams: QParams) -> None:
        half = 0.5 * qparams.scale * self.spec.grid.qmax
        self.center.copy_(half)
        self.distance.copy_(half)
        self.floor.copy_(half * FLOOR)
        self.scale.copy_(qparams.scale)
