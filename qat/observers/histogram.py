"""A histogram of all the data: the base class of observers that need one."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from qat.observers.min_max import MinMax


class Histogram(MinMax):
    """Counts in `BINS` equal bins over [-half_width, half_width] for each row, and the exact smallest and largest value.

    half_width is a power of two that only ever doubles, and doubling joins neighbouring bins in pairs. So the counts depend
    only on the data, not on its order or its split into batches and processes. NaN and infinity stay in the range, which the
    spec then refuses.
    """

    BINS = 4096

    counts: Tensor | None
    half_width: Tensor | None

    def reset(self) -> None:
        super().reset()
        self.counts = self.half_width = None

    def update(self, x: Tensor) -> None:
        x = x.float()
        super().update(x)
        half_width = _power_of_two_above(x.abs().amax(dim=1))
        scaled = (x / half_width[:, None] + 1.0) * (self.BINS / 2)
        index = scaled.long().clamp_(0, self.BINS - 1)
        index += torch.arange(len(x), device=x.device)[:, None] * self.BINS
        counts = torch.bincount(index.flatten(), minlength=len(x) * self.BINS).reshape(len(x), self.BINS)
        self._add(counts, half_width)

    def merge(self, other: Self) -> None:
        super().merge(other)
        if other.counts is not None and other.half_width is not None:
            self._add(other.counts, other.half_width)

    def centers(self) -> Tensor:
        """The center of each bin: (n_qparams, BINS)."""
        positions = torch.arange(self.BINS, device=self._require_data(self.half_width).device) + 0.5
        return (positions / (self.BINS / 2) - 1.0) * self._require_data(self.half_width)[:, None]

    def _add(self, counts: Tensor, half_width: Tensor) -> None:
        if self.counts is None or self.half_width is None:
            self.counts, self.half_width = counts, half_width
            return
        common = torch.maximum(self.half_width, half_width)
        self.counts = _widened(self.counts, self.half_width, common) + _widened(counts, half_width, common)
        self.half_width = common


def _power_of_two_above(x: Tensor) -> Tensor:
    """The smallest power of two above each element of x, at least 2**-30."""
    _, exponent = torch.frexp(x.clamp(min=2.0**-31))
    return torch.ldexp(torch.ones_like(x), exponent)


def _widened(counts: Tensor, half_width: Tensor, target: Tensor) -> Tensor:
    """The same counts over [-target, target]; each row is doubled as often as needed."""
    counts, half_width = counts.clone(), half_width.clone()
    bins = counts.shape[1]
    while bool((rows := half_width < target).any()):
        pairs = counts[rows].reshape(-1, bins // 2, 2).sum(dim=2)
        counts[rows] = torch.nn.functional.pad(pairs, (bins // 4, bins // 4))
        half_width[rows] *= 2
    return counts
