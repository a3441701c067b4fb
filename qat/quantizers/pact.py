"""Parameterized clipping activation (Choi et al. 2018, https://arxiv.org/abs/1805.06085)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qat.functional import clamp_straight_through, clip_and_round
from qat.quantizers.base import Quantizer
from qat.quantizers.lsq import FLOOR_FACTOR
from qat.spec import QParams


class PACT(Quantizer):
    """Clips to [0, hi] with a learned hi (the paper's alpha) and rounds to steps of hi / qmax (eq. 1 and 2).

    Gradient (eq. 3): dx = g inside, 0 on a bound or beyond it; dhi = the sum of g over values x >= hi. The effect of
    rounding on hi is left out.

    Differs from the paper: hi starts from the observer (the paper's first value is 8 or 10); a signed grid, of a weight or of
    an activation that may be negative, clips to [hi * qmin / qmax, hi], and values below that range give hi the gradient g *
    qmin / qmax; hi has no L2 penalty (quantizers have no weight decay here) and never falls below its first value / 1024.

    Raises:
        ValueError: an affine spec.
    """

    floor: Tensor

    def _build(self) -> None:
        self.require_symmetric()
        self.hi = nn.Parameter(torch.ones(self.n_qparams, dtype=torch.float32))
        self.register_buffer("floor", torch.full((self.n_qparams,), FLOOR_FACTOR, dtype=torch.float32))

    def qparams(self) -> QParams:
        return QParams(torch.maximum(self.hi.detach(), self.floor) / self.spec.grid.qmax, self.zero_point)

    def fake_quantize(self, x: Tensor) -> Tensor:
        grid, granularity, shape = self.spec.grid, self.spec.granularity, tuple(x.shape)
        hi = granularity.broadcastable(clamp_straight_through(self.hi, self.floor), shape)
        scale = granularity.broadcastable(self.qparams().scale, shape)
        lo = hi * (grid.qmin / grid.qmax)
        return clip_and_round(granularity.view(x), lo, hi, scale, self.estimator).reshape(shape)

    def _store(self, qparams: QParams) -> None:
        self.hi.copy_(qparams.scale * self.spec.grid.qmax)
        self.floor.copy_(self.hi * FLOOR_FACTOR)
