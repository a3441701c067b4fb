"""Differentiable soft quantization (Gong et al. 2019, https://arxiv.org/abs/1908.05033)."""

from __future__ import annotations

from functools import cached_property
from math import log, tanh

import torch
from torch import Tensor

from qat.arguments import is_number
from qat.estimators.base import Estimator, sample_slopes


class DSQ(Estimator):
    """The gradient of a staircase of tanh pieces: large at the thresholds, small where v is nearly whole.

    With m the midpoint between the whole numbers around v: r'(v) = s k / 2 * (1 - tanh(k (v - m))^2), where
    k = log(2 / alpha - 1) and s = 1 / tanh(k / 2) = 1 / (1 - alpha). Its mean over a step is 1. alpha near 0 is nearly the
    staircase, alpha near 1 nearly straight-through.

    Differs from the paper: alpha is a fixed option, where the paper learns it for each layer; lower and upper bound are
    those of the quantizer.

    Args:
        alpha: softness of the staircase, in (0, 1).

    Raises:
        ValueError: alpha outside (0, 1).
    """

    def __init__(self, alpha: float = 0.2) -> None:
        super().__init__()
        if not (is_number(alpha) and 0.0 < alpha < 1.0):
            raise ValueError(
                f"DSQ with alpha={alpha!r}: write a number between 0 (staircase) and 1 (line), such as 0.2."
            )
        self.alpha = alpha

    def gradient(self, grad: Tensor, v: Tensor) -> Tensor:
        k = log(2.0 / self.alpha - 1.0)
        squared_tanh = torch.floor(v).sub_(v).add_(0.5).mul_(k).tanh_().square_()
        return torch.sub(1.0, squared_tanh).mul_(grad).mul_(k / (2.0 * tanh(k / 2.0)))

    @cached_property
    def slopes(self) -> Tensor:
        return sample_slopes(self)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}"
