"""What every estimator is: rounding, with a gradient."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn


class Estimator(nn.Module):
    """Rounds to whole numbers. Rounding is a staircase, whose gradient is 0 or infinite; subclasses give another.

    A quantizer hands in v = x / scale, float32, clipped to the grid, and multiplies the result by the scale. So an estimator
    whose gradient is r'(v) gives the quantizer dx = g * r'(v) and dscale = sum(g * (round(v) - v * r'(v))).
    """

    def round(self, v: Tensor) -> Tensor:
        """The nearest whole numbers, ties to even; same shape."""
        return torch.round(v)

    @abstractmethod
    def gradient(self, grad: Tensor, v: Tensor) -> Tensor:
        """grad * r'(v): what goes to v in the place of the gradient of rounding; may be `grad` itself."""

    def forward(self, v: Tensor) -> Tensor:
        rounded: Tensor = _Round.apply(v, self)
        return rounded


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, v: Tensor, estimator: Estimator) -> Tensor:
        ctx.estimator = estimator
        ctx.save_for_backward(v)
        return estimator.round(v)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.estimator.gradient(grad, *ctx.saved_tensors), None
