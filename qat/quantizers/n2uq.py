"""Nonuniform-to-uniform quantization (Liu et al. 2022, https://arxiv.org/abs/2111.14826)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qat.functional import clamp_straight_through, scale_gradient, with_gradient_of
from qat.observers import Observer
from qat.quantizers.lookup_table import LookupTableQuantizer
from qat.quantizers.lsq import FLOOR_FACTOR
from qat.spec import SMALLEST_SCALE, QParams, QuantSpec


class N2UQ(LookupTableQuantizer):
    """Learned thresholds between uniform codes: as flexible as nonuniform levels, with the integers of a uniform quantizer.

    The input range is cut into segments, one between each two neighbouring codes, with learned lengths a_i > 0 in units of the
    scale (`interval`, (qmax,)); code i begins in the middle of segment i. Gradient, the generalized straight-through estimator:
    that of the line that rises by one code in each segment. In segment i of the magnitudes, which begins at
    b_i = a_1 + ... + a_(i-1), with g' = g * scale: dv = g' / a_i; da_j = -sign(v) g' / a_i for j < i and
    da_i = -sign(v) g' (|v| - b_i) / a_i^2, where v = x / scale; beyond the last segment all 0.

    The scale of an activation learns: dscale = g * (code - v / a_i) inside and g * code outside, times LSQ's
    1 / sqrt(N * qmax). The scale of a weight follows it: 4 mean|w| / (number of codes), at which uniformly distributed weights
    fill all codes equally (the paper's entropy preserving regularization); it is a constant in the backward pass, as in the
    authors' code.

    Differs from the paper: weights have thresholds, too; segments of negative values mirror those of positive ones and the
    first begins at 0, so that 0 keeps the code 0; a grid whose lowest code is dropped has 2^bits - 1 codes, with 0 among them;
    the gradient of the lengths is multiplied by 1 / sqrt(N qmax), with N the weights of the layer, or the elements of one
    sample, and lengths never fall below 1 / 1024, with a straight-through gradient; an activation is rounded to 8 bits first.

    Raises:
        ValueError: a grid that is not symmetric, or an unsigned one for a weight.
    """

    idempotent = False
    supports_other_bits = False
    scale: Tensor
    floor: Tensor

    def __init__(self, spec: QuantSpec, shape: tuple[int, ...] = (), observer: Observer | None = None) -> None:
        super().__init__(spec, shape, observer)

    def _build(self) -> None:
        super()._build()
        self.interval = nn.Parameter(torch.ones(self.spec.grid.qmax, dtype=torch.float32))
        ones = torch.ones(self.n_qparams, dtype=torch.float32)
        if self.is_weight:
            self.register_buffer("scale", ones)
        else:
            self.scale = nn.Parameter(ones)
        self.register_buffer("floor", self._floor_factor * ones)

    def qparams(self) -> QParams:
        return QParams(torch.maximum(self.scale.detach(), self.floor), self.zero_point)

    def saturation_point(self) -> Tensor:
        return self._segments(self.interval.detach())[-self.spec.grid.qmax :].sum() * self.qparams().scale

    def function(self, x: Tensor, elements_per_scale: int) -> Tensor:
        granularity, shape, qmax = self.spec.granularity, tuple(x.shape), self.spec.grid.qmax
        lengths = scale_gradient(self.interval, (elements_per_scale * self.n_qparams * qmax) ** -0.5)
        learned = scale_gradient(clamp_straight_through(self.scale, self.floor), (elements_per_scale * qmax) ** -0.5)
        scale = granularity.broadcastable(self._update_scale(x) if self.is_weight else learned, shape)
        v, segments = granularity.view(x) / scale, self._segments(lengths)
        boundaries = _boundaries(segments, signed=self.spec.grid.signed)
        codes = with_gradient_of(self._rounded_codes(v, boundaries), _interpolated_codes(v, segments, boundaries))
        return (codes * scale).reshape(shape)

    def codes_of(self, x: Tensor) -> Tensor:
        granularity, shape = self.spec.granularity, tuple(x.shape)
        scale = self._update_scale(x) if self.is_weight else self.qparams().scale
        v = granularity.view(x) / granularity.broadcastable(scale, shape)
        boundaries = _boundaries(self._segments(self.interval), signed=self.spec.grid.signed)
        return self._rounded_codes(v, boundaries).reshape(shape)

    def _update_scale(self, weight: Tensor) -> Tensor:
        """Set the scale to that of this weight. Returns it: (n_qparams,), positive, detached."""
        with torch.no_grad():
            mean = self.spec.granularity.rows(weight.detach()).abs().mean(dim=1)
            scale = (4.0 * mean / (2 * self.spec.grid.qmax + 1)).clamp(min=SMALLEST_SCALE)
            self.scale.copy_(scale)  # the graph gets `scale`: the next forward writes here before this one's backward
        return scale

    def _segments(self, interval: Tensor) -> Tensor:
        """The length of each segment in steps, ascending by value: (qmax,), or (2 * qmax,) on a signed grid."""
        positive = clamp_straight_through(interval, FLOOR_FACTOR)
        return torch.cat([positive.flip(0), positive]) if self.spec.grid.signed else positive

    def _rounded_codes(self, v: Tensor, boundaries: Tensor) -> Tensor:
        """The code of each v: the number of segment middles below it, less those of negative values."""
        boundaries = boundaries.detach()
        middles = (boundaries[1:] + boundaries[:-1]) / 2
        return torch.bucketize(v.detach(), middles).float() - (len(middles) - self.spec.grid.qmax)

    def _store(self, qparams: QParams) -> None:
        self.scale.copy_(qparams.scale)
        self.floor.copy_(qparams.scale * self._floor_factor)

    @property
    def _floor_factor(self) -> float:
        """The smallest scale, as a fraction of the first one."""
        return 0.0 if self.is_weight else FLOOR_FACTOR


def _boundaries(segments: Tensor, signed: bool) -> Tensor:
    """Where segments begin and end, in steps: ascending; 0 is in the middle, or first on an unsigned grid."""
    positive = segments[len(segments) // 2 if signed else 0 :].cumsum(dim=0)
    zero = positive.new_zeros(1)
    return torch.cat([-positive.flip(0), zero, positive]) if signed else torch.cat([zero, positive])


def _interpolated_codes(v: Tensor, segments: Tensor, boundaries: Tensor) -> Tensor:
    """The line through the codes, up to a constant per segment; only its gradient is used.

    segments: the lengths, because differences of `boundaries` would lose short segments far from 0.
    """
    segment = torch.bucketize(v.detach(), boundaries.detach()[1:-1])
    inside = (v > boundaries[0]) & (v < boundaries[-1])
    return torch.where(inside, (v - boundaries[segment]) / segments[segment], 0.0)
