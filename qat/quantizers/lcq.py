"""Learnable companding quantization (Yamamoto 2021, https://arxiv.org/abs/2103.07156)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qat.arguments import is_whole_number
from qat.functional import clamp_straight_through, with_gradient_of
from qat.observers import Observer
from qat.quantizers.codebook import Codebook
from qat.spec import QuantSpec

MAX_THETA = 3.0
"""theta stays in -3..3: no slope is 0 or more than e^6 times another."""


class LCQ(Codebook):
    """Uniform rounding between a learned compressing function and its inverse: sign(x) f^-1(round(qmax f(|x|)) / qmax).

    f maps the range, scaled to 0..1, to 0..1. It is linear in each of `intervals` equal pieces, with slopes
    intervals * softmax(theta); where it is steep, levels lie close together. theta, (intervals,), is shared by all channels or
    groups and starts at 0, which is plain rounding.

    Gradient: straight-through for the rounding only. Inside the range dx = g f'(|x|) / f'(level), theta learns through f and
    through its inverse, and the scale as in LSQ, with f'(|x|) / f'(level) as the slope of rounding.

    Differs from the paper: weights are not normalised before rounding (its limited weight normalization); levels are rounded
    to whole codes of 8 bits, straight-through (its re-quantization, at the end of training there); the gradient of the scale
    is multiplied by LSQ's factor; theta is clamped to -3..3, with a straight-through gradient; an activation is rounded to 8
    bits first.

    Args:
        intervals: number of pieces of f.

    Raises:
        ValueError: a grid that is not symmetric, an unsigned one for a weight, or intervals that is not a whole
            number >= 1.
    """

    def __init__(
        self, spec: QuantSpec, shape: tuple[int, ...] = (), observer: Observer | None = None, intervals: int = 16
    ) -> None:
        super().__init__(spec, shape, observer)
        if not is_whole_number(intervals):
            raise ValueError(
                f"intervals={intervals!r} of LCQ is not possible: write a whole number, 1 or more, such as 16."
            )
        self.intervals = intervals
        self.highest_level = float(self.fine_grid.qmax)
        self.theta = nn.Parameter(torch.zeros(intervals, dtype=torch.float32))

    def levels(self) -> Tensor:
        with torch.no_grad():
            q = torch.arange(self.uniform_qmax + 1, device=self.theta.device).float() / self.uniform_qmax
            positive = torch.round(self.highest_level * self._expand(q))
        return torch.cat([-positive[1:].flip(0), positive]) if self.fine_grid.signed else positive

    def _index(self, v: Tensor, levels: Tensor) -> Tensor:
        with torch.no_grad():
            v = v.nan_to_num(0.0)  # NaN needs some index; its value stays NaN
            code = torch.round(self.uniform_qmax * self._compress((v.abs() / self.highest_level).clamp(max=1.0)))
            return (torch.sign(v) * code).long() + len(levels) - 1 - self.uniform_qmax

    def _round(self, v: Tensor, levels: Tensor) -> Tensor:
        index = self._index(v.detach(), levels)
        sign = torch.where(v < 0, -1.0, 1.0).to(v.dtype)
        code = (index - (len(levels) - 1 - self.uniform_qmax)).abs().float() / self.uniform_qmax
        magnitude = self._expand(with_gradient_of(code, self._compress(sign * v / self.highest_level)))
        return with_gradient_of(levels[index], sign * self.highest_level * magnitude)

    def _compress(self, u: Tensor) -> Tensor:
        """f(u), for u in 0..1 of any shape."""
        slope, start = self._pieces()
        piece = (u.detach().nan_to_num(0.0) * self.intervals).long().clamp(max=self.intervals - 1)
        return start[piece] + slope[piece] * (u - piece.float() / self.intervals)

    def _expand(self, q: Tensor) -> Tensor:
        """The inverse of f, for q in 0..1 of any shape."""
        slope, start = self._pieces()
        piece = torch.bucketize(q.detach(), start.detach()[1:], right=True)
        return piece.float() / self.intervals + (q - start[piece]) / slope[piece]

    def _pieces(self) -> tuple[Tensor, Tensor]:
        """The slope of each piece of f, and the value of f where the piece begins: both (intervals,)."""
        rise = torch.softmax(clamp_straight_through(self.theta, -MAX_THETA, MAX_THETA), dim=0)
        return rise * self.intervals, rise.cumsum(dim=0) - rise
