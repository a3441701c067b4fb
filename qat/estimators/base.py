"""What every estimator is: rounding, with a gradient."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor, nn


class Estimator(nn.Module):
    """Rounds to whole numbers. Rounding is a staircase, whose gradient is 0 or infinite; subclasses give another.

    A quantizer hands in v = x / scale, clipped to the grid, and multiplies the result by the scale. So an estimator whose
    gradient is r'(v) gives the quantizer dx = g * r'(v) and dscale = sum(g * (round(v) - v * r'(v))).
    """

    @abstractmethod
    def forward(self, v: Tensor) -> Tensor:
        """v, float32, in units of the scale -> the nearest whole numbers (ties to even), same shape, with a gradient."""
