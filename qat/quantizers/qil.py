"""Quantization interval learning (Jung et al. 2019, https://arxiv.org/abs/1808.05779)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qat.functional import clamp_straight_through, clip, round_to_multiple, scale_gradient
from qat.quantizers.base import Quantizer
from qat.quantizers.lookup_table import LookupTableQuantizer
from qat.quantizers.lsq import FLOOR_FACTOR
from qat.spec import SMALLEST_SCALE, QParams


class QIL(LookupTableQuantizer):
    """A learned interval of magnitudes, center ± distance: values below it become 0 (pruning), values above it ±hi
    (clipping), and values inside are stretched over 0..hi and rounded.

    Gradient: straight-through rounding of hi * sign(x) * (0.5 + 0.5 * (|x| - center) / distance): inside
    dx = g * hi / (2 distance), dcenter = -sign(x) * dx, ddistance = dcenter * (|x| - center) / distance; outside all 0.

    Differs from the paper: gamma is 1 for weights, too; the output reaches hi, the observed range, where the paper has 1, so
    that a trained network keeps its magnitudes; the first interval is 0..hi; one interval for the weights that share a scale;
    the gradients of center and distance are multiplied by LSQ's 1 / sqrt(N * qmax); distance never falls below its first
    value / 1024; an activation is rounded to 8 bits first; a weight of exactly 0 gets the gradient of values beside it, so
    that one that starts as zeros can learn.

    Raises:
        ValueError: a grid that is not symmetric, or an unsigned one for a weight.
    """

    idempotent = False
    scale: Tensor
    floor: Tensor

    def _build(self) -> None:
        super()._build()
        ones = torch.ones(self.n_qparams, dtype=torch.float32)
        self.center, self.distance = nn.Parameter(0.5 * ones), nn.Parameter(0.5 * ones)
        self.register_buffer("scale", ones.clone())
        self.register_buffer("floor", FLOOR_FACTOR * ones)

    def qparams(self) -> QParams:
        return QParams(self.scale, self.zero_point)

    def saturation_point(self) -> Tensor:
        return (self.center.detach() + torch.maximum(self.distance.detach(), self.floor)).clamp(min=SMALLEST_SCALE)

    def function(self, x: Tensor, elements_per_scale: int) -> Tensor:
        granularity, shape = self.spec.granularity, tuple(x.shape)
        scale = granularity.broadcastable(self.scale, shape)
        factor = (elements_per_scale * self.spec.grid.qmax) ** -0.5
        return round_to_multiple(granularity.view(self._transformed(x, factor)), scale, self.estimator).reshape(shape)

    def codes_of(self, x: Tensor) -> Tensor:
        return Quantizer.quantize(self, self._transformed(x))

    def _transformed(self, x: Tensor, factor: float = 1.0) -> Tensor:
        """x with the interval of magnitudes stretched over 0..hi, same shape. factor: multiplies the interval's gradient."""
        granularity, shape = self.spec.granularity, tuple(x.shape)
        interval = (scale_gradient(p, factor) for p in (self.center, clamp_straight_through(self.distance, self.floor)))
        center, distance, hi = (
            granularity.broadcastable(p, shape) for p in (*interval, self.scale * self.spec.grid.qmax)
        )
        view = granularity.view(x)
        fraction = 0.5 + 0.5 * (view.abs() - center) / distance
        y = hi * torch.sign(view) * clip(fraction, torch.zeros_like(hi), torch.ones_like(hi))
        if self.is_weight:
            at_zero = (view == 0) & (center <= distance)
            y = y + view * torch.where(at_zero, 0.5 * hi / distance, 0.0).detach()  # its value is that of y
        return y.reshape(shape)

    def _store(self, qparams: QParams) -> None:
        half = 0.5 * qparams.scale * self.spec.grid.qmax
        self.center.copy_(half)
        self.distance.copy_(half)
        self.floor.copy_(half * FLOOR_FACTOR)
        self.scale.copy_(qparams.scale)
