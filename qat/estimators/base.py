"""What every estimator is: rounding, with a gradient."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

POINTS = 1025
"""Enough for lines between them to be r' within 1e-5 of its largest value. Odd: 0 is a point, where r' may have a kink."""


class Estimator(nn.Module):
    """Rounds to whole numbers. Rounding is a staircase, whose gradient is 0 or infinite; subclasses give another.

    A quantizer hands in v = x / scale, float32, clipped to the grid, and multiplies the result by the scale. So an estimator
    whose gradient is r'(v) gives the quantizer dx = g * r'(v) and dscale = sum(g * (round(v) - v * r'(v))).
    """

    def round(self, v: Tensor) -> Tensor:
        """The nearest whole numbers, ties to even; same shape."""
        return torch.round(v)

    @property
    def to_nearest(self) -> bool:
        """Whether `round` is now the one above."""
        return True

    @abstractmethod
    def gradient(self, grad: Tensor, v: Tensor) -> Tensor:
        """grad * r'(v): what goes to v in the place of the gradient of rounding; may be `grad` itself."""

    @property
    def slopes(self) -> Tensor | None:
        """r'(v) at v - round(v) = -0.5 .. 0.5 in equal steps, float32 (2, points), for positive and for negative gradients:
        what a native kernel needs. None, as here, where r'(v) depends on more. One point is one slope everywhere.
        """
        return None

    def forward(self, v: Tensor) -> Tensor:
        rounded: Tensor = _Round.apply(v, self)
        return rounded


def sampled(estimator: Estimator) -> Tensor:
    """The slopes of an estimator whose r'(v) depends on v - round(v) and on the sign of the gradient alone."""
    v = torch.linspace(-0.5, 0.5, POINTS)
    one = torch.ones(POINTS)
    return torch.stack([estimator.gradient(one, v), -estimator.gradient(-one, v)])


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, v: Tensor, estimator: Estimator) -> Tensor:
        ctx.estimator = estimator
        ctx.save_for_backward(v)
        return estimator.round(v)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.estimator.gradient(grad, *ctx.saved_tensors), None
