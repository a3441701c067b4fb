"""The base class of all estimators."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from qat.kernels import second_order

SLOPE_POINTS = 1025
"""Enough for linear interpolation to be within 1e-5 of the largest r'. Odd, so that 0 is a point: r' may have a kink there."""


class Estimator(nn.Module):
    """Rounds to whole numbers. The gradient of rounding is 0 or infinite; subclasses replace it by r'(v).

    A quantizer passes v = x / scale, float32, clipped to the grid, and multiplies the result by the scale. So it gets the
    gradients dx = g * r'(v) and dscale = sum(g * (round(v) - v * r'(v))).
    """

    def round(self, v: Tensor) -> Tensor:
        """v as whole numbers, here the nearest ones, ties to even; same shape."""
        return torch.round(v)

    @property
    def rounds_to_nearest(self) -> bool:
        """Whether `round` is torch.round at the moment."""
        return True

    @abstractmethod
    def gradient(self, grad: Tensor, v: Tensor) -> Tensor:
        """grad * r'(v), the gradient of v, same shape; may be `grad` itself."""

    @property
    def slopes(self) -> Tensor | None:
        """r'(v) as a table for compiled kernels, float32 (2, points); None, as here, if a table cannot describe it.

        The first row is for positive gradients, the second for negative ones. Points are equally spaced in
        v - round(v) = -0.5 .. 0.5; a single point is a constant slope.
        """
        return None

    def forward(self, v: Tensor) -> Tensor:
        rounded: Tensor = _Round.apply(v, self)
        return rounded


def sample_slopes(estimator: Estimator) -> Tensor:
    """The `slopes` of an estimator whose r'(v) depends only on v - round(v) and on the sign of the gradient."""
    v = torch.linspace(-0.5, 0.5, SLOPE_POINTS, dtype=torch.float32)
    ones = torch.ones_like(v)
    return torch.stack([estimator.gradient(ones, v), -estimator.gradient(-ones, v)])


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, v: Tensor, estimator: Estimator) -> Tensor:
        ctx.estimator = estimator
        ctx.save_for_backward(v)
        return estimator.round(v)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (v,) = ctx.saved_tensors
        if second_order.is_recorded():
            return grad * second_order.slope(ctx.estimator, grad, v), None
        return ctx.estimator.gradient(grad, v), None
