"""The straight-through estimator (Bengio et al. 2013, https://arxiv.org/abs/1308.3432)."""

from __future__ import annotations

import torch
from torch import Tensor

from qat.estimators.base import Estimator


class StraightThrough(Estimator):
    """The gradient of the identity: r'(v) = 1. What quantizers use where nothing else is asked for."""

    def forward(self, v: Tensor) -> Tensor:
        rounded: Tensor = _Round.apply(v)
        return rounded


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, v: Tensor) -> Tensor:
        return torch.round(v)

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        return grad
