"""Stochastic rounding (Gupta et al. 2015, https://arxiv.org/abs/1502.02551)."""

from __future__ import annotations

import torch
from torch import Tensor

from qat.estimators.base import Estimator
from qat.estimators.straight_through import ONE

WHOLE = 1e-4
"""u is drawn from [WHOLE, 1 - WHOLE): what is this near a whole number becomes it, and a clipped value stays on the grid."""


class Stochastic(Estimator):
    """In training, up with the probability of the fraction: floor(v + u), u uniform in [0, 1). Gradient: r'(v) = 1.

    The mean of the result is v, so that small changes of v are felt on average.

    Differs from the paper: in evaluation mode, and in the codes of `quantize`, convert and export, rounding is to the
    nearest, so that what is deployed is one network. The random numbers are torch's own, which a resumed fit restores.
    """

    def round(self, v: Tensor) -> Tensor:
        if self.to_nearest:
            return torch.round(v)
        return torch.rand_like(v).mul_(1 - 2 * WHOLE).add_(WHOLE).add_(v).floor_()

    @property
    def to_nearest(self) -> bool:
        return not self.training

    def gradient(self, grad: Tensor, v: Tensor) -> Tensor:
        return grad

    @property
    def slopes(self) -> Tensor:
        return ONE
