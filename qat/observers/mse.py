"""The range with the smallest squared error."""

from __future__ import annotations

import torch
from torch import Tensor

from qat.kernels.cpu.ranges import RangeKernels, range_kernels
from qat.observers.search import AT_ONCE, SearchingObserver, cumulative, full_range, search


class MSE(SearchingObserver):
    """Searches the range whose quantization error, summed over all the data, is smallest.

    Tries `candidates` fractions of the full range. Symmetric grids shrink both bounds together; affine grids shrink one
    bound at a time, each of them twice. Never worse than min-max on the data it saw, up to the width of a histogram bin.
    """

    def range(self) -> tuple[Tensor, Tensor]:
        lo, hi = super().range()
        if lo.device.type == "cpu" and (kernels := range_kernels()) is not None:
            finite = bool(torch.isfinite(lo).all() and torch.isfinite(hi).all())
            return self._native_range(kernels, lo, hi) if finite else (lo, hi)  # the spec refuses what is not
        counts, centers = self._require_data(self.counts).double(), self.centers().double()
        below = cumulative(counts), cumulative(counts * centers)
        at_once = max(1, AT_ONCE // (len(counts) * 2**self.spec.grid.bits))
        return search(self.spec, lo, hi, lambda lo, hi: self._error(below, lo, hi), self.candidates, at_once=at_once)

    def _native_range(self, kernels: RangeKernels, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
        """The same search by the compiled kernel, which leaves out ranges that clip too much to be the best."""
        spec, grid = self.spec, self.spec.grid
        bounds = full_range(spec, lo, hi)
        data, half_width = self.kept or (self._require_data(self.counts), self._require_data(self.half_width))
        best_lo, best_hi = kernels.best_fractions(
            data, half_width, bounds, (grid.qmin, grid.qmax), spec.symmetric, grid.signed, self.candidates
        )
        return bounds[0] * best_lo, bounds[1] * best_hi

    def _error(self, below: tuple[Tensor, Tensor], lo: Tensor, hi: Tensor) -> Tensor:
        """sum(count * (value - center)^2) over the bins, minus the constant sum(count * center^2).

        A code represents consecutive bins: their count and their sum are differences of cumulative ones, so a range costs one
        look-up per code, however many bins there are.

        Args:
            below: count and sum of the elements in the first 0, 1, ..., BINS bins, each (n_qparams, BINS + 1).
            lo, hi: the ranges, float32 (..., n_qparams).

        Returns:
            The errors, float64 (..., n_qparams).
        """
        grid, half_width = self.spec.grid, self._require_data(self.half_width)[:, None]
        scale, zero_point = (p.double()[..., None] for p in self.spec.qparams(lo, hi))
        steps = torch.arange(grid.qmin, grid.qmax + 1, device=scale.device) - zero_point
        thresholds = (steps[..., 1:] - 0.5) * scale
        first = ((thresholds / half_width + 1.0) * (self.BINS / 2) - 0.5).ceil().clamp(0, self.BINS).long()
        first = torch.nn.functional.pad(torch.nn.functional.pad(first, (1, 0)), (0, 1), value=self.BINS)
        count, total = (b.expand(*lo.shape, -1).gather(-1, first).diff(dim=-1) for b in below)
        value = steps * scale
        return (value * (value * count - 2.0 * total)).sum(dim=-1)
