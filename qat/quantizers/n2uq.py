"""Nonuniform-to-uniform quantization (Liu et al. 2022, https://arxiv.org/abs/2111.14826)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qat.functional import held, scale_gradient, with_gradient_of
from qat.quantizers.from_weight import FromWeight
from qat.quantizers.lsq import FLOOR


class N2UQ(FromWeight):
    """Learned thresholds between uniform codes: a nonuniform quantizer's freedom, a uniform one's integers.

    The input is cut into segments, one between each two neighbouring codes, of learned lengths a_i > 0 in steps of the scale
    (`interval`, (qmax,)); code i begins in the middle of segment i. Gradient, the generalized straight-through estimator:
    that of the line through the segments, which climbs one code in each. In segment i of the magnitudes, which begins
    at b_i = a_1 + ... + a_(i-1), with g' = g * scale: dv = g' / a_i; da_j = -sign(v) g' / a_i for j < i and
    da_i = -sign(v) g' (|v| - b_i) / a_i^2, where v = w / scale; beyond the last segment all 0.

    The scale follows the weight: 4 mean|w| / (number of codes), at which weights that are uniformly distributed fill all codes
    equally (the paper's entropy preserving regularization); it is a constant in the backward, as in the authors' code.

    Differs from the paper: of weights only, and weights have thresholds, too (the paper has them for activations, whose
    integers come from uniform rounding here); segments of negative weights mirror those of positive ones and the first
    begins at 0, so that a weight of 0 keeps the code 0; a grid whose lowest code is dropped has 2^bits - 1 codes, with 0 among
    them; the gradient of the lengths is multiplied by 1 / sqrt(N qmax), with N the weights of the layer, and lengths
    never fall below 1 / 1024, with a gradient that passes.

    Raises:
        ValueError: an activation, or a grid that is not symmetric and signed.
    """

    idempotent = False

    def _build(self) -> None:
        super()._build()
        self.interval = nn.Parameter(torch.ones(self.spec.grid.qmax, dtype=torch.float32))

    def scale_of(self, rows: Tensor) -> Tensor:
        return 4.0 * rows.abs().mean(dim=1) / (2 * self.spec.grid.qmax + 1)

    def fake_quantize(self, x: Tensor) -> Tensor:
        granularity, shape = self.spec.granularity, tuple(x.shape)
        scale = granularity.shaped(self.follow(x.detach()), shape)
        ends = self._ends(scale_gradient(self.interval, (x.numel() * self.spec.grid.qmax) ** -0.5))
        v = granularity.view(x.float()) / scale
        return (with_gradient_of(self._staircase(v, ends), _line(v, ends)) * scale).to(x.dtype).reshape(shape)

    def _codes(self, x: Tensor) -> Tensor:
        granularity, shape = self.spec.granularity, tuple(x.shape)
        v = granularity.view(x.detach().float()) / granularity.shaped(self.scale, shape)
        return self._staircase(v, self._ends(self.interval)).reshape(shape)

    def _ends(self, interval: Tensor) -> Tensor:
        """Where segments begin and end, in steps: ascending (2 qmax + 1,), 0 in the middle."""
        positive = held(interval, FLOOR).cumsum(dim=0)
        return torch.cat([-positive.flip(0), positive.new_zeros(1), positive])

    def _staircase(self, v: Tensor, ends: Tensor) -> Tensor:
        """The code of each v: how many middles of segments lie below it, less qmax."""
        ends = ends.detach()
        return torch.bucketize(v.detach(), (ends[1:] + ends[:-1]) / 2).float() - self.spec.grid.qmax


def _line(v: Tensor, ends: Tensor) -> Tensor:
    """The codes climbed, up to a constant for each segment: its gradient is the estimator's."""
    segment = torch.bucketize(v.detach(), ends.detach()[1:-1])
    inside = (v > ends[0]) & (v < ends[-1])
    return torch.where(inside, (v - ends[segment]) / ends.diff()[segment], 0.0)
