"""Ternary weight networks (Li et al. 2016, https://arxiv.org/abs/1605.04711)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from qat.functional import with_gradient_of
from qat.observers import Observer
from qat.quantizers.weight_statistics import WeightStatisticsQuantizer
from qat.spec import QuantSpec


class Ternary(WeightStatisticsQuantizer):
    """Weights -scale, 0, scale: 0 where |w| <= threshold = 0.7 * mean|w|, scale = mean of |w| over the others (section 2).

    Gradient: dw = g everywhere; the float weight is updated with the gradient of the ternary one.

    Differs from the paper: threshold and scale are those of the weights that share a scale (the paper's: of a layer). The
    codes are those of a narrow 2-bit grid, so that convert and export need nothing new.

    Raises:
        ValueError: an activation, a grid that is not symmetric and signed, or bits other than 2.
    """

    def __init__(self, spec: QuantSpec, shape: tuple[int, ...] = (), observer: Observer | None = None) -> None:
        super().__init__(spec, shape, observer)
        self.require_bits(2)
        self.spec = replace(spec, grid=replace(spec.grid, narrow=True))

    def scale_of(self, rows: Tensor) -> Tensor:
        kept = _is_kept(rows, rows.abs().mean(dim=1, keepdim=True))
        return (rows.abs() * kept).sum(dim=1) / kept.sum(dim=1).clamp(min=1)

    def fake_quantize(self, x: Tensor) -> Tensor:
        granularity, shape = self.spec.granularity, tuple(x.shape)
        scale = granularity.broadcastable(self.update_scale(x.detach()), shape)
        ternary = granularity.view(self._codes(x.detach())) * scale
        return with_gradient_of(ternary.reshape(shape).to(x.dtype), x)

    def _codes(self, x: Tensor) -> Tensor:
        granularity, shape = self.spec.granularity, tuple(x.shape)
        mean = granularity.rows(x.float()).abs().mean(dim=1)
        view = granularity.view(x.float())
        return (torch.sign(view) * _is_kept(view, granularity.broadcastable(mean, shape))).reshape(shape)


def _is_kept(weight: Tensor, mean: Tensor) -> Tensor:
    """1.0 for weights that do not become 0, else 0.0."""
    return (weight.abs() > 0.7 * mean).float()
