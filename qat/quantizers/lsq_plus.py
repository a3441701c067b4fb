"""LSQ+ (Bhalgat et al. 2020, https://arxiv.org/abs/2004.09576)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qat.functional import clamp_straight_through, clip_and_round, scale_gradient, with_gradient_of
from qat.quantizers.base import Quantizer
from qat.quantizers.lsq import FLOOR_FACTOR
from qat.spec import QParams


class LSQPlus(Quantizer):
    """Learned scale and, on an affine grid, learned offset lo (the paper's beta), the real value of the lowest code
    (section 3.1). For activations with a short negative part, such as SiLU. With a symmetric spec it is LSQ.

    Gradient, with v = (x - lo) / scale: inside dx = g, dscale = g * (round(v) - v), dlo = 0; at the lower bound or
    below dscale = 0, dlo = g; at the upper or above dscale = g * (qmax - qmin), dlo = g. dscale and dlo are multiplied by
    LSQ's 1 / sqrt(N * qmax).

    Differs from the paper: the offset in force is lo rounded to a whole number of steps, (qmin - zero_point) * scale, so
    that 0.0 is a code and the integer runtime needs no float offset; lo <= 0 <= hi always holds; the first range comes from the
    observer; the scale never falls below its first value / 1024.
    """

    floor: Tensor

    def _build(self) -> None:
        self.scale = nn.Parameter(torch.ones(self.n_qparams, dtype=torch.float32))
        if not self.spec.symmetric:
            self.lo = nn.Parameter(torch.zeros(self.n_qparams, dtype=torch.float32))
        self.register_buffer("floor", torch.full((self.n_qparams,), FLOOR_FACTOR, dtype=torch.float32))

    def qparams(self) -> QParams:
        scale = torch.maximum(self.scale.detach(), self.floor)
        if self.spec.symmetric:
            return QParams(scale, self.zero_point)
        qmin, qmax = self.spec.grid.qmin, self.spec.grid.qmax
        zero_point = (qmin - torch.round(self.lo.detach() / scale)).clamp(qmin, qmax)
        return QParams(scale, zero_point.to(torch.int32))

    def fake_quantize(self, x: Tensor) -> Tensor:
        g, learned = self.lsq_gradient_scale(x), clamp_straight_through(self.scale, self.floor)
        if self.spec.symmetric:
            return self.round_to_grid(x, learned, g)
        grid, granularity, shape = self.spec.grid, self.spec.granularity, tuple(x.shape)
        scale = granularity.broadcastable(scale_gradient(learned, g), shape)
        lo = granularity.broadcastable(scale_gradient(self.lo, g), shape)
        step, zero_point = (granularity.broadcastable(p, shape) for p in self.qparams())
        lowest = with_gradient_of((grid.qmin - zero_point) * step, lo)
        highest = with_gradient_of((grid.qmax - zero_point) * step, lo + (grid.qmax - grid.qmin) * scale)
        return clip_and_round(granularity.view(x), lowest, highest, scale, self.estimator).reshape(shape)

    def _store(self, qparams: QParams) -> None:
        self.scale.copy_(qparams.scale)
        self.floor.copy_(qparams.scale * FLOOR_FACTOR)
        if not self.spec.symmetric:
            self.lo.copy_((self.spec.grid.qmin - qparams.zero_point) * qparams.scale)
