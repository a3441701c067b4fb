"""Stochastic rounding (Gupta et al. 2015, https://arxiv.org/abs/1502.02551)."""

from __future__ import annotations

import torch
from torch import Tensor

from qat.estimators.base import Estimator
from qat.estimators.straight_through import UNIT_SLOPES

MARGIN = 1e-4
"""u is drawn from [MARGIN, 1 - MARGIN): values this close to a whole number round to it, so clipped values stay on the grid."""


class Stochastic(Estimator):
    """In training, rounds up with the probability of the fraction: floor(v + u), u uniform in [0, 1). Gradient: r'(v) = 1.

    The mean of the result is v, so small changes of v have an effect on average.

    Differs from the paper: in evaluation mode, and in the codes of `quantize`, convert and export, rounding is to
    nearest, so that the deployed network is deterministic. Random numbers come from torch's generator, which a resumed fit
    restores.
    """

    def round(self, v: Tensor) -> Tensor:
        if self.rounds_to_nearest:
            return torch.round(v)
        return torch.rand_like(v).mul_(1 - 2 * MARGIN).add_(MARGIN).add_(v).floor_()

    @property
    def rounds_to_nearest(self) -> bool:
        return not self.training

    def gradient(self, grad: Tensor, v: Tensor) -> Tensor:
        return grad

    @property
    def slopes(self) -> Tensor:
        return UNIT_SLOPES
