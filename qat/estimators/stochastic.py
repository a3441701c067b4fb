"""Stochastic rounding (Gupta et al. 2015, https://arxiv.org/abs/1502.02551)."""

from __future__ import annotations

import torch
from torch import Tensor

from qat.estimators.base import Estimator

WHOLE = 1e-4
"""What is this near a whole number is one, up to float32's rounding: a clipped value never leaves the grid."""


class Stochastic(Estimator):
    """In training, up with the probability of the fraction: floor(v + u), u uniform in [0, 1). Gradient: r'(v) = 1.

    The mean of the result is v, so that small changes of v are felt on average.

    Differs from the paper: in evaluation mode, and in the codes of `quantize`, convert and export, rounding is to the
    nearest, so that what is deployed is one network. The random numbers are torch's own, which a resumed fit restores.
    """

    def round(self, v: Tensor) -> Tensor:
        nearest = torch.round(v)
        if not self.training:
            return nearest
        drawn = torch.floor(v + torch.rand_like(v))
        return torch.where((v - nearest).abs() < WHOLE, nearest, drawn)

    def gradient(self, grad: Tensor, v: Tensor) -> Tensor:
        return grad
