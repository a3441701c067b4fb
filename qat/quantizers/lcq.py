"""Learnable companding quantization (Yamamoto 2021, https://arxiv.org/abs/2103.07156)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qat.functional import held, with_gradient_of
from qat.observers import Observer
from qat.quantizers.codebook import Codebook
from qat.spec import QuantSpec

STEEPEST = 3.0
"""theta stays in -3..3: no slope is more than e^6 times another, and none is 0."""


class LCQ(Codebook):
    """Uniform rounding between a learned compressing function and its inverse: sign(w) f^-1(round(qmax f(|w|)) / qmax).

    f maps 0..1, the range, to 0..1. It is linear in each of `intervals` equal pieces, with slopes intervals * softmax(theta):
    where it is steep, levels lie close together. theta, (intervals,), is shared by all channels or groups; 0 at first, which is
    plain rounding.

    Gradient: straight-through for the rounding alone. Inside the range dw = g f'(|w|) / f'(level), theta learns through f and
    through its inverse, and the scale as in LSQ, with f'(|w|) / f'(level) for the slope of the rounding.

    Differs from the paper: of weights only; they are not normalised before rounding (its limited weight normalization);
    levels are rounded to whole codes in -127..127, straight-through (its re-quantization, at the end of training there);
    the gradient of the scale is multiplied by LSQ's factor; theta counts as -3..3, with a gradient that passes.

    Args:
        intervals: pieces of f.

    Raises:
        ValueError: an activation, a grid that is not symmetric and signed, or intervals < 1.
    """

    def __init__(
        self, spec: QuantSpec, shape: tuple[int, ...] = (), observer: Observer | None = None, intervals: int = 16
    ) -> None:
        super().__init__(spec, shape, observer)
        if intervals < 1:
            raise ValueError(f"intervals={intervals!r} of LCQ must be at least 1: write for example 16.")
        self.intervals = intervals
        self.qmax = spec.grid.qmax
        self.theta = nn.Parameter(torch.zeros(intervals, dtype=torch.float32))

    def levels(self) -> Tensor:
        with torch.no_grad():
            q = torch.arange(self.qmax + 1, device=self.theta.device) / self.qmax
            positive = torch.round(127.0 * self._expand(q))
        return torch.cat([-positive[1:].flip(0), positive])

    def _index(self, v: Tensor, levels: Tensor) -> Tensor:
        with torch.no_grad():
            code = torch.round(self.qmax * self._compress((v.abs() / 127.0).clamp(max=1.0)))
            return (torch.sign(v) * code).long() + self.qmax

    def _round(self, v: Tensor, levels: Tensor) -> Tensor:
        index = self._index(v.detach(), levels)
        sign = torch.where(v < 0, -1.0, 1.0)
        code = (index - self.qmax).abs() / self.qmax
        line = self._expand(with_gradient_of(code, self._compress(sign * v / 127.0)))
        return with_gradient_of(levels[index], sign * 127.0 * line)

    def _compress(self, u: Tensor) -> Tensor:
        """f: 0..1 -> 0..1, any shape."""
        slope, start = self._pieces()
        piece = (u.detach() * self.intervals).long().clamp(max=self.intervals - 1)
        return start[piece] + slope[piece] * (u - piece / self.intervals)

    def _expand(self, q: Tensor) -> Tensor:
        """The inverse of f."""
        slope, start = self._pieces()
        piece = torch.bucketize(q.detach(), start.detach()[1:], right=True)
        return piece / self.intervals + (q - start[piece]) / slope[piece]

    def _pieces(self) -> tuple[Tensor, Tensor]:
        """Slope of each piece of f, and its value where the piece begins: both (intervals,)."""
        rise = torch.softmax(held(self.theta, -STEEPEST, STEEPEST), dim=0)
        return rise * self.intervals, rise.cumsum(dim=0) - rise
