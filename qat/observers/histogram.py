"""A histogram of all the data: the base class of observers that need one."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from qat.kernels.cpu.ranges import BINS as N_BINS
from qat.kernels.cpu.ranges import range_kernels
from qat.observers.min_max import MinMax, extremes
from qat.spec import SMALLEST_SCALE


class Histogram(MinMax):
    """Counts in `BINS` equal bins over [-half_width, half_width] for each row, and the exact smallest and largest value.

    half_width is a power of two that only ever doubles, and doubling joins neighbouring bins in pairs. So the counts depend
    only on the data, not on its order or its split into batches and processes. NaN and infinity stay in the range, which the
    spec then refuses.
    """

    BINS = N_BINS

    _counts: Tensor | None
    _half_width: Tensor | None
    kept: tuple[Tensor, Tensor] | None
    """The rows of a weight and their half_width: counted only if more data come, because bins take more memory."""

    def reset(self) -> None:
        super().reset()
        self._counts = self._half_width = self.kept = None

    @property
    def counts(self) -> Tensor | None:
        """How many elements lie in each bin: int64 (n_qparams, BINS)."""
        self._count_kept()
        return self._counts

    @property
    def half_width(self) -> Tensor | None:
        """Where the bins end: float32 (n_qparams,)."""
        self._count_kept()
        return self._half_width

    def update(self, x: Tensor) -> None:
        x = x.float()
        lo, hi = extremes(x)
        self._widen(lo, hi)
        half_width = _power_of_two_above(torch.maximum(-lo, hi))
        if self._counts is None and self.kept is None and len(x) > 1:
            self.kept = x.clone(), half_width
        else:
            self._count_kept()
            self._add(_histogram(x, half_width), half_width)

    def merge(self, other: Self) -> None:
        super().merge(other)
        if other.counts is not None and other.half_width is not None:
            self._count_kept()
            self._add(other.counts, other.half_width)

    def centers(self) -> Tensor:
        """The center of each bin: (n_qparams, BINS)."""
        positions = torch.arange(self.BINS, device=self._require_data(self.half_width).device) + 0.5
        return (positions / (self.BINS / 2) - 1.0) * self._require_data(self.half_width)[:, None]

    def _count_kept(self) -> None:
        if self.kept is not None:
            (x, half_width), self.kept = self.kept, None
            self._add(_histogram(x, half_width), half_width)

    def _add(self, counts: Tensor, half_width: Tensor) -> None:
        if self._counts is None or self._half_width is None:
            self._counts, self._half_width = counts, half_width
            return
        common = torch.maximum(self._half_width, half_width)
        self._counts = _widened(self._counts, self._half_width, common) + _widened(counts, half_width, common)
        self._half_width = common


def _histogram(x: Tensor, half_width: Tensor) -> Tensor:
    """How many elements of each row lie in each bin: (rows, n) -> int64 (rows, BINS)."""
    if x.device.type == "cpu" and (kernels := range_kernels()) is not None:
        return kernels.histogram(x, half_width)
    scaled = (x / half_width[:, None] + 1.0) * (N_BINS / 2)
    index = scaled.long().clamp_(0, N_BINS - 1)
    index += torch.arange(len(x), device=x.device)[:, None] * N_BINS
    return torch.bincount(index.flatten(), minlength=len(x) * N_BINS).reshape(len(x), N_BINS)


def _power_of_two_above(x: Tensor) -> Tensor:
    """The smallest power of two above each element of x that float32 has, at least `SMALLEST_SCALE`."""
    _, exponent = torch.frexp(x.clamp(min=SMALLEST_SCALE / 2))
    return torch.ldexp(torch.ones_like(x), exponent.clamp(max=127))


def _widened(counts: Tensor, half_width: Tensor, target: Tensor) -> Tensor:
    """The same counts over [-target, target]; each row is doubled as often as needed."""
    if torch.equal(half_width, target):
        return counts
    counts, half_width = counts.clone(), half_width.clone()
    bins = counts.shape[1]
    while bool((rows := half_width < target).any()):
        pairs = counts[rows].reshape(-1, bins // 2, 2).sum(dim=2)
        counts[rows] = torch.nn.functional.pad(pairs, (bins // 4, bins // 4))
        half_width[rows] *= 2
    return counts
