"""A histogram of all the data, which other observers read."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from qat.observers.min_max import MinMax


class Histogram(MinMax):
    """Counts in `BINS` equal bins over [-reach, reach], one histogram a row, besides the exact smallest and largest value.

    reach is a power of two that only ever doubles, and doubling joins neighbouring bins in pairs. So the counts depend on
    the data alone, not on its order or on how it was split into batches and processes. NaN and infinity stay in the range,
    for the spec to refuse.
    """

    BINS = 4096

    counts: Tensor | None
    reach: Tensor | None

    def reset(self) -> None:
        super().reset()
        self.counts = self.reach = None

    def update(self, x: Tensor) -> None:
        x = x.float()
        super().update(x)
        reach = _power_of_two_above(x.abs().amax(dim=1))
        scaled = (x / reach[:, None] + 1.0) * (self.BINS / 2)
        index = scaled.long().clamp_(0, self.BINS - 1)
        index += torch.arange(len(x), device=x.device)[:, None] * self.BINS
        counts = torch.bincount(index.flatten(), minlength=len(x) * self.BINS).reshape(len(x), self.BINS)
        self._add(counts, reach)

    def merge(self, other: Self) -> None:
        super().merge(other)
        if other.counts is not None and other.reach is not None:
            self._add(other.counts, other.reach)

    def centers(self) -> Tensor:
        """Middle of every bin: (n_qparams, BINS)."""
        edges = torch.arange(self.BINS, device=self._seen(self.reach).device) + 0.5
        return (edges / (self.BINS / 2) - 1.0) * self._seen(self.reach)[:, None]

    def _add(self, counts: Tensor, reach: Tensor) -> None:
        if self.counts is None or self.reach is None:
            self.counts, self.reach = counts, reach
            return
        common = torch.maximum(self.reach, reach)
        self.counts = _widened(self.counts, self.reach, common) + _widened(counts, reach, common)
        self.reach = common


def _power_of_two_above(x: Tensor) -> Tensor:
    """The smallest power of two > x for each element; 2**-30 where x is 0 or less than that."""
    _, exponent = torch.frexp(x.clamp(min=2.0**-31))
    return torch.ldexp(torch.ones_like(x), exponent)


def _widened(counts: Tensor, reach: Tensor, target: Tensor) -> Tensor:
    """The same counts over [-target, target]; every row is doubled as often as it needs."""
    counts, reach = counts.clone(), reach.clone()
    bins = counts.shape[1]
    while bool((rows := reach < target).any()):
        pairs = counts[rows].reshape(-1, bins // 2, 2).sum(dim=2)
        counts[rows] = torch.nn.functional.pad(pairs, (bins // 4, bins // 4))
        reach[rows] *= 2
    return counts
