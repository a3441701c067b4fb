"""The straight-through estimator (Bengio et al. 2013, https://arxiv.org/abs/1308.3432)."""

from __future__ import annotations

from torch import Tensor

from qat.estimators.base import Estimator


class StraightThrough(Estimator):
    """The gradient of the identity: r'(v) = 1. What quantizers use where nothing else is asked for."""

    def gradient(self, grad: Tensor, v: Tensor) -> Tensor:
        return grad
